//! What the workers' counters came to in the last seconds, and in the last minutes.
//!
//! One look a second reads all counters once and writes none. Rates and percentiles are over the last [`WINDOW`] looks, so
//! that a figure does not jump with every request; the history has one point for each look. The gateway's own pages and
//! probes (`/dashboard`, `/metrics`, `/health` …) are no traffic and are left out: one open dashboard is a request of minutes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::rates::{Percentile, mean_ms, per_second, percentile};
use crate::snapshot::{EndpointId, RouteId, ServiceId};
use crate::telemetry::counters::{Counter, Counters, Deadline, EndpointSight, endpoint_sight};

/// How many looks a rate goes back, one a second.
pub const WINDOW: usize = 5;

/// How many points of history are kept: five minutes.
pub const HISTORY: usize = 300;

/// Statuses by their first digit; 0 for what did not fit into the counters' tables.
const CLASSES: usize = 6;

/// What goes wrong without being a status, by the name that the page knows it by.
pub const EVENTS: [(&str, fn(&Counters) -> u64); 12] = [
    ("timeout_connect", |block| timeouts(block, Deadline::Connect)),
    ("timeout_response_header", |block| timeouts(block, Deadline::ResponseHeader)),
    ("timeout_try", |block| timeouts(block, Deadline::Try)),
    ("timeout_header_read", |block| timeouts(block, Deadline::HeaderRead)),
    ("timeout_idle_body", |block| timeouts(block, Deadline::IdleBody)),
    ("retries", |block| block.retries.get()),
    ("retries_refused", |block| block.retries_refused.get()),
    ("accept_errors", |block| block.accept_errors.get()),
    ("redis_errors", |block| block.redis_errors.get()),
    ("rate_limit_uncounted", |block| block.rate_limit_uncounted.get()),
    ("log_lines_dropped", |block| block.log_lines_dropped.get()),
    ("panics", |block| block.panics.get()),
];

fn timeouts(block: &Counters, kind: Deadline) -> u64 {
    block.timeouts[kind as usize].get()
}

/// Requests to one route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Requests {
    all: u64,
    /// Those that were answered 5xx.
    failed: u64,
}

/// The sums over all workers at one moment, since the start.
#[derive(Debug, Clone)]
struct Totals {
    at: Instant,
    classes: [u64; CLASSES],
    routes: HashMap<RouteId, Requests>,
    buckets: Vec<u64>,
    refused: u64,
    refused_of: HashMap<ServiceId, u64>,
    workers: Vec<u64>,
    events: [u64; EVENTS.len()],
}

impl Totals {
    fn read(blocks: &[Arc<Counters>], own: &[RouteId], buckets: usize, at: Instant) -> Totals {
        let mut sum = Totals {
            at,
            classes: [0; CLASSES],
            routes: HashMap::new(),
            buckets: vec![0; buckets],
            refused: 0,
            refused_of: HashMap::new(),
            workers: vec![0; blocks.len()],
            events: EVENTS.map(|(_, read)| blocks.iter().map(|block| read(block)).sum()),
        };
        let is_own = |route: Option<RouteId>| route.is_some_and(|route| own.contains(&route));
        for (block, worker) in blocks.iter().zip(&mut sum.workers) {
            block.each_request(|series, count| {
                if is_own(series.map(|(route, _)| route)) {
                    return;
                }
                let class = series.map_or(0, |(_, status)| usize::from(status / 100));
                sum.classes[if class < CLASSES { class } else { 0 }] += count;
                *worker += count;
                if let Some((route, _)) = series {
                    let requests = sum.routes.entry(route).or_default();
                    requests.all += count;
                    requests.failed += if class == 5 { count } else { 0 };
                }
            });
            block.each_duration(|route, counts| {
                if !is_own(route) {
                    sum.buckets.iter_mut().zip(counts).for_each(|(sum, count)| *sum += Counter::get(count));
                }
            });
            block.each_refusal(|service, count| {
                sum.refused += count;
                if let Some(service) = service {
                    *sum.refused_of.entry(service).or_default() += count;
                }
            });
        }
        sum
    }
}

/// One look, as the charts show it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Unix time in milliseconds.
    pub at: u64,
    /// Answers a second since the look before, by the first digit of their status; 0: unknown.
    pub classes: [f64; CLASSES],
    /// The 50th, 90th and 99th percentile of the last [`WINDOW`] looks.
    pub percentiles: [Option<Percentile>; 3],
    /// Requests under way.
    pub in_flight: u64,
    /// Requests that a rate limit refused a second, since the look before.
    pub refused: f64,
}

impl Serialize for Point {
    /// A flat array, since hundreds of them are sent: `at`, 1xx, 2xx, 3xx, 4xx, 5xx, unknown, p50, p90, p99, `in_flight`,
    /// `refused`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [unknown, c1, c2, c3, c4, c5] = self.classes;
        let [p50, p90, p99] = self.percentiles.map(|percentile| percentile.map(|it| it.ms));
        (self.at, c1, c2, c3, c4, c5, unknown, p50, p90, p99, self.in_flight, self.refused).serialize(serializer)
    }
}

/// What an endpoint did lately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EndpointFigures {
    /// How it stands now.
    pub sight: EndpointSight,
    /// Answers a second; `None` until it was looked at twice.
    pub rate: Option<f64>,
    /// From the request to the head of its answer, on average, in milliseconds; `None` where there were no answers.
    pub mean_ms: Option<f64>,
}

/// What an endpoint had answered at one moment.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    answers: u64,
    nanos: u64,
}

/// The figures.
#[derive(Debug)]
pub struct Figures {
    bounds: Vec<f64>,
    looks: VecDeque<Totals>,
    history: VecDeque<Point>,
    endpoints: HashMap<EndpointId, (EndpointSight, VecDeque<Seen>)>,
}

impl Figures {
    /// Nothing yet. `bounds` are those of the duration histogram, in seconds.
    pub fn new(bounds: Vec<f64>) -> Figures {
        Figures { bounds, looks: VecDeque::new(), history: VecDeque::new(), endpoints: HashMap::new() }
    }

    /// Reads the counters, which makes one point of history. `own` are the routes that are no traffic; `in_flight` and the
    /// wall clock's `unix_ms` are for the point.
    pub fn look(&mut self, blocks: &[Arc<Counters>], own: &[RouteId], now: Instant, unix_ms: u64, in_flight: u64) {
        let next = Totals::read(blocks, own, self.bounds.len() + 1, now);
        if let Some(last) = self.looks.back() {
            let elapsed = now.saturating_duration_since(last.at);
            let mut classes = [0.0; CLASSES];
            for (rate, (&before, &after)) in classes.iter_mut().zip(last.classes.iter().zip(&next.classes)) {
                *rate = per_second(before, after, elapsed);
            }
            let refused = per_second(last.refused, next.refused, elapsed);
            keep(&mut self.looks, next, WINDOW + 1);
            let percentiles = self.percentiles();
            keep(&mut self.history, Point { at: unix_ms, classes, percentiles, in_flight, refused }, HISTORY);
        } else {
            self.looks.push_back(next);
        }
    }

    /// Reads what the workers say of these endpoints; others are forgotten.
    pub fn look_at(&mut self, blocks: &[Arc<Counters>], endpoints: impl Iterator<Item = EndpointId>, now: Instant) {
        let mut before = std::mem::take(&mut self.endpoints);
        for id in endpoints {
            let sight = endpoint_sight(blocks, id);
            let (_, mut seen) = before.remove(&id).unwrap_or((sight, VecDeque::with_capacity(WINDOW + 2)));
            keep(&mut seen, Seen { at: now, answers: sight.answers, nanos: sight.nanos }, WINDOW + 1);
            self.endpoints.insert(id, (sight, seen));
        }
    }

    /// Forgets the endpoints: nobody looks at them any more.
    pub fn look_away(&mut self) {
        self.endpoints = HashMap::new();
    }

    /// The last five minutes, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Point> {
        self.history.iter()
    }

    /// The last point; `None` until there were two looks.
    pub fn point(&self) -> Option<Point> {
        self.history.back().copied()
    }

    /// Answers a second by the first digit of their status; 0: unknown.
    pub fn classes(&self) -> [f64; CLASSES] {
        let mut rates = [0.0; CLASSES];
        for (class, rate) in rates.iter_mut().enumerate() {
            *rate = self.rate(|totals| totals.classes[class]);
        }
        rates
    }

    /// The 50th, 90th and 99th percentile of how long requests took.
    pub fn percentiles(&self) -> [Option<Percentile>; 3] {
        let Some((first, last, _)) = self.window() else { return [None; 3] };
        let counts: Vec<u64> =
            first.buckets.iter().zip(&last.buckets).map(|(before, after)| after.saturating_sub(*before)).collect();
        [0.5, 0.9, 0.99].map(|share| percentile(&self.bounds, &counts, share))
    }

    /// Requests a second that a rate limit refused, of all services.
    pub fn refused(&self) -> f64 {
        self.rate(|totals| totals.refused)
    }

    /// The same of one.
    pub fn refused_of(&self, service: ServiceId) -> f64 {
        self.rate(|totals| totals.refused_of.get(&service).copied().unwrap_or(0))
    }

    /// Requests a second to a route, and those of them answered 5xx.
    pub fn requests_to(&self, route: RouteId) -> (f64, f64) {
        let requests = |totals: &Totals| totals.routes.get(&route).copied().unwrap_or_default();
        (self.rate(|totals| requests(totals).all), self.rate(|totals| requests(totals).failed))
    }

    /// Requests a second that a worker ended.
    pub fn requests_of(&self, worker: usize) -> f64 {
        self.rate(|totals| totals.workers.get(worker).copied().unwrap_or(0))
    }

    /// Each of [`EVENTS`]: how many since the start, and how many a second.
    pub fn events(&self) -> impl Iterator<Item = (&'static str, u64, f64)> {
        EVENTS.iter().enumerate().map(|(index, (name, _))| {
            let total = self.looks.back().map_or(0, |totals| totals.events[index]);
            (*name, total, self.rate(|totals| totals.events[index]))
        })
    }

    /// What an endpoint did; `None` for one that was not looked at.
    pub fn endpoint(&self, id: EndpointId) -> Option<EndpointFigures> {
        let (sight, seen) = self.endpoints.get(&id)?;
        let (first, last) = (seen.front()?, seen.back()?);
        let elapsed = last.at.saturating_duration_since(first.at);
        // A worker that forgot the endpoint and knows it again begins at zero.
        let answers = last.answers.saturating_sub(first.answers);
        Some(EndpointFigures {
            sight: *sight,
            rate: (elapsed > Duration::ZERO).then(|| per_second(first.answers, last.answers, elapsed)),
            mean_ms: mean_ms(last.nanos.saturating_sub(first.nanos), answers),
        })
    }

    fn rate(&self, count: impl Fn(&Totals) -> u64) -> f64 {
        self.window().map_or(0.0, |(first, last, elapsed)| per_second(count(first), count(last), elapsed))
    }

    fn window(&self) -> Option<(&Totals, &Totals, Duration)> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        Some((first, last, last.at.saturating_duration_since(first.at)))
    }
}

fn keep<T>(queue: &mut VecDeque<T>, next: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(next);
}
