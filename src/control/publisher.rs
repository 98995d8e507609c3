//! What snapshots are built of, and the one place that publishes them once the gateway runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::build;
use super::config::Config;
use super::resolve::{Plan, Resolved};
use crate::policy::auth::{Authenticator, KeySet};
use crate::snapshot::{Address, Seam};
use crate::telemetry::labels::Labels;

/// The ingredients of the snapshot in force. A change of one of them publishes a new snapshot.
#[derive(Debug)]
pub struct Publisher(Mutex<Ingredients>);

/// What a snapshot is built of.
#[derive(Debug)]
pub struct Ingredients {
    /// The configuration that is served.
    pub config: Config,
    /// The addresses that the current snapshot was built with.
    pub resolved: Resolved,
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
        Publisher(Mutex::new(ingredients))
    }

    /// The configuration that is served.
    pub fn config(&self) -> Config {
        self.lock().config.clone()
    }

    /// The names that are asked of the DNS.
    pub fn plan(&self) -> Plan {
        Plan::of(&self.lock().config)
    }

    /// The addresses that the current snapshot was built with.
    pub fn resolved(&self) -> Resolved {
        self.lock().resolved.clone()
    }

    /// Takes newly resolved addresses. Returns the generation, where they differ and so were published.
    pub fn set_resolved(&self, resolved: Resolved) -> Option<u64> {
        let mut current = self.lock();
        let is_change = !resolved.same_addresses(&current.resolved);
        current.resolved = resolved;
        is_change.then(|| current.publish())
    }

    /// Takes the keys that tokens are signed with from now on, beside the configured ones. Returns the generation.
    pub fn set_fetched_keys(&self, fetched: KeySet) -> u64 {
        let mut current = self.lock();
        current.authenticator = build::authenticator(&current.config, fetched, current.authenticator.version + 1);
        current.publish()
    }

    fn lock(&self) -> MutexGuard<'_, Ingredients> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ingredients {
    fn publish(&self) -> u64 {
        let generation = self.seam.generation() + 1;
        let address = self.management_address.clone();
        self.seam.publish(build::snapshot(
            &self.config,
            &self.resolved,
            &self.authenticator,
            &self.labels,
            address,
            generation,
        ));
        generation
    }
}
