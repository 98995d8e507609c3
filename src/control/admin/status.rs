//! `GET /api/v1/services/status`, `GET /api/v1/services/{service}/status` and `GET /api/v1/services/{service}/metrics`: what the
//! workers know of each endpoint, beside what the checks say.
//!
//! Each worker has breakers, ejections and counts of its own. Shown are the worst of the breakers, and the sums of the
//! rest; a worker publishes changes of its breakers at once, everything else once a second.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;

use super::health::unknown_service;
use super::{Problem, method_not_allowed};
use crate::control::health::{Reports, verdict};
use crate::control::publisher::Publisher;
use crate::policy::auth::Mode;
use crate::snapshot::{self, EndpointId, ServiceKind, Snapshot};
use crate::telemetry::counters::{Counters, endpoint_answers, endpoint_sight, rate_limit_hits};
use crate::traffic::balance::Algorithm;
use crate::traffic::breaker::BreakerState;

/// What the answers are made of.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    publisher: Arc<Publisher>,
    reports: Arc<Reports>,
    counters: Arc<[Arc<Counters>]>,
}

/// The routes, to be merged with the others.
pub fn routes(publisher: Arc<Publisher>, reports: Arc<Reports>, counters: Vec<Arc<Counters>>) -> Router {
    Router::new()
        .route("/api/v1/services/status", get(all).fallback(method_not_allowed))
        .route("/api/v1/services/{service}/status", get(one).fallback(method_not_allowed))
        .route("/api/v1/services/{service}/metrics", get(metrics).fallback(method_not_allowed))
        .with_state(Sources { publisher, reports, counters: counters.into() })
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusOverview)]
struct Overview {
    /// The snapshot that is served; each change of configuration, addresses, keys or health makes another.
    generation: u64,
    workers: usize,
    services: Vec<Service>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServiceStatus)]
struct Service {
    service: Box<str>,
    prefix: Box<str>,
    load_balancing: &'static str,
    auth: &'static str,
    in_flight: u32,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EndpointStatus, example = json!({
    "instance": "10.0.0.7:9003", "source": "dns", "weight": 1, "health": "healthy", "last_check": "2030-01-31T12:00:00.250Z",
    "last_result": "200", "breaker": "closed", "ejected_by": 0, "in_flight": 3, "answers": 81345, "response_time_ms": 4.2
}))]
struct Endpoint {
    instance: Box<str>,
    /// `configured`, `dns` or `registered`.
    source: &'static str,
    weight: u16,
    /// What the checks say: `healthy`, `unhealthy` or `unknown`.
    health: &'static str,
    /// RFC 3339, UTC; null before the first check has ended.
    last_check: Option<String>,
    last_result: Option<String>,
    /// The worst of the workers': `closed`, `half_open` or `open`.
    breaker: &'static str,
    /// On how many workers it is out because it does worse than its siblings.
    ejected_by: u32,
    in_flight: u32,
    /// Answers since the start.
    answers: u64,
    /// From a request's first byte to the answer's head, on average since the start.
    response_time_ms: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServiceMetrics, example = json!({
    "service": "sms", "in_flight": 3, "answers": {"200": 81340, "503": 5}, "response_time_ms": 4.2, "rate_limited": {"user": 12},
    "endpoints": [{
        "instance": "10.0.0.7:9003", "in_flight": 3, "answers": {"200": 81340, "503": 5}, "response_time_ms": 4.2, "breaker": "closed"
    }]
}))]
struct Metrics {
    service: Box<str>,
    in_flight: u32,
    /// Answers by status.
    answers: BTreeMap<u16, u64>,
    response_time_ms: Option<f64>,
    /// Requests refused by a rate limit, by whom it counts.
    rate_limited: BTreeMap<&'static str, u64>,
    endpoints: Vec<EndpointMetrics>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EndpointMetrics)]
struct EndpointMetrics {
    instance: Box<str>,
    in_flight: u32,
    answers: BTreeMap<u16, u64>,
    response_time_ms: Option<f64>,
    breaker: &'static str,
}

/// Every service and its endpoints, as the workers see them
#[utoipa::path(get, path = "/api/v1/services/status", tag = "Services", operation_id = "status_of_services", responses(
    (status = 200, description = "Breakers are the worst of the workers', counts are sums", body = Overview),
))]
pub(super) async fn all(State(sources): State<Sources>) -> Response {
    let snapshot = sources.publisher.snapshot();
    let services = own(&snapshot).map(|service| sources.service(service)).collect();
    let workers = sources.counters.len();
    Json(Overview { generation: snapshot.generation, workers, services }).into_response()
}

/// A service and its endpoints, as the workers see them
#[utoipa::path(get, path = "/api/v1/services/{service}/status", tag = "Services", operation_id = "status_of_service",
    params(("service" = String, Path, description = "The service's name")), responses(
    (status = 200, description = "Breakers are the worst of the workers', counts are sums", body = Service),
    (status = 404, description = "`unknown_service`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn one(State(sources): State<Sources>, Path(name): Path<String>, request: Request) -> Response {
    let snapshot = sources.publisher.snapshot();
    match own(&snapshot).find(|service| *service.name == name) {
        Some(service) => Json(sources.service(service)).into_response(),
        None => unknown_service(&request),
    }
}

/// What a service has answered
#[utoipa::path(get, path = "/api/v1/services/{service}/metrics", tag = "Services", operation_id = "metrics_of_service",
    params(("service" = String, Path, description = "The service's name")), responses(
    (status = 200, description = "Answers by status, and refusals by rate limits, since the start", body = Metrics),
    (status = 404, description = "`unknown_service`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn metrics(State(sources): State<Sources>, Path(name): Path<String>, request: Request) -> Response {
    let snapshot = sources.publisher.snapshot();
    match own(&snapshot).find(|service| *service.name == name) {
        Some(service) => Json(sources.metrics(service)).into_response(),
        None => unknown_service(&request),
    }
}

fn own(snapshot: &Snapshot) -> impl Iterator<Item = &snapshot::Service> {
    snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend)
}

impl Sources {
    fn service(&self, service: &snapshot::Service) -> Service {
        let endpoints: Vec<Endpoint> = service.endpoints.iter().map(|endpoint| self.endpoint(endpoint)).collect();
        Service {
            service: service.name.clone(),
            prefix: service.prefix.clone(),
            load_balancing: match service.load_balancing {
                Algorithm::RoundRobin => "round_robin",
                Algorithm::LeastConnections => "least_connections",
                Algorithm::Random => "random",
            },
            auth: match service.auth {
                Mode::Required => "required",
                Mode::Optional => "optional",
                Mode::None => "none",
            },
            in_flight: endpoints.iter().map(|endpoint| endpoint.in_flight).sum(),
            endpoints,
        }
    }

    fn endpoint(&self, endpoint: &snapshot::Endpoint) -> Endpoint {
        let sight = endpoint_sight(&self.counters, endpoint.id);
        let report = self.reports.get(endpoint.id).unwrap_or_default();
        Endpoint {
            instance: endpoint.instance.clone(),
            source: match endpoint.source {
                snapshot::Source::Configured => "configured",
                snapshot::Source::Dns => "dns",
                snapshot::Source::Registered => "registered",
                snapshot::Source::Own => "own",
            },
            weight: endpoint.weight,
            health: match report.verdict.state {
                verdict::State::Unknown => "unknown",
                verdict::State::Healthy => "healthy",
                verdict::State::Unhealthy => "unhealthy",
            },
            last_check: report.last.as_ref().and_then(|last| super::health::timestamp(last.at)),
            last_result: report.last.map(|last| last.result),
            breaker: sight.breaker.as_str(),
            ejected_by: sight.ejected,
            in_flight: sight.in_flight,
            answers: sight.answers,
            response_time_ms: mean_ms(sight.nanos, sight.answers),
        }
    }

    fn metrics(&self, service: &snapshot::Service) -> Metrics {
        let mut whole = Metrics {
            service: service.name.clone(),
            in_flight: 0,
            answers: BTreeMap::new(),
            response_time_ms: None,
            rate_limited: rate_limit_hits(&self.counters, service.id),
            endpoints: Vec::new(),
        };
        let known: HashSet<EndpointId> = service.endpoints.iter().map(|endpoint| endpoint.id).collect();
        let mut all = endpoint_answers(&self.counters, |id| known.contains(&id));
        let (mut nanos, mut answers) = (0, 0);
        for endpoint in &service.endpoints {
            let sight = endpoint_sight(&self.counters, endpoint.id);
            let by_status = all.remove(&endpoint.id).unwrap_or_default();
            for (&status, &count) in &by_status {
                *whole.answers.entry(status).or_default() += count;
            }
            whole.in_flight += sight.in_flight;
            (nanos, answers) = (nanos + sight.nanos, answers + sight.answers);
            whole.endpoints.push(EndpointMetrics {
                instance: endpoint.instance.clone(),
                in_flight: sight.in_flight,
                answers: by_status,
                response_time_ms: mean_ms(sight.nanos, sight.answers),
                breaker: BreakerState::as_str(sight.breaker),
            });
        }
        whole.response_time_ms = mean_ms(nanos, answers);
        whole
    }
}

fn mean_ms(nanos: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| ((nanos / count) as f64 / 1e3).round() / 1e3)
}
