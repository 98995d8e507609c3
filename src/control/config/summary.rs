//! What `ringway check` prints about a configuration that is valid.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::traffic::balance::Algorithm;

use super::{Config, Driver, EndpointSpec, Service, Workers};

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
        let _ = write!(text, "services       {}", self.services.len());
        let rows: Vec<[String; 4]> = self.services.iter().map(row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        for [name, prefix, balancing, endpoints] in &rows {
            let _ = write!(
                text,
                "\n  {name:0$}  {prefix:1$}  {balancing:2$}  {endpoints}",
                widths[0], widths[1], widths[2]
            );
        }
        text
    }
}

fn row(service: &Service) -> [String; 4] {
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
    [service.name.clone(), prefix, balancing.to_owned(), endpoints.join(", ")]
}

fn endpoint(endpoint: &EndpointSpec) -> String {
    match endpoint.weight {
        1 => endpoint.url.to_string(),
        weight => format!("{} (weight {weight})", endpoint.url),
    }
}
