//! What the page is sent each second: one JSON object, whole, so that a viewer that missed some has lost nothing.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::figures::{EndpointFigures, Figures, Point};
use super::rates::{Percentile, skew};
use crate::control::health::{HealthReport, Reports, verdict};
use crate::snapshot::{self, Phase, RouteId, ServiceKind, Snapshot};
use crate::telemetry::counters::Counters;
use crate::traffic::breaker::BreakerState;
use crate::traffic::standing;

/// The most endpoints that are shown one by one. Of more than that, those in trouble come first; services tell of all.
pub const ENDPOINTS_SHOWN_MAX: usize = 1_000;

/// One event of the stream.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    /// Unix time in milliseconds.
    pub at: u64,
    /// The process.
    pub gateway: Gateway<'a>,
    /// All services together.
    pub traffic: Traffic,
    /// What goes wrong without being a status: name, how many since the start, how many a second.
    pub events: Vec<(&'static str, u64, f64)>,
    /// In their order.
    pub workers: Vec<Worker>,
    /// The busiest worker over the mean, by connections; `None` without any.
    pub skew: Option<f64>,
    /// In the order of their names.
    pub services: Vec<Service>,
    /// Endpoints that are not among the services' for want of room.
    pub endpoints_left_out: usize,
    /// The point to be added to the history; `None` in the first second of the process.
    pub point: Option<Point>,
}

/// The process, its configuration, and Redis.
#[derive(Debug, Serialize)]
pub struct Gateway<'a> {
    /// The crate's.
    pub version: &'static str,
    /// The git commit that was built.
    pub commit: &'static str,
    /// The process's id: another one answers after an upgrade.
    pub pid: u32,
    /// Unix time in milliseconds of its start.
    pub started: u64,
    /// `io_uring` or `epoll`.
    pub driver: &'a str,
    /// `serving`, `unready`, `draining` or `stopping`.
    pub phase: &'static str,
    /// `metrics.enabled`: without it there are no rates, percentiles and statuses.
    pub metrics: bool,
    /// Whether an admin key is asked for.
    pub key: bool,
    /// How many look at this.
    pub viewers: usize,
    /// The snapshot that is published.
    pub generation: u64,
    /// How many workers serve with it already.
    pub adopted: usize,
    /// Configurations read while running.
    pub reloads: ReloadCounts,
    /// Who counts for the rate limits.
    pub redis: Redis,
}

/// Configurations read while running.
#[derive(Debug, Serialize)]
pub struct ReloadCounts {
    /// Those that are or were served.
    pub applied: u64,
    /// Those that were refused.
    pub invalid: u64,
    /// Whether the last one was refused: then the file does not say what is served.
    pub failed: bool,
}

/// Who counts for the rate limits.
#[derive(Debug, Serialize)]
pub struct Redis {
    /// `off`, `shared` or `degraded`.
    pub mode: &'static str,
    /// On how many workers it is degraded.
    pub workers_degraded: usize,
    /// `redis.on_error`: `local`, `allow` or `deny`.
    pub on_error: &'static str,
}

/// All services together.
#[derive(Debug, Serialize)]
pub struct Traffic {
    /// Answers a second, by the first digit of their status; the first is those whose status is not known.
    pub classes: [f64; 6],
    /// The 50th percentile of the time from a request's head to the end of its answer.
    pub p50: Option<Percentile>,
    /// The 90th.
    pub p90: Option<Percentile>,
    /// The 99th.
    pub p99: Option<Percentile>,
    /// Requests under way, without the viewers' own.
    pub in_flight: u64,
    /// Requests a second that a rate limit refused.
    pub refused: f64,
}

/// One worker.
#[derive(Debug, Serialize)]
pub struct Worker {
    /// Requests under way, the viewers' own among them.
    pub in_flight: u64,
    /// Client connections open.
    pub connections: u64,
    /// Requests ended a second.
    pub rate: f64,
}

/// One service.
#[derive(Debug, Serialize)]
pub struct Service {
    /// Its name.
    pub name: Box<str>,
    /// The prefix of its route.
    pub prefix: Box<str>,
    /// `healthy`: nothing is wrong with any endpoint; `degraded`: with some; `failing`: with all of them; `empty`: there are none.
    pub state: &'static str,
    /// Whether so few endpoints are healthy that all are used (`health.panic_threshold`).
    pub panic: bool,
    /// Whether there is a breaker.
    pub breaker: bool,
    /// Endpoints that nothing is wrong with.
    pub good: usize,
    /// Endpoints.
    pub total: usize,
    /// Requests a second.
    pub rate: Option<f64>,
    /// Those of them that were answered 5xx; `None` where that is not known, or not by service.
    pub failed: Option<f64>,
    /// From the request to the head of the answer, on average, in milliseconds.
    pub mean_ms: Option<f64>,
    /// Requests under way.
    pub in_flight: u32,
    /// Requests a second that a rate limit refused.
    pub refused: f64,
    /// In the order of the configuration.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Serialize)]
pub struct Endpoint {
    /// `127.0.0.1:9001`
    pub instance: Box<str>,
    /// `healthy`, `unhealthy`, or `unknown`: not checked yet, or at all.
    pub health: &'static str,
    /// What came of its last check, where it is unhealthy.
    pub check: Option<String>,
    /// The worst of the workers': `closed`, `half_open` or `open`.
    pub breaker: &'static str,
    /// On how many workers it is out because it does worse than its siblings.
    pub ejected: u32,
    /// Requests under way.
    pub in_flight: u32,
    /// Answers a second; `None` until it was looked at for a second.
    pub rate: Option<f64>,
    /// From the request to the head of its answer, on average, in milliseconds.
    pub mean_ms: Option<f64>,
    /// Its share relative to its siblings'.
    pub weight: u16,
    /// `configured`, `dns` or `registered`.
    pub source: &'static str,
}

/// What `phase` is called.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Unready => "unready",
        Phase::Draining => "draining",
        Phase::Stopping => "stopping",
    }
}

/// Each worker, and the skew of their connections.
pub fn workers(blocks: &[Arc<Counters>], figures: &Figures) -> (Vec<Worker>, Option<f64>) {
    let workers = blocks.iter().enumerate().map(|(index, block)| Worker {
        in_flight: block.active.get(),
        connections: block.connections_open.get(),
        rate: figures.requests_of(index),
    });
    (workers.collect(), skew(blocks.iter().map(|block| block.connections_open.get())))
}

/// The configured services, and how many endpoints were left out. `metrics` tells whether requests are counted.
pub fn services(snapshot: &Snapshot, figures: &Figures, reports: &Reports, metrics: bool) -> (Vec<Service>, usize) {
    let backends = || snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend);
    let mut sharers: HashMap<RouteId, usize> = HashMap::new();
    backends().for_each(|service| *sharers.entry(service.route).or_default() += 1);
    let mut services: Vec<Service> = backends()
        .map(|service| self::service(service, figures, reports, metrics && sharers[&service.route] == 1))
        .collect();
    let left_out = trim(&mut services, ENDPOINTS_SHOWN_MAX);
    (services, left_out)
}

/// Leaves `most` endpoints in all, those in trouble first. Returns how many went.
fn trim(services: &mut [Service], most: usize) -> usize {
    let total: usize = services.iter().map(|service| service.total).sum();
    let good: usize = services.iter().map(|service| service.good).sum();
    let mut bad_left = most.min(total - good);
    let mut good_left = most - bad_left;
    let mut shown = 0;
    for service in services {
        service.endpoints.retain(|endpoint| {
            let left = if endpoint.is_good() { &mut good_left } else { &mut bad_left };
            let is_shown = *left > 0;
            *left -= usize::from(is_shown);
            is_shown
        });
        shown += service.endpoints.len();
    }
    total - shown
}

/// `is_counted`: whether the requests to the service's route are counted, and are this service's alone.
fn service(service: &snapshot::Service, figures: &Figures, reports: &Reports, is_counted: bool) -> Service {
    let known: Vec<Option<EndpointFigures>> =
        service.endpoints.iter().map(|endpoint| figures.endpoint(endpoint.id)).collect();
    let endpoints: Vec<Endpoint> = service
        .endpoints
        .iter()
        .zip(&known)
        .map(|(endpoint, figures)| self::endpoint(endpoint, *figures, reports.get(endpoint.id).unwrap_or_default()))
        .collect();
    let known = || known.iter().flatten();
    let answered = known().filter_map(|figures| figures.rate).reduce(|sum, rate| sum + rate);
    // The mean of means, by how many answers each stands for.
    let weighted = known().filter_map(|figures| Some((figures.rate?, figures.mean_ms?)));
    let (answers, time) = weighted.fold((0.0, 0.0), |(answers, time), (rate, ms)| (answers + rate, time + rate * ms));
    let counted = is_counted.then(|| figures.requests_to(service.route));
    let (total, good) = (endpoints.len(), endpoints.iter().filter(|endpoint| endpoint.is_good()).count());
    let healthy = endpoints.iter().filter(|endpoint| endpoint.health != UNHEALTHY).count();
    Service {
        name: service.name.clone(),
        prefix: service.prefix.clone(),
        state: match good {
            _ if total == 0 => "empty",
            0 => "failing",
            _ if good < total => "degraded",
            _ => "healthy",
        },
        panic: standing::is_panic(healthy, total, service.health.panic_threshold),
        breaker: service.breaker.settings.enabled,
        good,
        total,
        rate: counted.map(|(all, _)| all).or(answered),
        failed: counted.map(|(_, failed)| failed),
        mean_ms: (answers > 0.0).then(|| (time / answers * 1e3).round() / 1e3),
        in_flight: known().map(|figures| figures.sight.in_flight).sum(),
        refused: figures.refused_of(service.id),
        endpoints,
    }
}

const UNHEALTHY: &str = "unhealthy";

fn endpoint(endpoint: &snapshot::Endpoint, figures: Option<EndpointFigures>, report: HealthReport) -> Endpoint {
    let is_unhealthy = endpoint.health == snapshot::Health::Unhealthy;
    let sight = figures.map(|figures| figures.sight);
    Endpoint {
        instance: endpoint.instance.clone(),
        health: match report.verdict.state {
            _ if is_unhealthy => UNHEALTHY,
            verdict::State::Unknown => "unknown",
            // What the workers are told counts; the report may be a moment ahead.
            verdict::State::Healthy | verdict::State::Unhealthy => "healthy",
        },
        check: report.last.filter(|_| is_unhealthy).map(|last| last.result),
        breaker: sight.map_or(BreakerState::Closed, |sight| sight.breaker).as_str(),
        ejected: sight.map_or(0, |sight| sight.ejected),
        in_flight: sight.map_or(0, |sight| sight.in_flight),
        rate: figures.and_then(|figures| figures.rate),
        mean_ms: figures.and_then(|figures| figures.mean_ms),
        weight: endpoint.weight,
        source: match endpoint.source {
            snapshot::Source::Configured => "configured",
            snapshot::Source::Dns => "dns",
            snapshot::Source::Registered => "registered",
            snapshot::Source::Own => "own",
        },
    }
}

impl Endpoint {
    /// Whether nothing is wrong with it.
    fn is_good(&self) -> bool {
        self.health != UNHEALTHY && self.breaker == BreakerState::Closed.as_str() && self.ejected == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(service: &str, bad: usize, good: usize) -> Service {
        let endpoint = |health| Endpoint {
            instance: service.into(),
            health,
            check: None,
            breaker: "closed",
            ejected: 0,
            in_flight: 0,
            rate: None,
            mean_ms: None,
            weight: 1,
            source: "configured",
        };
        let endpoints = (0..good).map(|_| endpoint("healthy")).chain((0..bad).map(|_| endpoint(UNHEALTHY)));
        Service {
            name: service.into(),
            prefix: service.into(),
            state: "degraded",
            panic: false,
            breaker: true,
            good,
            total: good + bad,
            rate: None,
            failed: None,
            mean_ms: None,
            in_flight: 0,
            refused: 0.0,
            endpoints: endpoints.collect(),
        }
    }

    #[test]
    fn those_in_trouble_are_shown_first() {
        let check = |most, expected: [(usize, usize); 2], left_out| {
            let mut services = [shown("a", 1, 3), shown("b", 2, 2)];
            assert_eq!(trim(&mut services, most), left_out, "{most}");
            let kept = services.map(|service| {
                let good = service.endpoints.iter().filter(|endpoint| endpoint.is_good()).count();
                (service.endpoints.len() - good, good)
            });
            assert_eq!(kept, expected, "{most}");
        };
        check(8, [(1, 3), (2, 2)], 0);
        check(100, [(1, 3), (2, 2)], 0);
        check(4, [(1, 1), (2, 0)], 4);
        check(2, [(1, 0), (1, 0)], 6);
        check(0, [(0, 0), (0, 0)], 8);
    }
}
