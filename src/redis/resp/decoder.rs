//! Replies out of a stream, whatever pieces it arrives in.
//!
//! The `redis-protocol` crate reads the frames. What it leaves to its caller is done here: it recurses as deep as a peer
//! nests, waits for however many bytes a length announces, and takes any two bytes for the end of a bulk string. So a
//! `Walk` goes ahead of it, frame by frame, and remembers how far it has come.

use bytes::BytesMut;
use redis_protocol::resp2::decode::decode_range;

use super::reply::Reply;

/// The longest reply, in bytes as it is sent. The gateway asks for nothing that is answered with a hundredth of it.
pub const REPLY_MAX: usize = 65_536;

/// How deep arrays may be nested.
pub const DEPTH_MAX: usize = 4;

/// The longest head of an array or bulk string: a sign, 19 digits, type and line end, rounded up.
const HEAD_MAX: usize = 32;

/// The peer sent what is no RESP2, or no reply within the bounds. The stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no RESP2 reply, or one beyond {REPLY_MAX} bytes or {DEPTH_MAX} levels")]
pub struct Malformed;

/// The incremental decoder of one connection.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    walk: Walk,
}

impl Decoder {
    /// Takes what was read. [`Decoder::next_reply`] is to be called until it has nothing more, then the buffer stays bounded.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next whole reply; `None` when more has to be read first.
    ///
    /// # Errors
    /// [`Malformed`], and from then on whatever the rest happens to look like: the connection has to be closed.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, Malformed> {
        let Some(length) = self.walk.advance(&self.buf)? else { return Ok(None) };
        self.walk = Walk::default();
        Ok(Some(Reply::new(self.buf.split_to(length).freeze())))
    }

    /// Whether nothing is left of what was read.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }
}

/// How far the first frame of a buffer is known to be good.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Where the next frame starts: one that lies in the first, or the byte behind it.
    at: usize,
    /// How many frames are still to come in each array that is open.
    open: [usize; DEPTH_MAX],
    depth: usize,
}

impl Walk {
    /// Goes on in `buf`, which starts with what it started with before. Returns the length of its first frame, once that
    /// is whole.
    pub(super) fn advance(&mut self, buf: &[u8]) -> Result<Option<usize>, Malformed> {
        loop {
            match self.step(buf)? {
                None if buf.len() > REPLY_MAX => return Err(Malformed),
                None => return Ok(None),
                Some(length) => self.at += length,
            }
            if self.at > REPLY_MAX {
                return Err(Malformed);
            }
            while self.depth > 0 && self.open[self.depth - 1] == 0 {
                self.depth -= 1;
            }
            if self.depth == 0 {
                return Ok(Some(self.at));
            }
        }
    }

    /// The length of the scalar or of the array's head that comes next.
    fn step(&mut self, buf: &[u8]) -> Result<Option<usize>, Malformed> {
        let rest = &buf[self.at..];
        let Some(&kind) = rest.first() else { return Ok(None) };
        let length = match kind {
            b'*' => {
                let Some(head) = read_head(rest)? else { return Ok(None) };
                self.close_one();
                if let Some(elements @ 1..) = head.length {
                    *self.open.get_mut(self.depth).ok_or(Malformed)? = elements;
                    self.depth += 1;
                }
                return Ok(Some(head.size));
            }
            b'$' => {
                let Some(head) = read_head(rest)? else { return Ok(None) };
                let Some(length) = head.length else {
                    self.close_one();
                    return Ok(Some(head.size));
                };
                let whole = head.size + length + 2;
                if rest.len() < whole {
                    return Ok(None);
                }
                if &rest[whole - 2..whole] != b"\r\n" {
                    return Err(Malformed);
                }
                whole
            }
            _ => match decode_range(rest) {
                Ok(Some((_, length))) => length,
                Ok(None) => return Ok(None),
                Err(_) => return Err(Malformed),
            },
        };
        self.close_one();
        Ok(Some(length))
    }

    /// A frame of the innermost open array has begun.
    fn close_one(&mut self) {
        if let Some(innermost) = self.depth.checked_sub(1) {
            self.open[innermost] -= 1;
        }
    }
}

/// The first line of an array or bulk string.
pub(super) struct Head {
    /// The line's own size, its end included.
    pub(super) size: usize,
    /// What it announces; `None` for the null that -1 stands for.
    pub(super) length: Option<usize>,
}

/// Reads the line that `bytes` start with; `None` when it is not whole yet.
pub(super) fn read_head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let within = &bytes[..bytes.len().min(HEAD_MAX)];
    let Some(end) = memchr::memchr(b'\r', within) else {
        return if within.len() < HEAD_MAX { Ok(None) } else { Err(Malformed) };
    };
    match bytes.get(end + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(Malformed),
    }
    let size = end + 2;
    let digits = &bytes[1..end];
    if digits == b"-1" {
        return Ok(Some(Head { size, length: None }));
    }
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let length = digits.iter().fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    if length > REPLY_MAX { Err(Malformed) } else { Ok(Some(Head { size, length: Some(length) })) }
}

/// The length of the frame that `bytes`, taken from a whole reply, start with.
pub(super) fn frame_length(bytes: &[u8]) -> Option<usize> {
    Walk::default().advance(bytes).ok().flatten()
}
