//! Sample backends for a first look and for tests: auth echoes, sms accepts, llm streams. They are ordinary HTTP servers on
//! loopback and know nothing of the gateway.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};

use crate::policy::auth::mint::{self, Mint};
use crate::policy::auth::{Algorithm, api_key};

/// Instances of each sample service, so that balancing shows.
const INSTANCES: u8 = 2;

/// Time between two tokens of the llm service.
const TOKEN_EVERY: Duration = Duration::from_millis(150);

/// The longest body that a sample service takes, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A kind of sample service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Says back what it was asked; `POST /login` hands out a token.
    Auth,
    /// `POST /send` takes a message: 202.
    Sms,
    /// `/stream` answers with Server-Sent Events, a token each.
    Llm,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Auth, Kind::Sms, Kind::Llm];

    /// The service's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Auth => "auth",
            Kind::Sms => "sms",
            Kind::Llm => "llm",
        }
    }
}

/// A running sample backend.
#[derive(Debug, Clone)]
pub struct Backend {
    /// What it does.
    pub kind: Kind,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What the demo's clients show who they are with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// What tokens are signed with, for the gateway's configuration.
    pub secret: String,
    /// A token that is good for an hour.
    pub token: String,
    /// An API key.
    pub api_key: String,
}

impl Credentials {
    /// Credentials made of `random`, good from `now` on, in Unix seconds.
    pub fn new(random: [u8; 56], now: u64) -> Credentials {
        let secret: String = random[..32].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut key = [0; 24];
        key.copy_from_slice(&random[32..]);
        let mint = Mint { subject: "demo-user", scopes: &[], lifetime: 3_600, issuer: None, audience: None };
        let token = mint::mint(&mint, secret.as_bytes(), Algorithm::HS256, now).expect("the secret is long enough");
        Credentials { secret, token, api_key: api_key::key_from(key) }
    }
}

/// Starts two instances of each kind on free ports of loopback, on a thread of their own.
///
/// # Errors
/// No port, no runtime or no thread can be had.
pub fn start() -> io::Result<Vec<Backend>> {
    let mut backends = Vec::new();
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        for instance in 1..=INSTANCES {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            backends.push(Backend { kind, address: listener.local_addr()? });
            servers.push((router(kind, instance), listener));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("ringway-demo".into()).spawn(move || {
        runtime.block_on(async {
            for (router, listener) in servers {
                tokio::spawn(async move {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => axum::serve(listener, router).await,
                        Err(error) => Err(error),
                    }
                });
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(backends)
}

/// The gateway's configuration for the sample backends, on loopback: sms and llm ask for credentials, auth hands them out.
pub fn config(backends: &[Backend], credentials: &Credentials, port: u16) -> String {
    let hash = api_key::KeyHash::of(credentials.api_key.as_bytes());
    let mut toml = format!(
        "[server]\nhost = \"127.0.0.1\"\nport = {port}\ndrain_timeout = \"2s\"\n\n\
         [auth.jwt]\nsecret = \"{}\"\n\n[[auth.api_keys]]\nname = \"demo-app\"\nhash = \"{hash}\"\n",
        credentials.secret
    );
    for kind in Kind::ALL {
        let name = kind.name();
        let urls: Vec<_> = of(backends, kind).map(|backend| format!("\"http://{}\"", backend.address)).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            toml,
            "\n[services.{name}]\nprefix = \"/api/v1/{name}\"\nendpoints = [{}]\nhealth_path = \"/health\"\nload_balancing = \"{}\"\nauth = \"{}\"\n",
            urls.join(", "),
            if kind == Kind::Llm { "least_connections" } else { "round_robin" },
            if kind == Kind::Auth { "none" } else { "required" },
        );
    }
    toml
}

/// What to try, for people.
pub fn welcome(gateway: SocketAddr, backends: &[Backend], credentials: &Credentials) -> String {
    let Credentials { token, api_key, .. } = credentials;
    let mut text = format!("\nringway is listening on http://{gateway}\n\n");
    for kind in Kind::ALL {
        let addresses: Vec<_> = of(backends, kind).map(|backend| backend.address.to_string()).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  /api/v1/{:<5} -> {}", kind.name(), addresses.join(", "));
    }
    let _ = write!(
        text,
        "\nTry it in another terminal:\n\n\
         \x20 curl -i  http://{gateway}/api/v1/auth/whoami\n\
         \x20 curl -i  http://{gateway}/api/v1/sms/send -H 'X-API-Key: {api_key}' -H 'Content-Type: application/json' -d '{{\"to\":\"+15550100\",\"text\":\"hello\"}}'\n\
         \x20 curl -N  http://{gateway}/api/v1/llm/stream -H 'Authorization: Bearer {token}'\n\
         \x20 curl -i  http://{gateway}/api/v1/llm/stream\n\
         \x20 curl -i  http://{gateway}/no/such/path\n\
         \x20 curl -s  http://{gateway}/health\n\
         \x20 curl -s  http://{gateway}/metrics\n\n\
         Access-log lines follow. Stop with Ctrl-C.\n\n"
    );
    text
}

fn of(backends: &[Backend], kind: Kind) -> impl Iterator<Item = &Backend> {
    backends.iter().filter(move |backend| backend.kind == kind)
}

/// One instance of a sample service.
pub fn router(kind: Kind, instance: u8) -> Router {
    let name = format!("{}-{instance}", kind.name());
    let routes = match kind {
        Kind::Auth => Router::new().route("/login", post(login)).fallback(echo),
        Kind::Sms => Router::new().route("/send", post(send)),
        Kind::Llm => Router::new().route("/stream", get(tokens).post(tokens)),
    };
    // A name made of ASCII letters and a digit is a header value.
    let instance = HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("unnamed"));
    routes
        .route("/health", get(|| async { Json(json!({ "status": "healthy" })) }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(move |mut response: Response| {
            response.headers_mut().insert("x-instance", instance.clone());
            async move { response }
        }))
        .with_state(name)
}

async fn login() -> Json<Value> {
    Json(json!({ "token": "a-sample-token", "expires_in": 3600 }))
}

async fn echo(
    State(instance): State<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Json<Value> {
    let headers: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    Json(json!({
        "instance": instance,
        "method": method.as_str(),
        "path": uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
}

async fn send(State(instance): State<String>, body: Bytes) -> Response {
    match serde_json::from_slice::<Value>(&body) {
        Ok(message) => {
            let id = format!("{:016x}", fastrand::u64(..));
            let answer = json!({ "id": id, "status": "queued", "instance": instance, "message": message });
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
        Err(error) => {
            let problem = json!({ "title": "The body is not JSON", "status": 422, "detail": error.to_string() });
            (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response()
        }
    }
}

async fn tokens(State(instance): State<String>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    const WORDS: [&str; 9] = ["Every", "token", "leaves", "the", "gateway", "as", "it", "arrives", "."];
    let tokens = stream::iter(WORDS.into_iter().enumerate()).then(move |(index, word)| {
        let instance = instance.clone();
        async move {
            tokio::time::sleep(TOKEN_EVERY).await;
            let data = json!({ "index": index, "token": word, "instance": instance }).to_string();
            Ok(Event::default().data(data))
        }
    });
    Sse::new(tokens.chain(stream::iter([Ok(Event::default().data("[DONE]"))])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(backend: &Backend, path: &str) -> ureq::http::Response<ureq::Body> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(&format!("http://{}{path}", backend.address)).call().expect("an answer")
    }

    #[test]
    fn two_instances_of_each_answer() {
        let backends = start().expect("free ports");
        let names: Vec<_> = backends
            .iter()
            .map(|backend| {
                let answer = get(backend, "/health");
                assert_eq!(answer.status(), 200);
                answer.headers()["x-instance"].to_str().expect("ASCII").to_owned()
            })
            .collect();
        assert_eq!(names, ["auth-1", "auth-2", "sms-1", "sms-2", "llm-1", "llm-2"]);
    }

    #[test]
    fn each_kind_does_its_thing() {
        let backends = start().expect("free ports");
        let url = |index: usize, path: &str| format!("http://{}{path}", backends[index].address);
        let mut echoed = ureq::put(url(0, "/a?b")).header("X-C", "d").send("hello").expect("an answer");
        let echoed = echoed.body_mut().read_to_string().expect("text");
        for part in ["\"method\":\"PUT\"", "\"path\":\"/a?b\"", "\"x-c\":\"d\"", "\"body\":\"hello\""] {
            assert!(echoed.contains(part), "{part} is not in {echoed}");
        }
        let sent = ureq::post(url(2, "/send")).send("{\"to\":\"x\"}").expect("an answer");
        assert_eq!(sent.status(), 202);
        let mut streamed = get(&backends[4], "/stream");
        let streamed = streamed.body_mut().read_to_string().expect("text");
        assert_eq!(streamed.matches("data: ").count(), 10);
        assert!(streamed.ends_with("data: [DONE]\n\n"));
    }

    #[test]
    fn the_demos_configuration_is_valid() {
        let backends = start().expect("free ports");
        let config = crate::control::config::Config::from_toml(
            &config(&backends, &Credentials::new([7; 56], 0), 0),
            "demo",
            &[],
            &[],
        )
        .expect("valid");
        assert_eq!(config.services.len(), 3);
        assert!(config.services.iter().all(|service| service.endpoints.len() == 2));
    }
}
