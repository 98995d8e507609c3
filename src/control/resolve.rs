//! Names to addresses, off the ring threads: a worker is handed addresses only.
//!
//! A name that cannot be resolved keeps the last good answer, however old: a backend that still runs is better than none,
//! and trouble with the DNS is no reason to take services down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::config::{Config, EndpointUrl};

/// How long one name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The most addresses of one name that are used, the lowest ones.
pub const ADDRESSES_MAX: usize = 64;

/// What the configuration's names stand for.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    addresses: BTreeMap<(String, u16), Vec<SocketAddr>>,
    failures: Vec<String>,
}

impl Resolved {
    /// The addresses of `host`, ascending, each once; none when it never could be resolved.
    pub fn addresses(&self, host: &str, port: u16) -> &[SocketAddr] {
        // The tuple's owned key; this is called when a snapshot is built, not on the way of a request.
        self.addresses.get(&(host.to_owned(), port)).map_or(&[], Vec::as_slice)
    }

    /// What went wrong this time, a sentence for each name, in the order of the names.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Takes what `other` knows of those `names` that were not looked up here.
    pub fn keep(&mut self, names: &BTreeSet<(String, u16)>, other: &Resolved) {
        for name in names {
            if let (None, Some(addresses)) = (self.addresses.get(name), other.addresses.get(name)) {
                self.addresses.insert(name.clone(), addresses.clone());
            }
        }
    }

    /// Whether every name stands for what it did in `other`: then no new snapshot is needed.
    pub fn same_addresses(&self, other: &Resolved) -> bool {
        self.addresses == other.addresses
    }

    /// The outcome of the lookups, over what was known before.
    fn gather(answers: impl IntoIterator<Item = ((String, u16), Answer)>, previous: &Resolved) -> Resolved {
        let mut resolved = Resolved::default();
        for ((host, port), answer) in answers {
            let (addresses, problem) = match answer {
                Ok(addresses) if !addresses.is_empty() => (choose(&host, addresses), None),
                Ok(_) => (Vec::new(), Some("it has no address".to_owned())),
                Err(problem) => (Vec::new(), Some(problem)),
            };
            let addresses = match problem {
                None => addresses,
                Some(problem) => {
                    let kept = previous.addresses(&host, port);
                    let kept_note = if kept.is_empty() { "it has no endpoint" } else { "its last addresses are kept" };
                    resolved.failures.push(format!("cannot resolve {host}: {problem}; {kept_note}"));
                    kept.to_vec()
                }
            };
            resolved.addresses.insert((host, port), addresses);
        }
        resolved
    }
}

/// What a lookup gave, or why it gave nothing.
type Answer = Result<Vec<SocketAddr>, String>;

/// Resolves every name of `config`, all at once; takes 5 s at most. Names that `config` no longer has are forgotten.
/// Must run within a tokio runtime.
pub async fn resolve(config: &Config, previous: &Resolved) -> Resolved {
    resolve_also(config, BTreeSet::new(), previous).await
}

/// The same, with further `also`: names of instances that registered themselves.
pub async fn resolve_also(config: &Config, mut also: BTreeSet<(String, u16)>, previous: &Resolved) -> Resolved {
    also.append(&mut names(config));
    let mut lookups: JoinSet<((String, u16), Answer)> = JoinSet::new();
    for (host, port) in also {
        lookups.spawn(async move {
            let answer = lookup(&host, port).await;
            ((host, port), answer)
        });
    }
    let answers: BTreeMap<(String, u16), Answer> = lookups.join_all().await.into_iter().collect();
    Resolved::gather(answers, previous)
}

/// The addresses of one name; takes 5 s at most.
///
/// # Errors
/// Why there is none.
pub async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(LOOKUP_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
    }
}

fn names(config: &Config) -> BTreeSet<(String, u16)> {
    let endpoints = config.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| &endpoint.url);
    let redis = config.redis.server.iter().map(|server| &server.address);
    endpoints
        .chain(redis)
        .filter_map(|url| match url {
            EndpointUrl::Name { host, port, .. } => Some((host.clone(), *port)),
            EndpointUrl::Address { .. } | EndpointUrl::Unix(_) => None,
        })
        .collect()
}

/// Sorted, each once. `localhost` is one machine under two addresses, and most backends listen on the IPv4 one alone: where
/// there is that one, `::1` would only make half of the requests fail.
fn choose(host: &str, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort();
    addresses.dedup();
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if host == "localhost" && addresses.iter().any(|address| address.ip() == loopback) {
        addresses.retain(|address| address.ip() == loopback);
    }
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn gather(answers: Vec<(&str, Answer)>, previous: &Resolved) -> Resolved {
        Resolved::gather(answers.into_iter().map(|(host, answer)| ((host.to_owned(), 80), answer)), previous)
    }

    #[test]
    fn addresses_are_sorted_and_distinct() {
        let check = |host: &str, input: &[&str], expected: &[&str]| {
            assert_eq!(choose(host, addresses(input)), addresses(expected), "{host} {input:?}");
        };
        check("a", &["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"], &["10.0.0.1:80", "10.0.0.2:80"]);
        check("a", &["[::1]:80", "127.0.0.1:80"], &["127.0.0.1:80", "[::1]:80"]);
        check("localhost", &["[::1]:80", "127.0.0.1:80"], &["127.0.0.1:80"]);
        check("localhost", &["[::1]:80"], &["[::1]:80"]);
        let many: Vec<SocketAddr> = (0..200).map(|i| SocketAddr::from(([10, 0, 0, i], 80))).collect();
        assert_eq!(choose("a", many.clone()), many[..ADDRESSES_MAX]);
    }

    #[test]
    fn a_failure_keeps_the_last_good_answer() {
        let good = gather(vec![("a", Ok(addresses(&["10.0.0.1:80"])))], &Resolved::default());
        assert_eq!(good.addresses("a", 80), addresses(&["10.0.0.1:80"]));
        assert_eq!(good.addresses("a", 81), []);
        assert!(good.failures().is_empty());

        for answer in [Err("no answer".to_owned()), Ok(Vec::new())] {
            let next = gather(vec![("a", answer), ("b", Err("no such name".to_owned()))], &good);
            assert_eq!(next.addresses("a", 80), addresses(&["10.0.0.1:80"]));
            assert_eq!(next.addresses("b", 80), []);
            assert!(next.failures()[0].contains("its last addresses are kept"), "{:?}", next.failures());
            assert_eq!(next.failures()[1], "cannot resolve b: no such name; it has no endpoint");
            assert!(!next.same_addresses(&good));
        }
    }

    #[test]
    fn real_lookups() {
        let text = r#"
            [services.a]
            prefix = "/a"
            endpoints = ["http://localhost:9001", "http://name.invalid:9001", "http://127.0.0.1:9001"]
            auth = "none"
        "#;
        let config = Config::from_toml(text, "test", &[], &[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolved = runtime.block_on(resolve(&config, &Resolved::default()));
        assert!(resolved.addresses("localhost", 9001).iter().all(|address| address.ip().is_loopback()));
        assert_eq!(resolved.addresses("localhost", 9001).len(), 1);
        assert_eq!(resolved.failures().len(), 1, "{:?}", resolved.failures());
        assert!(resolved.failures()[0].starts_with("cannot resolve name.invalid: "), "{:?}", resolved.failures());
    }
}
