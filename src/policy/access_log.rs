//! One line per request, JSON or text, that nothing a client sends can forge or break.
//!
//! - A line holds exactly one newline, at its end, whatever bytes the fields hold. JSON lines are valid UTF-8 and valid
//!   JSON.
//! - Values of query parameters named in `logging.redact` never appear.
//! - Every field has a maximum, so that a line has one: [`PATH_MAX`] and [`FIELD_MAX`] bytes before escaping. What was cut
//!   ends in `…`.
//! - Rendering into a buffer that is large enough allocates nothing.
//!
//! The fields, in their order, and when each is there (an absent field is left out, never null or empty, so that a query
//! for it finds just the requests that have it):
//!
//! | field | present |
//! |---|---|
//! | `ts` (RFC 3339, UTC, milliseconds), `level` | always |
//! | `request_id`, `trace_id` | when known |
//! | `worker` | always |
//! | `client` | unless the peer is on a Unix socket |
//! | `method`, `path` | when the request line could be read |
//! | `route`, `service` | when a route matched |
//! | `instance` | when an endpoint was chosen |
//! | `status`, `duration_ms` | always |
//! | `upstream_ms` | when an endpoint was asked |
//! | `bytes_in`, `bytes_out` | always |
//! | `auth`, `user` | when the request was authenticated |
//! | `rate_limited`, `retries` | always |
//! | `tried` | when an endpoint failed and another was tried: `instance=reason`, separated by spaces |
//! | `breaker` | when one was consulted |
//! | `error` | when the gateway answered itself, or something went wrong |

mod clock;
mod line;
mod redact;

use std::net::IpAddr;
use std::time::Duration;

pub use clock::Clock;
use line::{Key, Line, key};

use crate::snapshot::LogFormat;

/// The most of a request target that is logged, in bytes.
pub const PATH_MAX: usize = 2_048;

/// The most of any other field that is logged, in bytes.
pub const FIELD_MAX: usize = 256;

/// What is known about a request when it ends. Empty strings and `None` mean that it never got that far.
#[derive(Debug, Clone, Copy)]
pub struct AccessRecord<'a> {
    /// When the request ended, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// `X-Request-Id`, the client's or ours.
    pub request_id: &'a [u8],
    /// The trace id of `traceparent`, in hexadecimal.
    pub trace_id: &'a [u8],
    /// Which worker served it, from 0.
    pub worker: usize,
    /// The client's address behind trusted proxies; `None` for a peer on a Unix socket.
    pub client: Option<IpAddr>,
    /// The method's token as it came.
    pub method: &'a [u8],
    /// The request target as it came: path and query.
    pub path: &'a [u8],
    /// The prefix that matched.
    pub route: &'a str,
    /// The service's name.
    pub service: &'a str,
    /// The endpoint that answered, or was asked last.
    pub instance: &'a str,
    /// The status answered, 499 when the client went away first. 400 to 499 make the line's level `warn`, from 500 on
    /// `error`, below `info`.
    pub status: u16,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// The part of `duration` that an endpoint had the request.
    pub upstream: Option<Duration>,
    /// Read from the client for this request: its body, without framing.
    pub bytes_in: u64,
    /// Written to the client for this request: the body, without framing.
    pub bytes_out: u64,
    /// How the client proved who it is: `jwt`, `api_key`.
    pub auth: &'static str,
    /// Who it is.
    pub user: &'a str,
    /// Whether a rate limit turned it away.
    pub rate_limited: bool,
    /// Attempts beyond the first.
    pub retries: u32,
    /// The endpoints that failed before `instance` was tried, and why.
    pub tried: &'a [Try<'a>],
    /// The state of the endpoint's breaker.
    pub breaker: &'static str,
    /// The stable word for what went wrong: the problem's `reason`.
    pub error: Option<&'static str>,
}

/// A try that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Try<'a> {
    /// The endpoint.
    pub instance: &'a str,
    /// The stable word for what went wrong.
    pub error: &'a str,
}

/// Appends `record` as one line, newline included, to `out`.
///
/// `redact` names the query parameters whose values are replaced by `***`, in lower case.
pub fn render(record: &AccessRecord<'_>, format: LogFormat, redact: &[Box<str>], clock: &mut Clock, out: &mut Vec<u8>) {
    let timestamp = clock.timestamp(record.unix_ms);
    match format {
        LogFormat::Json => write::<true>(record, redact, Line::begin(timestamp, out)),
        LogFormat::Text => write::<false>(record, redact, Line::begin(timestamp, out)),
    }
}

fn write<const JSON: bool>(record: &AccessRecord<'_>, redact: &[Box<str>], mut line: Line<'_, JSON>) {
    line.word(key!("level"), level(record.status));
    line.string(key!("request_id"), record.request_id);
    line.string(key!("trace_id"), record.trace_id);
    line.number(key!("worker"), record.worker as u64);
    if let Some(client) = record.client {
        line.address(key!("client"), client);
    }
    line.string(key!("method"), record.method);
    line.target(key!("path"), record.path, redact);
    line.string(key!("route"), record.route.as_bytes());
    line.string(key!("service"), record.service.as_bytes());
    line.string(key!("instance"), record.instance.as_bytes());
    line.number(key!("status"), u64::from(record.status));
    line.milliseconds(key!("duration_ms"), record.duration);
    if let Some(upstream) = record.upstream {
        line.milliseconds(key!("upstream_ms"), upstream);
    }
    line.number(key!("bytes_in"), record.bytes_in);
    line.number(key!("bytes_out"), record.bytes_out);
    line.word_if_any(key!("auth"), record.auth);
    line.string(key!("user"), record.user.as_bytes());
    line.flag(key!("rate_limited"), record.rate_limited);
    line.number(key!("retries"), u64::from(record.retries));
    line.tries(key!("tried"), record.tried);
    line.word_if_any(key!("breaker"), record.breaker);
    line.word_if_any(key!("error"), record.error.unwrap_or_default());
    line.end();
}

fn level(status: u16) -> &'static str {
    match status {
        ..400 => "info",
        400..500 => "warn",
        500.. => "error",
    }
}

#[cfg(test)]
mod tests;
