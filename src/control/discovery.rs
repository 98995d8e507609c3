//! Names are looked up again on a schedule; a changed answer becomes a new snapshot.

use std::sync::Arc;

use super::build;
use super::config::Config;
use super::resolve::{self, Resolved};
use crate::snapshot::{Address, Seam};
use crate::telemetry::labels::Labels;

/// What a new snapshot is built of.
#[derive(Debug)]
pub struct Discovery {
    /// The configuration that is served.
    pub config: Config,
    /// The addresses that the current snapshot was built with.
    pub resolved: Resolved,
    /// The names of routes and endpoints.
    pub labels: Arc<Labels>,
    /// What the workers read.
    pub seam: Arc<Seam>,
    /// The control plane's own address.
    pub management_address: Address,
}

impl Discovery {
    /// Looks all names up every `discovery.dns_refresh`. A lookup that fails leaves the last answer in force, and is logged
    /// when it starts to fail.
    pub async fn keep_resolving(mut self) {
        loop {
            tokio::time::sleep(self.config.discovery.dns_refresh).await;
            let resolved = resolve::resolve(&self.config, &self.resolved).await;
            for failure in resolved.failures().iter().filter(|failure| !self.resolved.failures().contains(failure)) {
                tracing::warn!(%failure, "a name does not resolve; its last addresses stay in use");
            }
            if !resolved.same_addresses(&self.resolved) {
                let generation = self.seam.generation() + 1;
                let address = self.management_address.clone();
                self.seam.publish(build::snapshot(&self.config, &resolved, &self.labels, address, generation));
                tracing::info!(generation, "backend addresses changed");
            }
            self.resolved = resolved;
        }
    }
}
