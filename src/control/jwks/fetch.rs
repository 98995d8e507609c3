//! One fetch of a document over HTTP: bounded in time, length and redirects.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{ACCEPT, AGE, CACHE_CONTROL, HeaderMap};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, StatusCode, Url};

/// The longest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// How long connecting, and the whole of a fetch, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

const REDIRECTS_MAX: usize = 3;

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// At most [`DOCUMENT_BYTES_MAX`].
    pub bytes: Vec<u8>,
    /// For how much longer it is fresh, where its server says so.
    pub max_age: Option<Duration>,
}

/// Why nothing was fetched. None of these says where to, since an address may hold something secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not connected, cut off, too slow, a certificate that is not trusted, a redirect that is not followed.
    #[error("{0}")]
    Transport(String),
    /// Answered, but not with a document.
    #[error("the answer's status is {}", .0.as_u16())]
    Status(StatusCode),
    /// More than [`DOCUMENT_BYTES_MAX`].
    #[error("the answer is longer than {DOCUMENT_BYTES_MAX} bytes")]
    TooLong,
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> FetchError {
        // The outermost of the causes alone says little.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        FetchError::Transport(text)
    }
}

/// Fetches from one address. Proxies that the environment names are not used: the keys decide who may pass, and a variable
/// that was set for something else must not.
#[derive(Debug)]
pub struct Fetcher {
    client: Client,
    url: Url,
    accept: &'static str,
}

impl Fetcher {
    /// For `url`, which the configuration has checked; `accept` names the media types that are understood.
    ///
    /// # Errors
    /// No certificates to trust are found on this machine, or `url` is none.
    pub fn new(url: &str, accept: &'static str) -> Result<Fetcher, FetchError> {
        let url = Url::parse(url).map_err(|error| FetchError::Transport(error.to_string()))?;
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(FETCH_TIMEOUT)
            .redirect(Policy::custom(follow))
            // Fetches are minutes apart: no connection is worth keeping.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("ringway/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Fetcher { client, url, accept })
    }

    /// Fetches once.
    ///
    /// # Errors
    /// See [`FetchError`]; takes 10 s at most.
    pub async fn fetch(&self) -> Result<Document, FetchError> {
        let request = self.client.get(self.url.clone()).header(ACCEPT, self.accept);
        let mut answer = request.send().await?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        if answer.content_length().is_some_and(|length| length > DOCUMENT_BYTES_MAX as u64) {
            return Err(FetchError::TooLong);
        }
        let max_age = max_age(answer.headers());
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if bytes.len() + piece.len() > DOCUMENT_BYTES_MAX {
                return Err(FetchError::TooLong);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Document { bytes, max_age })
    }
}

/// A few redirects, and none away from TLS: what follows could be anybody's keys.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let is_downgrade =
        attempt.url().scheme() != "https" && attempt.previous().iter().any(|url| url.scheme() == "https");
    if is_downgrade {
        attempt.error("a redirect from https to http")
    } else if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("too many redirects")
    } else {
        attempt.follow()
    }
}

/// For how much longer an answer is fresh (RFC 9111, section 4.2). `no-cache` and `no-store` speak to caches and say nothing
/// of how long keys last: many servers put them, with a `max-age` of 0, on everything.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let fields = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = fields.flat_map(|field| field.split(',')).map(str::trim);
    let mut lifetime = None;
    if directives.any(|directive| {
        if let Some((name, value)) = directive.split_once('=')
            && name.eq_ignore_ascii_case("max-age")
        {
            lifetime = lifetime.or(value.trim_matches('"').parse::<u64>().ok());
        }
        ["no-cache", "no-store"].iter().any(|name| directive.eq_ignore_ascii_case(name))
    }) {
        return None;
    }
    let age = headers.get(AGE).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    lifetime.map(|lifetime| Duration::from_secs(lifetime.saturating_sub(age)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness() {
        let check = |fields: &[(&'static str, &str)], expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().expect("a header value"));
            }
            assert_eq!(max_age(&headers), expected.map(Duration::from_secs), "{fields:?}");
        };
        check(&[], None);
        check(&[("cache-control", "max-age=600")], Some(600));
        check(&[("cache-control", "public, Max-Age=600, must-revalidate")], Some(600));
        check(&[("cache-control", "max-age=\"600\"")], Some(600));
        check(&[("cache-control", "public"), ("cache-control", "max-age=7")], Some(7));
        check(&[("cache-control", "max-age=600"), ("age", "500")], Some(100));
        check(&[("cache-control", "max-age=600"), ("age", "700")], Some(0));
        check(&[("cache-control", "max-age=600"), ("age", "x")], Some(600));
        check(&[("cache-control", "max-age=0")], Some(0));
        check(&[("cache-control", "max-age=-1")], None);
        check(&[("cache-control", "max-age=99999999999999999999")], None);
        check(&[("cache-control", "s-maxage=600")], None);
        check(&[("cache-control", "no-cache, no-store, max-age=0, must-revalidate")], None);
        check(&[("cache-control", "max-age=600, no-store")], None);
        check(&[("age", "5")], None);
    }
}
