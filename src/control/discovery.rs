//! Names are looked up again on a schedule; a changed answer becomes a new snapshot.

use std::sync::Arc;

use super::publisher::Publisher;
use super::resolve;

/// Looks all names up every `discovery.dns_refresh`. A lookup that fails leaves the last answer in force, and is logged when
/// it starts to fail.
pub async fn keep_resolving(publisher: Arc<Publisher>) {
    loop {
        let config = publisher.config();
        tokio::select! {
            () = tokio::time::sleep(config.discovery.dns_refresh) => {}
            () = publisher.names_wanted() => {}
        }
        let (known, also) = publisher.read(|current| (current.resolved.clone(), current.registered.names()));
        let resolved = resolve::resolve_also(&config, also, &known).await;
        for failure in resolved.failures().iter().filter(|failure| !known.failures().contains(failure)) {
            tracing::warn!(%failure, "a name does not resolve; its last addresses stay in use");
        }
        if let Some(generation) = publisher.set_resolved(resolved) {
            tracing::info!(generation, "backend addresses changed");
        }
    }
}
