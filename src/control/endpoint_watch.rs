//! Says in the log when a breaker opens or closes, and when an endpoint is ejected or taken back: the workers only count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::publisher::Publisher;
use crate::snapshot::{EndpointId, ServiceKind};
use crate::telemetry::counters::{Counters, EndpointSight, endpoint_sight};
use crate::traffic::breaker::BreakerState;

/// How often the workers' word is read, and so how often an endpoint is in the log at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watches the workers' counters, for as long as the process runs.
pub async fn keep_watching(publisher: Arc<Publisher>, counters: Vec<Arc<Counters>>) {
    let mut known: HashMap<EndpointId, EndpointSight> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut seen = HashMap::with_capacity(known.len());
        let snapshot = publisher.snapshot();
        for service in snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend) {
            for endpoint in &service.endpoints {
                let now = endpoint_sight(&counters, endpoint.id);
                let before = known.get(&endpoint.id).copied();
                tell(&service.name, &endpoint.instance, before, now);
                seen.insert(endpoint.id, now);
            }
        }
        known = seen;
    }
}

fn tell(service: &str, instance: &str, before: Option<EndpointSight>, now: EndpointSight) {
    let (breaker, ejected) = before.map_or((BreakerState::Closed, 0), |before| (before.breaker, before.ejected));
    match (breaker, now.breaker) {
        (BreakerState::Closed, BreakerState::Open | BreakerState::HalfOpen) => {
            tracing::warn!(service, instance, "a circuit breaker has opened: the endpoint fails too often");
        }
        (BreakerState::Open | BreakerState::HalfOpen, BreakerState::Closed) => {
            tracing::info!(service, instance, "the circuit breaker has closed: the endpoint works again");
        }
        _ => {}
    }
    match (ejected, now.ejected) {
        (0, workers) if workers > 0 => {
            tracing::warn!(service, instance, workers, "an endpoint is ejected: it fails more often than its siblings");
        }
        (workers, 0) if workers > 0 => tracing::info!(service, instance, "an ejected endpoint is taken back"),
        _ => {}
    }
}
