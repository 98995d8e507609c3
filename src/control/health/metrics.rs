//! `api_gateway_endpoint_healthy`: what the workers are told about each endpoint that is checked.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::control::publisher::Publisher;
use crate::snapshot::Health;

/// Reads the snapshot in force at each scrape: 1 for an endpoint that is used, 0 for one that is not.
#[derive(Debug)]
pub struct HealthGauge(pub Arc<Publisher>);

impl Collector for HealthGauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Whether an endpoint passes its health checks: 1, or 0 while it gets no requests";
        let mut metric = encoder.encode_descriptor("api_gateway_endpoint_healthy", help, None, MetricType::Gauge)?;
        let mut result = Ok(());
        self.0.each_service(|service, settings| {
            if !settings.enabled || result.is_err() {
                return;
            }
            result = service.endpoints.iter().try_for_each(|endpoint| {
                let labels = [("service", &*service.name), ("instance", &*endpoint.instance)];
                let value = ConstGauge::new(i64::from(endpoint.health != Health::Unhealthy));
                value.encode(metric.encode_family(&labels)?)
            });
        });
        result
    }
}
