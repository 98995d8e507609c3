//! Who answers: /etc/hosts, then the DNS servers of /etc/resolv.conf or of `discovery.dns_server`.
//!
//! Nothing is cached here: a name is asked for again when its TTL is over, and then the answer must be fresh. The search list
//! is walked here and not by the library, which walks it for A and AAAA apart and so may mix the addresses of two names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::names::{Found, Problem, both_families, candidates, choose};
use super::srv::{self, Record};
use super::{Answer, Outcome, Question, Records};

/// How long a server has before the next attempt; a lost packet must not cost the whole lookup.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long the addresses of one SRV target may take: one that hangs must not hold up the others.
const TARGET_TIMEOUT: Duration = Duration::from_millis(2_400);

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Asks questions. Reads the system's configuration once: [`Resolver::is_current`] tells when that has changed.
#[derive(Debug, Clone)]
pub struct Resolver {
    dns: Option<TokioResolver>,
    hosts: Arc<Hosts>,
    search: Vec<String>,
    ndots: usize,
    servers: Vec<SocketAddr>,
    read: [Option<SystemTime>; 2],
}

impl Resolver {
    /// One that asks `servers`, the system's where there are none. Reads two small files.
    pub fn new(servers: &[SocketAddr]) -> Resolver {
        let read = modified();
        let (system, mut options) = system_conf::read_system_conf().unwrap_or_else(|_| {
            // What the C library does without a resolv.conf (resolv.conf(5)).
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
        });
        options.timeout = options.timeout.min(ATTEMPT_TIMEOUT);
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let search = match system.search() {
            [] => system.domain().into_iter().map(Name::to_ascii).collect(),
            search => search.iter().map(Name::to_ascii).collect(),
        };
        let ndots = options.ndots;
        let asked = match servers {
            [] => system.name_servers().to_vec(),
            servers => servers.iter().copied().map(name_server).collect(),
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), asked);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Resolver {
            dns: builder.build().inspect_err(|error| tracing::error!(%error, "the DNS cannot be asked")).ok(),
            hosts: Hosts::from_system().unwrap_or_default().into(),
            search,
            ndots,
            servers: servers.to_vec(),
            read,
        }
    }

    /// Whether it asks `servers`, and the system's files are those that it read.
    pub fn is_current(&self, servers: &[SocketAddr]) -> bool {
        self.servers == servers && self.read == modified()
    }

    /// Asks one question, for which there is no time limit here. `known` is the last good answer.
    ///
    /// # Errors
    /// A phrase: there is no such name, it has no records, no server answers, or one answers with an error.
    pub async fn ask(&self, question: &Question, known: Option<&Records>) -> Outcome {
        match question {
            Question::Host(host) => {
                let known = match known {
                    Some(Records::Addresses(addresses)) => addresses.as_slice(),
                    Some(Records::Targets(_)) | None => &[],
                };
                let found = self.addresses(host, known).await.map_err(Problem::into_phrase)?;
                Ok(Answer { records: Records::Addresses(found.records), ttl: found.ttl })
            }
            Question::Srv(name) => self.targets(name, known).await,
        }
    }

    /// The addresses of `host`, those that are used.
    async fn addresses(&self, host: &str, known: &[IpAddr]) -> Result<Found<IpAddr>, Problem> {
        if let Some(listed) = self.listed(host) {
            return Ok(Found { records: choose(host, listed), ttl: None });
        }
        let mut last = Problem::Absent("there is no such name".to_owned());
        for name in candidates(host, &self.search, self.ndots) {
            let (v4, v6) = tokio::join!(
                self.records(&name, RecordType::A, address),
                self.records(&name, RecordType::AAAA, address)
            );
            match both_families(v4, v6, known) {
                Ok(found) => return Ok(Found { records: choose(host, found.records), ttl: found.ttl }),
                // A name that another server might know is not taken for one that is further down the search list.
                Err(failed @ Problem::Failed(_)) => return Err(failed),
                Err(absent) => last = absent,
            }
        }
        Err(last)
    }

    /// The targets of the SRV records `name`.
    async fn targets(&self, name: &str, known: Option<&Records>) -> Outcome {
        let found = self.srv(name).await.map_err(Problem::into_phrase)?;
        let records = srv::usable(found.records);
        if records.is_empty() {
            return Err("its records say that the service is not available".to_owned());
        }
        let mut lookups = JoinSet::new();
        let names: BTreeSet<String> = records.iter().map(|record| record.target.clone()).collect();
        for target in names {
            let known = known_addresses(known, &target);
            let resolver = self.clone();
            lookups.spawn(async move {
                let late = || Err(Problem::Failed("no answer in time".to_owned()));
                let found =
                    timeout(TARGET_TIMEOUT, resolver.addresses(&target, &known)).await.unwrap_or_else(|_| late());
                (target, found, known)
            });
        }
        let mut ttl = found.ttl;
        let mut addresses = BTreeMap::new();
        let mut problems = Vec::new();
        for (target, found, known) in lookups.join_all().await {
            let list = match found {
                Ok(found) => {
                    ttl = ttl.into_iter().chain(found.ttl).min();
                    found.records
                }
                Err(Problem::Absent(_)) => Vec::new(),
                Err(Problem::Failed(phrase)) => {
                    problems.push(format!("{target}: {phrase}"));
                    known
                }
            };
            addresses.insert(target, list);
        }
        match srv::targets(&records, &addresses) {
            targets if !targets.is_empty() => Ok(Answer { records: Records::Targets(targets), ttl }),
            _ => Err(problems.pop().unwrap_or_else(|| "none of its targets has an address".to_owned())),
        }
    }

    async fn srv(&self, name: &str) -> Result<Found<Record>, Problem> {
        let mut last = Problem::Absent("there is no such name".to_owned());
        for name in candidates(name, &self.search, self.ndots) {
            match self.records(&name, RecordType::SRV, srv_record).await {
                Err(absent @ Problem::Absent(_)) => last = absent,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// What /etc/hosts says about `host`. One that is there is not asked for elsewhere, whichever family it is of.
    fn listed(&self, host: &str) -> Option<Vec<IpAddr>> {
        let name = Name::from_ascii(host).ok()?.to_lowercase();
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lists = [of(RecordType::A), of(RecordType::AAAA)];
        let records = lists.iter().flatten().flat_map(|lookup| lookup.answers());
        let listed: Vec<IpAddr> = records.filter_map(|record| address(&record.data)).collect();
        (!listed.is_empty()).then_some(listed)
    }

    /// The records of the full name `name` that `read` takes.
    async fn records<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: fn(&RData) -> Option<T>,
    ) -> Result<Found<T>, Problem> {
        // Bad labels: the configuration's names have none, a search list may.
        let name = Name::from_ascii(name).map_err(|error| Problem::Absent(error.to_string()))?;
        let Some(dns) = &self.dns else { return Err(Problem::Failed("the DNS cannot be asked".to_owned())) };
        let lookup = dns.lookup(name, kind).await.map_err(|error| problem(&error))?;
        let records: Vec<T> = lookup.answers().iter().filter_map(|record| read(&record.data)).collect();
        if records.is_empty() {
            return Err(Problem::Absent("it has no such records".to_owned()));
        }
        // Aliases on the way count too.
        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
        Ok(Found { records, ttl: Some(Duration::from_secs(ttl.into())) })
    }
}

/// The last good answer's addresses of `target`.
fn known_addresses(known: Option<&Records>, target: &str) -> Vec<IpAddr> {
    let Some(Records::Targets(targets)) = known else { return Vec::new() };
    let host = target.trim_end_matches('.');
    let of_it = targets.iter().filter(|known| known.authority.rsplit_once(':').is_some_and(|(name, _)| name == host));
    of_it.map(|target| target.address.ip()).collect()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

/// When the system's files were last changed. On the control thread, where a stat(2) of a local file does no harm.
fn modified() -> [Option<SystemTime>; 2] {
    [HOSTS, RESOLV_CONF].map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    }
}

fn srv_record(data: &RData) -> Option<Record> {
    let RData::SRV(srv) = data else { return None };
    let mut target = srv.target.to_lowercase();
    target.set_fqdn(true);
    Some(Record { priority: srv.priority, weight: srv.weight, port: srv.port, target: target.to_ascii() })
}

fn problem(error: &NetError) -> Problem {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Problem::Absent("there is no such name".to_owned()),
            ResponseCode::NoError => Problem::Absent("it has no such records".to_owned()),
            code => Problem::Failed(format!("the DNS server answers {code}")),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => Problem::Failed(format!("the DNS server answers {code}")),
        error => Problem::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(resolver: &Resolver, host: &str) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(resolver.ask(&Question::Host(host.to_owned()), None))
    }

    /// Nobody serves the DNS at port 1.
    fn without_dns(hosts: &str) -> Resolver {
        let mut resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]);
        let mut read = Hosts::default();
        read.read_hosts_conf(hosts.as_bytes()).unwrap();
        resolver.hosts = Arc::new(read);
        resolver
    }

    #[test]
    fn the_hosts_file_goes_first() {
        let resolver = without_dns("10.0.0.2 pinned Alias.example\n10.0.0.1 pinned\nfd00::1 six # all of it\n");
        let check = |host: &str, expected: &[&str]| {
            let records = Records::Addresses(expected.iter().map(|address| address.parse().unwrap()).collect());
            assert_eq!(ask(&resolver, host), Ok(Answer { records, ttl: None }), "{host}");
        };
        check("pinned", &["10.0.0.1", "10.0.0.2"]);
        check("alias.example", &["10.0.0.2"]);
        check("alias.example.", &["10.0.0.2"]);
        check("six", &["fd00::1"]);
    }

    #[test]
    fn what_nobody_answers_is_an_error() {
        let resolver = without_dns("");
        assert!(ask(&resolver, "a.example.").is_err());
        assert_eq!(ask(&resolver, "a.invalid."), Err("there is no such name".to_owned()));
        assert!(resolver.is_current(&["127.0.0.1:1".parse().unwrap()]));
        assert!(!resolver.is_current(&[]));
    }

    #[test]
    fn what_was_known_of_a_target() {
        let target = |address: &str, authority: &str| super::super::Target {
            address: address.parse().unwrap(),
            authority: authority.to_owned(),
            weight: 1,
        };
        let targets = vec![
            target("10.0.0.1:80", "a.example:80"),
            target("10.0.0.2:81", "a.example:81"),
            target("10.0.0.3:80", "b.example:80"),
        ];
        let known = known_addresses(Some(&Records::Targets(targets)), "a.example.");
        assert_eq!(known, ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);
        assert!(known_addresses(None, "a.example.").is_empty());
    }
}
