//! What each worker counts without labels of its own: by worker, since their skew is worth seeing.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{WorkerInfo, as_gauge, gauge};
use crate::telemetry::counters::{Counter, Counters, Deadline, RateLimitMode};

/// The workers.
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) counters: Vec<Arc<Counters>>,
    pub(super) workers: Vec<WorkerInfo>,
}

type Read = fn(&Counters) -> &Counter;

/// Name, help, and where it is.
const COUNTERS: [(&str, &str, Read); 24] = [
    ("connections_accepted", "Client connections accepted", |block| &block.connections_accepted),
    ("accept_errors", "Client connections that could not be accepted", |block| &block.accept_errors),
    ("panics", "Panics caught; each ended one connection", |block| &block.panics),
    ("log_lines_dropped", "Access-log lines dropped because their reader was slow", |block| &block.log_lines_dropped),
    ("spans_dropped", "Traced requests of which no spans were made, since too many were waiting", |block| {
        &block.spans_dropped
    }),
    ("request_body_bytes", "Body bytes from clients", |block| &block.bytes_in),
    ("response_body_bytes", "Body bytes to clients", |block| &block.bytes_out),
    ("upstream_connects", "Upstream connections attempted", |block| &block.upstream_connects),
    ("upstream_reused", "Requests that went to a pooled upstream connection", |block| &block.upstream_reused),
    ("upstream_pipelined", "Requests that joined another one on its upstream connection", |block| {
        &block.upstream_pipelined
    }),
    ("upstream_stale", "Pooled upstream connections found closed", |block| &block.upstream_stale),
    ("retries", "Requests sent again", |block| &block.retries),
    ("retries_refused", "Requests not sent again because the retry budget was used up", |block| &block.retries_refused),
    ("token_cache_hits", "Bearer tokens that had been verified before", |block| &block.token_hits),
    ("token_cache_misses", "Bearer tokens that had to be verified", |block| &block.token_misses),
    ("redis_calls", "Commands sent to Redis", |block| &block.redis_calls),
    ("redis_writes", "Writes that carried commands to Redis", |block| &block.redis_writes),
    ("redis_errors", "Commands that Redis did not answer, or with an error", |block| &block.redis_errors),
    ("redis_connects", "Connections made to Redis", |block| &block.redis_connects),
    ("rate_limit_asked", "Rate-limit tokens asked of the ledger", |block| &block.rate_limit_asked),
    ("rate_limit_granted", "Rate-limit tokens that the ledger granted", |block| &block.rate_limit_granted),
    ("rate_limit_denied_locally", "Requests refused by a rate limit without asking the ledger", |block| {
        &block.rate_limit_denied_locally
    }),
    ("rate_limit_uncounted", "Requests let pass without being counted while Redis was away", |block| {
        &block.rate_limit_uncounted
    }),
    ("metrics_series_dropped", "Samples counted under `other` for want of room", |block| &block.series_dropped),
];

const GAUGES: [(&str, &str, Read); 4] = [
    ("connections_open", "Client connections open", |block| &block.connections_open),
    ("upstream_connections_open", "Upstream connections open, a second old at most", |block| &block.upstream_open),
    ("upstream_connections_idle", "Upstream connections in the pools, a second old at most", |block| {
        &block.upstream_idle
    }),
    ("redis_degraded", "Whether rate limits are decided without Redis, though there is one", |block| {
        &block.redis_degraded
    }),
];

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        for (name, help, read) in COUNTERS {
            encode_counter(encoder, name, help, self.counters.iter().map(|block| read(block).get()))?;
        }
        for (name, help, read) in GAUGES {
            gauge(encoder, &format!("api_gateway_{name}"), help, |mut metric| {
                for (worker, block) in self.counters.iter().enumerate() {
                    let labels = [("worker", worker.to_string())];
                    metric.encode_family(&labels)?.encode_gauge(&as_gauge(read(block).get()))?;
                }
                Ok(())
            })?;
        }
        gauge(encoder, "api_gateway_active_requests", "Requests under way", |mut metric| {
            metric.encode_gauge(&as_gauge(self.sum(|block| &block.active)))
        })?;
        self.encode_skew(encoder)?;
        self.encode_timeouts(encoder)?;
        let ratio = {
            let (reused, made) = (self.sum(|block| &block.upstream_reused), self.sum(|block| &block.upstream_connects));
            if reused + made == 0 { 0.0 } else { reused as f64 / (reused + made) as f64 }
        };
        let help = "The share of requests that went to a pooled upstream connection, since the start";
        gauge(encoder, "api_gateway_upstream_reuse_ratio", help, |mut metric| metric.encode_gauge(&ratio))?;
        let help = "How many workers decide rate limits in this mode";
        gauge(encoder, "api_gateway_rate_limit_mode", help, |mut metric| {
            for mode in RateLimitMode::ALL {
                let is_in = |block: &&Arc<Counters>| block.rate_limit_mode.get() == mode as u64;
                let workers = self.counters.iter().filter(is_in).count();
                metric.encode_family(&[("mode", mode.as_str())])?.encode_gauge(&(workers as i64))?;
            }
            Ok(())
        })?;
        let help = "How many gateways share the rate limits on Redis, this one among them; 0 without Redis";
        gauge(encoder, "api_gateway_rate_limit_gateways", help, |mut metric| {
            let seen = self.counters.iter().map(|block| block.rate_limit_gateways.get()).max();
            metric.encode_gauge(&as_gauge(seen.unwrap_or(0)))
        })?;
        gauge(encoder, "api_gateway_worker_info", "What each worker runs on", |mut metric| {
            for info in &self.workers {
                let worker = info.worker.to_string();
                let labels = [("worker", worker.as_str()), ("driver", info.driver), ("ring_flags", info.flags)];
                metric.encode_family(&labels)?.encode_gauge(&1i64)?;
            }
            Ok(())
        })
    }
}

impl Workers {
    /// Requests by worker, and how uneven the workers' shares are.
    fn encode_skew(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let answered: Vec<u64> = self.counters.iter().map(|block| block.answered()).collect();
        encode_counter(encoder, "worker_requests", "Requests answered by the worker", answered.iter().copied())?;
        let requests = skew(answered.iter().copied());
        let connections = skew(self.counters.iter().map(|block| block.connections_open.get()));
        let help = "Requests of the busiest worker over the mean of all, since the start; 1 is even";
        gauge(encoder, "api_gateway_worker_requests_skew", help, |mut metric| metric.encode_gauge(&requests))?;
        let help = "Open client connections of the worker with the most over the mean of all; 1 is even";
        gauge(encoder, "api_gateway_worker_connections_skew", help, |mut metric| metric.encode_gauge(&connections))
    }

    fn encode_timeouts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Deadlines that fired, by the key that sets them";
        let mut metric = encoder.encode_descriptor("api_gateway_timeouts", help, None, MetricType::Counter)?;
        for deadline in Deadline::ALL {
            let fired: u64 = self.counters.iter().map(|block| block.timeouts[deadline as usize].get()).sum();
            let labels = [("kind", deadline.as_str())];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&fired, None)?;
        }
        Ok(())
    }

    fn sum(&self, read: Read) -> u64 {
        self.counters.iter().map(|block| read(block).get()).sum()
    }
}

/// A counter's values, by worker.
fn encode_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = u64>,
) -> fmt::Result {
    let name = format!("api_gateway_{name}");
    let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
    for (worker, value) in values.enumerate() {
        let labels = [("worker", worker.to_string())];
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

/// The largest over the mean; 1 where there is nothing.
fn skew(counts: impl Iterator<Item = u64> + Clone) -> f64 {
    let sum: u64 = counts.clone().sum();
    match (counts.clone().max(), sum) {
        (Some(largest), 1..) => (largest * counts.count() as u64) as f64 / sum as f64,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_the_busiest_over_the_mean() {
        for (counts, expected) in
            [(&[][..], 1.0), (&[0, 0], 1.0), (&[5], 1.0), (&[3, 3, 3], 1.0), (&[4, 0], 2.0), (&[6, 2, 1], 2.0)]
        {
            assert_eq!(skew(counts.iter().copied()), expected, "{counts:?}");
        }
    }
}
