//! `GET /api/v1/services/health` and `GET /api/v1/services/{service}/health`.
//!
//! A service is `healthy` while it has a healthy endpoint, and `unhealthy` otherwise; an endpoint that is not checked, or not
//! yet, counts as healthy. The answer is 200 while everything that was asked about is healthy, 503 otherwise.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::{Problem, method_not_allowed, problem};
use crate::control::config::HealthSettings;
use crate::control::health::verdict;
use crate::control::health::{HealthReport, Reports};
use crate::control::publisher::Publisher;
use crate::snapshot;
use crate::traffic::standing;

/// What the answers are made of.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    publisher: Arc<Publisher>,
    reports: Arc<Reports>,
}

/// The routes, to be merged with the others.
pub fn routes(publisher: Arc<Publisher>, reports: Arc<Reports>) -> Router {
    Router::new()
        .route("/api/v1/services/health", get(all).fallback(method_not_allowed))
        .route("/api/v1/services/{service}/health", get(one).fallback(method_not_allowed))
        .with_state(Sources { publisher, reports })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = HealthState)]
enum Status {
    Healthy,
    Unhealthy,
}

impl Status {
    fn of(is_healthy: bool) -> Status {
        if is_healthy { Status::Healthy } else { Status::Unhealthy }
    }

    fn code(self) -> StatusCode {
        match self {
            Status::Healthy => StatusCode::OK,
            Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HealthOverview)]
struct Overview {
    status: Status,
    services: Vec<Service>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServiceHealth)]
struct Service {
    service: Box<str>,
    status: Status,
    /// Whether so few endpoints are healthy that all are used (`health.panic_threshold`).
    panic: bool,
    /// `GET /health`, `connect`, or `off`.
    check: String,
    endpoints_healthy: usize,
    endpoints_total: usize,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EndpointHealth, example = json!({
    "instance": "10.0.0.7:9003", "status": "healthy", "last_check": "2030-01-31T12:00:00.250Z", "last_result": "200",
    "latency_ms": 1.3, "consecutive_successes": 42, "consecutive_failures": 0
}))]
struct Endpoint {
    instance: Box<str>,
    /// `healthy`, `unhealthy`, or `unknown`: not checked yet, or at all.
    status: &'static str,
    /// RFC 3339, UTC, to the millisecond; null before the first check has ended.
    last_check: Option<String>,
    last_result: Option<String>,
    latency_ms: Option<f64>,
    consecutive_successes: u32,
    consecutive_failures: u32,
}

/// The health of every service
///
/// 200 while each of them has a healthy endpoint, 503 otherwise.
#[utoipa::path(get, path = "/api/v1/services/health", tag = "Services", operation_id = "health_of_services", responses(
    (status = 200, description = "All are healthy", body = Overview),
    (status = 503, description = "One at least is not", body = Overview),
))]
pub(super) async fn all(State(sources): State<Sources>) -> Response {
    let services = sources.services(|_| true);
    let status = Status::of(services.iter().all(|service| service.status == Status::Healthy));
    (status.code(), Json(Overview { status, services })).into_response()
}

/// The health of a service
#[utoipa::path(get, path = "/api/v1/services/{service}/health", tag = "Services", operation_id = "health_of_service",
    params(("service" = String, Path, description = "The service's name")), responses(
    (status = 200, description = "It is healthy", body = Service),
    (status = 503, description = "It is not", body = Service),
    (status = 404, description = "`unknown_service`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn one(State(sources): State<Sources>, Path(name): Path<String>, request: Request) -> Response {
    match sources.services(|service| service == name).pop() {
        Some(service) => (service.status.code(), Json(service)).into_response(),
        None => unknown_service(&request),
    }
}

/// RFC 3339, UTC, to the millisecond.
pub(super) fn timestamp(at: SystemTime) -> Option<String> {
    let at = OffsetDateTime::from(at);
    at.replace_millisecond(at.millisecond()).ok()?.format(&Rfc3339).ok()
}

/// 404: no service has that name.
pub(super) fn unknown_service(request: &Request) -> Response {
    problem(StatusCode::NOT_FOUND, "unknown_service", "There is no service of that name.", request)
}

impl Sources {
    fn services(&self, wanted: impl Fn(&str) -> bool) -> Vec<Service> {
        let mut services = Vec::new();
        self.publisher.each_service(|service, settings| {
            if wanted(&service.name) {
                services.push(self.service(service, settings));
            }
        });
        services
    }

    fn service(&self, service: &snapshot::Service, settings: &HealthSettings) -> Service {
        let total = service.endpoints.len();
        let is_healthy = |endpoint: &&snapshot::Endpoint| endpoint.health != snapshot::Health::Unhealthy;
        let healthy = service.endpoints.iter().filter(is_healthy).count();
        Service {
            service: service.name.clone(),
            status: Status::of(healthy > 0),
            panic: standing::is_panic(healthy, total, service.health.panic_threshold),
            check: match &settings.path {
                _ if !settings.enabled => "off".to_owned(),
                Some(path) => format!("GET {path}"),
                None => "connect".to_owned(),
            },
            endpoints_healthy: healthy,
            endpoints_total: total,
            endpoints: service.endpoints.iter().map(|endpoint| self.endpoint(endpoint)).collect(),
        }
    }

    fn endpoint(&self, endpoint: &snapshot::Endpoint) -> Endpoint {
        let HealthReport { verdict, last } = self.reports.get(endpoint.id).unwrap_or_default();
        let at = last.as_ref().and_then(|last| timestamp(last.at));
        Endpoint {
            instance: endpoint.instance.clone(),
            status: match verdict.state {
                verdict::State::Unknown => "unknown",
                verdict::State::Healthy => "healthy",
                verdict::State::Unhealthy => "unhealthy",
            },
            last_check: at,
            latency_ms: last.as_ref().map(|last| last.latency.as_micros() as f64 / 1_000.0),
            last_result: last.map(|last| last.result),
            consecutive_successes: verdict.passes,
            consecutive_failures: verdict.failures,
        }
    }
}
