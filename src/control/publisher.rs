//! What snapshots are built of, and the one place that publishes them once the gateway runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::build;
use super::config::Config;
use super::registry::instance::Registered;
use super::resolve::Resolved;
use crate::policy::auth::{Authenticator, KeySet};
use crate::snapshot::{Address, Seam};
use crate::telemetry::labels::Labels;

/// The ingredients of the snapshot in force. A change of one of them publishes a new snapshot.
#[derive(Debug)]
pub struct Publisher {
    ingredients: Mutex<Ingredients>,
    config_changed: watch::Sender<()>,
    names_wanted: Notify,
}

/// What a snapshot is built of.
#[derive(Debug)]
pub struct Ingredients {
    /// The configuration that is served.
    pub config: Config,
    /// The addresses that the current snapshot was built with.
    pub resolved: Resolved,
    /// The instances that registered themselves, beside the configured ones.
    pub registered: Registered,
    /// The keys that were fetched from their issuer, beside the configured ones.
    pub fetched_keys: KeySet,
    /// Who knows every credential that is good.
    pub authenticator: Arc<Authenticator>,
    /// The names of routes and endpoints.
    pub labels: Arc<Labels>,
    /// What the workers read.
    pub seam: Arc<Seam>,
    /// The control plane's own address.
    pub management_address: Address,
}

impl Publisher {
    /// Goes on from what the current snapshot was built of.
    pub fn new(ingredients: Ingredients) -> Publisher {
        Publisher {
            ingredients: Mutex::new(ingredients),
            config_changed: watch::Sender::new(()),
            names_wanted: Notify::new(),
        }
    }

    /// The configuration that is served.
    pub fn config(&self) -> Config {
        self.lock().config.clone()
    }

    /// What `read` takes from the ingredients, which it must not hold up.
    pub fn read<T>(&self, read: impl FnOnce(&Ingredients) -> T) -> T {
        read(&self.lock())
    }

    /// Waits until a name is wanted that the current snapshot has no addresses of.
    pub async fn names_wanted(&self) {
        self.names_wanted.notified().await;
    }

    /// The addresses that the current snapshot was built with.
    pub fn resolved(&self) -> Resolved {
        self.lock().resolved.clone()
    }

    /// Tells of each configuration that is served from then on.
    pub fn config_changes(&self) -> watch::Receiver<()> {
        self.config_changed.subscribe()
    }

    /// Takes a configuration and the addresses of its names. Returns the generation.
    pub fn set_config(&self, config: Config, mut resolved: Resolved) -> u64 {
        let mut current = self.lock();
        let (new, old) = (&config.auth, &current.config.auth);
        if new.jwks_url != old.jwks_url || new.algorithms != old.algorithms {
            // Another issuer's word.
            current.fetched_keys = KeySet::default();
        }
        resolved.keep(&current.registered.names(), &current.resolved);
        current.config = config;
        current.resolved = resolved;
        let generation = current.publish_credentials();
        self.config_changed.send_replace(());
        generation
    }

    /// Takes newly resolved addresses. Returns the generation, where they differ and so were published.
    pub fn set_resolved(&self, mut resolved: Resolved) -> Option<u64> {
        let mut current = self.lock();
        resolved.keep(&current.registered.names(), &current.resolved);
        let is_change = !resolved.same_addresses(&current.resolved);
        current.resolved = resolved;
        is_change.then(|| current.publish())
    }

    /// Takes the instances that registered themselves. Returns the generation, where they differ and so were published.
    pub fn set_registered(&self, registered: Registered) -> Option<u64> {
        let mut current = self.lock();
        if current.registered == registered {
            return None;
        }
        current.registered = registered;
        if current.registered.names().iter().any(|(host, port)| current.resolved.addresses(host, *port).is_empty()) {
            self.names_wanted.notify_one();
        }
        Some(current.publish())
    }

    /// Takes the keys that tokens are signed with from now on, beside the configured ones. Returns the generation.
    pub fn set_fetched_keys(&self, fetched: KeySet) -> u64 {
        let mut current = self.lock();
        current.fetched_keys = fetched;
        current.publish_credentials()
    }

    fn lock(&self) -> MutexGuard<'_, Ingredients> {
        self.ingredients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ingredients {
    /// Publishes with credentials read anew: what workers remember of tokens is forgotten.
    fn publish_credentials(&mut self) -> u64 {
        let fetched = self.fetched_keys.clone();
        self.authenticator = build::authenticator(&self.config, fetched, self.authenticator.version + 1);
        self.publish()
    }

    fn publish(&self) -> u64 {
        let generation = self.seam.generation() + 1;
        let address = self.management_address.clone();
        self.seam.publish(build::snapshot(
            &self.config,
            &self.resolved,
            &self.registered,
            &self.authenticator,
            &self.labels,
            address,
            generation,
        ));
        generation
    }
}

/// A publisher that tests begin with: the configuration in `text`, and nothing of what it names looked up.
#[cfg(test)]
pub(crate) fn publisher_of(text: &str) -> Arc<Publisher> {
    let config = Config::from_toml(text, "test", &[], &[]).unwrap_or_else(|errors| panic!("{errors}"));
    Arc::new(Publisher::new(Ingredients {
        authenticator: build::authenticator(&config, KeySet::default(), 1),
        config,
        resolved: Resolved::default(),
        registered: Registered::default(),
        fetched_keys: KeySet::default(),
        labels: Arc::new(Labels::new()),
        seam: build::seam_without_services(1, 1),
        management_address: Address::Unix("\0test".into()),
    }))
}
