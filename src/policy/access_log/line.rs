//! The two formats of a line, field by field.
//!
//! Text lines are `key=value` pairs. A value that is not plain printable ASCII without spaces, quotes, backslashes and
//! equals signs is quoted and escaped as in JSON, so that neither a field nor a line can be forged there either.

use std::net::IpAddr;
use std::time::Duration;

use super::redact::redacted;
use super::{FIELD_MAX, PATH_MAX};
use crate::http::text::{push_address, push_decimal};

/// A field's name, with what stands before and behind it. Names are the crate's own words and need no escaping.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) json: &'static str,
    pub(super) json_string: &'static str,
    pub(super) text: &'static str,
}

/// The [`Key`] of a name.
macro_rules! key {
    ($name:literal) => {
        Key {
            json: concat!(",\"", $name, "\":"),
            json_string: concat!(",\"", $name, "\":\""),
            text: concat!(" ", $name, "="),
        }
    };
}
pub(super) use key;

/// A line under way, in JSON or as text: a line is written for each request, so which it is is not asked for each field.
pub(super) struct Line<'o, const JSON: bool> {
    out: &'o mut Vec<u8>,
}

impl<'o, const JSON: bool> Line<'o, JSON> {
    /// Begins a line with the moment that it tells of.
    pub(super) fn begin(timestamp: &[u8], out: &'o mut Vec<u8>) -> Self {
        out.extend_from_slice(if JSON { b"{\"ts\":\"" } else { b"ts=" });
        out.extend_from_slice(timestamp);
        let mut line = Line { out };
        line.quote();
        line
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(if JSON { b"}\n" } else { b"\n" });
    }

    /// A value that needs neither escaping nor, as text, quotes.
    pub(super) fn word(&mut self, key: Key, value: &str) {
        self.string_key(key);
        self.out.extend_from_slice(value.as_bytes());
        self.quote();
    }

    /// The same; an empty one leaves the field out.
    pub(super) fn word_if_any(&mut self, key: Key, value: &str) {
        if !value.is_empty() {
            self.word(key, value);
        }
    }

    /// Any bytes; none at all leave the field out.
    pub(super) fn string(&mut self, key: Key, value: &[u8]) {
        self.escaped(key, value, FIELD_MAX, &[]);
    }

    /// A request target, with the query parameters named in `redact` masked.
    pub(super) fn target(&mut self, key: Key, value: &[u8], redact: &[Box<str>]) {
        self.escaped(key, value, PATH_MAX, redact);
    }

    /// Pairs, separated by spaces; none at all leave the field out.
    pub(super) fn tries(&mut self, key: Key, tries: &[super::Try<'_>]) {
        let Some((first, others)) = tries.split_first() else { return };
        self.key(key);
        // As text, the equals sign asks for quotes.
        self.out.push(b'"');
        push_try(first, self.out);
        for other in others {
            self.out.push(b' ');
            push_try(other, self.out);
        }
        self.out.push(b'"');
    }

    pub(super) fn number(&mut self, key: Key, value: u64) {
        self.key(key);
        push_decimal(value, self.out);
    }

    /// Milliseconds with three decimals, cut off rather than rounded.
    pub(super) fn milliseconds(&mut self, key: Key, value: Duration) {
        let micros = value.as_secs().saturating_mul(1_000_000).saturating_add(value.subsec_micros().into());
        self.number(key, micros / 1_000);
        let [hundreds, tens, ones] = [micros / 100, micros / 10, micros].map(|part| b'0' + (part % 10) as u8);
        self.out.extend_from_slice(&[b'.', hundreds, tens, ones]);
    }

    pub(super) fn flag(&mut self, key: Key, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    pub(super) fn address(&mut self, key: Key, value: IpAddr) {
        self.string_key(key);
        // A dual-stack listener sees IPv4 clients as ::ffff:a.b.c.d.
        push_address(value.to_canonical(), self.out);
        self.quote();
    }

    fn escaped(&mut self, key: Key, value: &[u8], length_max: usize, redact: &[Box<str>]) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        let shown = cut(value, length_max);
        let is_cut = shown.len() < value.len();
        let quoted = JSON || is_cut || !shown.iter().all(|&byte| is_bare(byte));
        if quoted {
            self.out.push(b'"');
        }
        redacted(shown, redact, |piece| push_escaped(piece, self.out));
        if is_cut {
            self.out.extend_from_slice("…".as_bytes());
        }
        if quoted {
            self.out.push(b'"');
        }
    }

    fn key(&mut self, key: Key) {
        self.out.extend_from_slice(if JSON { key.json } else { key.text }.as_bytes());
    }

    /// A key and the quotation mark that a string has in JSON, where text has none.
    fn string_key(&mut self, key: Key) {
        self.out.extend_from_slice(if JSON { key.json_string } else { key.text }.as_bytes());
    }

    fn quote(&mut self) {
        if JSON {
            self.out.push(b'"');
        }
    }
}

/// The first `length_max` bytes of `value`, or up to three fewer where that would cut a UTF-8 character in two.
fn cut(value: &[u8], length_max: usize) -> &[u8] {
    let Some(&next) = value.get(length_max) else { return value };
    let is_continuation = |byte: u8| byte & 0xC0 == 0x80;
    let mut end = length_max;
    if is_continuation(next) {
        let back = value[length_max - 3..length_max].iter().rev().position(|&byte| !is_continuation(byte));
        end -= back.map_or(0, |continuations| continuations + 1);
    }
    &value[..end]
}

/// Whether a text value that holds only such bytes goes without quotes.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=')
}

/// Whether a JSON string cannot hold `byte` as it is, or a terminal would act on it.
const fn needs_care(byte: u8) -> bool {
    !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\')
}

/// [`needs_care`] of each byte.
const NEEDS_CARE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = needs_care(byte as u8);
        byte += 1;
    }
    table
};

/// Appends `bytes` as the inside of a JSON string (RFC 8259, section 7). What is not UTF-8 becomes U+FFFD; control
/// characters, those beyond ASCII and the Unicode line separators too, are escaped.
fn push_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    // The usual case: blocks are looked at as a whole, without a branch for each byte.
    let (blocks, rest) = bytes.as_chunks::<16>();
    let is_odd = |block: &[u8; 16]| block.iter().fold(false, |any, &byte| any | needs_care(byte));
    if !blocks.iter().any(is_odd) && !rest.iter().any(|&byte| NEEDS_CARE[usize::from(byte)]) {
        return out.extend_from_slice(bytes);
    }
    let mut rest = bytes;
    loop {
        let plain = rest.iter().position(|&byte| needs_care(byte)).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        // Together with its like, since a character may take several bytes.
        let odd = rest.iter().position(|&byte| !needs_care(byte)).unwrap_or(rest.len());
        if odd == 0 {
            return;
        }
        for chunk in rest[..odd].utf8_chunks() {
            chunk.valid().chars().for_each(|character| push_character(character, out));
            if !chunk.invalid().is_empty() {
                push_character(char::REPLACEMENT_CHARACTER, out);
            }
        }
        rest = &rest[odd..];
    }
}

fn push_character(character: char, out: &mut Vec<u8>) {
    match character {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        '\u{2028}' | '\u{2029}' | '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
            let digit = |shift: u32| b"0123456789abcdef"[(character as usize >> shift) & 15];
            out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
        }
        _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn push_try(one: &super::Try<'_>, out: &mut Vec<u8>) {
    push_escaped(one.instance.as_bytes(), out);
    out.push(b'=');
    out.extend_from_slice(one.error.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_characters_whole() {
        let check = |value: &str, length_max, expected: &str| {
            assert_eq!(cut(value.as_bytes(), length_max), expected.as_bytes(), "{value}");
        };
        check("abcdef", 6, "abcdef");
        check("abcdef", 5, "abcde");
        check("abcdé", 5, "abcd");
        check("abcdé", 6, "abcdé");
        check("abcdéf", 6, "abcdé");
        check("ab€€", 4, "ab");
        check("ab€€", 7, "ab€");
        check("a🦀🦀", 4, "a");
        check("a🦀🦀", 5, "a🦀");
        assert_eq!(cut(&[0x80; 9], 5), [0x80; 5], "not UTF-8 at all");
    }
}
