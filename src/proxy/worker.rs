//! What the connections of one core share, and nothing else shares: snapshot, pools, buffers, clock, randomness, log.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::accept::Sharing;
use super::batch::Batches;
use super::buffers::Buffers;
use super::lane::Lane;
use super::ledger::RedisLedger;
use super::limiter::{Limiter, Moment, SharedLimits};
use super::loaded::{Known, Loaded};
use super::runtime::IO_URING;
use super::splice::Pipes;
use super::usher::Usher;
use super::watch::{Millis, Patience, Registry, Side, Watch};
use crate::policy::access_log::{AccessRecord, Clock};
use crate::policy::auth::Cache;
use crate::redis::client::Settings;
use crate::snapshot::{OnError, Phase, Seam};
use crate::telemetry::counters::Counters;
use crate::telemetry::log::LogSender;
use crate::telemetry::spans::SpanSender;
use crate::traffic::outlier;

/// Idle upstream connections are looked through once in so many milliseconds.
const TIDY_EVERY: Millis = 1_000;

/// Idle upstream connections are closed for their descriptors once in so many milliseconds: so long it takes the driver.
const SHED_EVERY: Millis = 5;

/// A connection that has been quiet for so long when the drain begins, or becomes so during it, is closed.
const DRAIN_IDLE: Millis = 1_000;

/// Verified tokens that are remembered.
const TOKENS_MAX: usize = 16_384;

/// Requests, or pieces of a body, that one connection gets in a row.
const TURNS: u32 = 16;

/// Lanes kept for reuse.
const LANES_FREE_MAX: usize = 512;

/// What a worker is made of; handed to its thread.
#[derive(Debug)]
pub struct Parts {
    /// Which worker, from 0.
    pub index: usize,
    /// How many there are.
    pub workers: usize,
    /// The control plane's word.
    pub seam: Arc<Seam>,
    /// The worker's own counters.
    pub counters: Arc<Counters>,
    /// The worker's own way to the access log.
    pub log: LogSender,
    /// Who else listens on its sockets.
    pub sharing: Sharing,
    /// The most client connections.
    pub connections_max: u32,
    /// The most pipes for long bodies.
    pub pipes_max: usize,
    /// What all workers share of their rate limits.
    pub limits: SharedLimits,
    /// The ledger in Redis, where there is one.
    pub redis: Option<RedisParts>,
    /// Random: keys the cache of verified tokens.
    pub token_key: [u8; 16],
    /// The worker's own way to whoever makes spans of traced requests, where there is one.
    pub spans: Option<SpanSender>,
}

/// What a worker needs to reach the ledger in Redis.
#[derive(Debug, Clone)]
pub struct RedisParts {
    /// Where it is and who asks.
    pub settings: Settings,
    /// What its keys begin with.
    pub prefix: Box<str>,
    /// Who decides while it does not answer.
    pub on_error: OnError,
    /// The process among the gateways that share it.
    pub gateway: u128,
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// Which worker, from 0.
    pub index: usize,
    /// Members of a JSON object for `/health`: what it runs on.
    pub description: Box<str>,
    /// The control plane's word.
    pub seam: Arc<Seam>,
    /// What is counted here.
    pub counters: Arc<Counters>,
    /// Deadlines.
    pub registry: Rc<Registry>,
    /// Rate limits.
    pub limiter: Rc<Limiter>,
    /// Tokens that were verified.
    pub tokens: RefCell<Cache>,
    /// Buffers.
    pub buffers: Buffers,
    /// Pipes.
    pub pipes: Rc<Pipes>,
    lanes: RefCell<Vec<Lane>>,
    /// Requests that go out together.
    pub batches: Rc<Batches>,
    /// Randomness: ids and draws, nothing secret.
    pub random: RefCell<fastrand::Rng>,
    /// The most client connections.
    pub connections_max: u32,
    connections: Cell<u32>,
    loaded: RefCell<Rc<Loaded>>,
    known: RefCell<Known>,
    log: RefCell<LogSender>,
    /// Where records of traced requests come from and go to; `None` where nobody wants any.
    pub spans: Option<RefCell<SpanSender>>,
    line: RefCell<Vec<u8>>,
    /// Renders times; its caches are the worker's.
    pub clock: RefCell<Clock>,
    usher: OnceCell<Rc<Usher>>,
    started: Instant,
    latest: Cell<Instant>,
    now: Cell<Millis>,
    ticked: Cell<Instant>,
    unix_at_tick: Cell<Duration>,
    tidied: Cell<Millis>,
    /// When idle upstream connections were closed for their descriptors, and which shortage that was for.
    shed: Cell<Millis>,
    shortage: Cell<u64>,
}

impl Worker {
    /// A worker that has adopted the current snapshot. `driver` and `flags` say what it runs on.
    pub fn new(parts: Parts, driver: &'static str, flags: &'static str) -> Worker {
        let mut known = Known::default();
        let now = Instant::now();
        let loaded = Rc::new(Loaded::new(parts.seam.load(), &mut known, now));
        let on_error = parts.redis.as_ref().map_or(OnError::Local, |redis| redis.on_error);
        let ledger = parts.redis.map(|redis| RedisLedger::start(redis.settings, &redis.prefix, fastrand::u64(..)));
        let limiter = Limiter::new(parts.limits, ledger, on_error);
        parts.seam.adopt(parts.index, loaded.snapshot.generation);
        let description = format!(
            r#""version":"{}","worker":{},"workers":{},"pid":{},"driver":"{driver}","ring_flags":"{flags}""#,
            env!("CARGO_PKG_VERSION"),
            parts.index,
            parts.workers,
            std::process::id(),
        );
        Worker {
            index: parts.index,
            description: description.into(),
            counters: parts.counters,
            registry: Rc::default(),
            limiter: Rc::new(limiter),
            tokens: RefCell::new(Cache::new(TOKENS_MAX, parts.token_key)),
            buffers: Buffers::new(loaded.snapshot.limits.header_bytes),
            pipes: Pipes::new(parts.pipes_max, driver == IO_URING),
            lanes: RefCell::default(),
            batches: Rc::default(),
            random: RefCell::new(fastrand::Rng::new()),
            connections_max: parts.connections_max,
            connections: Cell::new(0),
            loaded: RefCell::new(loaded),
            known: RefCell::new(known),
            log: RefCell::new(parts.log),
            spans: parts.spans.map(RefCell::new),
            line: RefCell::new(Vec::with_capacity(4096)),
            clock: RefCell::new(Clock::default()),
            usher: OnceCell::new(),
            started: now,
            now: Cell::new(0),
            latest: Cell::new(now),
            ticked: Cell::new(now),
            unix_at_tick: Cell::new(unix_time()),
            tidied: Cell::new(0),
            shed: Cell::new(0),
            shortage: Cell::new(0),
            seam: parts.seam,
        }
    }

    /// The current snapshot and its state; a newly published one is adopted here.
    pub fn loaded(&self) -> Rc<Loaded> {
        let loaded = Rc::clone(&self.loaded.borrow());
        if loaded.snapshot.generation == self.seam.generation() { loaded } else { self.adopt() }
    }

    #[cold]
    fn adopt(&self) -> Rc<Loaded> {
        let snapshot = self.seam.load();
        let generation = snapshot.generation;
        if let (Some(redis), Some(address)) = (self.limiter.redis(), &snapshot.redis) {
            redis.set_address(address);
        }
        let loaded = Rc::new(Loaded::new(snapshot, &mut self.known.borrow_mut(), self.started));
        *self.loaded.borrow_mut() = Rc::clone(&loaded);
        self.seam.adopt(self.index, generation);
        loaded
    }

    /// The coarse clock; at most a tick behind, brought up to date by every request.
    pub fn now(&self) -> Millis {
        self.now.get()
    }

    /// The coarse clock, `timeout` from now.
    pub fn after(&self, timeout: Duration) -> Millis {
        self.now.get().saturating_add(timeout.as_millis() as Millis)
    }

    /// Lets a write on `watch` take so long for each step forward.
    pub fn patience<'a>(&'a self, watch: &'a Watch, time: Duration) -> Patience<'a> {
        Patience::new(watch, &self.now, time)
    }

    /// Brings the coarse clock up to `instant`, which was just read.
    pub fn set_now(&self, instant: Instant) {
        self.latest.set(instant);
        self.now.set(instant.saturating_duration_since(self.started).as_millis() as Millis);
    }

    /// The last instant that was read: in code that was just woken by a read, that of the read.
    pub fn latest(&self) -> Instant {
        self.latest.get()
    }

    /// Milliseconds since the Unix epoch at `instant`, which was just read.
    pub fn unix_ms(&self, instant: Instant) -> u64 {
        (self.unix_at_tick.get() + instant.saturating_duration_since(self.ticked.get())).as_millis() as u64
    }

    /// Nanoseconds since the Unix epoch at `instant`, which was just read.
    pub fn unix_ns(&self, instant: Instant) -> u64 {
        (self.unix_at_tick.get() + instant.saturating_duration_since(self.ticked.get())).as_nanos() as u64
    }

    /// Milliseconds since the Unix epoch, a tick behind at most: for `Date`, which counts seconds.
    pub fn unix_ms_coarse(&self) -> u64 {
        self.unix_at_tick.get().as_millis() as u64
    }

    /// `instant`, which was just read, on both clocks.
    pub fn moment(&self, instant: Instant) -> Moment {
        let unix = self.unix_at_tick.get() + instant.saturating_duration_since(self.ticked.get());
        Moment { instant, unix_us: unix.as_micros() as u64 }
    }

    /// Uniform random bits.
    pub fn draw(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    /// Takes a line for the access log, or counts that it was dropped.
    pub fn write_log(&self, record: &AccessRecord<'_>, loaded: &Loaded) {
        let logging = &loaded.snapshot.logging;
        let mut line = self.line.borrow_mut();
        line.clear();
        let clock = &mut self.clock.borrow_mut();
        crate::policy::access_log::render(record, logging.format, &logging.redact, clock, &mut line);
        if !self.log.borrow_mut().push(&line) {
            self.counters.log_lines_dropped.add(1);
        }
    }

    /// A lane for a request.
    pub fn lane(&self) -> Lane {
        self.lanes.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a lane back whose request is over.
    pub fn give_lane(&self, lane: Lane) {
        let mut lanes = self.lanes.borrow_mut();
        if lanes.len() < LANES_FREE_MAX {
            lanes.push(lane);
        }
    }

    /// To be called by whatever repeats as long as its peers keep it busy: every so many turns it lets the others have theirs.
    pub async fn share(&self, turns: &mut u32) {
        *turns = turns.wrapping_add(1);
        if turns.is_multiple_of(TURNS)
            && let Some(usher) = self.usher.get()
        {
            usher.wait().await;
        }
    }

    /// Has everybody take turns. Without it, who is always busy is always first.
    pub fn take_turns(&self, usher: Rc<Usher>) {
        // There is one for as long as the worker runs.
        let _ = self.usher.set(usher);
    }

    /// Open client connections.
    pub fn connections(&self) -> u32 {
        self.connections.get()
    }

    /// Whether there are as many client connections as there may be.
    pub fn is_full(&self) -> bool {
        self.connections.get() >= self.connections_max
    }

    /// Counts a client connection in or out.
    pub fn count_connection(&self, change: i32) {
        self.connections.set(self.connections.get().saturating_add_signed(change));
        self.counters.connections_open.set(u64::from(self.connections.get()));
    }

    /// Whether the drain's time is over.
    pub fn is_stopping(&self) -> bool {
        self.seam.phase() >= Phase::Stopping
    }

    /// Whether answers end their connection, because the process is going down.
    pub fn is_draining(&self) -> bool {
        self.seam.phase() >= Phase::Draining
    }

    /// What happens every [`TICK`](super::watch::TICK).
    pub fn tick(&self) {
        let instant = Instant::now();
        self.set_now(instant);

        self.ticked.set(instant);
        self.unix_at_tick.set(unix_time());
        let now = self.now();
        let drain_idle_before = self.is_draining().then(|| now.saturating_sub(DRAIN_IDLE));
        let timeouts = &self.counters.timeouts;
        self.registry.sweep(now, drain_idle_before, |deadline| timeouts[deadline as usize].add(1));
        self.batches.sweep(now);
        self.counters.heartbeats.add(1);
        self.limiter.sweep(self.moment(instant));
        self.limiter.export(&self.counters);
        self.log.borrow_mut().wake();
        self.loaded();
        let shortages = self.seam.shortages();
        if self.shortage.replace(shortages) != shortages {
            self.shed_idle();
        }
        if now - self.tidied.get() >= TIDY_EVERY {
            self.tidied.set(now);
            self.tidy(now);
            self.compare(instant);
            self.export(instant);
        }
    }

    /// There was no descriptor. Idle upstream connections are closed: this worker's now, and the others' with their next ticks.
    pub fn run_short(&self) {
        self.shortage.set(self.seam.run_short());
        self.set_now(Instant::now());
        self.shed_idle();
    }

    /// Has each endpoint close the half of its idle connections that lay idle longer.
    fn shed_idle(&self) {
        // Whoever runs short in the same turn is helped by the same descriptors.
        if self.now() < self.shed.get() + SHED_EVERY {
            return;
        }
        self.shed.set(self.now());
        self.pipes.shed();
        self.known.borrow().endpoints.values().for_each(|endpoint| endpoint.shed());
    }

    /// Looks for outliers among the endpoints of each service whose time for that has come.
    fn compare(&self, instant: Instant) {
        let loaded = Rc::clone(&self.loaded.borrow());
        for (service, state) in loaded.snapshot.services.iter().zip(&loaded.services) {
            let settings = &service.outliers;
            let is_due = self.now() - state.memory.compared.get() >= settings.interval.as_millis() as Millis;
            if is_due && service.endpoints.len() > 1 {
                state.memory.compared.set(self.now());
                let records: Vec<_> = state.endpoints.iter().map(|endpoint| &endpoint.outlier).collect();
                outlier::evaluate(settings, &records, instant);
                state.memory.has_ejected.set(records.iter().any(|record| record.get().is_ejected(instant)));
            }
        }
    }

    /// Shows others how the endpoints stand.
    fn export(&self, now: Instant) {
        let loaded = Rc::clone(&self.loaded.borrow());
        for (service, state) in loaded.snapshot.services.iter().zip(&loaded.services) {
            for (endpoint, state) in service.endpoints.iter().zip(&state.endpoints) {
                state.export(endpoint.id, &self.counters, now);
            }
        }
        // Each once: several services may share an endpoint, as the management paths do.
        let idle: usize = self.known.borrow().endpoints.values().map(|state| state.idle()).sum();
        self.counters.upstream_idle.set(idle as u64);
        self.counters.upstream_open.set(self.registry.count(Side::Upstream) as u64);
    }

    /// Closes upstream connections that were idle for too long, that are too many or that the upstream closed, and forgets
    /// endpoints that no snapshot names any more.
    fn tidy(&self, now: Millis) {
        let loaded = Rc::clone(&self.loaded.borrow());
        for (service, state) in loaded.snapshot.services.iter().zip(&loaded.services) {
            let keep = service.timeouts.keepalive_idle.as_millis() as Millis;
            for endpoint in &state.endpoints {
                let closed = endpoint.tidy((now + 1).saturating_sub(keep));
                self.counters.upstream_stale.add(closed);
            }
        }
        self.pipes.tidy(now);
        let mut known = self.known.borrow_mut();
        known.forget();
        known.endpoints.values().for_each(|endpoint| endpoint.shrink());
        self.counters.forget_endpoints(|id| known.endpoints.contains_key(&id));
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
