//! What snapshots are built of, and the one place that publishes them once the gateway runs.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::build;
use super::config::{Config, HealthSettings};
use super::registry::instance::Registered;
use super::resolve::{Plan, Resolved};
use crate::policy::auth::{Authenticator, KeySet};
use crate::snapshot::{Address, EndpointId, Health, Seam, Service, ServiceKind, Snapshot};
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
    /// The endpoints that are not simply [`Health::Healthy`].
    pub health: HashMap<EndpointId, Health>,
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

    /// Waits until there may be other names to ask for, because other instances are registered.
    pub async fn names_wanted(&self) {
        self.names_wanted.notified().await;
    }

    /// The names that are asked of the DNS.
    pub fn plan(&self) -> Plan {
        let current = self.lock();
        Plan::of(&current.config, &current.registered)
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
        resolved.keep(&Plan::of(&config, &current.registered), &current.resolved);
        current.config = config;
        current.resolved = resolved;
        let generation = current.publish_credentials();
        self.config_changed.send_replace(());
        generation
    }

    /// Takes newly resolved addresses. Returns the generation, where they differ and so were published.
    pub fn set_resolved(&self, mut resolved: Resolved) -> Option<u64> {
        let mut current = self.lock();
        resolved.keep(&Plan::of(&current.config, &current.registered), &current.resolved);
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
        self.names_wanted.notify_one();
        Some(current.publish())
    }

    /// Takes the keys that tokens are signed with from now on, beside the configured ones. Returns the generation.
    pub fn set_fetched_keys(&self, fetched: KeySet) -> u64 {
        let mut current = self.lock();
        current.fetched_keys = fetched;
        current.publish_credentials()
    }

    /// The generation of the snapshot in force.
    pub fn generation(&self) -> u64 {
        self.lock().seam.generation()
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().seam.load()
    }

    /// Shows `visit` every configured service of the snapshot in force, and how it is checked.
    pub fn each_service(&self, mut visit: impl FnMut(&Service, &HealthSettings)) {
        let current = self.lock();
        let snapshot = current.seam.load();
        for service in snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend) {
            // The snapshot was built of this configuration, under the same lock.
            if let Some(configured) = current.config.services.iter().find(|other| other.name == *service.name) {
                visit(service, &configured.health);
            }
        }
    }

    /// Takes what the checks say about all endpoints that are not simply [`Health::Healthy`]. Returns the generation, where
    /// that is news and so was published.
    pub fn set_health(&self, health: HashMap<EndpointId, Health>) -> Option<u64> {
        let mut current = self.lock();
        let is_change = health != current.health;
        current.health = health;
        is_change.then(|| current.publish())
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
        let mut snapshot = build::snapshot(
            &self.config,
            &self.resolved,
            &self.registered,
            &self.authenticator,
            &self.labels,
            address,
            generation,
        );
        self.mark_health(&mut snapshot);
        let endpoints = || snapshot.services.iter().flat_map(|service| &service.endpoints);
        let named: HashSet<EndpointId> = endpoints().map(|endpoint| endpoint.id).collect();
        self.labels.forget(|id| named.contains(&id), Instant::now());
        self.seam.publish(snapshot);
        generation
    }

    fn mark_health(&self, snapshot: &mut Snapshot) {
        for endpoint in snapshot.services.iter_mut().flat_map(|service| &mut service.endpoints) {
            endpoint.health = self.health.get(&endpoint.id).copied().unwrap_or_default();
        }
    }
}
