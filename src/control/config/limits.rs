//! `[redis]`, `[rate_limit]` and the limits of a service.

use std::time::Duration;

use crate::redis::client::Secret;
use crate::snapshot::{OnError, RateLimitKey};
use crate::traffic::window::Limit;

use super::read::Section;
use super::value::{Node, Value};
use super::{EndpointUrl, endpoint};

const SECOND: Duration = Duration::from_secs(1);

/// The keys of one of several limits.
const LIMIT_KEYS: &[&str] = &["name", "requests", "window", "key"];

/// What clients see a service's own limit as.
pub const DEFAULT_LIMIT: &str = "default";

/// What they see an API key's own limit as, where it does not take the place of the service's.
pub const OWN_LIMIT: &str = "own";

/// Where a redis:// URL without a port leads.
const REDIS_PORT: u16 = 6379;

/// `[redis]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Where it is; none: rate limits are counted in this process's memory.
    pub server: Option<RedisServer>,
    /// What its keys begin with: 1 to 64 of letters, digits and `._-`.
    pub prefix: String,
    /// How long a call may take, 1 ms to 5 s.
    pub timeout: Duration,
    /// Who decides while it does not answer.
    pub on_error: OnError,
}

/// `redis.url`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisServer {
    /// Where it is.
    pub address: EndpointUrl,
    /// The ACL user; empty means the default one.
    pub username: String,
    /// Its password.
    pub password: Option<Secret>,
    /// The database.
    pub database: u32,
}

/// `[rate_limit]`, and `[services.<name>.rate_limit]` over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimits {
    /// Off: the service's requests are not counted.
    pub enabled: bool,
    /// How many requests.
    pub requests: u32,
    /// In how long.
    pub window: Duration,
    /// Whom it counts.
    pub key: RateLimitKey,
}

/// One limit of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitSpec {
    /// `default`, or the configured name.
    pub name: String,
    /// How many requests in how long.
    pub limit: Limit,
    /// Whom it counts.
    pub key: RateLimitKey,
}

pub(super) const DEFAULT_RATE_LIMITS: RateLimits =
    RateLimits { enabled: true, requests: 100, window: Duration::from_secs(60), key: RateLimitKey::Identity };

pub(super) fn redis(section: Section<'_>) -> Redis {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    Redis {
        server: section.get("url", |node| redis_url(node.text()?)),
        prefix: section.read("prefix", "ringway".to_owned(), |node| match node.text()? {
            text if (1..=64).contains(&text.len()) && text.chars().all(is_plain) => Ok(text.to_owned()),
            _ => Err("must be 1 to 64 letters, digits, \".\", \"_\" and \"-\"".to_owned()),
        }),
        timeout: section
            .read("timeout", Duration::from_millis(50), |node| node.duration(Duration::from_millis(1)..=SECOND * 5)),
        on_error: section.read("on_error", OnError::Local, |node| {
            node.choice(&[("local", OnError::Local), ("allow", OnError::Allow), ("deny", OnError::Deny)])
        }),
    }
}

/// `redis://[[user]:password@]host[:port][/database]`, or `unix:/path`.
fn redis_url(text: &str) -> Result<RedisServer, String> {
    let server = |address| RedisServer { address, username: String::new(), password: None, database: 0 };
    if text.starts_with("unix:") {
        return endpoint::url(text).map(server);
    }
    if text.starts_with("rediss://") {
        return Err("TLS to Redis is not supported yet; use redis:// in a trusted network, or unix:/path".to_owned());
    }
    let rest =
        text.strip_prefix("redis://").ok_or("must be a URL, redis://[user:password@]host:port/0 or unix:/path")?;
    let (credentials, rest) = rest.rsplit_once('@').map_or((None, rest), |(before, after)| (Some(before), after));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let database = match database {
        "" => 0,
        digits => digits.parse().map_err(|_| "must name its database by a number, as in redis://host:6379/0")?,
    };
    let address = endpoint::authority(authority, REDIS_PORT)?;
    let (username, password) = match credentials.map(|text| text.split_once(':')) {
        Some(Some((username, password))) => (decoded(username)?, Some(Secret::new(&decoded(password)?))),
        // Some take it for the user, others for the password.
        Some(None) => return Err("must have a \":\" before the password, as in redis://:password@host".to_owned()),
        None => (String::new(), None),
    };
    Ok(RedisServer { address, username, password, database })
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn decoded(text: &str) -> Result<String, String> {
    let problem = "must have user and password percent-encoded, as in %40 for @";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or(problem);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| problem.to_owned())
}

/// A table of limits over `defaults`.
pub(super) fn rate_limits(section: Section<'_>, defaults: &RateLimits) -> RateLimits {
    RateLimits {
        enabled: section.read("enabled", defaults.enabled, Node::boolean),
        requests: requests(section, defaults.requests),
        window: window(section, defaults.window),
        key: key(section, defaults.key),
    }
}

pub(super) fn requests(section: Section<'_>, default: u32) -> u32 {
    section.read("requests", default, |node| Ok(node.integer(1..=u64::from(Limit::REQUESTS_MAX))? as u32))
}

pub(super) fn window(section: Section<'_>, default: Duration) -> Duration {
    section.read("window", default, |node| node.duration(SECOND..=SECOND * 86_400))
}

fn key(section: Section<'_>, default: RateLimitKey) -> RateLimitKey {
    section.read("key", default, |node| node.choice(&[("identity", RateLimitKey::Identity), ("ip", RateLimitKey::Ip)]))
}

/// What holds for a service: `rate_limit` over the global one, and each of `rate_limits`.
pub(super) fn of_service(section: Section<'_>, global: &RateLimits) -> Vec<RateLimitSpec> {
    let path = section.path("rate_limit");
    let main = rate_limits(Section::of(&path, section.node("rate_limit"), section.errors), global);
    let mut limits = Vec::new();
    if main.enabled {
        let limit = Limit::new(main.requests, main.window);
        limits.push(RateLimitSpec { name: DEFAULT_LIMIT.to_owned(), limit, key: main.key });
    }
    let mut index = 0;
    let others = section.list("rate_limits", 0..=8, |node| {
        let path = format!("{}[{index}]", section.path("rate_limits"));
        index += 1;
        if !matches!(node.value, Value::Table(_)) {
            return Err("must be a table, { requests = 10, window = \"1s\" }".to_owned());
        }
        super::services::check_keys(section, &path, node, LIMIT_KEYS);
        let own = Section::of(&path, Some(node), section.errors);
        let limit = Limit::new(requests(own, main.requests), window(own, main.window));
        let default = format!("{}-in-{}s", limit.requests(), limit.window().as_secs());
        let name = own.read("name", default, |node| match node.text()? {
            OWN_LIMIT => Err("is what API keys' own limits are called; choose another name".to_owned()),
            text if (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(text.to_owned())
            }
            _ => Err("must be 1 to 64 visible ASCII characters".to_owned()),
        });
        Ok(RateLimitSpec { name, limit, key: key(own, main.key) })
    });
    for (spec, node) in others.unwrap_or_default() {
        if limits.iter().any(|known: &RateLimitSpec| known.name == spec.name) {
            let problem = format!("two limits of a service are called {:?}; give them names of their own", spec.name);
            section.errors.reject(&section.path("rate_limits"), &node, problem);
        }
        limits.push(spec);
    }
    limits
}
