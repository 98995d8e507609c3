//! What a scrape sees: every worker's counters, summed at that moment, in either of Prometheus' text formats.
//!
//! Rendering reads the workers' blocks and writes nothing of theirs, so a scrape costs no request anything.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::counters::{
    Counter, Counters, EndpointSight, OTHER, Shape, Table, endpoint_sight, split_rate_limited_key, split_request_key,
    split_upstream_key,
};
use super::labels::Labels;
use super::reloads::{ReloadResult, Reloads};
use crate::snapshot::{Seam, ServiceKind};

/// What a worker runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Which worker, from 0.
    pub worker: usize,
    /// `io_uring` or `epoll`.
    pub driver: &'static str,
    /// The ring's flags; `-` for epoll.
    pub flags: &'static str,
}

/// Which configuration is served, and how it came to be.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Knows the generations.
    pub seam: Arc<Seam>,
    /// Knows the reloads.
    pub reloads: Arc<Reloads>,
}

/// Which text format is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header field asks for.
    pub fn negotiate(accept: &str) -> Format {
        if accept.contains("application/openmetrics-text") { Format::OpenMetrics } else { Format::Prometheus }
    }

    /// The media type of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything that is exposed.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// Exposes the counters of all workers, in the order of the workers.
    pub fn new(
        counters: Vec<Arc<Counters>>,
        workers: Vec<WorkerInfo>,
        shape: &Shape,
        labels: Arc<Labels>,
        progress: Progress,
    ) -> Exposition {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Sum {
            counters,
            workers,
            buckets: shape.buckets.clone(),
            labels,
            progress,
        }));
        Exposition { registry }
    }

    /// Exposes what `collector` collects too.
    pub fn add(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    /// Renders all metrics.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn render(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Prometheus => to_prometheus(&text),
        })
    }
}

/// Turns OpenMetrics into the older format, which calls a counter by its sample's name and knows neither units nor an end
/// mark.
fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        let is_counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        let is_counter_help = line.starts_with("# HELP ") && lines.peek().is_some_and(|next| is_counter(next));
        match line.splitn(4, ' ').collect::<Vec<_>>().as_slice() {
            ["#", "EOF"] | ["#", "UNIT", ..] => continue,
            ["#", keyword, name, rest] if is_counter_help || is_counter(line) => {
                text.push_str(&format!("# {keyword} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Sums the workers' counters.
#[derive(Debug)]
struct Sum {
    counters: Vec<Arc<Counters>>,
    workers: Vec<WorkerInfo>,
    buckets: Vec<f64>,
    labels: Arc<Labels>,
    progress: Progress,
}

impl Collector for Sum {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_requests(&mut encoder)?;
        self.encode_durations(&mut encoder)?;
        self.encode_upstream(&mut encoder)?;
        self.encode_rate_limited(&mut encoder)?;
        let active = self.counters.iter().map(|block| block.active.get()).sum();
        gauge(&mut encoder, "api_gateway_active_requests", "Requests under way", |mut metric| {
            metric.encode_gauge(&as_gauge(active))
        })?;
        self.encode_workers(&mut encoder)?;
        self.encode_progress(&mut encoder)?;
        self.encode_breakers(&mut encoder)?;
        gauge(&mut encoder, "api_gateway_build_info", "The build that runs", |mut metric| {
            let labels = [("version", env!("CARGO_PKG_VERSION")), ("commit", env!("BUILD_COMMIT"))];
            metric.encode_family(&labels)?.encode_gauge(&1i64)
        })?;
        gauge(&mut encoder, "api_gateway_worker_info", "What each worker runs on", |mut metric| {
            for info in &self.workers {
                let worker = info.worker.to_string();
                let labels = [("worker", worker.as_str()), ("driver", info.driver), ("ring_flags", info.flags)];
                metric.encode_family(&labels)?.encode_gauge(&1i64)?;
            }
            Ok(())
        })
    }
}

impl Sum {
    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests answered, by method, route prefix and status";
        let mut metric = encoder.encode_descriptor("api_gateway_requests", help, None, MetricType::Counter)?;
        for (key, row) in self.sum(|block| &block.requests, 1) {
            let (method, endpoint, status) = self.request_labels(key);
            let labels = [("method", method), ("endpoint", &endpoint), ("status", &status)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&row[0], None)?;
        }
        Ok(())
    }

    fn encode_durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from a request's head to the end of its answer, in seconds";
        let name = "api_gateway_request_duration_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (key, row) in self.sum(|block| &block.durations, self.buckets.len() + 2) {
            let (method, endpoint, _) = self.request_labels(key);
            let counts = &row[1..];
            let bounds = self.buckets.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let labels = [("method", method), ("endpoint", &endpoint)];
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                row[0] as f64 / 1e9,
                counts.iter().sum(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn encode_upstream(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Answers of each endpoint, by status";
        let mut metric = encoder.encode_descriptor("api_gateway_service_requests", help, None, MetricType::Counter)?;
        for (key, row) in self.sum(|block| &block.upstream, 1) {
            let other = || ("other".to_owned(), "other".to_owned());
            let (endpoint, status) = split_upstream_key(key);
            let (service, instance) = if key == OTHER { other() } else { self.labels.endpoint_name(endpoint) };
            let status = if key == OTHER { "other".to_owned() } else { status.to_string() };
            let labels = [("service", &service), ("instance", &instance), ("status", &status)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&row[0], None)?;
        }
        Ok(())
    }

    fn encode_rate_limited(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests refused by a rate limit, by service and by whom the limit counts";
        let mut metric = encoder.encode_descriptor("api_gateway_rate_limit_hits", help, None, MetricType::Counter)?;
        for (key, row) in self.sum(|block| &block.rate_limited, 1) {
            let (service, kind) = split_rate_limited_key(key);
            let service = if key == OTHER { "other".to_owned() } else { self.labels.service_name(service) };
            let labels = [("service", service.as_str()), ("key_type", kind.as_str())];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&row[0], None)?;
        }
        Ok(())
    }

    /// Those of the endpoints that there are now.
    fn encode_breakers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The endpoint's circuit breaker, on the worker where it is worst: 0 closed, 1 half-open, 2 open";
        self.encode_endpoints(encoder, "circuit_breaker_state", help, |sight| sight.breaker as i64)?;
        let help = "On how many workers the endpoint gets no requests because it fails more often than its siblings";
        self.encode_endpoints(encoder, "endpoint_ejected", help, |sight| i64::from(sight.ejected))?;
        let help = "Requests under way to the endpoint, a second old at most";
        self.encode_endpoints(encoder, "endpoint_requests_in_flight", help, |sight| i64::from(sight.in_flight))
    }

    fn encode_endpoints(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&EndpointSight) -> i64,
    ) -> fmt::Result {
        gauge(encoder, &format!("api_gateway_{name}"), help, |mut metric| {
            let snapshot = self.progress.seam.load();
            for service in snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend) {
                for endpoint in &service.endpoints {
                    let sight = endpoint_sight(&self.counters, endpoint.id);
                    let labels = [("service", &*service.name), ("instance", &*endpoint.instance)];
                    metric.encode_family(&labels)?.encode_gauge(&value(&sight))?;
                }
            }
            Ok(())
        })
    }

    fn encode_progress(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Progress { seam, reloads } = &self.progress;
        gauge(encoder, "api_gateway_config_generation", "The snapshot last published", |mut metric| {
            metric.encode_gauge(&as_gauge(seam.generation()))
        })?;
        gauge(
            encoder,
            "api_gateway_config_generation_adopted",
            "The snapshot that each worker serves with",
            |mut metric| {
                for (worker, generation) in seam.adopted().enumerate() {
                    metric.encode_family(&[("worker", worker.to_string())])?.encode_gauge(&as_gauge(generation))?;
                }
                Ok(())
            },
        )?;
        gauge(encoder, "api_gateway_config_reload_failed", "Whether the last reload was refused", |mut metric| {
            metric.encode_gauge(&i64::from(reloads.has_failed()))
        })?;
        let help = "Configurations read while running, by what became of them";
        let mut metric = encoder.encode_descriptor("api_gateway_config_reload", help, None, MetricType::Counter)?;
        for result in ReloadResult::ALL {
            let labels = [("result", result.as_str())];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&reloads.get(result), None)?;
        }
        Ok(())
    }

    /// The counters without labels of their own, by worker: their skew is worth seeing.
    fn encode_workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Read = fn(&Counters) -> &Counter;
        let counters: [(&str, &str, Read); 18] = [
            ("connections_accepted", "Client connections accepted", |block| &block.connections_accepted),
            ("accept_errors", "Client connections that could not be accepted", |block| &block.accept_errors),
            ("panics", "Panics caught; each ended one connection", |block| &block.panics),
            ("log_lines_dropped", "Access-log lines dropped because their reader was slow", |block| {
                &block.log_lines_dropped
            }),
            ("request_body_bytes", "Body bytes from clients", |block| &block.bytes_in),
            ("response_body_bytes", "Body bytes to clients", |block| &block.bytes_out),
            ("upstream_connects", "Upstream connections attempted", |block| &block.upstream_connects),
            ("upstream_reused", "Requests that went to a pooled upstream connection", |block| &block.upstream_reused),
            ("upstream_stale", "Pooled upstream connections found closed", |block| &block.upstream_stale),
            ("retries", "Requests sent again", |block| &block.retries),
            ("retries_refused", "Requests not sent again because the retry budget was used up", |block| {
                &block.retries_refused
            }),
            ("timeouts", "Deadlines that fired", |block| &block.timeouts),
            ("redis_calls", "Commands sent to Redis", |block| &block.redis_calls),
            ("redis_writes", "Writes that carried commands to Redis", |block| &block.redis_writes),
            ("redis_errors", "Commands that Redis did not answer, or with an error", |block| &block.redis_errors),
            ("redis_connects", "Connections made to Redis", |block| &block.redis_connects),
            ("rate_limit_uncounted", "Requests let pass without being counted while Redis was away", |block| {
                &block.rate_limit_uncounted
            }),
            ("metrics_series_dropped", "Samples counted under `other` for want of room", |block| &block.series_dropped),
        ];
        for (name, help, read) in counters {
            let name = format!("api_gateway_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (worker, block) in self.counters.iter().enumerate() {
                let value = read(block).get();
                let labels = [("worker", worker.to_string())];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        let gauges: [(&str, &str, Read); 2] = [
            ("connections_open", "Client connections open", |block| &block.connections_open),
            ("redis_degraded", "Whether rate limits are decided without Redis, though there is one", |block| {
                &block.redis_degraded
            }),
        ];
        for (name, help, read) in gauges {
            gauge(encoder, &format!("api_gateway_{name}"), help, |mut metric| {
                for (worker, block) in self.counters.iter().enumerate() {
                    let labels = [("worker", worker.to_string())];
                    metric.encode_family(&labels)?.encode_gauge(&as_gauge(read(block).get()))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// One table of all workers, row by row, in the order of the keys.
    fn sum(&self, table: impl Fn(&Counters) -> &Table, stride: usize) -> BTreeMap<u64, Vec<u64>> {
        let mut sums = BTreeMap::new();
        for block in &self.counters {
            for (key, row) in table(block).rows() {
                let sum: &mut Vec<u64> = sums.entry(key).or_insert_with(|| vec![0; stride]);
                for (sum, counter) in sum.iter_mut().zip(row) {
                    *sum += counter.get();
                }
            }
        }
        sums
    }

    fn request_labels(&self, key: u64) -> (&'static str, String, String) {
        if key == OTHER {
            return ("OTHER", "other".to_owned(), "other".to_owned());
        }
        let (route, method, status) = split_request_key(key);
        (method.as_str(), self.labels.route_name(route), status.to_string())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    fill: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    fill(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::method::Method;

    fn rendered(format: Format) -> String {
        let shape = Shape { enabled: true, buckets: vec![0.001, 0.5], max_series: 100 };
        let labels = Arc::new(Labels::new());
        let route = labels.route("/a\"b\\c\nd");
        let endpoint = labels.endpoint("sms", "127.0.0.1:9001");
        let counters: Vec<_> = (0..2).map(|_| Arc::new(Counters::new(&shape))).collect();
        for (block, millis) in counters.iter().zip([1, 100]) {
            block.request_started();
            block.request_started();
            block.request_finished(route, Method::Get, 200, Duration::from_millis(millis));
            block.upstream_answered(endpoint, 200);
        }
        let workers = vec![WorkerInfo { worker: 0, driver: "io_uring", flags: "none" }];
        let seam = crate::control::build::seam_without_services(2, 7);
        seam.adopt(1, 7);
        let progress = Progress { seam, reloads: Arc::default() };
        progress.reloads.count(ReloadResult::Invalid);
        Exposition::new(counters, workers, &shape, labels, progress).render(format).expect("strings take everything")
    }

    #[test]
    fn prometheus_text() {
        let text = rendered(Format::Prometheus);
        for expected in [
            "# HELP api_gateway_requests_total Requests answered, by method, route prefix and status\n\
             # TYPE api_gateway_requests_total counter\n\
             api_gateway_requests_total{method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\",status=\"200\"} 2\n",
            "# TYPE api_gateway_request_duration_seconds histogram\n",
            "api_gateway_request_duration_seconds_sum{method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\"} 0.101\n",
            "_count{method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\"} 2\n",
            "le=\"0.001\",method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\"} 1\n",
            "le=\"0.5\",method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\"} 2\n",
            "le=\"+Inf\",method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\"} 2\n",
            "# TYPE api_gateway_active_requests gauge\napi_gateway_active_requests 2\n",
            "api_gateway_service_requests_total{service=\"sms\",instance=\"127.0.0.1:9001\",status=\"200\"} 2\n",
            "api_gateway_connections_open{worker=\"1\"} 0\n",
            "api_gateway_config_generation 7\n",
            "api_gateway_config_generation_adopted{worker=\"0\"} 0\n",
            "api_gateway_config_generation_adopted{worker=\"1\"} 7\n",
            "api_gateway_config_reload_failed 1\n",
            "api_gateway_config_reload_total{result=\"applied\"} 0\n",
            "api_gateway_config_reload_total{result=\"invalid\"} 1\n",
            "api_gateway_worker_info{worker=\"0\",driver=\"io_uring\",ring_flags=\"none\"} 1\n",
        ] {
            assert!(text.contains(expected), "{expected}\nis not in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("_total_total"));
    }

    #[test]
    fn open_metrics() {
        let text = rendered(Format::OpenMetrics);
        assert!(text.contains("# TYPE api_gateway_requests counter\napi_gateway_requests_total{"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(
            Format::negotiate("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            Format::OpenMetrics
        );
        assert_eq!(Format::negotiate("*/*"), Format::Prometheus);
    }
}
