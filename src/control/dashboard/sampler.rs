//! The one task that makes the samples, and the streams that carry them to who looks.
//!
//! Each second one sample is rendered, once, however many look; a viewer that is slow finds the latest when it comes to read, and
//! the ones between are gone. While nobody looks only the history is kept: sums of counters, no endpoint by itself. A worker's
//! part in all this is nothing: its counters are read, as for a scrape.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;

use super::figures::Figures;
use super::view::{self, Gateway, Redis, ReloadCounts, Traffic, View};
use crate::control::health::Reports;
use crate::control::publisher::Publisher;
use crate::policy::auth::api_key::KeyHash;
use crate::snapshot::{OnError, Phase, RouteId, Seam, ServiceKind, Snapshot};
use crate::telemetry::counters::{Counters, RateLimitMode};
use crate::telemetry::reloads::{ReloadResult, Reloads};

/// How many may look at once: each costs a connection, and the bytes of a sample a second.
pub const VIEWERS_MAX: usize = 32;

/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// How soon a drain is noticed: streams that stay open would hold it up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the samples are made of.
#[derive(Debug)]
pub struct Sources {
    /// Knows the snapshot in force and the admin key.
    pub publisher: Arc<Publisher>,
    /// What the health checks say.
    pub reports: Arc<Reports>,
    /// What the workers count.
    pub counters: Vec<Arc<Counters>>,
    /// Knows whether the gateway drains.
    pub seam: Arc<Seam>,
    /// What became of changed configurations.
    pub reloads: Arc<Reloads>,
    /// What the workers run on.
    pub driver: &'static str,
    /// `metrics.enabled`, as the workers were started with it.
    pub metrics: bool,
    /// Upper bounds of the duration histogram, in seconds, likewise.
    pub bounds: Vec<f64>,
    /// `redis.on_error`.
    pub on_error: OnError,
}

/// What is shown, and to how many.
#[derive(Debug)]
pub struct Sampler {
    sources: Sources,
    started: u64,
    figures: Mutex<Figures>,
    latest: watch::Sender<Latest>,
    places: Arc<Semaphore>,
}

/// What a stream has to send next.
#[derive(Debug, Clone)]
enum Latest {
    /// Nobody has looked yet.
    None,
    /// A sample, and the key that was asked for when it was made.
    Sample(Bytes, Option<KeyHash>),
    /// Nothing more: the gateway goes down.
    End(Bytes),
}

/// Why nobody else may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// [`VIEWERS_MAX`] look already.
    Full,
    /// The gateway goes down.
    Draining,
}

impl Sampler {
    /// Nothing has been sampled yet.
    pub fn new(sources: Sources) -> Sampler {
        Sampler {
            started: unix_ms(),
            figures: Mutex::new(Figures::new(sources.bounds.clone())),
            latest: watch::Sender::new(Latest::None),
            places: Arc::new(Semaphore::new(VIEWERS_MAX)),
            sources,
        }
    }

    /// Samples once a second, until the gateway drains: then the streams end.
    pub async fn keep_sampling(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut next = Instant::now();
        while self.sources.seam.phase() < Phase::Draining {
            if Instant::now() >= next {
                next += SAMPLE_EVERY;
                // After a pause of the machine's the missed ones are not made up for.
                next = next.max(Instant::now() + SAMPLE_EVERY / 2);
                self.tick();
            }
            ticks.tick().await;
        }
        let end = json!({ "phase": view::phase(self.sources.seam.phase()) });
        self.latest.send_replace(Latest::End(event("end", &end)));
    }

    /// The admin key that is asked for now.
    pub fn key(&self) -> Option<KeyHash> {
        self.sources.publisher.read(|ingredients| ingredients.config.admin.key_hash)
    }

    /// A stream of events for one more viewer, who showed `key`: the history, the latest sample, and then each one as it is made.
    /// It ends when another key is asked for.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn watch(
        &self,
        key: Option<KeyHash>,
    ) -> Result<impl Stream<Item = Result<Bytes, Infallible>> + Send + use<>, Refused> {
        let is_first = self.latest.receiver_count() == 0;
        let mut latest = self.latest.subscribe();
        if let Latest::End(_) = *latest.borrow() {
            return Err(Refused::Draining);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refused::Full)?;
        if is_first {
            self.sample();
        }
        let sample = match &*latest.borrow_and_update() {
            Latest::Sample(bytes, _) => Some(bytes.clone()),
            Latest::None | Latest::End(_) => None,
        };
        let first = [Some(self.history()), sample].into_iter().flatten().collect();
        Ok(unfold(Viewer { first, latest, key, _place: place }, Viewer::next))
    }

    fn tick(&self) {
        let snapshot = self.sources.publisher.snapshot();
        let in_flight = self.in_flight();
        let has_viewers = self.latest.receiver_count() > 0;
        {
            let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
            figures.look(&self.sources.counters, &own_routes(&snapshot), Instant::now(), unix_ms(), in_flight);
            if !has_viewers {
                figures.look_away();
            }
        }
        if has_viewers {
            self.sample();
        }
    }

    /// Makes a sample for those who look.
    fn sample(&self) {
        let Sources { publisher, reports, counters, seam, reloads, .. } = &self.sources;
        let snapshot = publisher.snapshot();
        let key = self.key();
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let backends = snapshot.services.iter().filter(|service| service.kind == ServiceKind::Backend);
        let endpoints = backends.flat_map(|service| &service.endpoints).map(|endpoint| endpoint.id);
        figures.look_at(counters, endpoints, Instant::now());
        let [p50, p90, p99] = figures.percentiles();
        let (services, endpoints_left_out) = view::services(&snapshot, &figures, reports, self.sources.metrics);
        let (workers, skew) = view::workers(counters, &figures);
        let sample = View {
            at: unix_ms(),
            gateway: Gateway {
                version: env!("CARGO_PKG_VERSION"),
                commit: env!("BUILD_COMMIT"),
                pid: std::process::id(),
                started: self.started,
                driver: self.sources.driver,
                phase: view::phase(seam.phase()),
                metrics: self.sources.metrics,
                key: key.is_some(),
                viewers: self.viewers(),
                generation: seam.generation(),
                adopted: seam.adopted().filter(|&generation| generation == snapshot.generation).count(),
                reloads: ReloadCounts {
                    applied: reloads.get(ReloadResult::Applied),
                    invalid: reloads.get(ReloadResult::Invalid),
                    failed: reloads.has_failed(),
                },
                redis: self.redis(),
            },
            traffic: Traffic {
                classes: figures.classes(),
                p50,
                p90,
                p99,
                in_flight: self.in_flight(),
                refused: figures.refused(),
            },
            events: figures.events().collect(),
            workers,
            skew,
            services,
            endpoints_left_out,
            point: figures.point(),
        };
        self.latest.send_if_modified(|latest| {
            // What has ended stays so.
            let goes_on = !matches!(latest, Latest::End(_));
            if goes_on {
                *latest = Latest::Sample(event("sample", &sample), key);
            }
            goes_on
        });
    }

    fn history(&self) -> Bytes {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let points: Vec<_> = figures.history().collect();
        event("history", &json!({ "points": points }))
    }

    fn redis(&self) -> Redis {
        let counters = &self.sources.counters;
        let mode = |mode: RateLimitMode| move |block: &&Arc<Counters>| block.rate_limit_mode.get() == mode as u64;
        let workers_degraded = counters.iter().filter(mode(RateLimitMode::Degraded)).count();
        Redis {
            mode: match workers_degraded {
                1.. => "degraded",
                0 if counters.iter().any(|block| mode(RateLimitMode::Shared)(&block)) => "shared",
                0 => "off",
            },
            workers_degraded,
            on_error: match self.sources.on_error {
                OnError::Local => "local",
                OnError::Allow => "allow",
                OnError::Deny => "deny",
            },
        }
    }

    fn viewers(&self) -> usize {
        VIEWERS_MAX - self.places.available_permits()
    }

    /// Requests under way, but for the viewers' own.
    fn in_flight(&self) -> u64 {
        let active: u64 = self.sources.counters.iter().map(|block| block.active.get()).sum();
        active.saturating_sub(self.viewers() as u64)
    }
}

/// One who looks.
struct Viewer {
    /// What it gets at once, the last one first.
    first: Vec<Bytes>,
    latest: watch::Receiver<Latest>,
    key: Option<KeyHash>,
    _place: OwnedSemaphorePermit,
}

impl Viewer {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Viewer)> {
        if !self.first.is_empty() {
            let bytes = self.first.remove(0);
            return Some((Ok(bytes), self));
        }
        self.latest.changed().await.ok()?;
        let latest = self.latest.borrow_and_update().clone();
        match latest {
            Latest::Sample(bytes, key) if key == self.key => Some((Ok(bytes), self)),
            Latest::Sample(..) | Latest::None => None,
            Latest::End(bytes) => {
                // The sender goes with the control thread; this stream is not to wait for that.
                self.latest = watch::Sender::new(Latest::None).subscribe();
                Some((Ok(bytes), self))
            }
        }
    }
}

/// Routes that are no traffic: the gateway's own pages and probes.
fn own_routes(snapshot: &Snapshot) -> Vec<RouteId> {
    let managed = snapshot.services.iter().filter(|service| service.kind == ServiceKind::Management);
    let mut routes: Vec<RouteId> = managed.map(|service| service.route).collect();
    routes.push(RouteId::HEALTH);
    routes
}

/// As `text/event-stream` has it; JSON of `serde_json` has no line breaks.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    // Numbers and strings, which a vector takes.
    serde_json::to_writer(&mut text, data).expect("there is no map with keys that are not strings");
    text.extend_from_slice(b"\n\n");
    text.into()
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
