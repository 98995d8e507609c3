//! `[admin]` and `[discovery]`: who may register instances, and where these may be.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::policy::auth::api_key::KeyHash;

use super::read::Section;
use super::value::Node;
use super::{EndpointUrl, endpoint, route, tables};

const ALLOWED_MAX: usize = 256;

/// `[admin]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admin {
    /// The hash of the key that the registration of instances and the dashboard's figures ask for; none: the one is switched
    /// off, the other open to all.
    pub key_hash: Option<KeyHash>,
    /// Where the management endpoints are, off the public port, which keeps `/health` and its kin; none: on the public port.
    pub listen: Option<SocketAddr>,
}

/// `[discovery]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// How long after a name was resolved it is resolved again at the latest, 1 s to 24 h; its TTL may ask for it earlier.
    pub dns_refresh: Duration,
    /// The DNS servers that are asked in place of the system's; at most 8. Empty: the system's.
    pub dns_server: Vec<SocketAddr>,
    /// Where registered instances may be; `None`: anywhere but where no backend is.
    pub allow: Option<Vec<Allowed>>,
}

/// One of `discovery.allow`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Addresses; host bits zero.
    Network(IpNet),
    /// A name, in lower case, without a final dot.
    Name(String),
    /// Every name below this one, as [`Allowed::Name`].
    Below(String),
    /// A Unix socket.
    Unix(PathBuf),
}

pub(super) fn admin(section: Section<'_>) -> Admin {
    Admin {
        key_hash: section.get("key_hash", |node| {
            // Without the value, which may be the key itself.
            node.text()?.parse::<KeyHash>().map_err(|error| error.to_string())
        }),
        listen: section.get("listen", |node| {
            let problem = "must be an address and a port, such as \"127.0.0.1:9090\" or \"[::1]:9090\"";
            node.text()?.parse().map_err(|_| problem.to_owned())
        }),
    }
}

pub(super) fn discovery(section: Section<'_>) -> Discovery {
    let second = Duration::from_secs(1);
    let allow = section.list("allow", 0..=ALLOWED_MAX, allowed);
    Discovery {
        dns_refresh: section.read("dns_refresh", second * 30, |node| node.duration(second..=second * 86_400)),
        dns_server: section
            .list("dns_server", 0..=8, tables::dns_server)
            .map(|servers| servers.into_iter().map(|(server, _)| server).collect())
            .unwrap_or_default(),
        allow: allow.map(|entries| entries.into_iter().map(|(entry, _)| entry).collect()),
    }
}

fn allowed(node: &Node) -> Result<Allowed, String> {
    let text = node.text()?;
    if text.starts_with("unix:") {
        return match endpoint::url(text)? {
            EndpointUrl::Unix(path) => Ok(Allowed::Unix(path)),
            EndpointUrl::Address { .. } | EndpointUrl::Name { .. } | EndpointUrl::Srv { .. } => {
                Err("must name a socket".to_owned())
            }
        };
    }
    if text == "*" {
        return Err("allows everything; leave `allow` out instead".to_owned());
    }
    if text.contains('/') || text.contains(':') || text.parse::<IpAddr>().is_ok() {
        return tables::network(node).map(Allowed::Network);
    }
    let host = route::host(text.strip_suffix('.').unwrap_or(text))?;
    Ok(match host.strip_prefix("*.") {
        Some(parent) => Allowed::Below(parent.to_owned()),
        None => Allowed::Name(host),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn where_instances_may_be() {
        let read = |entry: &str| {
            let text = format!("[discovery]\nallow = [\"{entry}\"]");
            Config::from_toml(&text, "c.toml", &[], &[]).map(|config| config.discovery.allow.expect("it is set"))
        };
        let check = |entry: &str, expected: Allowed| assert_eq!(read(entry).expect(entry), [expected], "{entry}");
        let network = |text: &str| Allowed::Network(text.parse().expect("a network"));
        check("10.1.2.3/8", network("10.0.0.0/8"));
        check("10.1.2.3", network("10.1.2.3/32"));
        check("fd00::/8", network("fd00::/8"));
        check("::1", network("::1/128"));
        check("Backend.Internal.", Allowed::Name("backend.internal".to_owned()));
        check("*.svc.local", Allowed::Below("svc.local".to_owned()));
        check("unix:/run/a.sock", Allowed::Unix("/run/a.sock".into()));
        for (entry, expected) in [
            ("*", "leave `allow` out"),
            ("10.0.0.0/33", "must be a network"),
            ("http://a", "must be a network"),
            ("a.*", "first label"),
            ("", "host name"),
            ("unix:run", "absolute path"),
        ] {
            let problem = read(entry).expect_err(entry).to_string();
            assert!(problem.contains(expected), "{entry}: {problem}");
        }
        let none = Config::from_toml("[discovery]\nallow = []", "c.toml", &[], &[]).expect("good");
        assert_eq!(none.discovery.allow, Some(Vec::new()), "nowhere");
        assert_eq!(Config::default().discovery.allow, None);
    }

    #[test]
    fn the_admin_key() {
        let hash = KeyHash::of(b"0123456789abcdef");
        let config = Config::from_toml(&format!("admin.key_hash = \"{hash}\""), "c.toml", &[], &[]).expect("good");
        assert_eq!(config.admin.key_hash, Some(hash));
        let text =
            format!("admin.key_hash = \"{hash}\"\n[services.a]\nprefix = \"/a\"\nendpoints = []\nauth = \"none\"");
        let config = Config::from_toml(&text, "c.toml", &[], &[]).expect("instances register");
        assert!(config.services[0].endpoints.is_empty());
        let errors = Config::from_toml("admin.key_hash = \"the-key-itself-by-mistake\"", "c.toml", &[], &[]);
        let errors = errors.expect_err("no hash").to_string();
        assert!(errors.contains("hash-key") && !errors.contains("by-mistake"), "{errors}");
    }
}
