//! What a scrape sees: every worker's counters, summed at that moment, in either of Prometheus' text formats.
//!
//! Rendering reads the workers' blocks and writes nothing of theirs, so a scrape costs no request anything.

mod endpoints;
mod process;
mod series;
mod text;
mod traffic;
mod workers;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use self::text::Exemplars;
use super::counters::{Counters, Shape};
use super::labels::Labels;
use super::reloads::Reloads;
use super::spans::LostSpans;
use crate::snapshot::Seam;

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
    /// Knows the spans that nobody took.
    pub lost_spans: Arc<LostSpans>,
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
    exemplars: Arc<Exemplars>,
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
        let exemplars = Arc::new(Exemplars::default());
        let mut exposition = Exposition { registry: Registry::default(), exemplars: Arc::clone(&exemplars) };
        let snapshots = Arc::clone(&progress.seam);
        if shape.enabled {
            exposition.add(traffic::Traffic::new(counters.clone(), shape, labels, exemplars));
        }
        exposition.add(endpoints::Endpoints { counters: counters.clone(), snapshots, max: shape.max_series });
        exposition.add(workers::Workers { counters, workers });
        exposition.add(process::Process(progress));
        exposition
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
            Format::OpenMetrics => self.exemplars.insert_into(&text),
            Format::Prometheus => text::to_prometheus(&text),
        })
    }
}

/// A metric that may go down.
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
    use crate::policy::rate_limit::identity::Kind;
    use crate::telemetry::reloads::ReloadResult;

    fn rendered(format: Format) -> String {
        let shape = Shape { enabled: true, buckets: vec![0.001, 0.5], max_series: 100 };
        let labels = Arc::new(Labels::new());
        let route = labels.route("/a\"b\\c\nd");
        let endpoint = labels.endpoint("sms", "127.0.0.1:9001");
        let counters: Vec<_> = (0..2).map(|_| Arc::new(Counters::new(&shape))).collect();
        for (block, millis) in counters.iter().zip([1, 100]) {
            block.request_started();
            block.request_started();
            let trace = (&[b'a'; 32], 1_700_000_000_250 + millis);
            block.request_finished(route, Method::Get, 200, Duration::from_millis(millis), Some(trace));
            block.upstream_answered(endpoint, 200, Duration::from_millis(millis));
            block.upstream_connected(endpoint, Duration::from_millis(1));
            block.token_hits.add(3);
        }
        let workers = vec![WorkerInfo { worker: 0, driver: "io_uring", flags: "none" }];
        let seam = crate::control::build::seam_without_services(2, 7);
        seam.adopt(1, 7);
        let progress = Progress { seam, reloads: Arc::default(), lost_spans: Arc::default() };
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
            "api_gateway_upstream_duration_seconds_bucket{le=\"0.001\",service=\"sms\",instance=\"127.0.0.1:9001\"} 1\n",
            "api_gateway_upstream_duration_seconds_sum{service=\"sms\",instance=\"127.0.0.1:9001\"} 0.101\n",
            "api_gateway_upstream_connect_duration_seconds_count{service=\"sms\",instance=\"127.0.0.1:9001\"} 2\n",
            "api_gateway_token_cache_hits_total{worker=\"1\"} 3\n",
            "api_gateway_worker_requests_total{worker=\"0\"} 1\n",
            "api_gateway_worker_requests_skew 1.0\n",
            "api_gateway_timeouts_total{kind=\"header_read\"} 0\n",
            "api_gateway_rate_limit_mode{mode=\"memory\"} 2\n",
            "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total ",
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes ",
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
    fn no_series_comes_twice_whatever_a_service_is_called() {
        let shape = Shape { enabled: true, buckets: vec![0.5], max_series: 100 };
        let labels = Arc::new(Labels::new());
        let counters = Arc::new(Counters::new(&shape));
        let names = ["other".to_owned()].into_iter().chain((0..120).map(|number| format!("s{number}")));
        for name in names {
            counters.rate_limited(labels.service(&name), Kind::Ip);
        }
        let seam = crate::control::build::seam_without_services(1, 1);
        let progress = Progress { seam, reloads: Arc::default(), lost_spans: Arc::default() };
        let exposition = Exposition::new(vec![counters], Vec::new(), &shape, labels, progress);
        let text = exposition.render(Format::Prometheus).expect("strings take everything");
        let series = |line: &str| line.rsplit_once(' ').map(|(series, _)| series.to_owned());
        let mut seen: Vec<String> = text.lines().filter(|line| !line.starts_with('#')).filter_map(series).collect();
        let all = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), all, "{text}");
        assert!(
            text.contains("api_gateway_rate_limit_hits_total{service=\"other\",key_type=\"other\"} 21\n"),
            "{text}"
        );
    }

    #[test]
    fn open_metrics() {
        let text = rendered(Format::OpenMetrics);
        assert!(text.contains("# TYPE api_gateway_requests counter\napi_gateway_requests_total{"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        // Each bucket has the latest request of its own; the older format has no place for that.
        let trace = "a".repeat(32);
        for (bucket, seconds, at) in [("0.001", "0.001", "1700000000.251"), ("0.5", "0.1", "1700000000.350")] {
            let line = format!("{{le=\"{bucket}\",method=\"GET\",endpoint=\"/a\\\"b\\\\c\\nd\"}}");
            let line = text.lines().find(|candidate| candidate.contains(&line)).expect("the bucket");
            assert!(line.ends_with(&format!(" # {{trace_id=\"{trace}\"}} {seconds} {at}")), "{line}");
        }
        assert_eq!(text.matches("trace_id").count(), 2, "no bucket has another's");
        assert!(!rendered(Format::Prometheus).contains("trace_id"));
        assert_eq!(
            Format::negotiate("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            Format::OpenMetrics
        );
        assert_eq!(Format::negotiate("*/*"), Format::Prometheus);
    }
}
