//! Bodies: how they are delimited, and the chunked coding as a state machine that works in place (RFC 9112, sections 6, 7).
//!
//! A [`Decoder`] is fed whatever was read and moves the body's bytes to the front of it; an encoder writes its frame around
//! them, into room that the relay left there. So a body crosses the gateway without being copied to another buffer, and no
//! framing of the sender's reaches the receiver.

use super::headers;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes, at least 1.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// All that comes until the connection closes; responses only.
    Close,
}

/// The most bytes that all chunk extensions of a message may have together. They mean nothing to the gateway and cost a
/// sender little, so they are bounded.
pub const EXTENSION_BYTES_MAX: u32 = 16 * 1024;

/// The most bytes that a trailer section may have.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// The most fields that a trailer section may have.
const TRAILER_COUNT_MAX: usize = 32;

/// The body broke its framing; the connection that it came over cannot be used any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BodyError {
    #[error("A chunk size is malformed or too large.")]
    ChunkSize,
    #[error("A chunk does not end in CR LF.")]
    ChunkEnd,
    #[error("The chunk extensions are malformed or too long.")]
    Extension,
    #[error("The trailer section is malformed or too long.")]
    Trailer,
}

/// What [`Decoder::decode`] made of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// So many bytes of the body now stand at the front of the input.
    pub data: usize,
    /// So many bytes of the input were used up; fewer than there are only when the body is complete. What follows is the
    /// next message's.
    pub consumed: usize,
}

/// Finds a body in what is read.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extension_bytes: u32,
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    Close,
    /// Chunked: in the size, of which so many digits were seen.
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        remaining: u64,
    },
    SizeLf {
        remaining: u64,
    },
    Data {
        remaining: u64,
    },
    DataCr,
    DataLf,
    /// Chunked: in the trailer section, which begins behind the last chunk's line.
    Trailer,
    /// Chunked: behind the CR of an empty trailer section.
    EndLf,
    Done,
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::Close => State::Close,
        };
        Decoder { state, extension_bytes: 0, trailers: Vec::new() }
    }

    /// Whether the whole body was seen. A body delimited by close never says so.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the body ends where the connection does.
    pub fn ends_at_close(&self) -> bool {
        self.state == State::Close
    }

    /// How many bytes are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(remaining) => Some(remaining),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Uses up what of `buf` belongs to the body, and moves the body's bytes to its front.
    ///
    /// # Errors
    /// See [`BodyError`]. Bytes before the fault are lost with it: the message is broken anyway.
    pub fn decode(&mut self, buf: &mut [u8]) -> Result<Decoded, BodyError> {
        match self.state {
            State::Done => Ok(Decoded { data: 0, consumed: 0 }),
            State::Close => Ok(Decoded { data: buf.len(), consumed: buf.len() }),
            State::Length(remaining) => {
                let taken = buf.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
                self.skip(taken as u64);
                Ok(Decoded { data: taken, consumed: taken })
            }
            _ => self.decode_chunked(buf),
        }
    }

    /// So many bytes of a counted body have gone by unseen; no more than there are [remaining](Decoder::remaining).
    pub fn skip(&mut self, bytes: u64) {
        if let State::Length(remaining) = self.state {
            self.state = match remaining.saturating_sub(bytes) {
                0 => State::Done,
                left => State::Length(left),
            };
        }
    }

    fn decode_chunked(&mut self, buf: &mut [u8]) -> Result<Decoded, BodyError> {
        let mut data = 0;
        let mut at = 0;
        while at < buf.len() && self.state != State::Done {
            if let State::Data { remaining } = self.state {
                let taken = (buf.len() - at).min(usize::try_from(remaining).unwrap_or(usize::MAX));
                buf.copy_within(at..at + taken, data);
                data += taken;
                at += taken;
                let remaining = remaining - taken as u64;
                self.state = if remaining == 0 { State::DataCr } else { State::Data { remaining } };
            } else {
                self.state = self.step(buf[at])?;
                at += 1;
            }
        }
        Ok(Decoded { data, consumed: at })
    }

    /// One byte of framing.
    fn step(&mut self, byte: u8) -> Result<State, BodyError> {
        match self.state {
            State::Size { value, digits } => match (byte, (byte as char).to_digit(16)) {
                // Sixteen digits are 64 bits. Leading zeros are allowed and bounded with the rest.
                (_, Some(_)) if digits == 16 => Err(BodyError::ChunkSize),
                (_, Some(digit)) => Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }),
                (_, None) if digits == 0 => Err(BodyError::ChunkSize),
                (b'\r', None) => Ok(State::SizeLf { remaining: value }),
                (b';', None) => self.extension(value),
                _ => Err(BodyError::ChunkSize),
            },
            State::Extension { remaining } => match byte {
                b'\r' => Ok(State::SizeLf { remaining }),
                b'\t' | b' '..=b'~' | 0x80.. => self.extension(remaining),
                _ => Err(BodyError::Extension),
            },
            State::SizeLf { .. } if byte != b'\n' => Err(BodyError::ChunkSize),
            State::SizeLf { remaining: 0 } => Ok(State::Trailer),
            State::SizeLf { remaining } => Ok(State::Data { remaining }),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { value: 0, digits: 0 }),
            State::DataCr | State::DataLf => Err(BodyError::ChunkEnd),
            State::Trailer if byte == b'\r' && self.trailers.is_empty() => Ok(State::EndLf),
            State::Trailer => self.trailer(byte),
            State::EndLf if byte == b'\n' => Ok(State::Done),
            State::EndLf => Err(BodyError::Trailer),
            State::Length(_) | State::Close | State::Data { .. } | State::Done => Ok(self.state),
        }
    }

    fn extension(&mut self, remaining: u64) -> Result<State, BodyError> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(BodyError::Extension);
        }
        Ok(State::Extension { remaining })
    }

    /// The trailer section ends with an empty line; until then its bytes are kept. A message without trailers, which is
    /// nearly every one, keeps none.
    fn trailer(&mut self, byte: u8) -> Result<State, BodyError> {
        let previous = self.trailers.last().copied();
        let line_end_is_right = (byte == b'\n') == (previous == Some(b'\r'));
        if !line_end_is_right || byte == 0 || self.trailers.len() == TRAILER_BYTES_MAX {
            return Err(BodyError::Trailer);
        }
        self.trailers.push(byte);
        if !self.trailers.ends_with(b"\r\n\r\n") {
            return Ok(State::Trailer);
        }
        let mut fields = [httparse::EMPTY_HEADER; TRAILER_COUNT_MAX];
        match httparse::parse_headers(&self.trailers, &mut fields) {
            Ok(httparse::Status::Complete((length, _))) if length == self.trailers.len() => Ok(State::Done),
            _ => Err(BodyError::Trailer),
        }
    }

    /// Appends a piece of the body, framed as `framing` says; the decoder says whether it is the last one.
    pub fn push_piece(&self, framing: Framing, data: &[u8], with_trailers: bool, out: &mut Vec<u8>) {
        if framing != Framing::Chunked {
            out.extend_from_slice(data);
            return;
        }
        if !data.is_empty() {
            let mut room = [0; CHUNK_OPEN_BYTES];
            let start = open_chunk(data.len(), &mut room);
            out.extend_from_slice(&room[start..]);
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        }
        if self.is_done() {
            self.push_last_chunk(with_trailers, out);
        }
    }

    /// Writes the last chunk, and with it the trailer fields that may be passed on when `with_trailers`.
    pub fn push_last_chunk(&self, with_trailers: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"0\r\n");
        if with_trailers && !self.trailers.is_empty() {
            let mut fields = [httparse::EMPTY_HEADER; TRAILER_COUNT_MAX];
            if let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&self.trailers, &mut fields) {
                for field in fields.iter().filter(|field| headers::may_be_trailer(field.name.as_bytes())) {
                    headers::push_field(field.name.as_bytes(), field.value, out);
                }
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Room that [`open_chunk`] needs before a chunk's data.
pub const CHUNK_OPEN_BYTES: usize = 10;

/// Writes a chunk's size line so that it ends at the end of `room`; returns where in `room` it starts.
///
/// `room` is [`CHUNK_OPEN_BYTES`] long, `data_len` below 4 GiB.
pub fn open_chunk(data_len: usize, room: &mut [u8; CHUNK_OPEN_BYTES]) -> usize {
    room[8] = b'\r';
    room[9] = b'\n';
    let mut at = 8;
    let mut rest = data_len;
    loop {
        at -= 1;
        room[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 || at == 0 {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), BodyError> {
        let mut decoder = Decoder::new(framing);
        let mut body = Vec::new();
        let mut consumed = 0;
        for piece in pieces {
            let mut buf = piece.to_vec();
            let decoded = decoder.decode(&mut buf)?;
            body.extend_from_slice(&buf[..decoded.data]);
            consumed += decoded.consumed;
        }
        Ok((body, decoder.is_done(), consumed))
    }

    #[test]
    fn a_chunked_body_decodes_the_same_at_every_split() {
        let message = b"5\r\nhello\r\n006;ext=\"1\"\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n";
        let mut input = message.to_vec();
        input.extend_from_slice(b"GET / next");
        for split in 0..=input.len() {
            let (first, second) = input.split_at(split);
            let (body, done, consumed) = decode_all(Framing::Chunked, &[first, second]).expect("well-formed");
            assert_eq!((body.as_slice(), done), (&b"hello world"[..], true), "{split}");
            assert_eq!(consumed, message.len(), "{split}");
        }
    }

    #[test]
    fn what_goes_by_unseen_is_counted() {
        let mut decoder = Decoder::new(Framing::Length(10));
        decoder.skip(4);
        assert_eq!((decoder.remaining(), decoder.is_done()), (Some(6), false));
        let decoded = decoder.decode(&mut [0; 5]).expect("no framing");
        assert_eq!((decoded.data, decoder.remaining()), (5, Some(1)));
        decoder.skip(1);
        assert_eq!((decoder.remaining(), decoder.is_done()), (Some(0), true));
    }

    #[test]
    fn malformed_chunks() {
        let check =
            |input: &[u8], expected| assert_eq!(decode_all(Framing::Chunked, &[input]), Err(expected), "{input:?}");
        check(b"\r\n", BodyError::ChunkSize);
        check(b"g\r\n", BodyError::ChunkSize);
        check(b"-1\r\n", BodyError::ChunkSize);
        check(b"+1\r\n", BodyError::ChunkSize);
        check(b"0x1\r\n", BodyError::ChunkSize);
        check(b" 1\r\n", BodyError::ChunkSize);
        check(b"1 \r\n", BodyError::ChunkSize);
        check(b"1\n", BodyError::ChunkSize);
        check(b"1\r1", BodyError::ChunkSize);
        check(b"10000000000000000\r\n", BodyError::ChunkSize);
        check(b"00000000000000001\r\n", BodyError::ChunkSize);
        check(b";a\r\n", BodyError::ChunkSize);
        check(b"1\r\nab", BodyError::ChunkEnd);
        check(b"1\r\na\n", BodyError::ChunkEnd);
        check(b"1\r\na\rb", BodyError::ChunkEnd);
        check(b"1;a\nb", BodyError::Extension);
        check(b"1;a\0\r\n", BodyError::Extension);
        check(b"0\r\nA: b\n", BodyError::Trailer);
        check(b"0\r\n A: b\r\n\r\n", BodyError::Trailer);
        check(b"0\r\nA : b\r\n\r\n", BodyError::Trailer);
        check(b"0\r\nA\r\n\r\n", BodyError::Trailer);
        check(&[b"1;".as_slice(), &vec![b'a'; EXTENSION_BYTES_MAX as usize]].concat(), BodyError::Extension);
        check(&[b"0\r\nA: ".as_slice(), &vec![b'a'; TRAILER_BYTES_MAX]].concat(), BodyError::Trailer);
    }

    #[test]
    fn trailers_pass_except_those_that_change_the_message() {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut input = b"0\r\nX-Sum: 1\r\nContent-Length: 5\r\nX-User-Id: root\r\nSet-Cookie: a\r\n\r\n".to_vec();
        decoder.decode(&mut input).expect("well-formed");
        let written = |with_trailers| {
            let mut out = Vec::new();
            decoder.push_last_chunk(with_trailers, &mut out);
            out
        };
        assert_eq!(written(true), b"0\r\nX-Sum: 1\r\n\r\n");
        assert_eq!(written(false), b"0\r\n\r\n");
    }

    #[test]
    fn a_counted_body_leaves_what_follows() {
        let check = |pieces: &[&[u8]], expected: (&[u8], bool, usize)| {
            let (body, done, consumed) = decode_all(Framing::Length(4), pieces).expect("counted bodies do not fail");
            assert_eq!((body.as_slice(), done, consumed), expected);
        };
        check(&[b"abc"], (b"abc", false, 3));
        check(&[b"ab", b"cd"], (b"abcd", true, 4));
        check(&[b"abcdef"], (b"abcd", true, 4));
    }

    #[test]
    fn chunk_size_lines() {
        let check = |length, expected: &[u8]| {
            let mut room = [0; CHUNK_OPEN_BYTES];
            let start = open_chunk(length, &mut room);
            assert_eq!(&room[start..], expected);
        };
        check(1, b"1\r\n");
        check(255, b"ff\r\n");
        check(65_536, b"10000\r\n");
        check(u32::MAX as usize, b"ffffffff\r\n");
    }
}
