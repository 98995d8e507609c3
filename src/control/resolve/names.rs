//! Pure: which full names a short one may stand for, and which of its addresses are used.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::ADDRESSES_MAX;

/// The full names, each with its final dot, that `name` may stand for, in the order in which they are tried: one that has
/// `ndots` dots is tried as it is before the `search` list is, another after it (resolv.conf(5)).
pub(super) fn candidates(name: &str, search: &[String], ndots: usize) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let whole = format!("{name}.");
    if name == "localhost" || name.ends_with(".localhost") {
        return vec![whole];
    }
    let domains = search.iter().map(|domain| domain.trim_matches('.')).filter(|domain| !domain.is_empty());
    let mut names: Vec<String> = domains.map(|domain| format!("{whole}{domain}.")).collect();
    let first = name.matches('.').count() >= ndots;
    names.insert(if first { 0 } else { names.len() }, whole);
    names
}

/// What a lookup of one record type gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found<T> {
    /// The records; at least one.
    pub(super) records: Vec<T>,
    /// The lowest TTL on the way there; `None` for what is not from the DNS.
    pub(super) ttl: Option<Duration>,
}

/// Why a lookup gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// A server says that there is nothing.
    Absent(String),
    /// No server could say.
    Failed(String),
}

impl Problem {
    pub(super) fn into_phrase(self) -> String {
        match self {
            Problem::Absent(phrase) | Problem::Failed(phrase) => phrase,
        }
    }
}

/// The addresses of a host from its A and its AAAA records. Where one of the two failed and the other did not, the `known`
/// addresses of its family are kept: half of a failure is no reason to drop a backend.
pub(super) fn both_families(
    v4: Result<Found<IpAddr>, Problem>,
    v6: Result<Found<IpAddr>, Problem>,
    known: &[IpAddr],
) -> Result<Found<IpAddr>, Problem> {
    let keep = |wanted: fn(&IpAddr) -> bool| known.iter().copied().filter(wanted);
    let (mut found, kept) = match (v4, v6) {
        (Ok(v4), Ok(v6)) => {
            let ttl = v4.ttl.into_iter().chain(v6.ttl).min();
            (Found { records: [v4.records, v6.records].concat(), ttl }, Vec::new())
        }
        (Ok(found), Err(Problem::Absent(_))) | (Err(Problem::Absent(_)), Ok(found)) => (found, Vec::new()),
        (Ok(found), Err(Problem::Failed(_))) => (found, keep(IpAddr::is_ipv6).collect()),
        (Err(Problem::Failed(_)), Ok(found)) => (found, keep(IpAddr::is_ipv4).collect()),
        (Err(failed @ Problem::Failed(_)), Err(_)) | (Err(_), Err(failed @ Problem::Failed(_))) => return Err(failed),
        (Err(absent), Err(_)) => return Err(absent),
    };
    found.records.extend(kept);
    Ok(found)
}

/// Sorted, each once. `localhost` is one machine under two addresses, and most backends listen on the IPv4 one alone: where
/// there is that one, `::1` would only make half of the requests fail.
pub(super) fn choose(host: &str, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses.dedup();
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if host == "localhost" && addresses.contains(&loopback) {
        addresses.retain(|address| *address == loopback);
    }
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn short_names_are_searched_for() {
        let check = |name: &str, search: &[&str], ndots, expected: &[&str]| {
            let search: Vec<String> = search.iter().map(|&domain| domain.to_owned()).collect();
            assert_eq!(candidates(name, &search, ndots), expected, "{name} {search:?} {ndots}");
        };
        check("a", &[], 1, &["a."]);
        check("a", &["x.example", "example."], 1, &["a.x.example.", "a.example.", "a."]);
        check("a.b", &["example"], 1, &["a.b.", "a.b.example."]);
        check("a.b", &["example"], 5, &["a.b.example.", "a.b."]);
        check("a.b.", &["example"], 5, &["a.b."]);
        check("a", &["."], 1, &["a."]);
        check("localhost", &["example"], 1, &["localhost."]);
        check("a.localhost", &["example"], 5, &["a.localhost."]);
    }

    #[test]
    fn addresses_are_sorted_and_distinct() {
        let check = |host: &str, input: &[&str], expected: &[&str]| {
            assert_eq!(choose(host, addresses(input)), addresses(expected), "{host} {input:?}");
        };
        check("a", &["10.0.0.2", "10.0.0.1", "10.0.0.2"], &["10.0.0.1", "10.0.0.2"]);
        check("a", &["::1", "127.0.0.1"], &["127.0.0.1", "::1"]);
        check("localhost", &["::1", "127.0.0.1"], &["127.0.0.1"]);
        check("localhost", &["::1"], &["::1"]);
        let many: Vec<IpAddr> = (0..200).map(|i| IpAddr::from([10, 0, 0, i])).collect();
        assert_eq!(choose("a", many.clone()), many[..ADDRESSES_MAX]);
    }

    #[test]
    fn half_of_a_failure_drops_no_address() {
        let found = |list: &[&str], ttl| Ok(Found { records: addresses(list), ttl: Some(Duration::from_secs(ttl)) });
        let absent = || Err(Problem::Absent("none".to_owned()));
        let failed = || Err(Problem::Failed("late".to_owned()));
        let known = addresses(&["10.0.0.9", "fd00::9"]);
        let check = |v4, v6, expected| assert_eq!(both_families(v4, v6, &known), expected);
        check(found(&["10.0.0.1"], 5), found(&["fd00::1"], 3), found(&["10.0.0.1", "fd00::1"], 3));
        check(found(&["10.0.0.1"], 5), absent(), found(&["10.0.0.1"], 5));
        check(absent(), found(&["fd00::1"], 5), found(&["fd00::1"], 5));
        check(found(&["10.0.0.1"], 5), failed(), found(&["10.0.0.1", "fd00::9"], 5));
        check(failed(), found(&["fd00::1"], 5), found(&["fd00::1", "10.0.0.9"], 5));
        check(failed(), absent(), failed());
        check(absent(), failed(), failed());
        check(absent(), absent(), absent());
    }
}
