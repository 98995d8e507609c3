//! What `ringway check` prints about a configuration that is valid.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::policy::auth::Mode;
use crate::traffic::balance::Algorithm;

use super::{Config, Driver, EndpointSpec, RateLimitSpec, Service, Workers, units};

impl Config {
    /// A few aligned lines: where it listens, how many workers, which services. Ends without a line break.
    pub fn summary(&self) -> String {
        let server = &self.server;
        let workers = match server.workers {
            Workers::Auto => "auto".to_owned(),
            Workers::Count(count) => count.to_string(),
        };
        let pinned = if server.pin { "pinned" } else { "not pinned" };
        let driver = match server.driver {
            Driver::Auto => "auto",
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
        };
        let mut text = format!("configuration  {}\n", self.origin);
        let _ = writeln!(text, "address        {}", SocketAddr::new(server.host, server.port));
        let _ = writeln!(text, "workers        {workers}, {pinned}, driver {driver}");
        let ledger = match &self.redis.server {
            Some(server) => format!("Redis, {}", server.address.to_string().replacen("http", "redis", 1)),
            None => "in memory".to_owned(),
        };
        let _ = writeln!(text, "rate limits    {ledger}");
        let _ = writeln!(text, "credentials    {}", self.credentials());
        let _ = write!(text, "services       {}", self.services.len());
        let rows: Vec<[String; 6]> = self.services.iter().map(row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        for row in &rows {
            text.push_str("\n ");
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(text, " {cell:width$} ");
            }
            text.truncate(text.trim_end().len());
        }
        text
    }

    /// What clients can show who they are with.
    fn credentials(&self) -> String {
        let auth = &self.auth;
        let tokens = match (&auth.jwks_url, auth.keys.len()) {
            (None, 0) => "no tokens".to_owned(),
            (None, keys) => format!("tokens by {keys} key{}", if keys == 1 { "" } else { "s" }),
            (Some(url), 0) => format!("tokens by the keys at {url}"),
            (Some(url), keys) => format!("tokens by {keys} and the keys at {url}"),
        };
        format!("{tokens}, {} API keys", auth.api_keys.len())
    }
}

fn row(service: &Service) -> [String; 6] {
    let balancing = match service.load_balancing {
        Algorithm::RoundRobin => "round_robin",
        Algorithm::LeastConnections => "least_connections",
        Algorithm::Random => "random",
    };
    let prefix = match service.hosts.as_slice() {
        [] => service.prefix.clone(),
        hosts => format!("{} ({})", service.prefix, hosts.join(", ")),
    };
    let endpoints: Vec<String> = service.endpoints.iter().map(endpoint).collect();
    let auth = match service.auth {
        Mode::Required => "auth required",
        Mode::Optional => "auth optional",
        Mode::None => "auth none",
    };
    let limit =
        |spec: &RateLimitSpec| format!("{} in {}", spec.limit.requests(), units::show_duration(spec.limit.window()));
    let limits = match service.rate_limits.as_slice() {
        [] => "no limit".to_owned(),
        limits => limits.iter().map(limit).collect::<Vec<_>>().join("+"),
    };
    let limits = if service.cors.enabled { format!("{limits}, CORS") } else { limits };
    [service.name.clone(), prefix, balancing.to_owned(), auth.to_owned(), limits, endpoints.join(", ")]
}

fn endpoint(endpoint: &EndpointSpec) -> String {
    match endpoint.weight {
        1 => endpoint.url.to_string(),
        weight => format!("{} (weight {weight})", endpoint.url),
    }
}
