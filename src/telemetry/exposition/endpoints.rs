//! How the endpoints stand that there are now.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::gauge;
use crate::snapshot::{Seam, ServiceKind};
use crate::telemetry::counters::{Counters, EndpointSight, endpoint_sight};

/// The endpoints of the snapshot in force, as the workers see them.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) counters: Vec<Arc<Counters>>,
    pub(super) snapshots: Arc<Seam>,
    /// The most that are shown.
    pub(super) max: usize,
}

impl Collector for Endpoints {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.snapshots.load();
        let services = snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend);
        let endpoints = services.flat_map(|service| service.endpoints.iter().map(move |endpoint| (service, endpoint)));
        let sights: Vec<(&str, &str, EndpointSight)> = endpoints
            .take(self.max)
            .map(|(service, endpoint)| {
                (&*service.name, &*endpoint.instance, endpoint_sight(&self.counters, endpoint.id))
            })
            .collect();
        let mut each = |name: &str, help: &str, value: fn(&EndpointSight) -> i64| {
            gauge(&mut encoder, &format!("api_gateway_{name}"), help, |mut metric| {
                for (service, instance, sight) in &sights {
                    let labels = [("service", *service), ("instance", *instance)];
                    metric.encode_family(&labels)?.encode_gauge(&value(sight))?;
                }
                Ok(())
            })
        };
        let help = "The endpoint's circuit breaker, on the worker where it is worst: 0 closed, 1 half-open, 2 open";
        each("circuit_breaker_state", help, |sight| sight.breaker as i64)?;
        let help = "On how many workers the endpoint gets no requests because it fails more often than its siblings";
        each("endpoint_ejected", help, |sight| i64::from(sight.ejected))?;
        let help = "Requests under way to the endpoint, a second old at most";
        each("endpoint_requests_in_flight", help, |sight| i64::from(sight.in_flight))
    }
}
