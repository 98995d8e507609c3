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
    pub(super) fn begin(timestamp: &[u8; 24], out: &'o mut Vec<u8>) -> Self {
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
    #[inline(always)] // the key's length is known then
    pub(super) fn string(&mut self, key: Key, value: &[u8]) {
        if !value.is_empty() {
            self.string_key(key);
            self.escaped(value, FIELD_MAX, &[]);
            self.quote();
        }
    }

    /// A request target, with the query parameters named in `redact` masked.
    #[inline(always)] // as above
    pub(super) fn target(&mut self, key: Key, value: &[u8], redact: &[Box<str>]) {
        if !value.is_empty() {
            self.string_key(key);
            self.escaped(value, PATH_MAX, redact);
            self.quote();
        }
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
        // Each by itself, so that its length is known.
        match value {
            true => self.out.extend_from_slice(b"true"),
            false => self.out.extend_from_slice(b"false"),
        }
    }

    pub(super) fn address(&mut self, key: Key, value: IpAddr) {
        self.string_key(key);
        // A dual-stack listener sees IPv4 clients as ::ffff:a.b.c.d.
        push_address(value.to_canonical(), self.out);
        self.quote();
    }

    /// The inside of a JSON string; as text, with quotes where it needs them.
    fn escaped(&mut self, value: &[u8], length_max: usize, redact: &[Box<str>]) {
        let shown = cut(value, length_max);
        let is_cut = shown.len() < value.len();
        let needs_quotes = !JSON && (is_cut || !shown.iter().all(|&byte| is_bare(byte)));
        if needs_quotes {
            self.out.push(b'"');
        }
        redacted(shown, redact, |piece| push_escaped(piece, self.out));
        if is_cut {
            self.out.extend_from_slice("…".as_bytes());
        }
        if needs_quotes {
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
fn needs_care(byte: u8) -> bool {
    !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\')
}

/// Whether no byte [needs care](needs_care): word by word, and the last word ends where `bytes` do, so that some may be looked at
/// twice.
fn is_plain(bytes: &[u8]) -> bool {
    match bytes.len() {
        8.. => {
            let words = bytes.as_chunks().0.iter().chain(bytes.last_chunk()).map(|word| u64::from_le_bytes(*word));
            words.fold(0, |any, word| any | care(word)) == 0
        }
        4.. => {
            let half = |half: Option<&[u8; 4]>| u64::from(half.map_or(0, |half| u32::from_le_bytes(*half)));
            care(half(bytes.first_chunk()) << 32 | half(bytes.last_chunk())) == 0
        }
        _ => bytes.iter().all(|&byte| !needs_care(byte)),
    }
}

/// Not 0 when a byte of `word` [needs care](needs_care). Carries and borrows begin in such bytes alone, so that what they do to
/// the next ones changes nothing (Bit Twiddling Hacks, "Determine if a word has a byte less than n").
fn care(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let below_space = word.wrapping_sub(ONES * 0x20);
    let delete = word.wrapping_add(ONES);
    let quote = (word ^ (ONES * b'"' as u64)).wrapping_sub(ONES);
    let backslash = (word ^ (ONES * b'\\' as u64)).wrapping_sub(ONES);
    (word | below_space | delete | quote | backslash) & (ONES << 7)
}

/// Appends `bytes` as the inside of a JSON string (RFC 8259, section 7). What is not UTF-8 becomes U+FFFD; control
/// characters, those beyond ASCII and the Unicode line separators too, are escaped.
fn push_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    // The usual case.
    if is_plain(bytes) {
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
    fn each_byte_is_looked_at() {
        for length in 0..70 {
            let plain = vec![b'~'; length];
            assert!(is_plain(&plain), "{length}");
            for at in 0..length {
                for byte in 0..=255 {
                    let mut bytes = plain.clone();
                    bytes[at] = byte;
                    assert_eq!(is_plain(&bytes), !needs_care(byte), "{byte:#x} at {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn what_is_carried_on_to_the_next_byte_changes_nothing() {
        for fill in [b' ', b'~'] {
            for (first, second) in (0..=255).flat_map(|first| (0..=255).map(move |second| (first, second))) {
                let word = u64::from_le_bytes([first, second, fill, fill, fill, fill, fill, fill]);
                assert_eq!(care(word) != 0, needs_care(first) || needs_care(second), "{first:#x} {second:#x}");
            }
        }
    }

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
