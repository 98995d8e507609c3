//! The admin key: whether a request shows it, as clients of services show theirs: as `X-API-Key` or as a bearer token,
//! exactly once.

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;

use super::problem_about;
use crate::policy::auth::api_key::KeyHash;
use crate::policy::auth::{AuthError, Presented};

/// Why a request is not let in.
#[derive(Debug)]
pub enum KeyRefusal {
    /// No credential, or none that can be read.
    Unreadable(AuthError<'static>),
    /// Another key.
    Wrong,
}

impl KeyRefusal {
    /// The problem document, 401 or 400, about a request with these `headers`.
    pub fn answer(&self, headers: &HeaderMap, uri: &Uri) -> Response {
        let (status, reason, detail) = match self {
            KeyRefusal::Unreadable(error) => {
                let problem = error.problem();
                let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::UNAUTHORIZED);
                (status, problem.reason, problem.detail)
            }
            KeyRefusal::Wrong => (StatusCode::UNAUTHORIZED, "admin_key_wrong", "This is not the admin key."),
        };
        let mut answer = problem_about(status, reason, detail, headers, uri);
        let challenge = HeaderValue::from_static("Bearer realm=\"ringway admin\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        answer
    }
}

/// Whether the `headers` show the key whose hash is `expected`.
///
/// # Errors
/// They show none, more than one, or another.
pub fn verify(expected: &KeyHash, headers: &HeaderMap) -> Result<(), KeyRefusal> {
    let is_repeated = |name| headers.get_all(name).iter().nth(1).is_some();
    let value = |name| headers.get(name).map(HeaderValue::as_bytes);
    let repeated = is_repeated("authorization") || is_repeated("x-api-key");
    match Presented::read(value("authorization"), value("x-api-key"), repeated) {
        Presented::None => Err(KeyRefusal::Unreadable(AuthError::Missing)),
        Presented::Malformed(why) => Err(KeyRefusal::Unreadable(AuthError::Malformed(why))),
        Presented::Bearer(key) | Presented::ApiKey(key) if KeyHash::of(key).matches(expected) => Ok(()),
        Presented::Bearer(_) | Presented::ApiKey(_) => Err(KeyRefusal::Wrong),
    }
}
