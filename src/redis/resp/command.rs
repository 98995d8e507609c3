//! Commands, rendered into a buffer that is reused: an array of bulk strings each, integers in decimal.

use std::fmt;

use aws_lc_rs::digest;

/// An argument of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg<'a> {
    /// As it is, any bytes.
    Bytes(&'a [u8]),
    /// In decimal.
    Integer(i64),
}

/// Appends a whole command, its name first.
pub fn command(parts: &[&[u8]], out: &mut Vec<u8>) {
    array(parts.len(), out);
    for part in parts {
        bulk(part, out);
    }
}

/// Appends the head of an array: `length` elements have to follow.
pub fn array(length: usize, out: &mut Vec<u8>) {
    head(b'*', length, out);
}

/// Appends a bulk string.
pub fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    head(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends an integer as the bulk string that a command's arguments are.
pub fn integer(value: i64, out: &mut Vec<u8>) {
    let mut digits = [0; DIGITS_MAX];
    bulk(decimal(value.unsigned_abs(), value < 0, &mut digits), out);
}

fn head(kind: u8, length: usize, out: &mut Vec<u8>) {
    let mut digits = [0; DIGITS_MAX];
    out.push(kind);
    out.extend_from_slice(decimal(length as u64, false, &mut digits));
    out.extend_from_slice(b"\r\n");
}

/// A sign and the 20 digits of `u64::MAX`.
const DIGITS_MAX: usize = 21;

fn decimal(mut value: u64, is_negative: bool, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    if is_negative {
        from -= 1;
        digits[from] = b'-';
    }
    &digits[from..]
}

/// A Lua script, called by the SHA-1 of its text, which is how Redis names it.
pub struct Script {
    text: Box<str>,
    sha1: Box<str>,
    /// `EVALSHA sha1` without the head of the array.
    evalsha: Box<[u8]>,
    /// `EVAL text`, likewise.
    eval: Box<[u8]>,
}

impl Script {
    /// A script of this text.
    pub fn new(text: &str) -> Script {
        // The name that Redis gives it, no protection of anything.
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let sha1: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let prefix = |name: &str, what: &str| {
            let mut prefix = Vec::new();
            bulk(name.as_bytes(), &mut prefix);
            bulk(what.as_bytes(), &mut prefix);
            prefix.into_boxed_slice()
        };
        Script { evalsha: prefix("EVALSHA", &sha1), eval: prefix("EVAL", text), text: text.into(), sha1: sha1.into() }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its name: 40 hexadecimal digits, lower case.
    pub fn sha1(&self) -> &str {
        &self.sha1
    }

    /// Appends the call by name.
    pub fn evalsha(&self, keys: &[&[u8]], args: &[Arg<'_>], out: &mut Vec<u8>) {
        call(&self.evalsha, keys, args, out);
    }

    /// Appends the call by text, which makes the script known by name from then on.
    pub fn eval(&self, keys: &[&[u8]], args: &[Arg<'_>], out: &mut Vec<u8>) {
        call(&self.eval, keys, args, out);
    }

    /// Appends the command that makes the script known. It is answered with [`Script::sha1`].
    pub fn load(&self, out: &mut Vec<u8>) {
        command(&[b"SCRIPT", b"LOAD", self.text.as_bytes()], out);
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("sha1", &self.sha1).finish_non_exhaustive()
    }
}

fn call(prefix: &[u8], keys: &[&[u8]], args: &[Arg<'_>], out: &mut Vec<u8>) {
    array(3 + keys.len() + args.len(), out);
    out.extend_from_slice(prefix);
    integer(keys.len() as i64, out);
    for key in keys {
        bulk(key, out);
    }
    for arg in args {
        match *arg {
            Arg::Bytes(bytes) => bulk(bytes, out),
            Arg::Integer(value) => integer(value, out),
        }
    }
}
