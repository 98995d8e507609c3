//! What was asked and answered, with labels: the workers' tables.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::series::Series;
use super::text::{Exemplars, TRACED};
use crate::snapshot::EndpointId;
use crate::telemetry::counters::{
    Counter, Counters, Exemplar, OTHER, Shape, Table, split_rate_limited_key, split_request_key, split_upstream_key,
};
use crate::telemetry::labels::Labels;

/// The workers' tables.
#[derive(Debug)]
pub(super) struct Traffic {
    counters: Vec<Arc<Counters>>,
    buckets: Vec<f64>,
    labels: Arc<Labels>,
    exemplars: Arc<Exemplars>,
    requests: Series,
    durations: Series,
    upstream: Series,
    upstream_durations: Series,
    connect_durations: Series,
    rate_limited: Series,
}

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_requests(&mut encoder)?;
        self.encode_durations(&mut encoder)?;
        self.encode_upstream(&mut encoder)?;
        let name = "api_gateway_upstream_duration_seconds";
        let help = "Time from handing a request to an endpoint to the head of its answer, in seconds";
        self.encode_endpoint_durations(&mut encoder, name, help, &self.upstream_durations, |block| {
            &block.upstream_durations
        })?;
        let name = "api_gateway_upstream_connect_duration_seconds";
        let help = "Time to connect to an endpoint, in seconds";
        self.encode_endpoint_durations(&mut encoder, name, help, &self.connect_durations, |block| {
            &block.connect_durations
        })?;
        self.encode_rate_limited(&mut encoder)
    }
}

impl Traffic {
    /// The tables in `counters`, which are of this `shape`; `exemplars` gets what histograms are to be shown with.
    pub(super) fn new(
        counters: Vec<Arc<Counters>>,
        shape: &Shape,
        labels: Arc<Labels>,
        exemplars: Arc<Exemplars>,
    ) -> Traffic {
        let series = || Series::new(shape.max_series);
        Traffic {
            counters,
            buckets: shape.buckets.clone(),
            labels,
            exemplars,
            requests: series(),
            durations: series(),
            upstream: series(),
            upstream_durations: series(),
            connect_durations: series(),
            rate_limited: series(),
        }
    }

    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests answered, by method, route prefix and status";
        let mut metric = encoder.encode_descriptor("api_gateway_requests", help, None, MetricType::Counter)?;
        let sums = self.requests.sum(self.rows(|block| &block.requests), |_| true);
        for (key, row) in sums {
            let (method, endpoint, status) = self.request_labels(key);
            let labels = [("method", method), ("endpoint", &endpoint), ("status", &status)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&row[0], None)?;
        }
        Ok(())
    }

    fn encode_durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from a request's head to the end of its answer, in seconds";
        let mut metric = encoder.encode_descriptor(TRACED, help, None, MetricType::Histogram)?;
        let sums = self.durations.sum(self.rows(|block| &block.durations), |_| true);
        let mut latest: HashMap<u64, Vec<Option<Exemplar>>> = HashMap::with_capacity(sums.len());
        for (key, _, exemplars) in self.counters.iter().flat_map(|block| block.durations_with_exemplars()) {
            let known = latest.entry(if sums.contains_key(&key) { key } else { OTHER }).or_default();
            known.resize(exemplars.len(), None);
            for (known, exemplar) in known.iter_mut().zip(exemplars) {
                *known = [*known, exemplar].into_iter().flatten().max_by_key(|exemplar| exemplar.unix_ms);
            }
        }
        let mut shown = Vec::with_capacity(sums.len() * (self.buckets.len() + 1));
        for (key, row) in sums {
            let (method, endpoint, _) = self.request_labels(key);
            self.encode_histogram(&mut metric, &[("method", method), ("endpoint", &endpoint)], &row)?;
            let exemplars = latest.remove(&key).unwrap_or_default();
            shown.extend(exemplars.into_iter().chain(std::iter::repeat(None)).take(self.buckets.len() + 1));
        }
        self.exemplars.set(shown);
        Ok(())
    }

    fn encode_upstream(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Answers of each endpoint, by status";
        let mut metric = encoder.encode_descriptor("api_gateway_service_requests", help, None, MetricType::Counter)?;
        let is_named = |key| self.labels.endpoint_name(split_upstream_key(key).0).is_some();
        for (key, row) in self.upstream.sum(self.rows(|block| &block.upstream), is_named) {
            let (endpoint, status) = split_upstream_key(key);
            let Some((service, instance)) = self.endpoint_labels(key, endpoint) else { continue };
            let status = if key == OTHER { "other".to_owned() } else { status.to_string() };
            let labels = [("service", &service), ("instance", &instance), ("status", &status)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&row[0], None)?;
        }
        Ok(())
    }

    fn encode_endpoint_durations(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        series: &Series,
        table: fn(&Counters) -> &Table,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let is_named = |key| self.labels.endpoint_name(EndpointId(key as u32)).is_some();
        for (key, row) in series.sum(self.rows(table), is_named) {
            let Some((service, instance)) = self.endpoint_labels(key, EndpointId(key as u32)) else { continue };
            self.encode_histogram(&mut metric, &[("service", service), ("instance", instance)], &row)?;
        }
        Ok(())
    }

    fn encode_rate_limited(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests refused by a rate limit, by service and by whom the limit counts";
        let mut metric = encoder.encode_descriptor("api_gateway_rate_limit_hits", help, None, MetricType::Counter)?;
        for (key, row) in self.rate_limited.sum(self.rows(|block| &block.rate_limited), |_| true) {
            let (service, kind) = split_rate_limited_key(key);
            // A service may be called `other`; no kind is.
            let (service, kind) = match key {
                OTHER => ("other".to_owned(), "other"),
                _ => (self.labels.service_name(service), kind.as_str()),
            };
            let labels = [("service", service.as_str()), ("key_type", kind)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&row[0], None)?;
        }
        Ok(())
    }

    /// A row of nanoseconds, and of counts for each bucket.
    fn encode_histogram(
        &self,
        metric: &mut prometheus_client::encoding::MetricEncoder<'_>,
        labels: &impl EncodeLabelSet,
        row: &[u64],
    ) -> fmt::Result {
        let counts = &row[1..];
        let bounds = self.buckets.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(
            row[0] as f64 / 1e9,
            counts.iter().sum(),
            &buckets,
            None,
        )
    }

    /// The rows of one table of all workers.
    fn rows(&self, table: fn(&Counters) -> &Table) -> impl Iterator<Item = (u64, &[Counter])> {
        self.counters.iter().flat_map(move |block| table(block).rows())
    }

    fn request_labels(&self, key: u64) -> (&'static str, String, String) {
        if key == OTHER {
            return ("OTHER", "other".to_owned(), "other".to_owned());
        }
        let (route, method, status) = split_request_key(key);
        (method.as_str(), self.labels.route_name(route), status.to_string())
    }

    /// `None` for an endpoint that was forgotten just now.
    fn endpoint_labels(&self, key: u64, endpoint: EndpointId) -> Option<(String, String)> {
        match key {
            OTHER => Some(("other".to_owned(), "other".to_owned())),
            _ => self.labels.endpoint_name(endpoint),
        }
    }
}
