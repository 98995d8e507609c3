//! `/openapi.json`, which describes what can be asked of this gateway, and `/docs`, the page that shows it.
//!
//! - [`document`] makes the document of the configuration, and of those that services have of their own ([`merge`], which trusts
//!   none of them); [`fetch`] gets these. [`reasons`] is what can go wrong.
//!
//! The document is made anew when the configuration or a service's own document changes, never for a request.

pub mod document;
pub mod fetch;
pub mod merge;
pub mod reasons;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config as SwaggerConfig;

use self::fetch::Own;
use super::admin::{method_not_allowed, not_found};
use super::publisher::Publisher;

/// What the page may do: nothing but with what comes from this origin. Its icons are `data:` URLs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Files that Swagger UI is made of; what else comes with it is not needed.
const SWAGGER_FILES: [(&str, &str); 2] =
    [("swagger-ui.css", "text/css; charset=utf-8"), ("swagger-ui-bundle.js", "text/javascript; charset=utf-8")];

/// The page's files by their names; the page itself has none. One copy of each serves everybody.
static FILES: LazyLock<Vec<(&str, File)>> = LazyLock::new(|| {
    let own = [
        ("", "text/html; charset=utf-8", include_str!("docs/page/index.html")),
        ("ringway.js", "text/javascript; charset=utf-8", include_str!("docs/page/ringway.js")),
        ("ringway.css", "text/css; charset=utf-8", include_str!("docs/page/ringway.css")),
    ];
    let own = own.into_iter().map(|(name, kind, text)| (name, File::new(kind, text)));
    let swagger = Arc::new(SwaggerConfig::from("/openapi.json"));
    let foreign = SWAGGER_FILES.into_iter().filter_map(|(name, kind)| {
        let file = utoipa_swagger_ui::serve(name, Arc::clone(&swagger)).ok().flatten()?;
        Some((name, File::new(kind, file.bytes.into_owned())))
    });
    own.chain(foreign).collect()
});

/// The document in force.
#[derive(Debug)]
pub struct Docs {
    publisher: Arc<Publisher>,
    current: RwLock<File>,
}

/// A text with its entity tag.
#[derive(Debug, Clone)]
struct File {
    content_type: &'static str,
    bytes: Bytes,
    tag: HeaderValue,
}

impl File {
    fn new(content_type: &'static str, bytes: impl Into<Bytes>) -> File {
        let bytes = bytes.into();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let digits: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let tag = HeaderValue::from_str(&format!("\"{digits}\"")).expect("hexadecimal digits");
        File { content_type, bytes, tag }
    }

    /// The file, or word that the client has it already (RFC 9110, section 13.1.2).
    fn answer(self, headers: &HeaderMap) -> Response {
        let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let tag = self.tag.to_str().unwrap_or_default();
        let is_known =
            known.is_some_and(|tags| tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag));
        let guard = [
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::ETAG, self.tag.clone()),
        ];
        match is_known {
            true => (StatusCode::NOT_MODIFIED, guard).into_response(),
            false => (guard, [(header::CONTENT_TYPE, self.content_type)], self.bytes).into_response(),
        }
    }
}

impl Docs {
    /// The document of what `publisher` serves.
    pub fn new(publisher: Arc<Publisher>) -> Docs {
        let first = render(&publisher, &HashMap::new());
        Docs { publisher, current: RwLock::new(first) }
    }

    /// Keeps it up to date for as long as the process runs: with the configuration, and with what services say of themselves.
    pub async fn keep_current(self: Arc<Self>) {
        let mut changes = self.publisher.config_changes();
        let own = fetch::Documents::default();
        tokio::spawn(fetch::keep_fetching(Arc::clone(&self.publisher), own.clone()));
        loop {
            let known = own.snapshot();
            let publisher = Arc::clone(&self.publisher);
            // Long documents of many services are not to hold up what else the control thread does.
            if let Ok(file) = tokio::task::spawn_blocking(move || render(&publisher, &known)).await {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = file;
            }
            tokio::select! {
                // The publisher lives as long as this.
                _ = changes.changed() => {}
                () = own.changed() => {}
            }
        }
    }
}

fn render(publisher: &Publisher, own: &HashMap<String, Own>) -> File {
    let config = publisher.config();
    let text = serde_json::to_vec(&document::document(&config, own)).unwrap_or_default();
    File::new("application/json", text)
}

/// The routes, to be merged with the others.
pub fn routes(docs: Arc<Docs>) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi).fallback(method_not_allowed))
        .route("/docs", get(page).fallback(method_not_allowed))
        .route("/docs/", get(page).fallback(method_not_allowed))
        .route("/docs/{file}", get(asset).fallback(method_not_allowed))
        .with_state(docs)
}

async fn openapi(State(docs): State<Arc<Docs>>, headers: HeaderMap) -> Response {
    let file = docs.current.read().unwrap_or_else(PoisonError::into_inner).clone();
    file.answer(&headers)
}

async fn page(request: Request) -> Response {
    file("", request).await
}

async fn asset(Path(name): Path<String>, request: Request) -> Response {
    file(&name, request).await
}

async fn file(name: &str, request: Request) -> Response {
    match FILES.iter().find(|(known, _)| *known == name) {
        Some((_, file)) => file.clone().answer(request.headers()),
        None => not_found(request).await,
    }
}
