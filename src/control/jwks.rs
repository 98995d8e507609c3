//! The issuer's keys, fetched from where it publishes them (RFC 7517), and fetched again.
//!
//! The last good set stays in force whatever happens: an issuer that is down, slow, or answers with something else keeps
//! nobody out whose key is known. A token that names an unknown key brings the next fetch forward, but not by more than
//! one fetch in ten seconds, since anybody can send such tokens.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::publisher::Publisher;
use crate::policy::auth::KeySet;
use crate::snapshot::Seam;

/// How long a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest document, in bytes.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// Unknown keys bring a fetch forward no more often.
const WANTED_EVERY: Duration = Duration::from_secs(10);

/// How often it is asked whether a key is wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After a fetch that failed, the next one comes so soon at the latest.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Fetches the keys at `url` now, every `refresh`, and when a worker wants one that is not known.
pub async fn keep_fetching(publisher: Arc<Publisher>, seam: Arc<Seam>, url: String, refresh: Duration) {
    let algorithms = publisher.config().auth.algorithms;
    let client = match client() {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "the keys at auth.jwt.jwks_url cannot be fetched"),
    };
    let mut document = Vec::new();
    let mut failing = false;
    loop {
        let fetched_at = Instant::now();
        let result = fetch(&client, &url).await.and_then(|fetched| {
            let (keys, skipped) = KeySet::from_jwks(&fetched, &algorithms).map_err(|error| error.to_string())?;
            Ok((fetched, keys, skipped))
        });
        let next = match result {
            Ok((fetched, keys, skipped)) => {
                if fetched != document {
                    let (count, skipped) = (keys.len(), skipped.len());
                    let generation = publisher.set_fetched_keys(keys);
                    tracing::info!(generation, keys = count, skipped, "the issuer's keys were fetched");
                    document = fetched;
                }
                failing = false;
                refresh
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, %url, "the issuer's keys cannot be fetched; the last ones stay in force");
                }
                failing = true;
                refresh.min(RETRY_AFTER)
            }
        };
        wait(&seam, fetched_at, next).await;
    }
}

/// Until `next` is over, or a key is wanted.
async fn wait(seam: &Seam, fetched_at: Instant, next: Duration) {
    // Gateways that were started together do not come back together.
    let due = fetched_at + next.mul_f64(0.9 + 0.1 * fastrand::f64());
    // What was wanted before the fetch has been answered by it.
    seam.take_keys_wanted();
    sleep_until((fetched_at + WANTED_EVERY).min(due)).await;
    while Instant::now() < due && !seam.take_keys_wanted() {
        sleep(LOOK_EVERY).await;
    }
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .timeout(FETCH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::custom(|attempt| {
            let from_tls = attempt.previous().iter().any(|url| url.scheme() == "https");
            match attempt.previous().len() > 3 || from_tls && attempt.url().scheme() != "https" {
                true => attempt.stop(),
                false => attempt.follow(),
            }
        }))
        .user_agent(concat!("ringway/", env!("CARGO_PKG_VERSION")))
        .build()
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, String> {
    let mut answer = client.get(url).send().await.map_err(|error| chain(&error))?;
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status()));
    }
    let mut document = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| chain(&error))? {
        if document.len() + piece.len() > DOCUMENT_BYTES_MAX {
            return Err(format!("longer than {DOCUMENT_BYTES_MAX} bytes"));
        }
        document.extend_from_slice(&piece);
    }
    Ok(document)
}

/// An error with its causes: the outermost alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
