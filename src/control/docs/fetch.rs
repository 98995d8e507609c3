//! The documents that services have of themselves (`openapi_url`), fetched now and then. Whoever asks for `/openapi.json` waits for
//! none of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::merge;
use crate::control::config::{OpenApiUrl, Service};
use crate::control::jwks::Fetcher;
use crate::control::publisher::Publisher;
use crate::snapshot::{Address, Health};

/// How often a document is fetched.
const FETCH_EVERY: Duration = Duration::from_secs(300);

/// The pause after the first fetch that comes to nothing; it doubles with each, up to [`FETCH_EVERY`].
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is asked whose time has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const ACCEPT: &str = "application/vnd.oai.openapi+json, application/json";

/// What a service says of itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Own {
    /// A document that can be taken over.
    Document(Arc<Value>),
    /// Why there is none, in words.
    Refused(String),
}

/// What is known of all services, by their names.
#[derive(Debug, Clone, Default)]
pub struct Documents(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    documents: Mutex<HashMap<String, Own>>,
    changed: Notify,
}

impl Documents {
    /// What is known now.
    pub fn snapshot(&self) -> HashMap<String, Own> {
        self.0.documents.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something has changed since this was last waited for.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn set(&self, service: &str, own: Own) {
        let mut documents = self.0.documents.lock().unwrap_or_else(PoisonError::into_inner);
        if documents.get(service) == Some(&own) {
            return;
        }
        if let Own::Refused(why) = &own {
            tracing::warn!(service, why, "the service's own API description is left out of /docs (openapi_url)");
            if let Some(Own::Document(_)) = documents.get(service) {
                // The last good one is better than none.
                return;
            }
        }
        documents.insert(service.to_owned(), own);
        self.0.changed.notify_one();
    }

    fn keep(&self, is_wanted: impl Fn(&str) -> bool) {
        let mut documents = self.0.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let before = documents.len();
        documents.retain(|service, _| is_wanted(service));
        if documents.len() != before {
            self.0.changed.notify_one();
        }
    }
}

/// When a service's document is fetched next, and how often that came to nothing in a row.
#[derive(Debug)]
struct Turn {
    url: OpenApiUrl,
    due: Instant,
    failures: u32,
}

/// Fetches what services name, one after another, for as long as the process runs.
pub async fn keep_fetching(publisher: Arc<Publisher>, documents: Documents) {
    let mut turns: HashMap<String, Turn> = HashMap::new();
    loop {
        let wanted: Vec<Service> = publisher.read(|ingredients| {
            let services = &ingredients.config.services;
            services.iter().filter(|service| service.openapi_url.is_some()).cloned().collect()
        });
        let url_of = |name: &str| {
            wanted.iter().find(|service| service.name == name).and_then(|service| service.openapi_url.as_ref())
        };
        turns.retain(|name, turn| url_of(name) == Some(&turn.url));
        documents.keep(|name| url_of(name).is_some());
        for service in &wanted {
            let Some(url) = &service.openapi_url else { continue };
            let turn = turns.entry(service.name.clone()).or_insert(Turn {
                url: url.clone(),
                due: Instant::now(),
                failures: 0,
            });
            if turn.due > Instant::now() {
                continue;
            }
            let result = fetch(&publisher, &service.name, url).await;
            turn.failures = if result.is_ok() { 0 } else { turn.failures.saturating_add(1) };
            let pause = match turn.failures {
                0 => FETCH_EVERY,
                failures => (PAUSE * 2u32.saturating_pow(failures.min(16) - 1)).min(FETCH_EVERY),
            };
            turn.due = Instant::now() + pause;
            let own = result.map_or_else(Own::Refused, |document| Own::Document(Arc::new(document)));
            documents.set(&service.name, own);
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn fetch(publisher: &Publisher, service: &str, url: &OpenApiUrl) -> Result<Value, String> {
    let url = match url {
        OpenApiUrl::Absolute(url) => url.clone(),
        OpenApiUrl::Path(path) => format!("{}{path}", endpoint(publisher, service)?),
    };
    let fetcher = Fetcher::new(&url, ACCEPT).map_err(|error| error.to_string())?;
    let document = fetcher.fetch().await.map_err(|error| error.to_string())?;
    merge::read(&document.bytes)
}

/// Where one of the service's endpoints is, a healthy one if there is any.
fn endpoint(publisher: &Publisher, service: &str) -> Result<String, String> {
    let snapshot = publisher.snapshot();
    let endpoints = snapshot.services.iter().find(|other| *other.name == *service).map(|service| &service.endpoints);
    let mut addresses: Vec<_> = endpoints
        .into_iter()
        .flatten()
        .filter_map(|endpoint| match &endpoint.address {
            Address::Tcp(address) => Some((endpoint.health == Health::Unhealthy, *address)),
            Address::Unix(_) => None,
        })
        .collect();
    addresses.sort_by_key(|&(is_unhealthy, _)| is_unhealthy);
    match addresses.first() {
        Some((_, address)) => Ok(format!("http://{address}")),
        None => Err("it has no endpoint on TCP; openapi_url may name a whole URL".to_owned()),
    }
}
