//! The two formats of a line, field by field.
//!
//! Text lines are `key=value` pairs. A value that is not plain printable ASCII without spaces, quotes, backslashes and
//! equals signs is quoted and escaped as in JSON, so that neither a field nor a line can be forged there either.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use super::redact::redacted;
use super::{FIELD_MAX, PATH_MAX};
use crate::snapshot::LogFormat;

/// A line under way. Keys are the crate's own words and need no escaping.
pub(super) struct Line<'o> {
    format: LogFormat,
    out: &'o mut Vec<u8>,
}

impl<'o> Line<'o> {
    pub(super) fn begin(format: LogFormat, out: &'o mut Vec<u8>) -> Line<'o> {
        if format == LogFormat::Json {
            out.push(b'{');
        }
        Line { format, out }
    }

    /// Ends the line; at least one field must have been written.
    pub(super) fn end(self) {
        // Takes the place of the last field's separator.
        self.out.pop();
        self.out.extend_from_slice(match self.format {
            LogFormat::Json => b"}\n",
            LogFormat::Text => b"\n",
        });
    }

    /// A value that needs neither escaping nor, as text, quotes.
    pub(super) fn word(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.quote();
        self.out.extend_from_slice(value);
        self.quote();
        self.separate();
    }

    /// Any bytes; none at all leave the field out.
    pub(super) fn string(&mut self, key: &str, value: &[u8]) {
        self.escaped(key, value, FIELD_MAX, &[]);
    }

    /// A request target, with the query parameters named in `redact` masked.
    pub(super) fn target(&mut self, key: &str, value: &[u8], redact: &[Box<str>]) {
        self.escaped(key, value, PATH_MAX, redact);
    }

    /// Pairs, separated by spaces; none at all leave the field out.
    pub(super) fn tries(&mut self, key: &str, tries: &[super::Try<'_>]) {
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
        self.separate();
    }

    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        push_decimal(value, self.out);
        self.separate();
    }

    /// Milliseconds with three decimals, cut off rather than rounded.
    pub(super) fn milliseconds(&mut self, key: &str, value: Duration) {
        self.key(key);
        let microseconds = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        push_decimal(microseconds / 1_000, self.out);
        let [hundreds, tens, ones] = [microseconds / 100, microseconds / 10, microseconds].map(last_digit);
        self.out.extend_from_slice(&[b'.', hundreds, tens, ones]);
        self.separate();
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        self.separate();
    }

    pub(super) fn address(&mut self, key: &str, value: IpAddr) {
        self.key(key);
        self.quote();
        // A dual-stack listener sees IPv4 clients as ::ffff:a.b.c.d.
        match value.to_canonical() {
            IpAddr::V4(address) => {
                for (index, octet) in address.octets().into_iter().enumerate() {
                    if index > 0 {
                        self.out.push(b'.');
                    }
                    push_decimal(u64::from(octet), self.out);
                }
            }
            IpAddr::V6(address) => write!(self.out, "{address}").expect("a vector takes every write"),
        }
        self.quote();
        self.separate();
    }

    fn escaped(&mut self, key: &str, value: &[u8], length_max: usize, redact: &[Box<str>]) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        let shown = cut(value, length_max);
        let is_cut = shown.len() < value.len();
        let quoted = self.format == LogFormat::Json || is_cut || !shown.iter().all(|&byte| is_bare(byte));
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
        self.separate();
    }

    fn key(&mut self, key: &str) {
        self.quote();
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(match self.format {
            LogFormat::Json => b"\":",
            LogFormat::Text => b"=",
        });
    }

    /// The quotation mark that JSON wants where text does not.
    fn quote(&mut self) {
        if self.format == LogFormat::Json {
            self.out.push(b'"');
        }
    }

    fn separate(&mut self) {
        self.out.push(match self.format {
            LogFormat::Json => b',',
            LogFormat::Text => b' ',
        });
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

/// Appends `bytes` as the inside of a JSON string (RFC 8259, section 7). What is not UTF-8 becomes U+FFFD; control
/// characters, those beyond ASCII and the Unicode line separators too, are escaped.
fn push_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    // The usual case, without a branch per byte.
    if !bytes.iter().fold(false, |any, &byte| any | needs_care(byte)) {
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

fn push_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20]; // as many as u64::MAX has
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = last_digit(number);
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[start..]);
        }
    }
}

fn last_digit(number: u64) -> u8 {
    b'0' + (number % 10) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            let mut out = Vec::new();
            push_decimal(number, &mut out);
            assert_eq!(out, number.to_string().as_bytes());
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
