//! The issuer's keys (RFC 7517), fetched from where it publishes them, and fetched again.
//!
//! - The last good document stays in force whatever happens: an issuer that is down, slow, or answers with something else
//!   keeps nobody out whose key is known.
//! - A document is fetched again when it has aged: after `jwks_refresh`, or earlier where its `Cache-Control` says so. A
//!   token that names an unknown key brings the next fetch forward.
//! - No two fetches begin within [`FETCH_EVERY_MIN`], since anybody can send such tokens. Until the first document is there,
//!   nobody's tokens are good, and fetches follow each other sooner.
//!
//! What a document means is the caller's matter, and so is who is told.

mod fetch;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

pub use fetch::{DOCUMENT_BYTES_MAX, Document, FetchError, Fetcher};

/// The shortest time from the beginning of one fetch to that of the next, give or take the jitter.
pub const FETCH_EVERY_MIN: Duration = Duration::from_secs(10);

/// The pause after the first fetch that comes to nothing while there is no document; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What the documents are.
pub const KEY_SETS: &str = "application/jwk-set+json, application/json";

/// How often it is asked whether a key is wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often the log is told that fetches still fail.
const COMPLAIN_EVERY: Duration = Duration::from_secs(600);

/// Fetches now, and for as long as the process runs. `publish` is handed what `parse` makes of each document that is
/// good and differs from the one before; `wanted` tells whether an unknown key was named since it was last asked.
///
/// `refresh` is `auth.jwt.jwks_refresh`, at least [`FETCH_EVERY_MIN`].
pub async fn keep_fresh<F, T, E>(
    refresh: Duration,
    fetch: impl Fn() -> F,
    wanted: impl Fn() -> bool,
    parse: impl Fn(&[u8]) -> Result<T, E>,
    publish: impl Fn(T),
) where
    F: Future<Output = Result<Document, FetchError>>,
    E: Display,
{
    let mut last_good = Vec::new();
    let mut first_failures = Some(0);
    let mut complained: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        let fetched = match fetch().await {
            Ok(document) if document.bytes == last_good => Ok((document, None)),
            Ok(document) => match parse(&document.bytes) {
                Ok(keys) => Ok((document, Some(keys))),
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        let mut max_age = None;
        let is_good = fetched.is_ok();
        match fetched {
            Ok((document, keys)) => {
                max_age = document.max_age;
                first_failures = None;
                if complained.take().is_some() {
                    tracing::info!("the issuer's keys can be fetched again");
                }
                if let Some(keys) = keys {
                    publish(keys);
                    last_good = document.bytes;
                }
            }
            Err(error) if complained.is_none_or(|at| begun - at >= COMPLAIN_EVERY) => {
                tracing::warn!(%error, "the issuer's keys cannot be fetched; the last ones stay in force");
                complained = Some(begun);
            }
            Err(_) => {}
        }
        // What was wanted before this answer came has been answered by it.
        wanted();
        let draw = fastrand::f64();
        let due = match &mut first_failures {
            Some(failures) => {
                *failures += 1;
                Instant::now() + first_pause(*failures, draw)
            }
            None => begun + due_in(is_good, max_age, refresh, draw),
        };
        sleep_until(if first_failures.is_some() { due } else { due.min(begun + FETCH_EVERY_MIN) }).await;
        while Instant::now() < due && !wanted() {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// From the end of a fetch to the next, after `failures`, at least one, and no document yet. `draw` is as in [`due_in`].
fn first_pause(failures: u32, draw: f64) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(FETCH_EVERY_MIN);
    pause.mul_f64(1.0 - 0.1 * draw)
}

/// From the beginning of a fetch to that of the next. `draw`, 0 to 1, takes up to a tenth of it away: gateways that were
/// started together do not come back together.
fn due_in(is_good: bool, max_age: Option<Duration>, refresh: Duration, draw: f64) -> Duration {
    let wait = match max_age {
        _ if !is_good => FETCH_EVERY_MIN,
        Some(age) => age.clamp(FETCH_EVERY_MIN, refresh.max(FETCH_EVERY_MIN)),
        None => refresh,
    };
    wait.mul_f64(1.0 - 0.1 * draw)
}
