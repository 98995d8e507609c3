//! What a configuration wants to know of the DNS.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::control::config::{Config, EndpointUrl};
use crate::control::registry::instance::Registered;

/// What is asked about a name, which is in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Question {
    /// Its addresses, A and AAAA.
    Host(String),
    /// Its SRV records (RFC 2782), and the addresses of their targets.
    Srv(String),
}

/// Everything that is asked, of whom, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The questions.
    pub questions: BTreeSet<Question>,
    /// `discovery.dns_refresh`
    pub refresh: Duration,
    /// `discovery.dns_server`
    pub servers: Vec<SocketAddr>,
}

impl Plan {
    /// What `config` asks: the names of its endpoints, and Redis's; and those of `registered` instances.
    pub fn of(config: &Config, registered: &Registered) -> Plan {
        let endpoints = config.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| &endpoint.url);
        let redis = config.redis.server.iter().map(|server| &server.address);
        let registered = config.services.iter().flat_map(|service| registered.of(&service.name)).map(|spec| &spec.url);
        let questions = endpoints.chain(redis).chain(registered).filter_map(|url| match url {
            EndpointUrl::Name { host, .. } => Some(Question::Host(host.clone())),
            EndpointUrl::Srv { name } => Some(Question::Srv(name.clone())),
            EndpointUrl::Address { .. } | EndpointUrl::Unix(_) => None,
        });
        Plan {
            questions: questions.collect(),
            refresh: config.discovery.dns_refresh,
            servers: config.discovery.dns_server.clone(),
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Host(host) => f.write_str(host),
            Question::Srv(name) => write!(f, "{name} (SRV)"),
        }
    }
}
