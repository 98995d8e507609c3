//! The control thread: started once the workers run, stopped once they have ended.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::admin::{self, Management};
use super::dashboard::{
    self,
    sampler::{Sampler, Sources},
};
use super::docs::{self, Docs};
use super::handover::Handover;
use super::publisher::{Ingredients, Publisher};
use super::registry::Registry;
use super::registry::book::Book;
use super::reload::{Origin, Reloader};
use super::traces::Traces;
use super::{dns, endpoint_watch, events_watch, health, issuer, ledger_watch, notify, signals};
use crate::snapshot::Seam;
use crate::telemetry::counters::Counters;
use crate::telemetry::events::Events;
use crate::telemetry::exposition::Exposition;
use crate::telemetry::reloads::Reloads;
use crate::telemetry::spans::{LostSpans, SpanReceiver};

/// What the control plane is made of.
#[derive(Debug)]
pub struct Parts {
    /// What the workers read.
    pub seam: Arc<Seam>,
    /// What the workers count.
    pub counters: Vec<Arc<Counters>>,
    /// What the workers run on: `io_uring` or `epoll`.
    pub driver: &'static str,
    /// What `/metrics` shows.
    pub exposition: Exposition,
    /// The socket that the workers forward management requests to.
    pub management: Management,
    /// Where others come for them, off the public port (`admin.listen`).
    pub admin_listener: Option<TcpListener>,
    /// What the first snapshot was built of.
    pub ingredients: Ingredients,
    /// The instances that registered themselves, as far as they are known already.
    pub registered: Book,
    /// Where the configuration comes from; `None` for one that cannot be read again.
    pub origin: Option<Origin>,
    /// What the next process gets.
    pub handover: Handover,
    /// Counts what becomes of changed configurations.
    pub reloads: Arc<Reloads>,
    /// Tells of events that were left out of the log.
    pub events: Arc<Events>,
    /// Records of traced requests, one way for each worker; none where nobody wants any.
    pub spans: Vec<SpanReceiver>,
    /// Counts the spans that nobody took.
    pub lost_spans: Arc<LostSpans>,
}

/// The running control plane.
#[derive(Debug)]
pub struct ControlThread {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// Starts the control thread.
///
/// # Errors
/// No thread, no runtime, or no signal handler can be had.
pub fn start(parts: Parts) -> io::Result<ControlThread> {
    let runtime = runtime()?;
    let (stop, stopped) = oneshot::channel();
    // Before any client is told that the gateway is ready: a signal that comes early must not kill it unseen.
    let signals = {
        let _entered = runtime.enter();
        signals::Signals::listen()?
    };
    let thread = std::thread::Builder::new().name("ringway-control".into()).spawn(move || {
        runtime.block_on(async {
            let Parts {
                seam,
                counters,
                driver,
                mut exposition,
                management,
                admin_listener,
                ingredients,
                registered,
                origin,
                handover,
                reloads,
                events,
                spans,
                lost_spans,
            } = parts;
            let (config, labels) = (ingredients.config.clone(), Arc::clone(&ingredients.labels));
            let publisher = Arc::new(Publisher::new(ingredients));
            let drain = signals::Drain { delay: config.server.drain_delay, timeout: config.server.drain_timeout };
            let listening = handover.address();
            // One that waits stands for any number of them.
            let (reload, reload_asked) = mpsc::channel(1);
            tokio::spawn(signals.obey(Arc::clone(&seam), drain, handover, reload, Arc::clone(&events)));
            tokio::spawn(
                Reloader { origin, publisher: Arc::clone(&publisher), reloads: Arc::clone(&reloads) }.run(reload_asked),
            );
            exposition.add(health::metrics::HealthGauge(Arc::clone(&publisher)));
            let reports = Arc::new(health::Reports::default());
            let routes = admin::health::routes(Arc::clone(&publisher), Arc::clone(&reports));
            let status = admin::status::routes(Arc::clone(&publisher), Arc::clone(&reports), counters.clone());
            let routes = routes.merge(status);
            let (stopping, is_stopping) = watch::channel(false);
            let traces = (!spans.is_empty()).then(|| Traces::new(&config.tracing, labels, spans, lost_spans));
            let exporting = match traces {
                Some(Ok(traces)) => Some(tokio::spawn(traces.run(is_stopping))),
                Some(Err(error)) => {
                    tracing::error!(error, "spans cannot be sent");
                    None
                }
                None => None,
            };
            tokio::spawn(events_watch::keep_watching(events));
            tokio::spawn(notify::keep_alive(counters.clone(), Arc::clone(&seam)));
            tokio::spawn(endpoint_watch::keep_watching(Arc::clone(&publisher), counters.clone()));
            let registry = Arc::new(Registry::new(Arc::clone(&publisher), registered, listening));
            tokio::spawn(Arc::clone(&registry).keep());
            let routes = routes.merge(admin::instances::routes(registry));
            let dashboard = Arc::new(Sampler::new(Sources {
                publisher: Arc::clone(&publisher),
                reports: Arc::clone(&reports),
                counters: counters.clone(),
                seam: Arc::clone(&seam),
                reloads,
                driver,
                metrics: config.metrics.enabled,
                bounds: config.metrics.buckets.clone(),
                on_error: config.redis.on_error,
            }));
            tokio::spawn(Arc::clone(&dashboard).keep_sampling());
            let routes = routes.merge(dashboard::routes(dashboard));
            let docs = Arc::new(Docs::new(Arc::clone(&publisher)));
            tokio::spawn(Arc::clone(&docs).keep_current());
            let routes = routes.merge(docs::routes(docs));
            let routes = admin::router(config.metrics.enabled.then_some(exposition), routes);
            let listening_apart = admin_listener
                .map(|listener| tokio::spawn(admin::listen::serve(listener, routes.clone(), Arc::clone(&seam))));
            tokio::spawn(admin::serve(management, routes));
            tokio::spawn(health::keep_checking(Arc::clone(&publisher), reports));
            tokio::spawn(dns::keep_resolving(Arc::clone(&publisher)));
            tokio::spawn(issuer::keep_fresh(publisher, seam));
            if config.redis.server.is_some() {
                tokio::spawn(ledger_watch::keep_watching(counters));
            }
            // An error says that the other end is gone, which means the same.
            let _ = stopped.await;
            stopping.send_replace(true);
            for ending in [exporting, listening_apart].into_iter().flatten() {
                // One that has panicked has nothing more to say.
                let _ = ending.await;
            }
        });
    })?;
    Ok(ControlThread { thread, stop })
}

impl ControlThread {
    /// Ends the control plane's tasks and waits for them.
    pub fn stop(self) {
        // The thread may have ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Runs `future` to its end on a runtime of its own, for what must be known before the control thread starts.
///
/// # Errors
/// No runtime can be had.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(runtime()?.block_on(future))
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
