//! Longest prefix wins, within the most specific host that has one.
//!
//! A prefix covers whole segments: `/api/v1/sms` covers itself and `/api/v1/sms/send`, never `/api/v1/smsx`. Paths are
//! expected as [`super::path::normalize`] leaves them; compared byte by byte, since paths are case-sensitive.
//!
//! Built once per snapshot; a lookup allocates nothing and takes one binary search per group of hosts that it tries.

use std::collections::BTreeMap;

use super::host;

/// One route as the configuration tells it.
#[derive(Debug, Clone)]
pub struct RouteSpec {
    /// Begins with `/`; a trailing slash means the same as none.
    pub prefix: String,
    /// `api.example.com` or `*.example.com` (any subdomain, of any depth, but not `example.com` itself), without port.
    /// Empty: any host.
    pub hosts: Vec<String>,
    /// What [`RouteTable::find`] answers.
    pub service: usize,
}

/// Finds the service for a host and a path.
#[derive(Debug)]
pub struct RouteTable {
    exact: Hosts,
    /// By what follows the `*.`.
    wildcard: Hosts,
    any: Prefixes,
}

impl RouteTable {
    /// A table of `specs`. Of two with the same host and prefix the first counts.
    pub fn new(specs: &[RouteSpec]) -> RouteTable {
        let mut exact: BTreeMap<Vec<u8>, Vec<(&str, usize)>> = BTreeMap::new();
        let mut wildcard = exact.clone();
        let mut any = Vec::new();
        for spec in specs {
            let route = (spec.prefix.as_str(), spec.service);
            if spec.hosts.is_empty() {
                any.push(route);
            }
            for host in &spec.hosts {
                let host = host.to_ascii_lowercase().into_bytes();
                match host.strip_prefix(b"*.") {
                    Some(parent) => wildcard.entry(parent.to_vec()).or_default().push(route),
                    None => exact.entry(host).or_default().push(route),
                }
            }
        }
        RouteTable { exact: Hosts::new(exact), wildcard: Hosts::new(wildcard), any: Prefixes::new(any) }
    }

    /// The service for a request to `path` on `host`, which may carry a port, upper case and a trailing dot.
    ///
    /// An exact host comes before a wildcard, a longer wildcard before a shorter one, any of them before the routes
    /// without a host. A group of routes without a prefix of `path` is passed over.
    pub fn find(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        if !(self.exact.is_empty() && self.wildcard.is_empty())
            && let Some(name) = host::canonical(host, &mut [0; host::NAME_MAX])
            && let Some(service) = self.find_by_name(name, path)
        {
            return Some(service);
        }
        self.any.find(path)
    }

    fn find_by_name(&self, name: &[u8], path: &[u8]) -> Option<usize> {
        let exact = self.exact.get(name).and_then(|prefixes| prefixes.find(path));
        exact.or_else(|| {
            host::parents(name).filter_map(|parent| self.wildcard.get(parent)).find_map(|prefixes| prefixes.find(path))
        })
    }
}

/// The path to forward when `prefix` is cut off: the rest, `/` when nothing is left. With the prefix `/`, and when `path`
/// is not covered by `prefix`, the path itself.
pub fn strip<'a>(path: &'a [u8], prefix: &str) -> &'a [u8] {
    let prefix = trim(prefix);
    match path.strip_prefix(prefix) {
        Some(b"") => b"/",
        // Two slashes at the beginning would make what follows a host's name to whoever takes it for a reference (RFC 3986,
        // section 4.2).
        Some(rest) if rest[0] == b'/' => &rest[rest.iter().take_while(|&&byte| byte == b'/').count() - 1..],
        _ => path,
    }
}

/// A prefix as it is compared: without a trailing slash, so that `/` is the empty prefix of every path.
fn trim(prefix: &str) -> &[u8] {
    prefix.strip_suffix('/').unwrap_or(prefix).as_bytes()
}

/// Routes by host name, sorted by it.
#[derive(Debug)]
struct Hosts {
    /// No longer name can be found, so that none is searched for: a hostile host of a hundred labels stays cheap.
    name_max: usize,
    groups: Box<[(Box<[u8]>, Prefixes)]>,
}

impl Hosts {
    fn new(groups: BTreeMap<Vec<u8>, Vec<(&str, usize)>>) -> Hosts {
        Hosts {
            name_max: groups.keys().map(Vec::len).max().unwrap_or(0),
            groups: groups.into_iter().map(|(name, routes)| (name.into(), Prefixes::new(routes))).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn get(&self, name: &[u8]) -> Option<&Prefixes> {
        if name.len() > self.name_max {
            return None;
        }
        let at = self.groups.binary_search_by(|(candidate, _)| (**candidate).cmp(name)).ok()?;
        Some(&self.groups[at].1)
    }
}

/// The prefixes of one host, sorted, each linked to the longest other one that it begins with.
///
/// All strings that begin with a prefix are neighbours in the sorted order, right behind it. The last entry not behind
/// the path is therefore the longest prefix itself or begins with it, and the links lead there.
#[derive(Debug)]
struct Prefixes(Box<[Prefix]>);

#[derive(Debug)]
struct Prefix {
    text: Box<[u8]>,
    parent: Option<u32>,
    service: usize,
}

impl Prefixes {
    fn new(mut routes: Vec<(&str, usize)>) -> Prefixes {
        // Stable, so that of two equal ones the first stays.
        routes.sort_by_key(|&(prefix, _)| trim(prefix));
        routes.dedup_by_key(|&mut (prefix, _)| trim(prefix));
        let mut entries: Vec<Prefix> = Vec::with_capacity(routes.len());
        for (prefix, service) in routes {
            let text = trim(prefix);
            // What begins like `text` and precedes it is the last entry or in that one's chain.
            let mut parent = entries.len().checked_sub(1).map(|last| last as u32);
            while let Some(at) = parent
                && !text.starts_with(&entries[at as usize].text)
            {
                parent = entries[at as usize].parent;
            }
            entries.push(Prefix { text: text.into(), parent, service });
        }
        Prefixes(entries.into())
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        let behind = self.0.partition_point(|entry| *entry.text <= *path);
        let mut entry = &self.0[behind.checked_sub(1)?];
        while !entry.covers(path) {
            entry = &self.0[entry.parent? as usize];
        }
        Some(entry.service)
    }
}

impl Prefix {
    fn covers(&self, path: &[u8]) -> bool {
        path.strip_prefix(&*self.text).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(prefix: &str, hosts: &[&str], service: usize) -> RouteSpec {
        RouteSpec { prefix: prefix.into(), hosts: hosts.iter().map(|&host| host.into()).collect(), service }
    }

    #[test]
    fn the_longest_prefix_on_a_segment_boundary() {
        let table = RouteTable::new(&[
            spec("/api/v1/sms", &[], 0),
            spec("/api/v1", &[], 1),
            spec("/api/v1/sms-bulk", &[], 2),
            spec("/api/v1/sms/bulk/", &[], 3),
            spec("/auth", &[], 4),
            spec("/auth", &[], 5),
        ]);
        let check = |path: &str, expected| assert_eq!(table.find(b"any", path.as_bytes()), expected, "{path}");
        check("/api/v1/sms", Some(0));
        check("/api/v1/sms/", Some(0));
        check("/api/v1/sms/send", Some(0));
        check("/api/v1/sms//send", Some(0));
        check("/api/v1/smsx", Some(1));
        check("/api/v1/sms-", Some(1));
        check("/api/v1/sms-bulk", Some(2));
        check("/api/v1/sms-bulk/x", Some(2));
        check("/api/v1/sms-bulks", Some(1));
        check("/api/v1/sms/bulk", Some(3));
        check("/api/v1/sms/bulk/", Some(3));
        check("/api/v1/sms/bulks", Some(0));
        check("/api/v1/SMS", Some(1));
        check("/api/v1", Some(1));
        check("/api/v1/zzz", Some(1));
        check("/api/v10", None);
        check("/api", None);
        check("/auth", Some(4));
        check("/author", None);
        check("/", None);
        check("", None);
        check("/zzz", None);
    }

    #[test]
    fn the_root_prefix_covers_all() {
        let table = RouteTable::new(&[spec("/", &[], 0), spec("/a", &[], 1)]);
        for (path, expected) in [("/", 0), ("/b", 0), ("/a", 1), ("/a/b", 1), ("/ab", 0), ("//a", 0)] {
            assert_eq!(table.find(b"", path.as_bytes()), Some(expected), "{path}");
        }
        assert_eq!(RouteTable::new(&[]).find(b"a", b"/"), None);
    }

    #[test]
    fn the_most_specific_host_that_has_a_prefix() {
        let table = RouteTable::new(&[
            spec("/", &[], 0),
            spec("/a", &["*.example.com"], 1),
            spec("/", &["*.eu.example.com", "[::1]"], 2),
            spec("/a/b", &["api.eu.example.com"], 3),
            spec("/a", &["Other.Example.com"], 4),
        ]);
        let check = |host: &str, path: &str, expected| {
            assert_eq!(table.find(host.as_bytes(), path.as_bytes()), Some(expected), "{host} {path}");
        };
        check("api.eu.example.com", "/a/b/c", 3);
        check("API.EU.example.com.:8080", "/a/b", 3);
        check("api.eu.example.com", "/a", 2);
        check("x.y.eu.example.com", "/a", 2);
        check("eu.example.com", "/a/b", 1);
        check("eu.example.com", "/b", 0);
        check("other.example.com:80", "/a", 4);
        check("example.com", "/a", 0);
        check("badexample.com", "/a", 0);
        check("example.com.evil.org", "/a", 0);
        check("[::1]:8080", "/", 2);
        check("[::2]", "/", 0);
        check("", "/a", 0);
        check(&"a.".repeat(4_000), "/a", 0);
    }

    #[test]
    fn stripping() {
        let check = |path: &str, prefix: &str, expected: &str| {
            assert_eq!(strip(path.as_bytes(), prefix), expected.as_bytes(), "{path} {prefix}");
        };
        check("/api/v1/sms/send", "/api/v1/sms", "/send");
        check("/api/v1/sms/send", "/api/v1/sms/", "/send");
        check("/api/v1/sms/", "/api/v1/sms", "/");
        check("/api/v1/sms", "/api/v1/sms", "/");
        check("/api/v1/sms", "/api/v1/sms/", "/");
        check("/a//b", "/a", "/b");
        check("/a/b", "/", "/a/b");
        check("/", "/", "/");
        check("/smsx", "/sms", "/smsx");
    }

    /// Looks at every route, and keeps the best.
    fn naive(specs: &[RouteSpec], host: &str, path: &str) -> Option<usize> {
        let covers = |prefix: &str| {
            let prefix = prefix.trim_end_matches('/');
            path == prefix || path.starts_with(&format!("{prefix}/"))
        };
        let host = host.to_lowercase();
        let host = host.split(':').next().unwrap();
        let specificity = |wanted: &str| match wanted.strip_prefix('*') {
            Some(suffix) => (host.len() > suffix.len() && host.ends_with(suffix)).then_some((1, suffix.len())),
            None => (host == wanted).then_some((2, 0)),
        };
        let mut best = None;
        for spec in specs.iter().filter(|spec| covers(&spec.prefix)) {
            let host_rank = if spec.hosts.is_empty() {
                Some((0, 0))
            } else {
                spec.hosts.iter().filter_map(|wanted| specificity(wanted)).max()
            };
            let Some(host_rank) = host_rank else { continue };
            let rank = (host_rank, spec.prefix.trim_end_matches('/').len());
            if best.is_none_or(|(known, _)| rank > known) {
                best = Some((rank, spec.service));
            }
        }
        best.map(|(_, service)| service)
    }

    /// Few segments, with characters on both sides of the slash in the byte order.
    fn paths() -> impl Strategy<Value = String> {
        let segment = proptest::sample::select(&["a", "aa", "a-b", "a.b", "a!", "b", "az", ""][..]);
        proptest::collection::vec(segment, 1..5).prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn prefixes() -> impl Strategy<Value = String> {
        paths().prop_filter("one trailing slash at most", |path| !path.ends_with("//"))
    }

    fn specs() -> impl Strategy<Value = Vec<RouteSpec>> {
        let names = &["a.x", "b.a.x", "x", "*.x", "*.a.x", "*.b.a.x"][..];
        let hosts = proptest::collection::vec(proptest::sample::select(names), 0..3);
        proptest::collection::vec((prefixes(), hosts), 0..40).prop_map(|routes| {
            routes.iter().enumerate().map(|(service, (prefix, hosts))| spec(prefix, hosts, service)).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn agrees_with_looking_at_every_route(
            specs in specs(),
            requests in proptest::collection::vec(
                (proptest::sample::select(&["x", "A.x:80", "b.a.X", "c.b.a.x", "y", ""][..]), paths()), 1..40),
        ) {
            let table = RouteTable::new(&specs);
            for (host, path) in &requests {
                prop_assert_eq!(
                    table.find(host.as_bytes(), path.as_bytes()), naive(&specs, host, path), "{} {}", host, path);
            }
        }

        #[test]
        fn what_is_stripped_is_the_rest(prefix in prefixes(), rest in paths()) {
            let trimmed = prefix.strip_suffix('/').unwrap_or(&prefix);
            let path = format!("{trimmed}{rest}");
            let expected = format!("/{}", rest.trim_start_matches('/'));
            prop_assert_eq!(strip(path.as_bytes(), &prefix), expected.as_bytes());
            let bare = if trimmed.is_empty() { "/" } else { trimmed };
            prop_assert_eq!(strip(bare.as_bytes(), &prefix), b"/");
        }
    }
}
