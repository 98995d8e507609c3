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
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| answer_error(&error))?;
    let message = Request::get(&request.target)
        .header(header::HOST, &request.authority)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failed::Answer(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(message).await.map_err(|error| answer_error(&error))?;
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
        ended = &mut connection => match exchange.await {
            Err(Failed::Answer(_)) if ended.is_err() => Err(answer_error(&ended.expect_err("it was asked"))),
            result => result,
        },
    }
}

/// Reads the body to its end, or as much of it as is enough.
async fn read_some(mut body: Incoming) -> Result<(), Failed> {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.map_err(|error| answer_error(&error))?.data_ref().map_or(0, Bytes::len);
        if read >= BODY_BYTES_MAX {
            break;
        }
    }
    Ok(())
}

/// hyper's own words name neither addresses nor bytes of the answer.
fn answer_error(error: &hyper::Error) -> Failed {
    Failed::Answer(error.to_string())
}
