//! What a reply says, read in place: a [`Reply`] is a piece of the connection's buffer, a [`Value`] a view into it.

use bytes::Bytes;
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;

use super::decoder::{frame_length, read_head};

/// One whole reply. Cheap to move; while one is kept, the connection reads on in another buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    frame: Bytes,
}

/// What a reply, or an element of one, says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A null, of either kind.
    Nil,
    /// A number; what Lua's numbers become.
    Integer(i64),
    /// A status such as `OK`.
    Simple(&'a [u8]),
    /// Any bytes.
    Bulk(&'a [u8]),
    /// An error with its code in front, `OOM command not allowed …`.
    Error(&'a [u8]),
    /// Values.
    Array(Elements<'a>),
}

impl Reply {
    /// `frame` is one whole frame that a [`Decoder`](super::Decoder) has walked through.
    pub(super) fn new(frame: Bytes) -> Reply {
        Reply { frame }
    }

    /// What it says.
    pub fn value(&self) -> Value<'_> {
        read(&self.frame)
    }

    /// The number, if it is one.
    pub fn integer(&self) -> Option<i64> {
        self.value().integer()
    }

    /// The numbers, if it is an array of just so many: what a script returns that has several things to say.
    pub fn integers<const N: usize>(&self) -> Option<[i64; N]> {
        let Value::Array(mut elements) = self.value() else { return None };
        let mut integers = [0; N];
        for integer in &mut integers {
            *integer = elements.next()?.integer()?;
        }
        elements.next().is_none().then_some(integers)
    }

    /// The bytes of a status or of a bulk string.
    pub fn text(&self) -> Option<&[u8]> {
        match self.value() {
            Value::Simple(text) | Value::Bulk(text) => Some(text),
            _ => None,
        }
    }
}

impl Value<'_> {
    /// The number, if it is one.
    pub fn integer(self) -> Option<i64> {
        match self {
            Value::Integer(value) => Some(value),
            _ => None,
        }
    }
}

/// The elements of an array, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elements<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (frame, rest) = self.rest.split_at(frame_length(self.rest)?);
        self.rest = rest;
        Some(read(frame))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Reads a frame that was walked through before, so that it is whole and good; it would be nil otherwise.
fn read(frame: &[u8]) -> Value<'_> {
    if frame.first() == Some(&b'*') {
        let Ok(Some(head)) = read_head(frame) else { return Value::Nil };
        return head.length.map_or(Value::Nil, |left| Value::Array(Elements { rest: &frame[head.size..], left }));
    }
    match decode_range(frame) {
        Ok(Some((RangeFrame::Integer(value), _))) => Value::Integer(value),
        Ok(Some((RangeFrame::SimpleString((from, to)), _))) => Value::Simple(&frame[from..to]),
        Ok(Some((RangeFrame::BulkString((from, to)), _))) => Value::Bulk(&frame[from..to]),
        Ok(Some((RangeFrame::Error((from, to)), _))) => Value::Error(&frame[from..to]),
        _ => Value::Nil,
    }
}
