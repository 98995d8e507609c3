//! Which keys exist, and which of them an unknown one probably meant.

use super::error::ConfigError;
use super::value::{Node, Table, Value};

/// Every key, `*` standing for the name of a service. config.toml shows each of them, and a test keeps it so.
pub const KEYS: &[&str] = &[
    "server.host",
    "server.port",
    "server.workers",
    "server.pin",
    "server.driver",
    "server.backlog",
    "server.max_connections_per_worker",
    "server.drain_timeout",
    "server.drain_delay",
    "server.trusted_proxies",
    "server.forwarded",
    "limits.header_bytes",
    "limits.header_count",
    "limits.uri_bytes",
    "limits.body_bytes",
    "limits.requests_in_flight",
    "timeouts.header_read",
    "timeouts.keepalive_idle",
    "timeouts.connect",
    "timeouts.response_header",
    "timeouts.idle_body",
    "circuit_breaker.enabled",
    "circuit_breaker.failure_threshold",
    "circuit_breaker.failure_ratio",
    "circuit_breaker.minimum_requests",
    "circuit_breaker.window",
    "circuit_breaker.open_for",
    "circuit_breaker.open_for_max",
    "circuit_breaker.half_open_requests",
    "circuit_breaker.failure_statuses",
    "retry.enabled",
    "retry.attempts",
    "retry.budget",
    "retry.budget_minimum",
    "retry.backoff",
    "retry.backoff_max",
    "retry.try_timeout",
    "retry.statuses",
    "retry.body_bytes",
    "services.*.circuit_breaker.enabled",
    "services.*.circuit_breaker.failure_threshold",
    "services.*.circuit_breaker.failure_ratio",
    "services.*.circuit_breaker.minimum_requests",
    "services.*.circuit_breaker.window",
    "services.*.circuit_breaker.open_for",
    "services.*.circuit_breaker.open_for_max",
    "services.*.circuit_breaker.half_open_requests",
    "services.*.circuit_breaker.failure_statuses",
    "services.*.retry.enabled",
    "services.*.retry.attempts",
    "services.*.retry.budget",
    "services.*.retry.budget_minimum",
    "services.*.retry.backoff",
    "services.*.retry.backoff_max",
    "services.*.retry.try_timeout",
    "services.*.retry.statuses",
    "services.*.retry.body_bytes",
    "outlier_detection.enabled",
    "outlier_detection.interval",
    "outlier_detection.minimum_requests",
    "outlier_detection.threshold",
    "outlier_detection.max_ejected",
    "outlier_detection.eject_for",
    "outlier_detection.eject_for_max",
    "services.*.outlier_detection.enabled",
    "services.*.outlier_detection.interval",
    "services.*.outlier_detection.minimum_requests",
    "services.*.outlier_detection.threshold",
    "services.*.outlier_detection.max_ejected",
    "services.*.outlier_detection.eject_for",
    "services.*.outlier_detection.eject_for_max",
    "metrics.enabled",
    "metrics.buckets",
    "metrics.max_series",
    "logging.enabled",
    "logging.format",
    "logging.level",
    "logging.sample",
    "logging.redact",
    "admin.key_hash",
    "admin.listen",
    "discovery.allow",
    "discovery.dns_refresh",
    "discovery.dns_server",
    "services.*.prefix",
    "services.*.endpoints",
    "services.*.methods",
    "services.*.hosts",
    "services.*.load_balancing",
    "services.*.pipelining",
    "services.*.auth",
    "services.*.required_scopes",
    "services.*.forward_credentials",
    "services.*.rate_limit.enabled",
    "services.*.rate_limit.requests",
    "services.*.rate_limit.window",
    "services.*.rate_limit.key",
    "services.*.rate_limits",
    "services.*.cors.enabled",
    "services.*.cors.allow_origins",
    "services.*.cors.allow_methods",
    "services.*.cors.allow_headers",
    "services.*.cors.expose_headers",
    "services.*.cors.allow_credentials",
    "services.*.cors.max_age",
    "services.*.cors.private_network",
    "services.*.health_path",
    "services.*.openapi_url",
    "services.*.health.enabled",
    "services.*.health.interval",
    "services.*.health.timeout",
    "services.*.health.rise",
    "services.*.health.fall",
    "services.*.health.expected_status",
    "services.*.health.panic_threshold",
    "services.*.health.slow_start",
    "services.*.limits.header_bytes",
    "services.*.limits.header_count",
    "services.*.limits.uri_bytes",
    "services.*.limits.body_bytes",
    "services.*.limits.requests_in_flight",
    "services.*.timeouts.header_read",
    "services.*.timeouts.keepalive_idle",
    "services.*.timeouts.connect",
    "services.*.timeouts.response_header",
    "services.*.timeouts.idle_body",
    "health.enabled",
    "health.interval",
    "health.timeout",
    "health.rise",
    "health.fall",
    "health.expected_status",
    "health.panic_threshold",
    "health.slow_start",
    "cors.enabled",
    "cors.allow_origins",
    "cors.allow_methods",
    "cors.allow_headers",
    "cors.expose_headers",
    "cors.allow_credentials",
    "cors.max_age",
    "cors.private_network",
    "tracing.enabled",
    "tracing.endpoint",
    "tracing.authorization",
    "tracing.sample",
    "tracing.service_name",
    "tracing.timeout",
    "redis.url",
    "redis.prefix",
    "redis.timeout",
    "redis.on_error",
    "auth.jwt.secret",
    "auth.jwt.algorithms",
    "auth.jwt.public_key_file",
    "auth.jwt.jwks_file",
    "auth.jwt.jwks_url",
    "auth.jwt.jwks_refresh",
    "auth.jwt.issuer",
    "auth.jwt.audience",
    "auth.jwt.leeway",
    "auth.jwt.required_claims",
    "auth.api_keys",
    "rate_limit.enabled",
    "rate_limit.requests",
    "rate_limit.window",
    "rate_limit.key",
    "rate_limit.ipv6_prefix",
    "rate_limit.memory_keys",
];

/// The keys of an endpoint that is written as a table.
pub(super) const ENDPOINT_KEYS: &[&str] = &["url", "weight"];

/// Whether `path` is a key.
pub(super) fn is_known(path: &[&str]) -> bool {
    KEYS.iter().any(|key| matches(key, path).is_some_and(|rest| rest == 0))
}

/// How many segments of `pattern` are left after `path`, when it begins with it.
fn matches(pattern: &str, path: &[&str]) -> Option<usize> {
    let mut segments = pattern.split('.');
    let fits = path.iter().all(|name| segments.next().is_some_and(|segment| segment == "*" || segment == *name));
    fits.then(|| segments.count())
}

/// Reports every key of `table` that does not exist; a whole unknown table once.
pub(super) fn check(table: &Table, errors: &mut Vec<ConfigError>) {
    check_below(table, &mut Vec::new(), errors);
}

fn check_below<'a>(table: &'a Table, path: &mut Vec<&'a str>, errors: &mut Vec<ConfigError>) {
    for (name, node) in table {
        path.push(name);
        match KEYS.iter().filter_map(|key| matches(key, path)).max() {
            None => errors.push(unknown(node, path.join("."), &nearest(path))),
            Some(0) => {}
            Some(_) => {
                if let Value::Table(entries) = &node.value {
                    check_below(entries, path, errors);
                }
            }
        }
        path.pop();
    }
}

/// The error for the key `node` that does not exist.
pub(super) fn unknown(node: &Node, key: String, nearest: &str) -> ConfigError {
    let kind = if matches!(node.value, Value::Table(_)) { "table" } else { "key" };
    let problem = format!("unknown {kind}; did you mean `{nearest}`?");
    ConfigError { place: node.key.clone(), key, value: None, problem }
}

/// The key, or table of keys, closest to an unknown one: a sibling that is spelled nearly so, else the same name in another
/// table, else whatever is spelled most alike.
pub(super) fn nearest(path: &[&str]) -> String {
    let (name, parents) = path.split_last().expect("a key has a name");
    let siblings: Vec<String> =
        KEYS.iter().filter(|key| matches(key, parents).is_some()).map(|key| concrete(key, path, path.len())).collect();
    let whole = path.join(".");
    if let Some(sibling) = closest(&whole, siblings.iter()) {
        let distance = strsim::damerau_levenshtein(&whole, sibling);
        if distance <= (name.chars().count() / 3).max(1) {
            return sibling.clone();
        }
    }
    let moved = |key: &&&str| key.rsplit('.').next() == Some(name);
    if let Some(key) = KEYS.iter().find(moved) {
        return concrete(key, path, usize::MAX);
    }
    let all: Vec<String> = KEYS.iter().map(|key| concrete(key, path, usize::MAX)).collect();
    closest(&whole, siblings.iter().chain(&all)).cloned().unwrap_or_default()
}

/// A key's first `segments` segments, the service's name that `path` speaks of in place of `*`.
fn concrete(key: &str, path: &[&str], segments: usize) -> String {
    let service = path.get(1).filter(|_| path[0] == "services" && path.len() > 2).unwrap_or(&"<name>");
    let names: Vec<&str> = key.split('.').take(segments).map(|name| if name == "*" { service } else { name }).collect();
    names.join(".")
}

/// The candidate with the smallest edit distance, the first of equals.
pub(super) fn closest<T: AsRef<str>>(name: &str, candidates: impl Iterator<Item = T>) -> Option<T> {
    candidates.min_by_key(|candidate| strsim::damerau_levenshtein(name, candidate.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let check = |path: &str, expected: &str| {
            assert_eq!(nearest(&path.split('.').collect::<Vec<_>>()), expected, "{path}");
        };
        check("server.prot", "server.port");
        check("servr", "server");
        check("service", "services");
        check("metric", "metrics");
        check("server.backlg", "server.backlog");
        check("server.dns_refresh", "discovery.dns_refresh");
        check("port", "server.port");
        check("services.sms.prefx", "services.sms.prefix");
        check("services.sms.endpoint", "services.sms.endpoints");
        check("services.sms.timeout", "services.sms.timeouts");
        check("services.sms.timeouts.conect", "services.sms.timeouts.connect");
        check("services.sms.loadbalancing", "services.sms.load_balancing");
        check("prefix", "services.<name>.prefix");
        check("logging.samples", "logging.sample");
    }

    #[test]
    fn known() {
        for (path, expected) in [
            ("server.port", true),
            ("services.a-b.limits.body_bytes", true),
            ("server", false),
            ("services.sms", false),
            ("server.port.x", false),
        ] {
            assert_eq!(is_known(&path.split('.').collect::<Vec<_>>()), expected, "{path}");
        }
    }
}
