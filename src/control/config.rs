//! The configuration: from a file, the environment and the command line to a validated [`Config`].
//!
//! Bytes become a tree of values that know where they were written (`value`), the environment and the command line are laid
//! over it (`overlay`), unknown keys are found (`keys`), and a typed reader (`read`) turns the tree into a [`Config`]
//! (`tables`, `services`), noting every error instead of stopping at the first. What is in a [`Config`] is complete
//! and within its ranges: nothing after this checks again. Names are not resolved here (`control::resolve`), and nothing
//! is started.
//!
//! Precedence: command line, then environment, then file, then default.

mod admin;
mod cors;
mod credentials;
mod endpoint;
mod error;
mod file;
mod health;
mod keys;
mod limits;
mod overlay;
mod read;
mod resilience;
mod route;
mod secrets;
mod services;
mod summary;
mod tables;
#[cfg(test)]
mod tests;
mod traces;
mod units;
mod value;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::http::method::MethodSet;
use crate::policy::auth::Mode;
use crate::snapshot::{BreakerPolicy, Limits, Logging, RetryPolicy, Timeouts};
use crate::traffic::balance::Algorithm;
use crate::traffic::outlier::OutlierSettings;

pub use admin::{Admin, Allowed, Discovery};
pub use cors::CorsSettings;
pub use credentials::Auth;
pub use error::{ConfigError, ConfigErrors, Place};
pub use health::HealthSettings;
pub use keys::KEYS;
pub use limits::{DEFAULT_LIMIT, OWN_LIMIT, RateLimitSpec, RateLimits, Redis, RedisServer};
pub use traces::Tracing;

/// What a configuration is made from.
#[derive(Clone, Default)]
pub struct Source {
    /// The file that `--config` names, which must exist; without it `./config.toml`, which may be absent.
    pub path: Option<PathBuf>,
    /// The process's environment variables, names and values: [`environment`].
    pub environment: Vec<(String, String)>,
    /// Options of the command line, as dotted keys and values: `("server.port", "9090")`.
    pub overrides: Vec<(String, String)>,
}

impl Source {
    /// The files that are known before anything is read: the configuration itself, and those that variables name.
    pub fn files(&self) -> Vec<PathBuf> {
        let own = self.path.clone().unwrap_or_else(|| PathBuf::from(file::DEFAULT_PATH));
        std::iter::once(own).chain(overlay::files(&self.environment).map(PathBuf::from)).collect()
    }
}

/// Without the environment: it holds secrets.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("overrides", &self.overrides).finish_non_exhaustive()
    }
}

/// A validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from, or `built-in defaults`.
    pub origin: String,
    /// `[server]`
    pub server: Server,
    /// `[limits]`: what applies before a route is known, and to services that set nothing else.
    pub limits: Limits,
    /// `[timeouts]`: what applies before a route is known, and to services that set nothing else.
    pub timeouts: Timeouts,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[logging]`, as far as the access log is concerned.
    pub logging: Logging,
    /// `logging.level`
    pub level: Level,
    /// `[tracing]`
    pub tracing: Tracing,
    /// `[admin]`
    pub admin: Admin,
    /// `[discovery]`
    pub discovery: Discovery,
    /// `[redis]`
    pub redis: Redis,
    /// `[auth]`
    pub auth: Auth,
    /// `[rate_limit]`, for services that set nothing else.
    pub rate_limits: RateLimits,
    /// `rate_limit.ipv6_prefix`: how much of an IPv6 client's address counts as the client, 32 to 128 bits.
    pub ipv6_prefix: u8,
    /// `rate_limit.memory_keys`: how many clients are counted apart without Redis, 1,000 to 100,000,000.
    pub memory_keys: usize,
    /// `[health]`, for services that set nothing else.
    pub health: HealthSettings,
    /// `[cors]`, for services that set nothing else, and for paths that no service has.
    pub cors: CorsSettings,
    /// `[services.<name>]`, in the order of their names; at most 1,024. May be empty.
    pub services: Vec<Service>,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The address that is listened on.
    pub host: IpAddr,
    /// The port that is listened on; 0 lets the kernel choose.
    pub port: u16,
    /// How many workers.
    pub workers: Workers,
    /// Whether each worker stays on one core.
    pub pin: bool,
    /// What waits for IO.
    pub driver: Driver,
    /// How many connections the kernel queues for each worker's listener, 1 to 65,535.
    pub backlog: u32,
    /// How many connections a worker has open before it stops accepting, 1 to 1,000,000.
    pub max_connections_per_worker: u32,
    /// How long requests in flight may take to finish after SIGTERM, up to 1 h.
    pub drain_timeout: Duration,
    /// How long readiness answers 503 before the listeners close, up to 10 min.
    pub drain_delay: Duration,
    /// Peers whose `X-Forwarded-*` and `Forwarded` headers are believed, host bits zero; at most 256.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether upstreams get `Forwarded` (RFC 7239) beside `X-Forwarded-*`.
    pub forwarded: bool,
}

/// `server.workers`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// As many as there are cores to run on.
    Auto,
    /// This many, 1 to 1,024.
    Count(usize),
}

/// `server.driver`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// io_uring where the kernel allows it, epoll elsewhere.
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Whether `/metrics` is served.
    pub enabled: bool,
    /// The upper bounds of the latency histogram's buckets, in seconds: 1 to 24, positive, ascending, `+Inf` not among them.
    pub buckets: Vec<f64>,
    /// How many series there may be before new ones are counted under `other`, 100 to 1,000,000.
    pub max_series: usize,
}

/// `logging.level`: how severe an event of the gateway's own must be to be logged. The access log is not concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something may stop to work, or works in a lesser way.
    Warn,
    /// Starts, stops, changes of configuration.
    Info,
    /// What helps to find a fault.
    Debug,
}

/// `[services.<name>]`
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// 1 to 64 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// Normalised: begins with `/`, ends without one (except `/` itself), no empty, `.` or `..` segment, no escape that is
    /// not needed and none of a slash, the others in upper case.
    pub prefix: String,
    /// At most 256, no two alike; none only where instances may register themselves.
    pub endpoints: Vec<EndpointSpec>,
    /// Which methods pass.
    pub methods: MethodSet,
    /// Which hosts are served, lower case, without port: exact ones and `*.` patterns; at most 64. Empty: every host.
    pub hosts: Vec<String>,
    /// How an endpoint is chosen.
    pub load_balancing: Algorithm,
    /// The service's own over the global ones.
    pub limits: Limits,
    /// The service's own over the global ones.
    pub timeouts: Timeouts,
    /// The service's own over the global ones.
    pub breaker: BreakerPolicy,
    /// The service's own over the global ones.
    pub outliers: OutlierSettings,
    /// The service's own over the global ones.
    pub retry: RetryPolicy,
    /// How many requests may be on their way on one connection to an endpoint, 1 to 16.
    pub pipelining: usize,
    /// Whether clients must show who they are.
    pub auth: Mode,
    /// The scopes that clients need, by method.
    pub required_scopes: Vec<(MethodSet, Vec<String>)>,
    /// Whether the client's credentials go on to the backend.
    pub forward_credentials: bool,
    /// Its limits, 9 at most; none: its requests are not counted.
    pub rate_limits: Vec<RateLimitSpec>,
    /// How its endpoints are checked, and what becomes of those that fail.
    pub health: HealthSettings,
    /// Which pages may ask.
    pub cors: CorsSettings,
    /// Where the service describes its API.
    pub openapi_url: Option<OpenApiUrl>,
}

/// `services.<name>.openapi_url`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenApiUrl {
    /// A path that one of its endpoints is asked for.
    Path(String),
    /// `http://…` or `https://…`
    Absolute(String),
}

/// One of `services.<name>.endpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Where it is.
    pub url: EndpointUrl,
    /// Its share of the requests relative to its siblings', 1 to 1,000.
    pub weight: u16,
}

/// Where an endpoint is. The `authority` is what the backend is sent as `Host`: as configured, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointUrl {
    /// `http://127.0.0.1:9001`
    Address {
        /// `127.0.0.1:9001`
        authority: String,
        /// The same, read.
        address: SocketAddr,
    },
    /// `http://backend.internal:9001`: resolved to all its addresses, again when their TTL is over.
    Name {
        /// `backend.internal:9001`
        authority: String,
        /// `backend.internal`
        host: String,
        /// `9001`
        port: u16,
    },
    /// `srv+http://_sms._tcp.example`: resolved to the targets, ports and weights of its SRV records (RFC 2782). What a
    /// backend is sent as `Host` is its target's name and port.
    Srv {
        /// `_sms._tcp.example`
        name: String,
    },
    /// `unix:/run/app.sock`
    Unix(PathBuf),
}

/// Reads and validates the configuration that `source` describes.
///
/// # Errors
/// Every error there is, but for syntax errors: those are reported alone.
pub fn load(source: &Source) -> Result<Config, ConfigErrors> {
    match file::find(source.path.as_deref(), Path::new(file::DEFAULT_PATH))? {
        Some((text, name)) => Config::from_toml(&text, &name, &source.environment, &source.overrides),
        None => Config::from_toml("", Config::BUILT_IN, &source.environment, &source.overrides),
    }
}

/// What `source` says about `[server]`, whatever else is wrong with it, and the default where that is wrong too: enough to
/// find a gateway that runs.
pub fn load_server(source: &Source) -> Server {
    let text = match file::find(source.path.as_deref(), Path::new(file::DEFAULT_PATH)) {
        Ok(Some((text, _))) => text,
        Ok(None) | Err(_) => String::new(),
    };
    let mut table = value::parse(&text, "").unwrap_or_default();
    overlay::environment(&mut table, &source.environment, &mut Vec::new());
    tables::config(read::Section::root(&table, &read::Errors::default()), "").server
}

/// Reads the URL of an endpoint, as `services.<name>.endpoints` has it.
///
/// # Errors
/// What is wrong with it, as the end of a sentence: `must not have credentials`.
pub fn parse_endpoint(text: &str) -> Result<EndpointUrl, String> {
    endpoint::url(text)
}

/// Reads a duration as configurations write it: `250ms`, `30s`, `1.5m`, `1h`, or a plain number of seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    units::parse_duration(text)
}

/// The process's environment. What is not UTF-8 is kept with U+FFFD in its place, so that it is refused where it matters
/// and ignored elsewhere.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter(|(name, _)| name != super::handover::VARIABLE)
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}

impl Config {
    /// The `origin` of a configuration without a file.
    pub const BUILT_IN: &str = "built-in defaults";

    /// Reads and validates `text`, the TOML document that errors call `name`, under the variables and options that hold
    /// over it. Files named by `_FILE` variables are read; nothing else is touched.
    ///
    /// # Errors
    /// As [`load`].
    pub fn from_toml(
        text: &str,
        name: &str,
        environment: &[(String, String)],
        overrides: &[(String, String)],
    ) -> Result<Config, ConfigErrors> {
        let mut table = value::parse(text, name)?;
        let mut found = Vec::new();
        keys::check(&table, &mut found);
        overlay::environment(&mut table, environment, &mut found);
        overlay::command_line(&mut table, overrides, &mut found);
        secrets::hide(&mut table);
        let errors = read::Errors::default();
        let config = tables::config(read::Section::root(&table, &errors), name);
        found.extend(errors.into_inner());
        ConfigErrors::check(found)?;
        Ok(config)
    }
}

impl Default for Config {
    /// What holds where nothing is configured: no service, and every other key's default.
    fn default() -> Config {
        let errors = read::Errors::default();
        tables::config(read::Section::root(&value::Table::new(), &errors), Config::BUILT_IN)
    }
}
