//! The seam between the planes.
//!
//! Control to data: a [`Snapshot`] is immutable and whole, so that no request ever sees half a change. The control plane
//! publishes one through the [`Seam`]; a worker compares one generation number a request and takes the new snapshot when
//! it differs. Data to control: each worker writes what it has adopted, and its own counters.
//!
//! Nothing here does IO or reads a clock.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::http::method::MethodSet;
use crate::policy::auth::{Authenticator, Mode, RequiredScopes};
use crate::policy::cors::Cors;
use crate::traffic::balance::Algorithm;
use crate::traffic::breaker::BreakerSettings;
use crate::traffic::outlier::OutlierSettings;
use crate::traffic::retry::RetrySettings;
use crate::traffic::route::RouteTable;
use crate::traffic::window::Limit;

/// Everything a worker needs to know to serve a request, at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts published snapshots, from 1.
    pub generation: u64,
    /// What applies before a route is known.
    pub limits: Limits,
    /// What applies before a route is known.
    pub timeouts: Timeouts,
    /// Peers whose `X-Forwarded-*` and `Forwarded` headers are believed.
    pub trusted_proxies: Box<[IpNet]>,
    /// Where Redis is, if there is one and its name resolves.
    pub redis: Option<Address>,
    /// Knows every credential that is good.
    pub authenticator: Arc<Authenticator>,
    /// Which pages may ask for what no service has.
    pub cors: Option<Arc<Cors>>,
    /// How much of an IPv6 client's address counts as the client, in bits.
    pub ipv6_prefix: u8,
    /// Whether upstreams get `Forwarded` (RFC 7239) beside `X-Forwarded-*`.
    pub write_forwarded: bool,
    /// What the access log holds.
    pub logging: Logging,
    /// Which requests are traced; `None`: none is.
    pub tracing: Option<Tracing>,
    /// Finds the index into `services`.
    pub routes: RouteTable,
    /// The services, the control plane's own management service among them.
    pub services: Box<[Service]>,
}

/// A named set of endpoints behind one prefix.
#[derive(Debug)]
pub struct Service {
    /// The name from the configuration, `management` for the control plane's own.
    pub name: Box<str>,
    /// The process-wide identity of the name in the counters.
    pub id: ServiceId,
    /// The prefix that the route matched. It is the metrics' `endpoint` label.
    pub prefix: Box<str>,
    /// Whose service it is.
    pub kind: ServiceKind,
    /// The process-wide identity of the (service, prefix) pair in the counters.
    pub route: RouteId,
    /// Which methods pass; others are answered 405.
    pub methods: MethodSet,
    /// How an endpoint is chosen.
    pub load_balancing: Algorithm,
    /// What the endpoints' health means for them.
    pub health: HealthPolicy,
    /// Where requests go. May be empty (a name that does not resolve): requests are answered 503.
    pub endpoints: Box<[Endpoint]>,
    /// When an endpoint gets no more requests from a worker.
    pub breaker: BreakerPolicy,
    /// When an endpoint is so much worse than its siblings that it gets no more requests from a worker.
    pub outliers: OutlierSettings,
    /// When a request goes to another endpoint.
    pub retry: RetryPolicy,
    /// The service's own, the global ones where it names none.
    pub timeouts: Timeouts,
    /// The service's own, the global ones where it names none.
    pub limits: Limits,
    /// How many requests may be on their way on one connection to an endpoint, 1 to [`PIPELINING_MAX`].
    pub pipelining: usize,
    /// Whether clients must show who they are.
    pub auth: Mode,
    /// What their credentials must allow.
    pub required_scopes: RequiredScopes,
    /// Whether `Authorization` and `X-API-Key` go on to the backend.
    pub forward_credentials: bool,
    /// Which pages may ask; `None`: the backend's own matter.
    pub cors: Option<Arc<Cors>>,
    /// How often clients may ask; each limit holds, [`LIMITS_MAX`](crate::policy::rate_limit::LIMITS_MAX) at most.
    pub rate_limits: Box<[RateLimit]>,
}

/// The most requests that may be on their way on one connection to an endpoint.
pub const PIPELINING_MAX: usize = 16;

/// One rate limit of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// The process-wide identity of (service, name); never reused for another.
    pub id: u32,
    /// What clients see: `default`, `own`, or the configured name.
    pub name: Box<str>,
    /// What the ledger calls it, the same in every gateway that shares one: `sms:default`.
    pub ledger_name: Box<str>,
    /// How many requests in how long.
    pub quota: Quota,
    /// Whom it counts.
    pub key: RateLimitKey,
}

/// How many requests in how long, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// The same for everybody.
    Fixed(Limit),
    /// For everybody but API keys that have a limit of their own, which holds instead.
    Default(Limit),
    /// The limits of API keys that have their own; nobody else is counted.
    Own,
}

impl Quota {
    /// What holds for a client whose own limit is `own`; `None`: nothing.
    pub fn of(&self, own: Option<Limit>) -> Option<Limit> {
        match *self {
            Quota::Fixed(limit) => Some(limit),
            Quota::Default(limit) => Some(own.unwrap_or(limit)),
            Quota::Own => own,
        }
    }
}

/// `rate_limit.key`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimitKey {
    /// The verified user or API key; the address of a client that is neither.
    Identity,
    /// The client's address.
    Ip,
}

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// A configured one: its prefix is cut off before a request is sent on, and its answers are a backend's.
    Backend,
    /// The control plane: it sees the whole path, and its answers are the gateway's own.
    Management,
}

/// One address of a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The process-wide identity of (service, url, address): pools, in-flight counts and counters follow it from one
    /// snapshot to the next.
    pub id: EndpointId,
    /// What logs and metrics call it: `127.0.0.1:9001`, `unix:/run/app.sock`.
    pub instance: Box<str>,
    /// The value of the `Host` header sent to it: the configured `name:port`; `localhost` for a Unix socket.
    pub authority: Box<str>,
    /// Where to connect.
    pub address: Address,
    /// Its share of the requests relative to its siblings', 1 to 1,000.
    pub weight: u16,
    /// What the health checks say about it.
    pub health: Health,
    /// How it became known.
    pub source: Source,
}

/// How an endpoint became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The configuration names its address.
    Configured,
    /// A name in the configuration stands for its address.
    Dns,
    /// It was registered.
    Registered,
    /// It is the gateway's own.
    Own,
}

/// What the health checks say about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// It was never found to be otherwise, or is not checked.
    #[default]
    Healthy,
    /// It was unhealthy and has been healthy again since then: it starts slowly.
    Returned(Instant),
    /// It gets no requests.
    Unhealthy,
}

/// What the health of a service's endpoints means for its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthPolicy {
    /// The share of healthy endpoints, in thousandths, below which health is ignored and all are used. 0: never; requests
    /// are answered 503 while no endpoint is healthy.
    pub panic_threshold: u16,
    /// How long the weight of an endpoint that has come back grows until it is whole again; zero: it is so at once.
    pub slow_start: Duration,
}

impl HealthPolicy {
    /// Of a service that is not checked.
    pub const NONE: HealthPolicy = HealthPolicy { panic_threshold: 0, slow_start: Duration::ZERO };
}

/// `[circuit_breaker]`, and `[services.<name>.circuit_breaker]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerPolicy {
    /// When it opens and closes.
    pub settings: BreakerSettings,
    /// Answers with these statuses count as failures, beside those that never came.
    pub failure_statuses: Box<[StatusRange]>,
}

impl BreakerPolicy {
    /// Every endpoint always gets requests.
    pub fn off() -> BreakerPolicy {
        let settings = BreakerSettings {
            enabled: false,
            failure_threshold: u32::MAX,
            failure_ratio: None,
            minimum_requests: u32::MAX,
            window: Duration::from_secs(1),
            open_for: Duration::from_secs(1),
            open_for_max: Duration::from_secs(1),
            half_open_requests: 1,
        };
        BreakerPolicy { settings, failure_statuses: Box::new([]) }
    }

    /// Whether an answer with `status` counts as a failure.
    pub fn is_failure(&self, status: u16) -> bool {
        self.failure_statuses.iter().any(|range| range.contains(status))
    }
}

/// `[retry]`, and `[services.<name>.retry]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// How often, and how soon.
    pub settings: RetrySettings,
    /// Answers with these statuses are not passed on while another endpoint may answer.
    pub statuses: Box<[StatusRange]>,
    /// How long a try may take to the head of its answer, where another may follow; `None`: as long as the last one.
    pub try_timeout: Option<Duration>,
    /// A request's body up to so many bytes is gathered before it is sent, so that it can be sent again; 0: none is.
    pub body_bytes: usize,
}

impl RetryPolicy {
    /// One try.
    pub fn off() -> RetryPolicy {
        let settings = RetrySettings {
            enabled: false,
            attempts: 1,
            budget: 0.0,
            budget_minimum: 0,
            backoff: Duration::ZERO,
            backoff_max: Duration::ZERO,
        };
        RetryPolicy { settings, statuses: Box::new([]), try_timeout: None, body_bytes: 0 }
    }

    /// Whether another endpoint's answer is better than one with `status`.
    pub fn is_retried(&self, status: u16) -> bool {
        self.statuses.iter().any(|range| range.contains(status))
    }
}

/// Statuses from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The lowest.
    pub first: u16,
    /// The highest, itself one of them.
    pub last: u16,
}

impl StatusRange {
    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

/// Where to connect: always resolved, since a worker never looks up a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP, `http://host:port`.
    Tcp(SocketAddr),
    /// A Unix stream socket, `unix:/path`; a leading NUL byte makes it an abstract name.
    Unix(PathBuf),
}

/// Process-wide identity of a route in the counters; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub u16);

impl RouteId {
    /// Stands for requests that matched no route; its `endpoint` label is `none`.
    pub const NONE: RouteId = RouteId(0);
    /// Stands for what the worker answers itself (`/health` and its kin); its `endpoint` label is `/health`.
    pub const HEALTH: RouteId = RouteId(1);
    /// The first identity that a configured route gets.
    pub const FIRST: RouteId = RouteId(2);
}

/// Process-wide identity of a service's name; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u16);

/// Process-wide identity of an endpoint; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// `redis.on_error`: who decides about rate limits while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// This process, with its share of each limit: the limit divided by the gateways that were last seen.
    Local,
    /// Nobody: requests pass.
    Allow,
    /// Nobody: requests are refused with 429.
    Deny,
}

/// `[limits]`, and `[services.<name>.limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest head of a request or response, in bytes with its final CRLF CRLF, 1,024 to 65,536. Exceeded: 431.
    pub header_bytes: usize,
    /// The most header fields in a head, 8 to 256. Exceeded: 431.
    pub header_count: usize,
    /// The longest request target, in bytes, 64 to `header_bytes`. Exceeded: 414.
    pub uri_bytes: usize,
    /// The longest request body, in bytes; 0 means no limit. Exceeded: 413.
    pub body_bytes: u64,
    /// The most requests in flight to the service from one worker, at least 1. Exceeded: 503 with Retry-After.
    pub requests_in_flight: u32,
}

/// `[timeouts]`, and `[services.<name>.timeouts]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From a request's first byte to the end of its head. Exceeded: 408.
    pub header_read: Duration,
    /// How long a downstream connection may wait for its next request, and an idle upstream connection is kept.
    pub keepalive_idle: Duration,
    /// To establish an upstream connection. Exceeded: 504.
    pub connect: Duration,
    /// From the end of the request to the head of the response. Exceeded: 504.
    pub response_header: Duration,
    /// Between two reads or two writes of a body or tunnel. Exceeded: 408 while the request's body is read, 504 while the
    /// response's is awaited and nothing was passed on, a cut connection otherwise.
    pub idle_body: Duration,
}

/// What the workers write to the access log.
#[derive(Debug, Clone, PartialEq)]
pub struct Logging {
    /// Off: no line is rendered at all.
    pub enabled: bool,
    /// JSON or text.
    pub format: LogFormat,
    /// The share of requests with a status below 400 that are logged, 0.0 to 1.0; others always are.
    pub sample: f64,
    /// Query parameters whose values are replaced in the logged path, lower case.
    pub redact: Box<[Box<str>]>,
}

/// Which requests are traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracing {
    /// Of those whose client has not decided it: see
    /// [`threshold`](crate::http::trace_context::threshold).
    pub threshold: u64,
}

/// `logging.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line of `key=value` pairs, for eyes.
    Text,
}

/// Where the process stands in its life; only ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Ready for traffic.
    Serving = 0,
    /// Still accepting, readiness answers 503 so that load balancers move on (`server.drain_delay`).
    Unready = 1,
    /// Listeners are closing, requests in flight finish, each answered with `Connection: close`.
    Draining = 2,
    /// The drain's time is over: whatever is left is cut.
    Stopping = 3,
}

/// What the planes share besides the counters.
#[derive(Debug)]
pub struct Seam {
    generation: AtomicU64,
    current: Mutex<Arc<Snapshot>>,
    phase: AtomicU8,
    adopted: Box<[AtomicU64]>,
    keys_wanted: AtomicBool,
    handed_over: AtomicBool,
    shortages: AtomicU64,
    started: AtomicBool,
    awaits_issuer: AtomicBool,
}

impl Seam {
    /// A seam for `workers` workers that starts with `snapshot`.
    pub fn new(snapshot: Snapshot, workers: usize) -> Self {
        Seam {
            generation: AtomicU64::new(snapshot.generation),
            current: Mutex::new(Arc::new(snapshot)),
            phase: AtomicU8::new(Phase::Serving as u8),
            adopted: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            keys_wanted: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            shortages: AtomicU64::new(0),
            started: AtomicBool::new(false),
            awaits_issuer: AtomicBool::new(true),
        }
    }

    /// Makes `snapshot` the one that every worker takes before its next request. Its generation must be the highest yet.
    pub fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.generation;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(generation > current.generation, "snapshots are published in order");
        *current = Arc::new(snapshot);
        self.generation.store(generation, Ordering::Release);
    }

    /// The generation last published: what a worker compares before each request.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The snapshot last published. Takes a lock: for a change of generation, not for each request.
    pub fn load(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that `worker` serves with `generation` from now on.
    pub fn adopt(&self, worker: usize, generation: u64) {
        self.adopted[worker].store(generation, Ordering::Release);
    }

    /// What each worker serves with, in their order; 0 for one that has not begun.
    pub fn adopted(&self) -> impl Iterator<Item = u64> {
        self.adopted.iter().map(|generation| generation.load(Ordering::Acquire))
    }

    /// Whether every worker has adopted some snapshot, the condition of readiness.
    pub fn all_adopted(&self) -> bool {
        self.adopted().all(|generation| generation > 0)
    }

    /// Whether an issuer whose keys are still to come keeps the gateway from being ready, as at its start.
    pub fn awaits_issuer(&self) -> bool {
        self.awaits_issuer.load(Ordering::Acquire)
    }

    /// Readiness waits for no issuer from now on; whether it did.
    pub fn await_issuer_no_more(&self) -> bool {
        self.awaits_issuer.swap(false, Ordering::AcqRel)
    }

    /// Notes that a token names a key that is not known: its issuer may have a new one.
    pub fn want_keys(&self) {
        // Written once until it is taken: a flood of such tokens must not keep from the others the line that all workers read.
        if !self.keys_wanted.load(Ordering::Relaxed) {
            self.keys_wanted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a key was wanted since this was last asked.
    pub fn take_keys_wanted(&self) -> bool {
        self.keys_wanted.swap(false, Ordering::Relaxed)
    }

    /// Notes that every worker and the control plane run, signals and all: before that no client is taken in.
    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Whether every worker and the control plane run.
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Notes that another process accepts from the same listening sockets: a drain leaves them alone.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Release);
    }

    /// Notes that there was no descriptor, which is every worker's matter; returns how often that was.
    pub fn run_short(&self) -> u64 {
        self.shortages.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How often there was no descriptor.
    pub fn shortages(&self) -> u64 {
        self.shortages.load(Ordering::Relaxed)
    }

    /// Whether another process accepts from the same listening sockets.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Where the process stands.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Unready,
            2 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    /// Moves on to `phase`; a phase that lies behind already is ignored.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }
}
