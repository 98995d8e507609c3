//! `/api/v1/services/{service}/instances`: who is registered, and who may change that.
//!
//! Every request must show the admin key, as clients of services show theirs: as `X-API-Key` or as a bearer token, exactly
//! once. That is looked at before anything else, so that nobody learns without it which services there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::de::{DeserializeOwned, Unexpected};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::key::{self, KeyRefusal};
use super::{Problem, allow_only, problem_about};
use crate::control::build::MANAGEMENT_BODY_BYTES;
use crate::control::config;
use crate::control::registry::book::{Entry, Put};
use crate::control::registry::instance::{Change, InstanceId};
use crate::control::registry::validate::{self, Refused, TTL_DEFAULT};
use crate::control::registry::{Listing, Registry, RegistryError};

/// When nothing can be changed because Redis is away: how often it is tried, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// How long a body may take to come.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The routes below `/api/v1/services`.
pub fn routes(registry: Arc<Registry>) -> Router {
    let collection = "/api/v1/services/{service}/instances";
    let one = "/api/v1/services/{service}/instances/{id}";
    Router::new()
        .route(collection, get(list).post(register).fallback(async |request| allow_only("GET, HEAD, POST", &request)))
        .route(
            one,
            put(renew)
                .get(show)
                .delete(deregister)
                .fallback(async |request| allow_only("GET, HEAD, PUT, DELETE", &request)),
        )
        .with_state(registry)
}

/// What POST takes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"url": "http://10.0.0.7:9003", "weight": 1, "ttl": "30s"}))]
struct Registration {
    url: String,
    weight: Option<u64>,
    ttl: Option<Ttl>,
}

/// What PUT takes; it may as well have no body.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"weight": 2}))]
struct Heartbeat {
    weight: Option<u64>,
    ttl: Option<Ttl>,
}

/// A number of seconds, or a duration as configurations write it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Ttl {
    Seconds(f64),
    Text(String),
}

impl Ttl {
    fn read(&self) -> Result<Duration, Refused> {
        match self {
            Ttl::Seconds(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Ttl::Text(text) => config::parse_duration(text),
        }
        .ok_or(Refused::Ttl)
    }
}

/// An instance, as it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Instance, example = json!({
    "id": "0f3a9c5d7e21b846", "url": "http://10.0.0.7:9003", "weight": 1, "ttl": 30.0, "expires_in": 30
}))]
struct Shown {
    id: String,
    url: String,
    weight: u16,
    /// Seconds.
    ttl: f64,
    /// Seconds until it is forgotten, rounded up; 0 when it is stale.
    expires_in: u64,
}

impl Shown {
    fn new(id: InstanceId, entry: &Entry) -> Shown {
        let left = entry.left(Instant::now());
        Shown {
            id: id.to_string(),
            url: entry.instance.url.to_string(),
            weight: entry.instance.weight,
            ttl: entry.instance.ttl.as_secs_f64(),
            expires_in: left.as_secs() + u64::from(left.subsec_nanos() > 0),
        }
    }
}

/// All of a service.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Instances)]
struct ShownList {
    service: String,
    /// Redis is away: this is what was known last.
    stale: bool,
    instances: Vec<Shown>,
}

/// Why a request is refused.
enum Refusal {
    /// Registration is switched off.
    Off,
    /// No credential, or not the admin key.
    Key(KeyRefusal),
    /// Not JSON, or not of these members.
    Json(serde_json::Error),
    /// Too long, or cut off.
    Body,
    /// Not there in time.
    Slow,
    /// What the registry says.
    Registry(RegistryError),
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Refusal {
        Refusal::Registry(error)
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        Refusal::Registry(refused.into())
    }
}

impl Refusal {
    fn answer(&self, request: &Parts) -> Response {
        let (status, reason, detail) = match self {
            Refusal::Off => (
                StatusCode::FORBIDDEN,
                "admin_key_not_configured",
                "Instances cannot be registered here. Set admin.key_hash in the gateway's configuration to what \
                 `ringway hash-key` prints."
                    .to_owned(),
            ),
            Refusal::Key(refusal) => return refusal.answer(&request.headers, &request.uri),
            Refusal::Json(error) => (StatusCode::BAD_REQUEST, "malformed_json", format!("The body is wrong: {error}.")),
            Refusal::Body => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("The request's body is longer than {MANAGEMENT_BODY_BYTES} bytes."),
            ),
            Refusal::Slow => (
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "The request's body did not arrive in time. Send it again.".to_owned(),
            ),
            Refusal::Registry(error) => {
                let (status, reason) = match error {
                    RegistryError::UnknownService => (StatusCode::NOT_FOUND, "unknown_service"),
                    RegistryError::UnknownInstance => (StatusCode::NOT_FOUND, "unknown_instance"),
                    RegistryError::Full => (StatusCode::CONFLICT, "instances_full"),
                    RegistryError::Refused(refused) => (StatusCode::UNPROCESSABLE_ENTITY, refused.reason()),
                    RegistryError::Away(_) => (StatusCode::SERVICE_UNAVAILABLE, "registry_unavailable"),
                };
                (status, reason, error.to_string())
            }
        };
        let mut answer = problem_about(status, reason, &detail, &request.headers, &request.uri);
        if let Refusal::Registry(RegistryError::Away(_)) = self {
            answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        answer
    }
}

/// Who is registered with a service
#[utoipa::path(get, path = "/api/v1/services/{service}/instances", tag = "Instances", operation_id = "list_instances",
    params(("service" = String, Path, description = "The service's name")), security(("admin_key" = []), ("admin_bearer" = [])), responses(
    (status = 200, description = "`stale` while Redis is away", body = ShownList),
    (status = 401, description = "`credentials_missing`, `admin_key_wrong`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`admin_key_not_configured`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`unknown_service`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(State(registry): State<Arc<Registry>>, path: PathOf<String>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    answered(&parts, async {
        admit(&registry, &parts.headers)?;
        let service = read_path(path)?;
        let Listing { stale, entries } = registry.list(&service)?;
        let instances = entries.iter().map(|(id, entry)| Shown::new(*id, entry)).collect();
        Ok(Json(ShownList { service, stale, instances }).into_response())
    })
    .await
}

/// A registered instance
#[utoipa::path(get, path = "/api/v1/services/{service}/instances/{id}", tag = "Instances", operation_id = "show_instance",
    params(("service" = String, Path, description = "The service's name"), ("id" = String, Path, description = "What POST answered, 16 hexadecimal digits")), security(("admin_key" = []), ("admin_bearer" = [])), responses(
    (status = 200, description = "It is registered", body = Shown),
    (status = 401, description = "`credentials_missing`, `admin_key_wrong`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`admin_key_not_configured`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`unknown_service`, `unknown_instance`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn show(
    State(registry): State<Arc<Registry>>,
    path: PathOf<(String, String)>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    answered(&parts, async {
        admit(&registry, &parts.headers)?;
        let (service, id) = read_path(path)?;
        let Listing { entries, .. } = registry.list(&service)?;
        let id = read_id(&id)?;
        let found = entries.iter().find(|(known, _)| *known == id).ok_or(RegistryError::UnknownInstance)?;
        Ok(Json(Shown::new(id, &found.1)).into_response())
    })
    .await
}

/// Registers an instance, or renews it
#[utoipa::path(post, path = "/api/v1/services/{service}/instances", tag = "Instances", operation_id = "register_instance",
    params(("service" = String, Path, description = "The service's name")), security(("admin_key" = []), ("admin_bearer" = [])), request_body = Registration, responses(
    (status = 201, description = "It is new", body = Shown, headers(("Location" = String, description = "Where it is"))),
    (status = 200, description = "It was registered already", body = Shown),
    (status = 400, description = "`malformed_json`", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "`credentials_missing`, `admin_key_wrong`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`admin_key_not_configured`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`unknown_service`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`instances_full`", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "`body_too_large`", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "`instance_url_malformed` and its kin", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "`registry_unavailable`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn register(
    State(registry): State<Arc<Registry>>,
    path: PathOf<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    answered(&parts, async {
        admit(&registry, &parts.headers)?;
        let service = read_path(path)?;
        let Registration { url, weight, ttl } = read(body).await?.ok_or_else(no_body)?;
        let ttl = ttl.map_or(Ok(TTL_DEFAULT), |ttl| ttl.read())?;
        let (put, id, entry) = registry.register(&service, &url, weight.unwrap_or(1), ttl).await?;
        let status = if put == Put::New { StatusCode::CREATED } else { StatusCode::OK };
        let location = format!("/api/v1/services/{service}/instances/{id}");
        Ok((status, [(header::LOCATION, location)], Json(Shown::new(id, &entry))).into_response())
    })
    .await
}

/// A sign of life; may change weight and ttl
#[utoipa::path(put, path = "/api/v1/services/{service}/instances/{id}", tag = "Instances", operation_id = "renew_instance",
    params(("service" = String, Path, description = "The service's name"), ("id" = String, Path, description = "What POST answered, 16 hexadecimal digits")), security(("admin_key" = []), ("admin_bearer" = [])), request_body(content = Option<Heartbeat>, description = "May be left out"), responses(
    (status = 200, description = "It lives on", body = Shown),
    (status = 400, description = "`malformed_json`", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "`credentials_missing`, `admin_key_wrong`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`admin_key_not_configured`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`unknown_service`, `unknown_instance`", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "`instance_weight_invalid`, `instance_ttl_invalid`", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "`registry_unavailable`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn renew(
    State(registry): State<Arc<Registry>>,
    path: PathOf<(String, String)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    answered(&parts, async {
        admit(&registry, &parts.headers)?;
        let (service, id) = read_path(path)?;
        let Heartbeat { weight, ttl } = read(body).await?.unwrap_or_default();
        let change = Change {
            weight: weight.map(validate::weight).transpose()?,
            ttl: ttl.map(|ttl| ttl.read().and_then(validate::ttl)).transpose()?,
        };
        let id = read_id(&id)?;
        let entry = registry.renew(&service, id, change).await?;
        Ok(Json(Shown::new(id, &entry)).into_response())
    })
    .await
}

/// Forgets an instance; requests that it has finish
#[utoipa::path(delete, path = "/api/v1/services/{service}/instances/{id}", tag = "Instances", operation_id = "deregister_instance",
    params(("service" = String, Path, description = "The service's name"), ("id" = String, Path, description = "What POST answered, 16 hexadecimal digits")), security(("admin_key" = []), ("admin_bearer" = [])), responses(
    (status = 204, description = "It gets no further requests"),
    (status = 401, description = "`credentials_missing`, `admin_key_wrong`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`admin_key_not_configured`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`unknown_service`, `unknown_instance`", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "`registry_unavailable`", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn deregister(
    State(registry): State<Arc<Registry>>,
    path: PathOf<(String, String)>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    answered(&parts, async {
        admit(&registry, &parts.headers)?;
        let (service, id) = read_path(path)?;
        registry.deregister(&service, read_id(&id)?).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

async fn answered(request: &Parts, work: impl Future<Output = Result<Response, Refusal>>) -> Response {
    work.await.unwrap_or_else(|refusal| refusal.answer(request))
}

/// Whether the request shows the admin key.
fn admit(registry: &Registry, headers: &HeaderMap) -> Result<(), Refusal> {
    let expected = registry.admin_key().ok_or(Refusal::Off)?;
    key::verify(&expected, headers).map_err(Refusal::Key)
}

/// The JSON in `body`; `None` when there is no body.
async fn read<T: DeserializeOwned>(body: axum::body::Body) -> Result<Option<T>, Refusal> {
    let bytes = timeout(BODY_WITHIN, to_bytes(body, MANAGEMENT_BODY_BYTES as usize));
    let bytes = bytes.await.map_err(|_| Refusal::Slow)?.map_err(|_| Refusal::Body)?;
    // Serde takes an array for a struct, member by member.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Refusal::Json(serde::de::Error::invalid_type(Unexpected::Seq, &"a JSON object")));
    }
    match bytes.is_empty() {
        true => Ok(None),
        false => serde_json::from_slice(&bytes).map(Some).map_err(Refusal::Json),
    }
}

/// What the path names; what is no text names nothing.
type PathOf<T> = Result<Path<T>, PathRejection>;

fn read_path<T>(path: PathOf<T>) -> Result<T, RegistryError> {
    path.map(|Path(names)| names).map_err(|_| RegistryError::UnknownService)
}

fn no_body() -> Refusal {
    Refusal::Json(serde::de::Error::missing_field("url"))
}

fn read_id(text: &str) -> Result<InstanceId, RegistryError> {
    text.parse().map_err(|()| RegistryError::UnknownInstance)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use futures_util::{StreamExt, stream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        assert!(matches!(read::<Registration>(body).await, Err(Refusal::Slow)));
    }
}
