//! `/dashboard`: one page that shows what the gateway does, live.
//!
//! - [`rates`]: counts to rates, percentiles, skew; pure. [`figures`]: the workers' counters over the last seconds and minutes.
//! - [`view`]: the JSON of a sample. [`sampler`]: the task that makes one a second, and the streams of them.
//!
//! The page is three files, embedded; it asks for nothing that is not below `/dashboard`. It holds no secret and is served
//! to everybody; the figures, at `/dashboard/events`, only to who shows the admin key, where one is set.

pub mod figures;
pub mod rates;
pub mod sampler;
pub mod view;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use self::sampler::{Refused, Sampler};
use super::admin::{key, method_not_allowed, problem_about};

/// What the page may do: nothing but with files and events of this origin.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// One script, in the order in which its parts need each other.
const SCRIPT: &str = concat!(
    include_str!("dashboard/page/charts.js"),
    include_str!("dashboard/page/board.js"),
    include_str!("dashboard/page/live.js")
);

/// The routes, to be merged with the others.
pub fn routes(sampler: Arc<Sampler>) -> Router {
    let page = asset("text/html; charset=utf-8", include_str!("dashboard/page/index.html"));
    Router::new()
        .route("/dashboard", page.clone())
        .route("/dashboard/", page)
        .route("/dashboard/app.js", asset("text/javascript; charset=utf-8", SCRIPT))
        .route("/dashboard/app.css", asset("text/css; charset=utf-8", include_str!("dashboard/page/app.css")))
        .route("/dashboard/events", get(events).fallback(method_not_allowed))
        .with_state(sampler)
}

fn asset(content_type: &'static str, text: &'static str) -> MethodRouter<Arc<Sampler>> {
    let answer = move || async move { ([(header::CONTENT_TYPE, content_type)], guarded("no-cache"), text) };
    get(answer).fallback(method_not_allowed)
}

/// Header fields of everything that is served here.
fn guarded(cache: &'static str) -> [(HeaderName, &'static str); 4] {
    [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, cache),
    ]
}

async fn events(State(sampler): State<Arc<Sampler>>, request: Request) -> Response {
    let key = sampler.key();
    if let Some(Err(refusal)) = key.map(|expected| key::verify(&expected, request.headers())) {
        return refusal.answer(request.headers(), request.uri());
    }
    match sampler.watch(key) {
        Ok(stream) => {
            let content_type = [(header::CONTENT_TYPE, "text/event-stream")];
            (content_type, guarded("no-store"), Body::from_stream(stream)).into_response()
        }
        Err(refused) => {
            let (reason, detail, retry_after) = match refused {
                Refused::Full => (
                    "dashboard_full",
                    "As many dashboards are open as there may be. Close one, or try again later.",
                    HeaderValue::from_static("5"),
                ),
                // During an upgrade the next process answers already, only not on this connection.
                Refused::Draining => {
                    ("draining", "This gateway is going down. Try again in a moment.", HeaderValue::from_static("1"))
                }
            };
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let mut answer = problem_about(status, reason, detail, request.headers(), request.uri());
            answer.headers_mut().insert(header::RETRY_AFTER, retry_after);
            answer
        }
    }
}
