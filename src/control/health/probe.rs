//! One check of one endpoint: a connection, or a whole `GET` on a connection of its own.
//!
//! Nothing is reused and nothing is followed: a check that went over an old connection, or to where a redirect leads, would
//! say little about whether the endpoint takes requests.

use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::snapshot::Address;
use crate::snapshot::StatusRange;

/// So much of an answer's body is read, in bytes: whoever sends more passes too, and is cut off.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

const USER_AGENT: &str = concat!("ringway-health/", env!("CARGO_PKG_VERSION"));

/// What is checked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Where to connect.
    pub address: Address,
    /// What to ask; `None`: that the connection is accepted is enough.
    pub request: Option<CheckRequest>,
    /// How long all of it may take.
    pub timeout: Duration,
}

/// What `GET` asks for, and what must be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRequest {
    /// The request target, validated with the configuration.
    pub target: String,
    /// The `Host`.
    pub authority: String,
    /// The statuses that pass.
    pub expected: Vec<StatusRange>,
}

/// What a check that passed has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// The connection was accepted.
    Connected,
    /// The answer had this status.
    Status(u16),
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Passed::Connected => f.write_str("connected"),
            Passed::Status(status) => write!(f, "status {status}"),
        }
    }
}

/// Why a check failed; what is shown to operators and in the API, so without addresses and file names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(std::io::ErrorKind),
    /// It was not over in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection ended, or what came is no answer.
    #[error("no valid answer: {0}")]
    Answer(String),
    /// The answer had another status than those that are expected.
    #[error("status {0}")]
    Status(u16),
}

/// hyper's own words name neither addresses nor bytes of the answer.
impl From<hyper::Error> for Failed {
    fn from(error: hyper::Error) -> Failed {
        Failed::Answer(error.to_string())
    }
}

/// Runs the check; takes `check.timeout` at most.
///
/// # Errors
/// The endpoint is not as it should be.
pub async fn run(check: &Check) -> Result<Passed, Failed> {
    match timeout(check.timeout, connect_and_ask(check)).await {
        Ok(result) => result,
        Err(_) => Err(Failed::Timeout(check.timeout)),
    }
}

async fn connect_and_ask(check: &Check) -> Result<Passed, Failed> {
    match &check.address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(|error| Failed::Connect(error.kind()))?;
            talk(stream, check.request.as_ref()).await
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| Failed::Connect(error.kind()))?;
            talk(stream, check.request.as_ref()).await
        }
    }
}

async fn talk<S>(stream: S, request: Option<&CheckRequest>) -> Result<Passed, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match request {
        None => Ok(Passed::Connected),
        Some(request) => ask(stream, request).await,
    }
}

async fn ask<S>(stream: S, request: &CheckRequest) -> Result<Passed, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    let message = Request::get(&request.target)
        .header(header::HOST, &request.authority)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failed::Answer(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(message).await?;
        let status = answer.status().as_u16();
        if !request.expected.iter().any(|range| range.contains(status)) {
            return Err(Failed::Status(status));
        }
        read_some(answer.into_body()).await?;
        Ok(Passed::Status(status))
    };
    // The connection moves only while it is polled, and is closed when this returns.
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // It has ended, perhaps with all of the answer handed over; then the exchange ends too.
        ended = &mut connection => match (exchange.await, ended) {
            (Err(Failed::Answer(_)), Err(error)) => Err(error.into()),
            (result, _) => result,
        },
    }
}

/// Reads the body to its end, or as much of it as is enough.
async fn read_some(mut body: Incoming) -> Result<(), Failed> {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame?.data_ref().map_or(0, Bytes::len);
        if read >= BODY_BYTES_MAX {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream as StdStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener};
    use std::path::PathBuf;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    fn run_one(check: &Check) -> Result<Passed, Failed> {
        crate::control::thread::block_on(run(check)).expect("a runtime")
    }

    fn asking(address: Address) -> Check {
        let expected = vec![StatusRange { first: 200, last: 299 }, StatusRange { first: 404, last: 404 }];
        let request = CheckRequest { target: "/health?a=b".into(), authority: "backend.test:81".into(), expected };
        Check { address, request: Some(request), timeout: PATIENCE }
    }

    /// A listener whose first connection is handed to `script`.
    fn listen(script: impl FnOnce(&mut StdStream) + Send + 'static) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::Tcp(listener.local_addr().expect("an address"));
        std::thread::spawn(move || script(&mut listener.accept().expect("a connection").0));
        address
    }

    fn head(stream: &mut impl Read) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
            head.push(byte[0]);
        }
        String::from_utf8(head).expect("ASCII")
    }

    #[test]
    fn answers() {
        let check = |answer: &'static str, expected: Result<Passed, &str>| {
            let address = listen(move |stream| {
                head(stream);
                // A check that knows enough closes.
                let _ = stream.write_all(answer.as_bytes());
            });
            match (run_one(&asking(address)), expected) {
                (Err(failed), Err(expected)) => {
                    assert!(failed.to_string().starts_with(expected), "{answer:?}: {failed}");
                }
                (result, expected) => assert_eq!(result.ok(), expected.ok(), "{answer:?}"),
            }
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ok(Passed::Status(200)));
        check("HTTP/1.1 204 No Content\r\n\r\n", Ok(Passed::Status(204)));
        check("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nto the end", Ok(Passed::Status(200)));
        check("HTTP/1.0 404 Not Found\r\n\r\n", Ok(Passed::Status(404)));
        check("HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n", Err("status 302"));
        check("HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\n", Err("status 500"));
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", Err("no valid answer"));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Err("no valid answer"));
        check("SSH-2.0-OpenSSH\r\n", Err("no valid answer"));
        check("", Err("no valid answer"));
    }

    #[test]
    fn what_the_backend_is_told() {
        let (told, asked) = mpsc::channel();
        let address = listen(move |stream| {
            told.send(head(stream)).expect("the test waits");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("sent");
            let mut rest = Vec::new();
            // The check closes, although the answer would let the connection live.
            stream.read_to_end(&mut rest).expect("an orderly end");
            told.send(String::from_utf8(rest).expect("ASCII")).expect("the test waits");
        });
        assert_eq!(run_one(&asking(address)), Ok(Passed::Status(200)));
        let expected = format!(
            "GET /health?a=b HTTP/1.1\r\nhost: backend.test:81\r\nuser-agent: ringway-health/{}\r\naccept: */*\r\n\
             connection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(asked.recv().expect("a head"), expected);
        assert_eq!(asked.recv().expect("an end"), "");
    }

    #[test]
    fn silence_and_endless_bodies() {
        let silent = listen(|stream| drop((head(stream), head(stream))));
        assert_eq!(run_one(&asking(silent)), Err(Failed::Timeout(PATIENCE)));
        let stuck = listen(|stream| {
            head(stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").expect("sent");
            head(stream);
        });
        assert_eq!(run_one(&asking(stuck)), Err(Failed::Timeout(PATIENCE)));
        let endless = listen(|stream| {
            head(stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("sent");
            while stream.write_all(&[b'x'; 1_024]).is_ok() {}
        });
        assert_eq!(run_one(&asking(endless)), Ok(Passed::Status(200)));
        let long_head = listen(|stream| {
            head(stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
            while stream.write_all(&[b'x'; 1_024]).is_ok() {}
        });
        assert!(matches!(run_one(&asking(long_head)), Err(Failed::Answer(_))));
    }

    #[test]
    fn a_connection_is_enough_where_nothing_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::Tcp(listener.local_addr().expect("an address"));
        let check = Check { request: None, ..asking(address) };
        assert_eq!(run_one(&check), Ok(Passed::Connected));
        drop(listener);
        let refused = Failed::Connect(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(refused.to_string(), "cannot connect: connection refused");
        assert_eq!(run_one(&check), Err(refused));
    }

    #[test]
    fn unix_sockets() {
        let name = format!("ringway-probe-{:016x}", fastrand::u64(..));
        let listener =
            StdUnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("a socket");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                head(&mut stream);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let check = asking(Address::Unix(PathBuf::from(format!("\0{name}"))));
        assert_eq!(run_one(&check), Ok(Passed::Status(200)));
        assert_eq!(run_one(&Check { request: None, ..check }), Ok(Passed::Connected));
        let nowhere = asking(Address::Unix(PathBuf::from("/nowhere/at/all.sock")));
        assert_eq!(run_one(&nowhere), Err(Failed::Connect(std::io::ErrorKind::NotFound)));
    }
}
