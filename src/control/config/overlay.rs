//! The environment and the command line, laid over the tree that the file gave.

use std::path::Path;
use std::sync::Arc;

use super::error::{ConfigError, Place};
use super::keys;
use super::value::{Node, Table, Value};

/// The variables with a name of their own; every other key is `RINGWAY_<TABLE>__<KEY>`.
pub(super) const NAMED: &[(&str, &str)] = &[
    ("HOST", "server.host"),
    ("PORT", "server.port"),
    ("METRICS_ENABLED", "metrics.enabled"),
    ("REDIS_URL", "redis.url"),
    ("JWT_SECRET_KEY", "auth.jwt.secret"),
    ("RATE_LIMIT_REQUESTS", "rate_limit.requests"),
    ("RATE_LIMIT_WINDOW", "rate_limit.window"),
    ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "circuit_breaker.failure_threshold"),
];

const PREFIX: &str = "RINGWAY_";
const FILE_SUFFIX: &str = "_FILE";

/// The largest file that a `_FILE` variable may name, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The files that variables name.
pub(super) fn files(variables: &[(String, String)]) -> impl Iterator<Item = &str> {
    let is_ours = |name: &str| name.starts_with(PREFIX) || NAMED.iter().any(|(short, _)| *short == name);
    let is_file = move |name: &str| name.strip_suffix(FILE_SUFFIX).is_some_and(is_ours);
    variables.iter().filter(move |(name, value)| is_file(name) && !value.is_empty()).map(|(_, value)| value.as_str())
}

/// Lays the variables over `table`. Of two that set one key, the `RINGWAY_` one holds. An empty value is as good as none:
/// that is what `PORT=` in an env file means.
pub(super) fn environment(table: &mut Table, variables: &[(String, String)], errors: &mut Vec<ConfigError>) {
    let mut set: Vec<(&str, bool)> = Vec::new();
    let given: Vec<_> = variables.iter().filter(|(_, value)| !value.is_empty()).collect();
    // RINGWAY_ ones last, so that they hold.
    let (own, others): (Vec<_>, Vec<_>) = given.into_iter().partition(|(name, _)| name.starts_with(PREFIX));
    for (name, value) in others.into_iter().chain(own) {
        let Some((path, from_file)) = target(table, name, value, errors) else { continue };
        let place = Place::Environment(Arc::from(name.as_str()));
        let fail = |problem: String| ConfigError { place: place.clone(), key: path.join("."), value: None, problem };
        let base = name.strip_suffix(FILE_SUFFIX).filter(|_| from_file).unwrap_or(name);
        if set.iter().any(|(other, other_file)| *other == base && *other_file != from_file) {
            errors.push(fail(format!("both {base} and {base}{FILE_SUFFIX} are set; only one may be")));
            continue;
        }
        set.push((base, from_file));
        let node = match from_file {
            false => Ok(Node::raw(value, place.clone(), false)),
            true => read_secret(value).map(|secret| Node::raw(&secret, place.clone(), true)),
        };
        match node {
            Ok(node) => insert(table, &path, node),
            Err(problem) => errors.push(fail(problem)),
        }
    }
}

/// Lays the command line's options, dotted keys and values, over `table`.
pub(super) fn command_line(table: &mut Table, options: &[(String, String)], errors: &mut Vec<ConfigError>) {
    for (key, value) in options {
        let node = Node::raw(value, Place::CommandLine, false);
        let path: Vec<&str> = key.split('.').collect();
        if keys::is_known(&path) {
            insert(table, &path.into_iter().map(str::to_owned).collect::<Vec<_>>(), node);
        } else {
            errors.push(keys::unknown(&node, key.clone(), &keys::nearest(&path)));
        }
    }
}

/// The key that the variable `name` sets, and whether its value is the path of a file that holds the value. `None` for a
/// variable that is not ours, and for one that should be and sets nothing, which is an error.
fn target(table: &Table, name: &str, value: &str, errors: &mut Vec<ConfigError>) -> Option<(Vec<String>, bool)> {
    let named = |name: &str| NAMED.iter().find(|(variable, _)| *variable == name).map(|(_, key)| own_path(key));
    if let Some(path) = named(name) {
        return Some((path, false));
    }
    if let Some(path) = name.strip_suffix(FILE_SUFFIX).and_then(named) {
        return Some((path, true));
    }
    let ours = name.strip_prefix(PREFIX)?;
    if is_service_link(ours, value) {
        return None;
    }
    // A key may end in `_file` itself: then that is what is meant.
    for (key, from_file) in [(Some(ours), false), (ours.strip_suffix(FILE_SUFFIX), true)] {
        let Some(path) = key.map(|key| variable_path(table, key)) else { continue };
        if keys::is_known(&path.iter().map(String::as_str).collect::<Vec<_>>()) {
            return Some((path, from_file));
        }
    }
    let path = variable_path(table, ours);
    let nearest = keys::nearest(&path.iter().map(String::as_str).collect::<Vec<_>>());
    errors.push(ConfigError {
        place: Place::Environment(Arc::from(name)),
        key: path.join("."),
        value: None,
        problem: format!("unknown key; did you mean {}?", variable_name(&nearest)),
    });
    None
}

fn own_path(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// `SERVICES__MY_APP__PREFIX` as a path. A variable's name cannot hold the `-` that a service's may: a service of the file
/// is found by its name with `_` in its place.
fn variable_path(table: &Table, name: &str) -> Vec<String> {
    let mut path: Vec<String> = name.to_ascii_lowercase().split("__").map(str::to_owned).collect();
    if let [services, service, ..] = path.as_mut_slice()
        && services == "services"
        && let Some(Node { value: Value::Table(known), .. }) = table.get("services")
        && !known.contains_key(service.as_str())
        && let Some(name) = known.keys().find(|name| name.replace('-', "_") == *service)
    {
        service.clone_from(name);
    }
    path
}

fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('-', "_").replace('.', "__"))
}

/// Whether Kubernetes put the variable there: in the namespace of a Service named `ringway` or `ringway-…`, every pod is
/// given `RINGWAY_SERVICE_HOST`, `RINGWAY_PORT=tcp://10.0.0.1:80`, `RINGWAY_PORT_80_TCP_ADDR` and their like
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>). No key of ours looks so,
/// since each has `__` in it.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let part = |part: &str| name.starts_with(part) || name.contains(&format!("_{part}"));
    !name.contains("__")
        && (part("SERVICE_HOST")
            || part("SERVICE_PORT")
            || is_url
            || (part("PORT_") && ["_ADDR", "_PORT", "_PROTO"].iter().any(|end| name.ends_with(end))))
}

fn read_secret(path: &str) -> Result<String, String> {
    let text = super::file::read(Path::new(path), SECRET_BYTES_MAX).map_err(|problem| format!("{path}: {problem}"))?;
    let text = String::from_utf8(text).map_err(|_| format!("{path}: is not UTF-8"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Sets the value at `path`. Where something that is no table stands in the way, nothing is set: that is an error already.
fn insert(table: &mut Table, path: &[String], node: Node) {
    match path {
        [] => {}
        [key] => _ = table.insert(key.clone(), node),
        [key, rest @ ..] => {
            let below = table.entry(key.clone()).or_insert_with(|| Node {
                value: Value::Table(Table::new()),
                text: None,
                place: node.place.clone(),
                key: node.key.clone(),
            });
            if let Value::Table(below) = &mut below.value {
                insert(below, rest, node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_of_kubernetes() {
        let check = |name: &str, value: &str, expected| assert_eq!(is_service_link(name, value), expected, "{name}");
        check("SERVICE_HOST", "10.0.0.1", true);
        check("SERVICE_PORT", "80", true);
        check("SERVICE_PORT_HTTP", "80", true);
        check("PORT", "tcp://10.0.0.1:80", true);
        check("PORT_80_TCP", "tcp://10.0.0.1:80", true);
        check("PORT_80_TCP_PROTO", "tcp", true);
        check("PORT_80_TCP_PORT", "80", true);
        check("PORT_80_TCP_ADDR", "10.0.0.1", true);
        check("ADMIN_SERVICE_HOST", "10.0.0.1", true);
        check("ADMIN_PORT", "tcp://10.0.0.1:80", true);
        check("PORT", "8080", false);
        check("SERVER__PORT", "8080", false);
        check("SERVICES__SMS__PREFIX", "/a", false);
    }
}
