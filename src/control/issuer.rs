//! The keys of the configured issuer: fetched, read, published, and another issuer's once the configuration names one.

use std::sync::Arc;
use std::time::Duration;

use super::config::Config;
use super::jwks;
use super::publisher::Publisher;
use crate::policy::auth::KeySet;
use crate::policy::auth::keys::{Algorithm, Skipped};
use crate::snapshot::Seam;

/// How long the gateway is not ready for want of its issuer's first keys.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Keeps the issuer's keys fresh, for as long as the process runs.
pub async fn keep_fresh(publisher: Arc<Publisher>, seam: Arc<Seam>) {
    if publisher.config().auth.jwks_url.is_none() {
        seam.await_issuer_no_more();
    } else {
        let seam = Arc::clone(&seam);
        tokio::spawn(async move {
            tokio::time::sleep(READY_WITHIN).await;
            if seam.await_issuer_no_more() {
                tracing::warn!(
                    "ready without the issuer's keys; tokens that need them are answered 503 until they come"
                );
            }
        });
    }
    let mut changes = publisher.config_changes();
    loop {
        let issuer = Issuer::of(&publisher.config());
        tokio::select! {
            () = issuer.keep_fresh(&publisher, &seam) => {}
            () = async {
                while Issuer::of(&publisher.config()) == issuer {
                    // An error says that the publisher is gone, and it is here.
                    let _ = changes.changed().await;
                }
            } => {}
        }
    }
}

/// Whose keys, and which of them.
#[derive(Debug, PartialEq, Eq)]
struct Issuer {
    url: Option<String>,
    refresh: Duration,
    algorithms: Vec<Algorithm>,
}

impl Issuer {
    fn of(config: &Config) -> Issuer {
        let auth = &config.auth;
        Issuer { url: auth.jwks_url.clone(), refresh: auth.jwks_refresh, algorithms: auth.algorithms.clone() }
    }

    /// Does not end.
    async fn keep_fresh(&self, publisher: &Publisher, seam: &Seam) {
        let Some(url) = &self.url else { return std::future::pending().await };
        let fetcher = match jwks::Fetcher::new(url, jwks::KEY_SETS) {
            Ok(fetcher) => fetcher,
            Err(error) => {
                tracing::error!(%error, "the keys at auth.jwt.jwks_url cannot be fetched");
                return std::future::pending().await;
            }
        };
        let publish = |(keys, skipped): (KeySet, Vec<Skipped>)| {
            let (count, skipped) = (keys.len(), skipped.len());
            let generation = publisher.set_fetched_keys(keys);
            seam.await_issuer_no_more();
            tracing::info!(generation, keys = count, skipped, "the issuer's keys were fetched");
        };
        let wanted = || seam.take_keys_wanted();
        let read = |document: &[u8]| KeySet::from_jwks(document, &self.algorithms);
        jwks::keep_fresh(self.refresh, || fetcher.fetch(), wanted, read, publish).await;
    }
}
