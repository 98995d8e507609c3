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

/// Reads one of a worker's counters.
type Read = fn(&Counters) -> u64;

/// What goes wrong without being a status, by the name that the page knows it by.
const EVENTS: [(&str, Read); 12] = [
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

    /// What goes wrong without being a status: how many since the start, and how many a second.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::method::Method;
    use crate::policy::rate_limit::identity::Kind;
    use crate::telemetry::counters::Shape;
    use crate::traffic::breaker::BreakerState;

    const SMS: RouteId = RouteId(2);
    const DASHBOARD: RouteId = RouteId(3);

    fn blocks(workers: usize, max_series: usize) -> Vec<Arc<Counters>> {
        let shape = Shape { enabled: true, buckets: vec![0.001, 0.01], max_series };
        (0..workers).map(|_| Arc::new(Counters::new(&shape))).collect()
    }

    fn answer(block: &Counters, route: RouteId, status: u16, times: usize) {
        for _ in 0..times {
            block.request_started();
            block.request_finished(route, Method::Get, status, Duration::from_micros(500), None);
        }
    }

    struct World {
        blocks: Vec<Arc<Counters>>,
        figures: Figures,
        start: Instant,
        seconds: u64,
    }

    impl World {
        fn new(workers: usize) -> World {
            World {
                blocks: blocks(workers, 100),
                figures: Figures::new(vec![0.001, 0.01]),
                start: Instant::now(),
                seconds: 0,
            }
        }

        /// Looks, and a second goes by.
        fn look(&mut self) {
            let now = self.start + Duration::from_secs(self.seconds);
            self.figures.look(&self.blocks, &[DASHBOARD], now, self.seconds * 1_000, 7);
            self.seconds += 1;
        }
    }

    #[test]
    fn nothing_is_known_at_first() {
        let mut world = World::new(1);
        let check = |figures: &Figures, points| {
            assert_eq!((figures.classes(), figures.percentiles()), ([0.0; 6], [None; 3]));
            assert_eq!((figures.refused(), figures.requests_of(0), figures.requests_of(9)), (0.0, 0.0, 0.0));
            assert_eq!((figures.history().count(), figures.endpoint(EndpointId(1))), (points, None));
        };
        check(&world.figures, 0);
        answer(&world.blocks[0], SMS, 200, 10);
        world.look();
        check(&world.figures, 0);
        // What was before the first look is nobody's second.
        world.look();
        check(&world.figures, 1);
    }

    #[test]
    fn rates_are_over_the_window_and_points_over_a_second() {
        let mut world = World::new(2);
        world.look();
        answer(&world.blocks[0], SMS, 200, 30);
        answer(&world.blocks[1], SMS, 503, 10);
        answer(&world.blocks[1], DASHBOARD, 200, 1_000);
        world.blocks[1].rate_limited(ServiceId(4), Kind::Ip);
        world.look();
        assert_eq!(world.figures.classes(), [0.0, 0.0, 30.0, 0.0, 0.0, 10.0]);
        assert_eq!((world.figures.requests_to(SMS), world.figures.requests_to(RouteId(9))), ((40.0, 10.0), (0.0, 0.0)));
        assert_eq!((world.figures.requests_of(0), world.figures.requests_of(1)), (30.0, 10.0));
        let refused =
            |figures: &Figures| (figures.refused(), figures.refused_of(ServiceId(4)), figures.refused_of(ServiceId(5)));
        assert_eq!(refused(&world.figures), (1.0, 1.0, 0.0));
        world.look();
        assert_eq!(world.figures.classes()[2], 15.0);
        let point = world.figures.point().expect("two looks");
        assert_eq!((point.classes[2], point.in_flight, point.at), (0.0, 7, 2_000));
        let ms = world.figures.percentiles().map(|percentile| percentile.map(|it| it.ms));
        assert_eq!(ms, [Some(0.5), Some(0.9), Some(0.99)], "without the dashboard's own");
        for _ in 0..WINDOW {
            world.look();
        }
        assert_eq!((world.figures.classes(), world.figures.percentiles()), ([0.0; 6], [None; 3]));
    }

    #[test]
    fn history_has_an_end() {
        let mut world = World::new(1);
        for _ in 0..HISTORY + 50 {
            world.look();
        }
        assert_eq!(world.figures.history().count(), HISTORY);
        assert_eq!(world.figures.history().next().map(|point| point.at), Some(50_000));
        assert!(world.figures.looks.len() <= WINDOW + 1);
    }

    #[test]
    fn what_did_not_fit_is_counted_without_a_status() {
        let mut world = World::new(1);
        world.blocks = blocks(1, 3);
        world.look();
        (200..210).for_each(|status| answer(&world.blocks[0], SMS, status, 1));
        world.look();
        assert_eq!(world.figures.classes(), [7.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn endpoints_and_counts_that_start_over() {
        let mut world = World::new(1);
        let id = EndpointId(5);
        let stand = |answers, nanos| {
            let sight = EndpointSight { breaker: BreakerState::Open, ejected: 1, in_flight: 3, answers, nanos };
            world.blocks[0].endpoint_stands(id, &sight);
        };
        let at = |seconds| world.start + Duration::from_secs(seconds);
        stand(10, 10_000_000);
        world.figures.look_at(&world.blocks, [id].into_iter(), at(0));
        let figures = world.figures.endpoint(id).expect("looked at");
        assert_eq!((figures.rate, figures.mean_ms, figures.sight.breaker), (None, None, BreakerState::Open));
        stand(20, 40_000_000);
        world.figures.look_at(&world.blocks, [id].into_iter(), at(2));
        let figures = world.figures.endpoint(id).expect("looked at");
        assert_eq!((figures.rate, figures.mean_ms), (Some(5.0), Some(3.0)));
        // The worker forgot it, and knows it again.
        stand(1, 1_000);
        world.figures.look_at(&world.blocks, [id].into_iter(), at(3));
        let figures = world.figures.endpoint(id).expect("looked at");
        assert_eq!((figures.rate, figures.mean_ms), (Some(0.0), None));
        world.figures.look_at(&world.blocks, [].into_iter(), at(4));
        assert_eq!(world.figures.endpoint(id), None);
    }
}
