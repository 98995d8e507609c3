//! One worker's counters: written by that worker alone, read by the control thread whenever somebody scrapes.
//!
//! A write is a relaxed load and a relaxed store, never a read-modify-write, and no two workers write one cache line
//! (HAProxy's rule for its per-thread counters). A scrape may see one counter a moment before another; each is exact.
//!
//! Series with labels live in open-addressed tables of a fixed size, so that nothing is allocated on the request path
//! and hostile labels cannot grow them: what does not fit is counted under `other`. Series of endpoints that are gone stay
//! until their room is wanted.

mod exemplar;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use self::exemplar::Slot;
pub use self::exemplar::{Exemplar, TraceId};
pub use self::table::{OTHER, Table};

use zerocopy::FromZeros;

use crate::http::method::Method;
use crate::policy::rate_limit::identity::Kind;
use crate::snapshot::{EndpointId, RouteId, ServiceId};
use crate::traffic::breaker::BreakerState;

/// What the counters count, the same for every worker.
#[derive(Debug, Clone)]
pub struct Shape {
    /// `metrics.enabled`: off, only what the gateway itself needs is counted.
    pub enabled: bool,
    /// Upper bounds of the duration histogram's buckets, in seconds, ascending.
    pub buckets: Vec<f64>,
    /// The most label combinations of one metric.
    pub max_series: usize,
}

/// Which deadline has fired: the keys under `[timeouts]`, and `retry.try_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deadline {
    /// `keepalive_idle`: a connection was closed between two requests.
    #[default]
    KeepaliveIdle,
    /// `header_read`.
    HeaderRead,
    /// `connect`.
    Connect,
    /// `response_header`.
    ResponseHeader,
    /// `retry.try_timeout`.
    Try,
    /// `idle_body`: a body, or a tunnel, made no progress, on either side.
    IdleBody,
}

/// Who counts for the rate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RateLimitMode {
    /// This process: there is no Redis.
    #[default]
    Memory,
    /// Redis, for all gateways that share it.
    Shared,
    /// Redis does not answer: `redis.on_error` decides.
    Degraded,
}

impl RateLimitMode {
    /// All of them, in the order of their numbers.
    pub const ALL: [RateLimitMode; 3] = [RateLimitMode::Memory, RateLimitMode::Shared, RateLimitMode::Degraded];

    /// The `mode` label.
    pub fn as_str(self) -> &'static str {
        match self {
            RateLimitMode::Memory => "memory",
            RateLimitMode::Shared => "shared",
            RateLimitMode::Degraded => "degraded",
        }
    }
}

impl Deadline {
    /// All of them, in the order of their numbers.
    pub const ALL: [Deadline; 6] = [
        Deadline::KeepaliveIdle,
        Deadline::HeaderRead,
        Deadline::Connect,
        Deadline::ResponseHeader,
        Deadline::Try,
        Deadline::IdleBody,
    ];

    /// The `kind` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Deadline::KeepaliveIdle => "keepalive_idle",
            Deadline::HeaderRead => "header_read",
            Deadline::Connect => "connect",
            Deadline::ResponseHeader => "response_header",
            Deadline::Try => "try",
            Deadline::IdleBody => "idle_body",
        }
    }
}

/// A number that one thread writes and others read.
#[derive(Debug, Default, FromZeros)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. To be called by the owning worker only.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets it, for gauges. To be called by the owning worker only.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's block.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    /// Requests under way.
    pub active: Counter,
    /// Ticks of the worker: one that does not tick hangs.
    pub heartbeats: Counter,
    /// Client connections accepted.
    pub connections_accepted: Counter,
    /// Client connections open.
    pub connections_open: Counter,
    /// Accepts that failed: no descriptor, no memory, or a client that was gone.
    pub accept_errors: Counter,
    /// Panics caught.
    pub panics: Counter,
    /// Access-log lines dropped because the log's reader was too slow.
    pub log_lines_dropped: Counter,
    /// Records of traced requests dropped because the control plane was too slow.
    pub spans_dropped: Counter,
    /// Body bytes from clients.
    pub bytes_in: Counter,
    /// Body bytes to clients.
    pub bytes_out: Counter,
    /// Upstream connections attempted.
    pub upstream_connects: Counter,
    /// Requests that went to a pooled connection.
    pub upstream_reused: Counter,
    /// Requests that joined another one on its connection.
    pub upstream_pipelined: Counter,
    /// Pooled connections that turned out to be closed.
    pub upstream_stale: Counter,
    /// Requests sent again.
    pub retries: Counter,
    /// Requests that were not sent again because the retry budget was used up.
    pub retries_refused: Counter,
    /// Deadlines that fired, by their number.
    pub timeouts: [Counter; Deadline::ALL.len()],
    /// Connections to upstreams that are open, those in use and those in the pools.
    pub upstream_open: Counter,
    /// Those in the pools.
    pub upstream_idle: Counter,
    /// Samples counted under `other` because a table was full.
    pub series_dropped: Counter,
    /// Tokens that were known from before.
    pub token_hits: Counter,
    /// Tokens that had to be verified, or were refused.
    pub token_misses: Counter,
    /// Commands sent to Redis.
    pub redis_calls: Counter,
    /// Writes that carried them.
    pub redis_writes: Counter,
    /// Commands without a good answer.
    pub redis_errors: Counter,
    /// Connections made to Redis.
    pub redis_connects: Counter,
    /// 1 while rate limits are decided without Redis, though there is one.
    pub redis_degraded: Counter,
    /// The number of the [`RateLimitMode`].
    pub rate_limit_mode: Counter,
    /// How many gateways share the ledger in Redis, as last seen; 0 where there is none.
    pub rate_limit_gateways: Counter,
    /// Requests that a rate limit let pass without counting them, since Redis was away.
    pub rate_limit_uncounted: Counter,
    /// Tokens of rate limits that were asked of a ledger.
    pub rate_limit_asked: Counter,
    /// Those of them that were granted.
    pub rate_limit_granted: Counter,
    /// Requests refused without asking a ledger.
    pub rate_limit_denied_locally: Counter,
    /// By route, method and status: count.
    pub(super) requests: Table,
    /// By route and method: nanoseconds, then a count for each bucket, the last for what is above all bounds.
    pub(super) durations: Table,
    /// The latest requests of those, by the place of the row and by bucket.
    exemplars: Box<[Slot]>,
    /// By endpoint and status: count.
    pub(super) upstream: Table,
    /// By endpoint, as `durations`: from handing it a request to the head of its answer.
    pub(super) upstream_durations: Table,
    /// The same: to connect to it.
    pub(super) connect_durations: Table,
    /// By service and kind of identity: count.
    pub(super) rate_limited: Table,
    /// By endpoint: breaker state, requests in flight, answers, their nanoseconds, whether it is ejected.
    pub(super) endpoints: Table,
    bounds: Box<[u64]>,
    enabled: bool,
}

/// How an endpoint stands on one worker, or on all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointSight {
    /// Its breaker; the worst of them.
    pub breaker: BreakerState,
    /// On how many workers it is out as an outlier.
    pub ejected: u32,
    /// Requests under way to it.
    pub in_flight: u32,
    /// Heads of answers that came from it.
    pub answers: u64,
    /// The time from the request to those, in nanoseconds, all together.
    pub nanos: u64,
}

const ENDPOINT_COLUMNS: usize = 5;

/// How the endpoint stands on all workers together.
pub fn endpoint_sight(blocks: &[Arc<Counters>], endpoint: EndpointId) -> EndpointSight {
    let mut sum = EndpointSight { breaker: BreakerState::Closed, ejected: 0, in_flight: 0, answers: 0, nanos: 0 };
    for row in blocks.iter().filter_map(|block| block.endpoints.find(u64::from(endpoint.0))) {
        sum.breaker = sum.breaker.max(BreakerState::from_number(row[0].get()));
        sum.in_flight += row[1].get() as u32;
        sum.answers += row[2].get();
        sum.nanos += row[3].get();
        sum.ejected += row[4].get() as u32;
    }
    sum
}

/// The answers of each of the endpoints that are `wanted`, by status.
pub fn endpoint_answers(
    blocks: &[Arc<Counters>],
    wanted: impl Fn(EndpointId) -> bool,
) -> HashMap<EndpointId, BTreeMap<u16, u64>> {
    let mut sums: HashMap<EndpointId, BTreeMap<u16, u64>> = HashMap::new();
    for (key, row) in blocks.iter().flat_map(|block| block.upstream.rows()).filter(|&(key, _)| key != OTHER) {
        let (endpoint, status) = split_upstream_key(key);
        if wanted(endpoint) {
            *sums.entry(endpoint).or_default().entry(status).or_default() += row[0].get();
        }
    }
    sums
}

/// How many requests to the service a rate limit refused, by whom it counts.
pub fn rate_limit_hits(blocks: &[Arc<Counters>], service: ServiceId) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (key, row) in blocks.iter().flat_map(|block| block.rate_limited.rows()).filter(|&(key, _)| key != OTHER) {
        let (other, kind) = split_rate_limited_key(key);
        if other == service {
            *sums.entry(kind.as_str()).or_default() += row[0].get();
        }
    }
    sums
}

impl Counters {
    /// A worker's block, all zero. Room for `max_series` of each metric is reserved; memory is taken as series appear.
    pub fn new(shape: &Shape) -> Counters {
        let histograms = (shape.max_series / 8).max(64);
        // Nanoseconds, one for each bound, one for what is above all of them.
        let columns = shape.buckets.len() + 2;
        let durations = Table::new(histograms, columns);
        Counters {
            active: Counter::default(),
            heartbeats: Counter::default(),
            connections_accepted: Counter::default(),
            connections_open: Counter::default(),
            accept_errors: Counter::default(),
            panics: Counter::default(),
            log_lines_dropped: Counter::default(),
            spans_dropped: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            upstream_connects: Counter::default(),
            upstream_reused: Counter::default(),
            upstream_pipelined: Counter::default(),
            upstream_stale: Counter::default(),
            retries: Counter::default(),
            retries_refused: Counter::default(),
            timeouts: Default::default(),
            upstream_open: Counter::default(),
            upstream_idle: Counter::default(),
            series_dropped: Counter::default(),
            token_hits: Counter::default(),
            token_misses: Counter::default(),
            redis_calls: Counter::default(),
            redis_writes: Counter::default(),
            redis_errors: Counter::default(),
            redis_connects: Counter::default(),
            redis_degraded: Counter::default(),
            rate_limit_mode: Counter::default(),
            rate_limit_gateways: Counter::default(),
            rate_limit_uncounted: Counter::default(),
            rate_limit_asked: Counter::default(),
            rate_limit_granted: Counter::default(),
            rate_limit_denied_locally: Counter::default(),
            requests: Table::new(shape.max_series, 1),
            exemplars: zeroed(durations.places() * (columns - 1)),
            durations,
            upstream: Table::new(shape.max_series, 1),
            upstream_durations: Table::new(histograms, columns),
            connect_durations: Table::new(histograms, columns),
            rate_limited: Table::new(shape.max_series.min(4_096), 1),
            endpoints: Table::new(shape.max_series, ENDPOINT_COLUMNS),
            bounds: shape.buckets.iter().map(|seconds| (seconds * 1e9) as u64).collect(),
            enabled: shape.enabled,
        }
    }

    /// A request has come.
    pub fn request_started(&self) {
        self.active.add(1);
    }

    /// A request has ended, at `unix_ms`; `trace` is the trace that it belongs to, where somebody keeps that.
    pub fn request_finished(
        &self,
        route: RouteId,
        method: Method,
        status: u16,
        duration: Duration,
        trace: Option<(&TraceId, u64)>,
    ) {
        self.active.set(self.active.get().saturating_sub(1));
        if !self.enabled {
            return;
        }
        self.row(&self.requests, request_key(route, method, status))[0].add(1);
        let (place, bucket, nanos) = self.measure(&self.durations, request_key(route, method, 0), duration);
        if let Some((&trace, unix_ms)) = trace {
            self.exemplars[place * (self.bounds.len() + 1) + bucket].offer(&Exemplar { trace, nanos, unix_ms });
        }
    }

    /// Counts a duration in the histogram of `key`; the place of its row, its bucket, and its nanoseconds.
    fn measure(&self, table: &Table, key: u64, duration: Duration) -> (usize, usize, u64) {
        let place = table.place(key).unwrap_or_else(|| {
            self.series_dropped.add(1);
            table.other()
        });
        let nanos = duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into());
        let bucket = self.bounds.partition_point(|&bound| bound < nanos);
        let row = table.at(place);
        row[0].add(nanos);
        row[1 + bucket].add(1);
        (place, bucket, nanos)
    }

    /// A connection to an endpoint was made in that time.
    pub fn upstream_connected(&self, endpoint: EndpointId, duration: Duration) {
        if self.enabled {
            self.measure(&self.connect_durations, u64::from(endpoint.0), duration);
        }
    }

    /// The head of an endpoint's answer has come, so long after the request was handed to it: the end of its body, where that
    /// came from the client bit by bit.
    pub fn upstream_answered(&self, endpoint: EndpointId, status: u16, duration: Duration) {
        if self.enabled {
            self.row(&self.upstream, u64::from(endpoint.0) << 16 | u64::from(status))[0].add(1);
            self.measure(&self.upstream_durations, u64::from(endpoint.0), duration);
        }
    }

    /// Makes room, where it is getting scarce, by forgetting endpoints that are not `known` any more.
    pub fn forget_endpoints(&self, known: impl Fn(EndpointId) -> bool) {
        self.upstream.relieve(|key| known(split_upstream_key(key).0));
        for table in [&self.upstream_durations, &self.connect_durations, &self.endpoints] {
            table.relieve(|key| known(EndpointId(key as u32)));
        }
    }

    /// How an endpoint stands on this worker.
    pub fn endpoint_stands(&self, endpoint: EndpointId, sight: &EndpointSight) {
        // One that does not fit is not shown: sums of states mean nothing.
        if let Some(row) = self.endpoints.row(u64::from(endpoint.0)) {
            row[0].set(sight.breaker as u64);
            row[1].set(u64::from(sight.in_flight));
            row[2].set(sight.answers);
            row[3].set(sight.nanos);
            row[4].set(u64::from(sight.ejected));
        }
    }

    /// A limit has refused a request.
    pub fn rate_limited(&self, service: ServiceId, kind: Kind) {
        if self.enabled {
            self.row(&self.rate_limited, u64::from(service.0) << 8 | kind as u64)[0].add(1);
        }
    }

    fn row<'a>(&'a self, table: &'a Table, key: u64) -> &'a [Counter] {
        table.row(key).unwrap_or_else(|| {
            self.series_dropped.add(1);
            table.at(table.other())
        })
    }

    /// Requests answered in all.
    pub fn answered(&self) -> u64 {
        self.requests.rows().map(|(_, row)| row[0].get()).sum()
    }

    /// Shows `visit` how many requests have ended by route and status; `None` for those that did not fit.
    pub fn each_request(&self, mut visit: impl FnMut(Option<(RouteId, u16)>, u64)) {
        for (key, row) in self.requests.rows() {
            let (route, _, status) = split_request_key(key);
            visit((key != OTHER).then_some((route, status)), row[0].get());
        }
    }

    /// Shows `visit` how long requests took by route, `None` for those that did not fit: a count for each bucket, the last
    /// for what is above all bounds.
    pub fn each_duration(&self, mut visit: impl FnMut(Option<RouteId>, &[Counter])) {
        for (key, row) in self.durations.rows() {
            visit((key != OTHER).then_some(split_request_key(key).0), &row[1..]);
        }
    }

    /// Shows `visit` how many requests a rate limit refused by service; `None` for those that did not fit.
    pub fn each_refusal(&self, mut visit: impl FnMut(Option<ServiceId>, u64)) {
        for (key, row) in self.rate_limited.rows() {
            visit((key != OTHER).then_some(split_rate_limited_key(key).0), row[0].get());
        }
    }

    /// The rows of the request durations, by key, each with what its buckets can be told by.
    pub(super) fn durations_with_exemplars(&self) -> impl Iterator<Item = (u64, &[Counter], Vec<Option<Exemplar>>)> {
        let buckets = self.bounds.len() + 1;
        self.durations.rows_with_places().map(move |(key, place, row)| {
            let slots = &self.exemplars[place * buckets..][..buckets];
            (key, row, slots.iter().map(Slot::get).collect())
        })
    }
}

/// So many zeros, in pages that the kernel hands out as they are written.
fn zeroed<T: FromZeros>(len: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(len).expect("memory for the counters")
}

fn request_key(route: RouteId, method: Method, status: u16) -> u64 {
    u64::from(route.0) << 24 | (method as u64) << 16 | u64::from(status)
}

/// What [`request_key`] put together.
pub(super) fn split_request_key(key: u64) -> (RouteId, Method, u16) {
    let method = Method::ALL.get((key >> 16) as usize & 0xff).copied().unwrap_or(Method::Other);
    (RouteId((key >> 24) as u16), method, key as u16)
}

/// What [`Counters::upstream_answered`] put together.
pub(super) fn split_upstream_key(key: u64) -> (EndpointId, u16) {
    (EndpointId((key >> 16) as u32), key as u16)
}

/// What [`Counters::rate_limited`] put together.
pub(super) fn split_rate_limited_key(key: u64) -> (ServiceId, Kind) {
    let kind = Kind::ALL.get((key & 0xff) as usize).copied().unwrap_or(Kind::Ip);
    (ServiceId((key >> 8) as u16), kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(max_series: usize) -> Shape {
        Shape { enabled: true, buckets: vec![0.001, 0.01], max_series }
    }

    #[test]
    fn a_request_is_counted_once_everywhere() {
        let counters = Counters::new(&shape(100));
        counters.request_started();
        counters.request_started();
        counters.request_finished(RouteId(2), Method::Get, 200, Duration::from_millis(1), None);
        assert_eq!(counters.active.get(), 1);
        let rows: Vec<_> = counters.requests.rows().map(|(key, row)| (split_request_key(key), row[0].get())).collect();
        assert_eq!(rows, [((RouteId(2), Method::Get, 200), 1)]);
        let rows: Vec<_> =
            counters.durations.rows().map(|(_, row)| row.iter().map(Counter::get).collect::<Vec<_>>()).collect();
        assert_eq!(rows, [[1_000_000, 1, 0, 0]]);
    }

    #[test]
    fn what_does_not_fit_is_counted_as_other() {
        let counters = Counters::new(&shape(10));
        for status in 200..220 {
            counters.request_started();
            counters.request_finished(RouteId(2), Method::Get, status, Duration::ZERO, None);
        }
        let other = counters.requests.rows().find(|(key, _)| *key == OTHER).map(|(_, row)| row[0].get());
        assert_eq!(other, Some(10));
        assert_eq!(counters.series_dropped.get(), 10);
        assert_eq!(counters.requests.rows().map(|(_, row)| row[0].get()).sum::<u64>(), 20);
    }

    #[test]
    fn switched_off_only_what_is_under_way_is_counted() {
        let counters = Counters::new(&Shape { enabled: false, ..shape(10) });
        counters.request_started();
        counters.request_finished(RouteId(2), Method::Get, 200, Duration::ZERO, None);
        counters.upstream_answered(EndpointId(1), 200, Duration::ZERO);
        assert_eq!(counters.active.get(), 0);
        assert_eq!(counters.requests.rows().count() + counters.upstream.rows().count(), 0);
    }

    #[test]
    fn a_scrape_never_sees_a_row_before_it_is_whole() {
        let counters = Counters::new(&shape(5_000));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for id in 0..200_000 {
                    counters.upstream_answered(EndpointId(id % 4_000), 200, Duration::ZERO);
                }
            });
            while !writer.is_finished() {
                for (key, _) in counters.upstream.rows() {
                    let (endpoint, status) = split_upstream_key(key);
                    assert!(endpoint.0 < 4_000 && status == 200);
                }
            }
        });
        assert_eq!(counters.upstream.rows().map(|(_, row)| row[0].get()).sum::<u64>(), 200_000);
    }
}
