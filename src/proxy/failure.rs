//! What can go wrong with a request once its head was understood, and what the client is told.

use crate::http::body::BodyError;
use crate::http::problem::Problem;
use crate::http::response::ResponseError;

/// Why an exchange ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The upstream did not take the connection.
    ConnectRefused,
    /// The upstream did not answer the connection attempt in time.
    ConnectTimeout,
    /// The upstream closed or reset the connection before a whole head had come.
    UpstreamClosed {
        /// Whether not one byte of an answer had come, so that the request may be sent again where its method or the
        /// kernel's word allows it.
        silent: bool,
        /// Whether the close was a reset.
        reset: bool,
    },
    /// The upstream's head or body did not come, or the request could not be written, in time.
    UpstreamTimeout,
    /// The upstream's head was malformed or ambiguous.
    UpstreamHead(ResponseError),
    /// The upstream's body was malformed.
    UpstreamBody(BodyError),
    /// The upstream's body ended before its end.
    UpstreamCut,
    /// The client's body did not come in time.
    ClientTimeout,
    /// The client's body was malformed.
    ClientBody(BodyError),
    /// The client's body is longer than `limits.body_bytes`.
    BodyTooLarge,
    /// The client closed the connection.
    ClientGone,
    /// The client takes nothing of its answer any more.
    ClientStalled,
    /// The host has no descriptor, port or memory left for a connection to the upstream.
    Exhausted,
    /// The drain's time was over.
    Stopped,
    /// The upstream's answer has a status that another endpoint's is better than, and there is another one.
    UpstreamStatus,
}

impl Failure {
    /// The problem that the client is answered with, if the answer has not begun; `None` when nobody is there to read it.
    pub fn problem(self) -> Option<Problem> {
        Some(match self {
            Failure::ConnectRefused => {
                Problem::new(502, "upstream_unreachable", "The service could not be reached. Try again later.")
            }
            Failure::ConnectTimeout => {
                Problem::new(504, "upstream_connect_timeout", "The service did not accept a connection in time.")
            }
            Failure::UpstreamClosed { .. } => {
                Problem::new(502, "upstream_closed", "The service closed the connection before it answered.")
            }
            Failure::UpstreamTimeout => {
                Problem::new(504, "upstream_timeout", "The service did not answer in time. Try again later.")
            }
            Failure::UpstreamHead(_) | Failure::UpstreamBody(_) | Failure::UpstreamCut | Failure::UpstreamStatus => {
                Problem::new(
                    502,
                    "upstream_protocol_error",
                    "The service answered with something that is not valid HTTP.",
                )
            }
            Failure::ClientTimeout => {
                Problem::new(408, "request_timeout", "The request's body did not arrive in time. Send it again.")
            }
            Failure::ClientBody(_) => MALFORMED_BODY,
            Failure::BodyTooLarge => BODY_TOO_LARGE,
            Failure::Exhausted => OVERLOADED,
            Failure::Stopped => STOPPED,
            Failure::ClientGone | Failure::ClientStalled => return None,
        })
    }

    /// Whether it is the endpoint's fault, and so a reason to try another one and to doubt this one.
    pub fn is_endpoints(self) -> bool {
        match self {
            Failure::ConnectRefused
            | Failure::ConnectTimeout
            | Failure::UpstreamClosed { .. }
            | Failure::UpstreamTimeout
            | Failure::UpstreamHead(_)
            | Failure::UpstreamBody(_)
            | Failure::UpstreamCut
            | Failure::UpstreamStatus => true,
            Failure::ClientTimeout
            | Failure::ClientBody(_)
            | Failure::BodyTooLarge
            | Failure::ClientGone
            | Failure::ClientStalled
            | Failure::Exhausted
            | Failure::Stopped => false,
        }
    }

    /// What the access log calls it; the `reason` where there is one.
    pub fn word(self) -> &'static str {
        match self {
            Failure::ClientGone => "client_gone",
            Failure::ClientStalled => "client_stalled",
            Failure::UpstreamCut => "upstream_cut",
            Failure::Stopped => "drain_timeout",
            _ => self.problem().map_or("client_gone", |problem| problem.reason),
        }
    }

    /// The status that logs and metrics show.
    pub fn status(self) -> u16 {
        self.problem().map_or(499, |problem| problem.status)
    }
}

/// 400: the body's framing.
pub const MALFORMED_BODY: Problem = Problem::new(400, "malformed_body", "The request's chunked body is malformed.");

/// 400: a path that is one service's as it stands, and another's for backends that merge slashes, drop path parameters, or
/// decode slashes.
pub const AMBIGUOUS_PATH: Problem = Problem::new(
    400,
    "ambiguous_path",
    "The path can be read as another service's. Send it without empty segments, path parameters and encoded slashes.",
);

/// 413.
pub const BODY_TOO_LARGE: Problem =
    Problem::new(413, "body_too_large", "The request's body is longer than this service accepts.");

/// 404.
pub const NO_ROUTE: Problem = Problem::new(404, "no_route", "No service is configured for this path. Check the URL.");

/// 405.
pub const METHOD_NOT_ALLOWED: Problem =
    Problem::new(405, "method_not_allowed", "This path does not take this method; see the Allow header field.");

/// 503: every endpoint is out, or none was ever found.
pub const NO_ENDPOINT: Problem =
    Problem::new(503, "no_healthy_endpoint", "No instance of the service is available. Try again later.")
        .retry_after(1);

/// 503: the breakers of all endpoints are open; `Retry-After` says until when.
pub const BREAKER_OPEN: Problem =
    Problem::new(503, "breaker_open", "The service fails and is given a pause. Try again when Retry-After is over.");

/// 503: too many requests in flight, or no descriptor for another connection.
pub const OVERLOADED: Problem =
    Problem::new(503, "overloaded", "The service has too many requests under way. Try again later.").retry_after(1);

/// 503: the gateway goes down, and the request could not be finished in `server.drain_timeout`.
const STOPPED: Problem =
    Problem::new(503, "draining", "The gateway is going down. Send the request again.").retry_after(1);

/// 503: the issuer's keys have not come yet.
pub const KEYS_UNAVAILABLE: Problem = Problem::new(
    503,
    "keys_unavailable",
    "The token cannot be checked yet: its issuer's keys have not been fetched. Try again later.",
)
.retry_after(1);

/// 429.
pub const RATE_LIMITED: Problem = Problem::new(
    429,
    "rate_limited",
    "Too many requests. Wait as long as Retry-After says, in seconds, and try again.",
);

/// 408: the head.
pub const HEAD_TIMEOUT: Problem =
    Problem::new(408, "request_timeout", "The request's head did not arrive in time. Send it again.");
