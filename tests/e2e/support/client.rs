//! A client that sends exact bytes and reads what comes, without a library between it and the wire.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::net::RecvFlags;
use socket2::{Domain, Socket, Type};

use super::{DEADLINE, QUIET, SMALL};

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    buf: Vec<u8>,
}

/// A response, its body decoded.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    pub body: Vec<u8>,
    /// Trailer lines, as they came.
    pub trailers: String,
}

impl Response {
    /// The value of a field that must be there once at most.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    /// The `reason` of a problem document; `None` for another answer.
    pub fn reason_or_none(&self) -> Option<String> {
        self.header("x-gateway-error").map(|_| self.reason())
    }

    /// The `reason` of a problem document, checked against the header field.
    pub fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
        for member in ["type", "title", "detail", "instance"] {
            assert!(problem[member].is_string(), "{member} in {problem}");
        }
        let reason = problem["reason"].as_str().expect("a reason").to_owned();
        assert_eq!(self.header("x-gateway-error"), Some(reason.as_str()));
        reason
    }
}

/// What a read would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    Nothing,
    Bytes,
    /// The connection is closed or reset.
    End,
}

/// The value of a field in a head; it must be there once at most.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.lines().skip(1).filter_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    });
    let value = values.next();
    assert!(values.next().is_none(), "{name} is there twice in {head}");
    value
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::from(TcpStream::connect(address).expect("a listener"))
    }

    /// A connection whose kernel takes few bytes that the client has not read.
    pub fn connect_small(address: SocketAddr) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        // The window's scale is agreed on with the connection, so the size must be known before.
        socket.set_recv_buffer_size(SMALL).expect("an option");
        socket.connect(&address.into()).expect("a listener");
        Client::from(TcpStream::from(socket))
    }

    /// A second handle on the connection, for another thread.
    pub fn sender(&self) -> Client {
        Client::from(self.stream.try_clone().expect("a second handle"))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the gateway takes it");
    }

    /// Sends what the gateway takes; it may close in the middle.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("a connection");
    }

    /// The next response to a request that is not HEAD.
    pub fn response(&mut self) -> Response {
        self.try_response(false).expect("a response")
    }

    pub fn head_response(&mut self) -> Response {
        self.try_response(true).expect("a response")
    }

    /// The next response, or how the connection failed.
    pub fn try_response(&mut self, to_head: bool) -> io::Result<Response> {
        let head = self.try_head()?;
        let status = head.get(9..12).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut response = Response { status, head, body: Vec::new(), trailers: String::new() };
        if to_head || status < 200 || matches!(status, 204 | 304) {
            return Ok(response);
        }
        if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().expect("a number");
            response.body = self.take(length)?;
        } else if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk()?;
                if chunk.is_empty() {
                    break;
                }
                response.body.extend_from_slice(&chunk);
            }
            while let line @ 1.. = self.line_len()? {
                response.trailers += &String::from_utf8_lossy(&self.take(line + 2)?);
            }
            self.take(2)?;
        } else {
            while self.fill()? > 0 {}
            response.body = std::mem::take(&mut self.buf);
        }
        Ok(response)
    }

    /// The next head, with its empty line.
    pub fn head(&mut self) -> String {
        self.try_head().expect("a head")
    }

    fn try_head(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buf.windows(4).position(|four| four == b"\r\n\r\n") {
                return Ok(String::from_utf8_lossy(&self.take(end + 4)?).into_owned());
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next chunk's data; empty for the last one.
    pub fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.line_len()?;
        let line = self.take(line + 2)?;
        let size = std::str::from_utf8(&line).expect("ASCII").trim();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("{size:?} is no chunk size"));
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut data = self.take(size + 2)?;
        assert_eq!(data.split_off(size), b"\r\n");
        Ok(data)
    }

    fn line_len(&mut self) -> io::Result<usize> {
        loop {
            if let Some(end) = self.buf.windows(2).position(|two| two == b"\r\n") {
                return Ok(end);
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// So many bytes.
    pub fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buf.len() < length {
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.buf.split_off(length);
        Ok(std::mem::replace(&mut self.buf, rest))
    }

    /// Everything until the gateway closes; a reset ends it too.
    pub fn rest(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("the connection stays open"),
                Ok(0) | Err(_) => return std::mem::take(&mut self.buf),
            }
        }
    }

    /// Everything until the orderly end of the connection, or how else it ended.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.buf))
    }

    /// What a read would find right now.
    pub fn sight(&self) -> Sight {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.stream, &mut [0; 1], flags) {
            Ok((1.., _)) => Sight::Bytes,
            Err(rustix::io::Errno::AGAIN) => Sight::Nothing,
            Ok(_) | Err(_) => Sight::End,
        }
    }

    /// Whether nothing comes for a while and the connection stays open.
    pub fn is_quiet(&mut self) -> bool {
        self.stream.set_read_timeout(Some(QUIET)).expect("a timeout");
        let result = self.fill();
        self.stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the gateway closes the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 16 * 1024];
        let read = self.stream.read(&mut piece)?;
        self.buf.extend_from_slice(&piece[..read]);
        Ok(read)
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Client { stream, buf: Vec::new() }
    }
}
