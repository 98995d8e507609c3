//! The management endpoints: an ordinary HTTP service behind the workers, on a socket that only this process can reach.

pub mod health;
pub mod instances;
pub mod key;
pub mod listen;
mod scrape;
pub mod status;

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use utoipa::{OpenApi, ToSchema};

use crate::snapshot::Address;
use crate::telemetry::exposition::Exposition;

/// The listening socket, not yet on a runtime.
#[derive(Debug)]
pub struct Management(StdListener);

/// Opens the socket: an abstract Unix name, random, which needs no file system and leaves nothing behind.
///
/// # Errors
/// No socket can be had.
pub fn bind() -> io::Result<(Management, Address)> {
    let name = format!("ringway-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    Ok((Management(listener), Address::Unix(PathBuf::from(format!("\0{name}")))))
}

/// Answers management requests that workers forward, for as long as the control thread runs.
pub async fn serve(management: Management, routes: Router) {
    let listener = match UnixListener::from_std(management.0) {
        Ok(listener) => OwnProcess(listener),
        Err(error) => {
            tracing::error!(%error, "the management endpoints are not available");
            return;
        }
    };
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the management endpoints ended");
    }
}

/// Everything that is managed: what is under `routes`, and the metrics, where there are any.
pub fn router(exposition: Option<Exposition>, routes: Router) -> Router {
    let routes = routes.fallback(not_found);
    let Some(exposition) = exposition else { return routes };
    let metrics = Router::new().route("/metrics", get(scrape::metrics).fallback(method_not_allowed));
    metrics.with_state(scrape::Scrapes::new(exposition)).merge(routes)
}

/// Accepts connections of this process alone: an abstract name can be connected to by anybody on the host.
struct OwnProcess(UnixListener);

impl Listener for OwnProcess {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (UnixStream, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) if is_own(&stream) => return (stream, address),
                Ok(_) => tracing::warn!("another process tried to reach the management socket; it was refused"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn is_own(stream: &UnixStream) -> bool {
    let own = i32::try_from(std::process::id()).ok();
    stream.peer_cred().is_ok_and(|peer| peer.pid().is_some() && peer.pid() == own)
}

pub(super) async fn method_not_allowed(request: Request) -> Response {
    allow_only("GET, HEAD", &request)
}

/// 405, with the methods that there are.
fn allow_only(methods: &'static str, request: &Request) -> Response {
    let detail = "This path does not take this method; see the Allow header field.";
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail, request);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}

pub(super) async fn not_found(request: Request) -> Response {
    problem(StatusCode::NOT_FOUND, "no_route", "There is no such management endpoint. Check the URL.", &request)
}

/// What can be asked here, described where it is answered.
#[derive(OpenApi)]
#[openapi(
    paths(
        health::all,
        health::one,
        status::all,
        status::one,
        status::metrics,
        instances::list,
        instances::register,
        instances::show,
        instances::renew,
        instances::deregister,
    ),
    components(schemas(Problem))
)]
struct Api;

/// The description of the endpoints below `/api/v1/services`.
pub fn api() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A problem document (RFC 9457), as the workers write them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "urn:ringway:problem:rate_limited", "title": "Too Many Requests", "status": 429,
    "detail": "Too many requests. Wait as long as Retry-After says, in seconds, and try again.",
    "instance": "/api/v1/sms/send", "reason": "rate_limited", "request_id": "128d44ed131af02c8efe75f7aa1cdaab"
}))]
pub struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: String,
    instance: String,
    reason: String,
    request_id: String,
}

fn problem(status: StatusCode, reason: &'static str, detail: &str, request: &Request) -> Response {
    problem_about(status, reason, detail, request.headers(), request.uri())
}

/// The same, about a request that was taken apart.
pub(super) fn problem_about(
    status: StatusCode,
    reason: &'static str,
    detail: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Response {
    let request_id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let document = Problem {
        kind: format!("urn:ringway:problem:{reason}"),
        title: status.canonical_reason().unwrap_or("Unknown").to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        instance: uri.path().to_owned(),
        reason: reason.to_owned(),
        request_id: request_id.to_owned(),
    };
    let mut answer = (status, axum::Json(document)).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert("x-gateway-error", HeaderValue::from_static(reason));
    answer
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use super::*;
    use crate::control::build;
    use crate::telemetry::counters::Shape;
    use crate::telemetry::exposition::Progress;
    use crate::telemetry::labels::Labels;

    fn name_of(address: &Address) -> String {
        let Address::Unix(path) = address else { panic!("a Unix socket") };
        path.to_str().expect("ASCII").trim_start_matches('\0').to_owned()
    }

    fn started() -> String {
        let (management, address) = bind().expect("a socket");
        std::thread::spawn(move || {
            let shape = Shape { enabled: true, buckets: vec![1.0], max_series: 10 };
            let progress = Progress {
                seam: build::seam_without_services(1, 1),
                reloads: Arc::default(),
                lost_spans: Arc::default(),
            };
            let exposition = Exposition::new(Vec::new(), Vec::new(), &shape, Arc::new(Labels::new()), progress);
            super::super::thread::block_on(serve(management, router(Some(exposition), Router::new())))
        });
        name_of(&address)
    }

    fn ask(name: &str, request: &str) -> String {
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let mut stream = StdStream::connect_addr(&address).expect("a listener");
        write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: id-1\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        answer
    }

    #[test]
    fn metrics_and_problems() {
        let name = started();
        let check = |request: &str, expected: &[&str]| {
            let answer = ask(&name, request);
            for expected in expected {
                assert!(answer.contains(expected), "{request}: {expected} is not in {answer}");
            }
        };
        check("GET /metrics", &["HTTP/1.1 200", "text/plain; version=0.0.4", "api_gateway_build_info{"]);
        check("POST /metrics", &["HTTP/1.1 405", "allow: GET, HEAD", "x-gateway-error: method_not_allowed"]);
        check(
            "GET /docs",
            &["HTTP/1.1 404", "application/problem+json", "\"reason\":\"no_route\"", "\"request_id\":\"id-1\""],
        );
    }

    #[test]
    fn another_process_is_refused() {
        let name = started();
        assert!(ask(&name, "GET /metrics").contains("200 OK"));
        let script = format!(
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}'); \
             s.sendall(b'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'); print(len(s.recv(10)))"
        );
        let output = Command::new("python3").args(["-c", &script]).stderr(Stdio::piped()).output().expect("python3");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(said.trim() == "0" || said.contains("reset") || said.contains("Broken pipe"), "{said}");
    }
}
