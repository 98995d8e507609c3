//! What `ringway check` prints about a configuration that is valid.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::policy::auth::Mode;
use crate::policy::cors::OriginPattern;
use crate::snapshot::{OnError, RateLimitKey};
use crate::traffic::balance::Algorithm;

use super::{Config, CorsSettings, Driver, EndpointSpec, EndpointUrl, Service, Workers, units};

impl Config {
    /// A few aligned lines: where it listens, how many workers, who may pass and how often, which services. Nothing secret,
    /// and no line break at the end.
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
        let _ = writeln!(text, "rate limits    {}", self.ledger());
        let _ = writeln!(text, "clients        {}", self.clients());
        let _ = write!(text, "services       {}", self.services.len());
        let rows: Vec<[String; 7]> = self.services.iter().map(row).collect();
        let widths: [usize; 7] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for row in &rows {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = write!(text, "\n  {}", cells.join("  ").trim_end());
        }
        text
    }

    /// Where they are counted.
    fn ledger(&self) -> String {
        let Some(server) = &self.redis.server else { return "in memory".to_owned() };
        let on_error = match self.redis.on_error {
            OnError::Local => "local",
            OnError::Allow => "allow",
            OnError::Deny => "deny",
        };
        let place = match &server.address {
            EndpointUrl::Address { authority, .. } | EndpointUrl::Name { authority, .. } => authority.clone(),
            url @ (EndpointUrl::Unix(_) | EndpointUrl::Srv { .. }) => url.to_string(),
        };
        format!("in Redis at {place}, database {}, on_error {on_error}", server.database)
    }

    /// How they can show who they are.
    fn clients(&self) -> String {
        let auth = &self.auth;
        let keys = auth.keys.len();
        let mut ways = Vec::new();
        if keys > 0 || auth.jwks_url.is_some() {
            let algorithms: Vec<String> = auth.algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
            let algorithms = algorithms.join(", ");
            // Behind a "?" there may be something secret.
            let url = auth.jwks_url.as_deref().map(|url| url.split('?').next().unwrap_or(url));
            let known = (keys > 0).then(|| counted(keys, "key"));
            let fetched = url.map(|url| format!("keys from {url}"));
            let keys = known.into_iter().chain(fetched).collect::<Vec<_>>().join(", ");
            ways.push(format!("tokens ({algorithms}; {keys})"));
        }
        if !auth.api_keys.is_empty() {
            ways.push(counted(auth.api_keys.len(), "API key"));
        }
        if ways.is_empty() { "no credentials".to_owned() } else { ways.join(", ") }
    }
}

fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn row(service: &Service) -> [String; 7] {
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
    [
        service.name.clone(),
        prefix,
        auth(service),
        rate_limits(service),
        cors(&service.cors),
        balancing.to_owned(),
        endpoints.join(", "),
    ]
}

fn auth(service: &Service) -> String {
    let mode = match service.auth {
        Mode::Required => "required",
        Mode::Optional => "optional",
        Mode::None => "none",
    };
    let mut scopes: Vec<&str> =
        service.required_scopes.iter().flat_map(|(_, scopes)| scopes).map(String::as_str).collect();
    scopes.sort_unstable();
    scopes.dedup();
    match scopes.as_slice() {
        [] => format!("auth {mode}"),
        scopes => format!("auth {mode} ({})", scopes.join(" ")),
    }
}

fn rate_limits(service: &Service) -> String {
    let shown = service.rate_limits.iter().map(|spec| {
        let by = if spec.key == RateLimitKey::Ip { " by ip" } else { "" };
        format!("{} in {}{by}", spec.limit.requests(), units::show_duration(spec.limit.window()))
    });
    match shown.collect::<Vec<_>>().join(" + ") {
        none if none.is_empty() => "no limit".to_owned(),
        limits => limits,
    }
}

fn cors(settings: &CorsSettings) -> String {
    match settings.rules.allow_origins.as_slice() {
        _ if !settings.enabled => "no cors".to_owned(),
        origins if origins.iter().any(OriginPattern::is_any) => "cors *".to_owned(),
        origins => format!("cors {}", counted(origins.len(), "origin")),
    }
}

fn endpoint(endpoint: &EndpointSpec) -> String {
    match endpoint.weight {
        1 => endpoint.url.to_string(),
        weight => format!("{} (weight {weight})", endpoint.url),
    }
}
