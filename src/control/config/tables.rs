//! Every table but the services': keys, defaults, ranges.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use crate::snapshot::{Limits, LogFormat, Logging, Timeouts};

use super::read::Section;
use super::value::Node;
use super::{Config, Driver, Level, Metrics, Server, Workers, credentials, limits, resilience, services, units};

/// The whole configuration.
pub(super) fn config(root: Section<'_>, origin: &str) -> Config {
    let table = |name: &'static str| Section::of(name, root.node(name), root.errors);
    let limits = self::limits(table("limits"), &DEFAULT_LIMITS);
    let timeouts = timeouts(table("timeouts"), &DEFAULT_TIMEOUTS);
    let clients = table("auth");
    let auth = credentials::auth(clients);
    let limiting = table("rate_limit");
    let rate_limits = limits::rate_limits(limiting, &limits::DEFAULT_RATE_LIMITS);
    let cors = super::cors::cors(table("cors"), &super::cors::defaults());
    let health = super::health::health(table("health"), &super::health::defaults());
    let breaker = resilience::breaker(table("circuit_breaker"), &resilience::default_breaker());
    let outliers = resilience::outliers(table("outlier_detection"), &resilience::default_outliers());
    let retry = resilience::retry(table("retry"), &resilience::default_retry());
    let global = services::Global {
        limits: &limits,
        timeouts: &timeouts,
        breaker: &breaker,
        outliers: &outliers,
        retry: &retry,
        knows_clients: credentials::is_any_configured(clients),
        rate_limits: &rate_limits,
        health: &health,
        cors: &cors,
        takes_instances: table("admin").node("key_hash").is_some(),
    };
    let services = services::services(table("services"), &global);
    Config {
        origin: origin.to_owned(),
        server: server(table("server")),
        metrics: metrics(table("metrics")),
        logging: logging(table("logging")),
        level: level(table("logging")),
        tracing: super::traces::tracing(table("tracing")),
        admin: super::admin::admin(table("admin")),
        discovery: super::admin::discovery(table("discovery")),
        redis: limits::redis(table("redis")),
        ipv6_prefix: limiting.read("ipv6_prefix", 64, |node| Ok(node.integer(32..=128)? as u8)),
        memory_keys: limiting.read("memory_keys", 262_144, |node| Ok(node.integer(1_000..=100_000_000)? as usize)),
        auth,
        rate_limits,
        health,
        cors,
        limits,
        timeouts,
        services,
    }
}

fn server(section: Section<'_>) -> Server {
    Server {
        host: section.read("host", IpAddr::V4(Ipv4Addr::UNSPECIFIED), |node| {
            let problem = "must be an IP address, such as \"0.0.0.0\", \"127.0.0.1\" or \"::\"";
            node.text()?.parse().map_err(|_| problem.to_owned())
        }),
        port: section.read("port", 8080, |node| Ok(node.integer(0..=65_535)? as u16)),
        workers: section.read("workers", Workers::Auto, workers),
        pin: section.read("pin", true, Node::boolean),
        driver: section.read("driver", Driver::Auto, |node| {
            node.choice(&[("auto", Driver::Auto), ("io_uring", Driver::IoUring), ("epoll", Driver::Epoll)])
        }),
        backlog: section.read("backlog", 4_096, |node| Ok(node.integer(1..=65_535)? as u32)),
        max_connections_per_worker: section
            .read("max_connections_per_worker", 16_384, |node| Ok(node.integer(1..=1_000_000)? as u32)),
        drain_timeout: section.read("drain_timeout", SECOND * 30, |node| node.duration(Duration::ZERO..=HOUR)),
        drain_delay: section.read("drain_delay", Duration::ZERO, |node| node.duration(Duration::ZERO..=MINUTE * 10)),
        forwarded: section.read("forwarded", false, Node::boolean),
        trusted_proxies: section
            .list("trusted_proxies", 0..=256, network)
            .map(|networks| networks.into_iter().map(|(network, _)| network).collect())
            .unwrap_or_default(),
    }
}

fn workers(node: &Node) -> Result<Workers, String> {
    if node.text() == Ok("auto") {
        return Ok(Workers::Auto);
    }
    let problem = |_| "must be \"auto\" or a whole number from 1 to 1024".to_owned();
    node.integer(1..=1_024).map(|count| Workers::Count(count as usize)).map_err(problem)
}

/// A network, its host bits zero, or an address.
pub(super) fn network(node: &Node) -> Result<IpNet, String> {
    let text = node.text()?;
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network
        .map(|network| canonical(network).trunc())
        .ok_or_else(|| "must be a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an IP address".to_owned())
}

/// IPv4 networks written as IPv6 ones (`::ffff:10.0.0.0/104`; RFC 4291, section 2.5.5.2) as what they are: peers are compared
/// in that form.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(_), IpAddr::V4(address)) if network.prefix_len() >= MAPPED_BITS => {
            IpNet::new(address.into(), network.prefix_len() - MAPPED_BITS).expect("128 bits less 96 are 32")
        }
        _ => network,
    }
}

fn metrics(section: Section<'_>) -> Metrics {
    Metrics {
        enabled: section.read("enabled", true, Node::boolean),
        buckets: buckets(section).unwrap_or_else(|| DEFAULT_BUCKETS.to_vec()),
        max_series: section.read("max_series", 10_000, |node| Ok(node.integer(100..=1_000_000)? as usize)),
    }
}

fn buckets(section: Section<'_>) -> Option<Vec<f64>> {
    let mut previous = 0.0;
    let buckets = section.list("buckets", 1..=24, |node| {
        let bound = node.number().filter(|bound| *bound > 0.0).ok_or("must be a positive number of seconds")?;
        if bound <= previous {
            return Err(format!("must be greater than the bound before it, {previous}"));
        }
        previous = bound;
        Ok(bound)
    })?;
    Some(buckets.into_iter().map(|(bound, _)| bound).collect())
}

fn logging(section: Section<'_>) -> Logging {
    let redact = section.list("redact", 0..=256, |node| match node.text()? {
        "" => Err("must name a query parameter".to_owned()),
        name => Ok(name.to_lowercase().into_boxed_str()),
    });
    Logging {
        enabled: section.read("enabled", true, Node::boolean),
        format: section.read("format", LogFormat::Json, |node| {
            node.choice(&[("json", LogFormat::Json), ("text", LogFormat::Text)])
        }),
        sample: section.read("sample", 1.0, |node| {
            node.number()
                .filter(|share| (0.0..=1.0).contains(share))
                .ok_or("must be a number from 0.0 to 1.0".to_owned())
        }),
        redact: match redact {
            Some(names) => names.into_iter().map(|(name, _)| name).collect(),
            None => DEFAULT_REDACT.iter().map(|&name| Box::from(name)).collect(),
        },
    }
}

/// Apart from [`logging`]: the workers have no use for it.
fn level(section: Section<'_>) -> Level {
    section.read("level", Level::Info, |node| {
        node.choice(&[("error", Level::Error), ("warn", Level::Warn), ("info", Level::Info), ("debug", Level::Debug)])
    })
}

/// `10.0.0.2`, `10.0.0.2:53`, `[fd00::2]:53`.
pub(super) fn dns_server(node: &Node) -> Result<SocketAddr, String> {
    let text = node.text()?;
    let address = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, DNS_PORT)));
    let problem = "must be the address of a DNS server, such as \"10.0.0.2:53\" or \"[fd00::2]:53\"";
    address.filter(|address| address.port() > 0).ok_or_else(|| problem.to_owned())
}

const DNS_PORT: u16 = 53;

/// `[limits]` over `base`: the built-in ones for the global table, the global ones for a service's.
pub(super) fn limits(section: Section<'_>, base: &Limits) -> Limits {
    let bytes = |key, default: usize, range| section.read(key, default, |node| Ok(node.size(range)? as usize));
    let header_bytes = bytes("header_bytes", base.header_bytes, 1_024..=65_536);
    // A target is a part of the head. What is inherited gives way, what is written here must fit.
    let uri_bytes_max = header_bytes as u64;
    let uri_bytes = section.read("uri_bytes", base.uri_bytes.min(header_bytes), |node| {
        let size = node.size(64..=65_536)?;
        let limit = units::show_size(uri_bytes_max);
        if size > uri_bytes_max { Err(format!("must be at most header_bytes, {limit}")) } else { Ok(size as usize) }
    });
    Limits {
        header_bytes,
        header_count: section.read("header_count", base.header_count, |node| Ok(node.integer(8..=256)? as usize)),
        uri_bytes,
        body_bytes: section.read("body_bytes", base.body_bytes, |node| node.size(0..=BODY_BYTES_MAX)),
        requests_in_flight: section
            .read("requests_in_flight", base.requests_in_flight, |node| Ok(node.integer(1..=1_000_000)? as u32)),
    }
}

/// `[timeouts]` over `base`, as [`limits()`].
pub(super) fn timeouts(section: Section<'_>, base: &Timeouts) -> Timeouts {
    let read = |key, default, range: RangeInclusive<Duration>| section.read(key, default, |node| node.duration(range));
    Timeouts {
        header_read: read("header_read", base.header_read, TIMEOUT_MIN..=MINUTE * 10),
        keepalive_idle: read("keepalive_idle", base.keepalive_idle, TIMEOUT_MIN..=DAY),
        connect: read("connect", base.connect, TIMEOUT_MIN..=MINUTE * 5),
        response_header: read("response_header", base.response_header, TIMEOUT_MIN..=DAY),
        idle_body: read("idle_body", base.idle_body, TIMEOUT_MIN..=DAY),
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Zero would mean that everything is late at once; "no timeout" is not offered, since everything has a maximum.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);

/// 1 PiB: beyond any body, and what sums of it fit into 64 bits.
const BODY_BYTES_MAX: u64 = 1 << 50;

const DEFAULT_LIMITS: Limits = Limits {
    header_bytes: 16 << 10,
    header_count: 100,
    uri_bytes: 8 << 10,
    body_bytes: 10 << 20,
    requests_in_flight: 8_192,
};

const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    header_read: Duration::from_secs(10),
    keepalive_idle: Duration::from_secs(75),
    connect: Duration::from_secs(5),
    response_header: Duration::from_secs(60),
    idle_body: Duration::from_secs(60),
};

/// From half a millisecond, what the gateway itself takes at most, to a minute, the default `response_header`.
const DEFAULT_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Where credentials are commonly put in a query.
const DEFAULT_REDACT: [&str; 14] = [
    "access_token",
    "api_key",
    "apikey",
    "client_secret",
    "code",
    "id_token",
    "jwt",
    "key",
    "password",
    "refresh_token",
    "secret",
    "sig",
    "signature",
    "token",
];
