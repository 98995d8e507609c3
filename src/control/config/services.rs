//! `[services.<name>]`: what one service is, and what services must not be to each other.

use std::collections::HashSet;

use crate::http::method::{Method, MethodSet};
use crate::policy::auth::Mode;
use crate::snapshot::{BreakerPolicy, Limits, PIPELINING_MAX, RetryPolicy, Timeouts};
use crate::traffic::balance::Algorithm;
use crate::traffic::outlier::OutlierSettings;

use super::cors::CorsSettings;
use super::credentials;
use super::error::{ConfigError, Place};
use super::health::{self, HealthSettings};
use super::limits::{self, RateLimits};
use super::read::Section;
use super::value::{Node, Value};
use super::{EndpointSpec, EndpointUrl, OpenApiUrl, Service, endpoint, keys, resilience, route, tables};

/// So many that each keeps an identity of its own in the counters over thousands of reloads.
const SERVICES_MAX: usize = 1_024;
const ENDPOINTS_MAX: usize = 256;
const HOSTS_MAX: usize = 64;

/// The name of the control plane's own service.
const RESERVED_NAME: &str = "management";

/// What holds for services that set nothing of their own.
pub(super) struct Global<'a> {
    pub(super) limits: &'a Limits,
    pub(super) timeouts: &'a Timeouts,
    pub(super) breaker: &'a BreakerPolicy,
    pub(super) outliers: &'a OutlierSettings,
    pub(super) retry: &'a RetryPolicy,
    /// Whether there is any way to tell who a client is.
    pub(super) knows_clients: bool,
    pub(super) rate_limits: &'a RateLimits,
    pub(super) health: &'a HealthSettings,
    pub(super) cors: &'a CorsSettings,
    /// Whether instances may register themselves: a service needs no other endpoints then.
    pub(super) takes_instances: bool,
}

/// The services, over the global limits and timeouts, in the order of their names.
pub(super) fn services(section: Section<'_>, global: &Global<'_>) -> Vec<Service> {
    let mut services = Vec::new();
    let mut prefixes: Vec<Node> = Vec::new();
    for (name, node) in section.entries() {
        let path = section.path(name);
        check_name(section, &path, name, node);
        if services.len() == SERVICES_MAX {
            section.errors.reject(&path, node, format!("is one service too many, there may be {SERVICES_MAX}"));
            break;
        }
        let own = Section::of(&path, Some(node), section.errors);
        if !matches!(node.value, Value::Table(_)) {
            continue;
        }
        let service = service(own, name, &node.key, global);
        // One whose prefix is wrong is compared with none.
        let Some(prefix) = own.node("prefix").filter(|_| !service.prefix.is_empty()) else { continue };
        check_distinct(section, &path, prefix, &service, &services, &prefixes);
        services.push(service);
        prefixes.push(prefix.clone());
    }
    services
}

fn check_name(section: Section<'_>, path: &str, name: &str, node: &Node) {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let problem = "a service's name must be 1 to 64 characters of a-z, 0-9, \"_\" and \"-\"";
        section.errors.reject_key(path, node, problem);
    } else if name == RESERVED_NAME {
        section.errors.reject_key(path, node, "the name of the gateway's own service; choose another");
    }
}

fn service(section: Section<'_>, name: &str, place: &Place, global: &Global<'_>) -> Service {
    let &Global {
        limits,
        timeouts,
        breaker,
        outliers,
        retry,
        knows_clients,
        rate_limits,
        health,
        cors,
        takes_instances,
    } = global;
    let own_cors = section.path("cors");
    let (own_limits, own_timeouts) = (section.path("limits"), section.path("timeouts"));
    let (own_breaker, own_retry) = (section.path("circuit_breaker"), section.path("retry"));
    let own_outliers = section.path("outlier_detection");
    Service {
        name: name.to_owned(),
        prefix: prefix(section, place),
        endpoints: endpoints(section, place, if takes_instances { 0 } else { 1 }),
        methods: methods(section),
        hosts: hosts(section),
        load_balancing: section.read("load_balancing", Algorithm::default(), |node| {
            node.choice(&[
                ("round_robin", Algorithm::RoundRobin),
                ("least_connections", Algorithm::LeastConnections),
                ("random", Algorithm::Random),
            ])
        }),
        limits: tables::limits(Section::of(&own_limits, section.node("limits"), section.errors), limits),
        timeouts: tables::timeouts(Section::of(&own_timeouts, section.node("timeouts"), section.errors), timeouts),
        breaker: resilience::breaker(
            Section::of(&own_breaker, section.node("circuit_breaker"), section.errors),
            breaker,
        ),
        outliers: resilience::outliers(
            Section::of(&own_outliers, section.node("outlier_detection"), section.errors),
            outliers,
        ),
        retry: resilience::retry(Section::of(&own_retry, section.node("retry"), section.errors), retry),
        pipelining: section.read("pipelining", 1, |node| Ok(node.integer(1..=PIPELINING_MAX as u64)? as usize)),
        auth: mode(section, place, knows_clients),
        required_scopes: required_scopes(section),
        forward_credentials: section.read("forward_credentials", true, Node::boolean),
        rate_limits: limits::of_service(section, rate_limits),
        health: health::of_service(section, health),
        cors: super::cors::cors(Section::of(&own_cors, section.node("cors"), section.errors), cors),
        openapi_url: section.get("openapi_url", |node| match node.text()? {
            path if path.starts_with('/') => health::target(node).map(OpenApiUrl::Path),
            url => credentials::plain_url(url).map(OpenApiUrl::Absolute),
        }),
    }
}

/// Empty when it is wrong.
fn prefix(section: Section<'_>, place: &Place) -> String {
    if section.node("prefix").is_none() {
        section.missing("prefix", place, "the path that the service is reached under, such as \"/api/v1/sms\"");
    }
    section.read("prefix", String::new(), |node| route::prefix(node.text()?))
}

fn endpoints(section: Section<'_>, place: &Place, min: usize) -> Vec<EndpointSpec> {
    if section.node("endpoints").is_none() {
        section.missing("endpoints", place, "where the service is, such as [\"http://127.0.0.1:9001\"]");
    }
    let mut seen = HashSet::new();
    let mut index = 0;
    let endpoints = section.list("endpoints", min..=ENDPOINTS_MAX, |node| {
        let path = format!("{}[{index}]", section.path("endpoints"));
        index += 1;
        let Some(endpoint) = endpoint(section, &path, node)? else { return Ok(None) };
        if seen.insert(endpoint.url.clone()) {
            Ok(Some(endpoint))
        } else {
            Err("is there twice; give it a weight instead".to_owned())
        }
    });
    endpoints.unwrap_or_default().into_iter().filter_map(|(endpoint, _)| endpoint).collect()
}

/// `"http://…"` or `{ url = "http://…", weight = 3 }`. `None` when what is wrong has been noted.
fn endpoint(section: Section<'_>, path: &str, node: &Node) -> Result<Option<EndpointSpec>, String> {
    let Value::Table(_) = &node.value else {
        let text = node.text().map_err(|_| "must be a URL or a table, { url = \"http://…\", weight = 1 }")?;
        return endpoint::url(text).map(|url| Some(EndpointSpec { url, weight: 1 }));
    };
    check_keys(section, path, node, keys::ENDPOINT_KEYS);
    let own = Section::of(path, Some(node), section.errors);
    if own.node("url").is_none() {
        own.missing("url", &node.place, "where the endpoint is, such as \"http://127.0.0.1:9001\"");
    }
    let weight = own.read("weight", 1, |node| Ok(node.integer(1..=1_000)? as u16));
    let url = own.get("url", |node| endpoint::url(node.text()?));
    if let (Some(EndpointUrl::Srv { .. }), Some(node)) = (&url, own.node("weight")) {
        section.errors.reject(&own.path("weight"), node, "is what the SRV records say; remove it");
    }
    Ok(url.map(|url| EndpointSpec { url, weight }))
}

/// Notes every key of the table `node`, an element of an array, that is none of `known`.
pub(super) fn check_keys(section: Section<'_>, path: &str, node: &Node, known: &[&str]) {
    let Value::Table(table) = &node.value else { return };
    for (name, node) in table.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
        let nearest = keys::closest(name, known.iter()).expect("there are keys");
        section.errors.push(keys::unknown(node, format!("{path}.{name}"), nearest));
    }
}

fn methods(section: Section<'_>) -> MethodSet {
    let methods = section.list("methods", 1..=Method::COUNT, |node| method(node.text()?));
    match methods {
        Some(methods) => methods.into_iter().fold(MethodSet::EMPTY, |set, (method, _)| set.with(method)),
        None => MethodSet::ALL,
    }
}

fn method(token: &str) -> Result<Method, String> {
    match Method::from_bytes(token.as_bytes()) {
        Method::Connect => Err("CONNECT is not supported".to_owned()),
        Method::Other => {
            let upper = token.to_ascii_uppercase();
            let known = || Method::ALL.into_iter().filter(|m| !matches!(m, Method::Connect | Method::Other));
            let near = keys::closest(&upper, known().map(Method::as_str)).expect("there are methods");
            let names: Vec<&str> = known().map(Method::as_str).collect();
            Err(format!("unknown method; did you mean {near:?}? Known are {}", names.join(", ")))
        }
        method => Ok(method),
    }
}

/// An array of scopes for every method, or a table of them by method. A rule for GET is one for HEAD too, unless HEAD has its
/// own: backends answer both alike (RFC 9110, section 9.3.2).
fn required_scopes(section: Section<'_>) -> Vec<(MethodSet, Vec<String>)> {
    const KEY: &str = "required_scopes";
    let scopes = |own: Section<'_>, key: &str| -> Vec<String> {
        let scopes = own.list(key, 0..=64, credentials::scope).unwrap_or_default();
        scopes.into_iter().map(|(scope, _)| scope).collect()
    };
    let Some(node) = section.node(KEY) else { return Vec::new() };
    let Value::Table(table) = &node.value else { return vec![(MethodSet::ALL, scopes(section, KEY))] };
    let path = section.path(KEY);
    let own = Section::of(&path, Some(node), section.errors);
    let mut rules = Vec::new();
    let has_head = table.keys().any(|name| method(name) == Ok(Method::Head));
    for name in table.keys() {
        match method(name) {
            Ok(Method::Get) if !has_head => {
                rules.push((MethodSet::EMPTY.with(Method::Get).with(Method::Head), scopes(own, name)));
            }
            Ok(method) => rules.push((MethodSet::EMPTY.with(method), scopes(own, name))),
            Err(_) => {
                let problem =
                    format!("must be an array of scopes, or a table of them by method; {name:?} is no method");
                section.errors.reject(&path, node, problem);
            }
        }
    }
    rules
}

/// Whether clients must show who they are; that needs a way to tell.
fn mode(section: Section<'_>, place: &Place, knows_clients: bool) -> Mode {
    let mode = section.read("auth", Mode::Required, |node| {
        node.choice(&[("required", Mode::Required), ("optional", Mode::Optional), ("none", Mode::None)])
    });
    if mode == Mode::Required && section.node("auth").is_none_or(|node| node.text().is_ok()) && !knows_clients {
        let problem = "clients must show who they are, and there is no key to verify them with: set auth.jwt.secret \
                       (JWT_SECRET_KEY), another key of auth.jwt, or auth.api_keys; or let everybody in with auth = \"none\"";
        let place = section.node("auth").map_or(place, |node| &node.place);
        let error = ConfigError {
            place: place.clone(),
            key: section.path("auth"),
            value: Some("\"required\"".to_owned()),
            problem: problem.to_owned(),
        };
        section.errors.push(error);
    }
    if mode == Mode::None
        && let Some(node) = section.node("required_scopes")
    {
        let problem = "nobody has scopes where auth = \"none\"; remove them, or ask for credentials";
        section.errors.reject(&section.path("required_scopes"), node, problem);
    }
    mode
}

fn hosts(section: Section<'_>) -> Vec<String> {
    let hosts = section.list("hosts", 0..=HOSTS_MAX, |node| route::host(node.text()?));
    let mut hosts: Vec<String> = hosts.unwrap_or_default().into_iter().map(|(host, _)| host).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Two services may share a prefix when no host pattern is in both: the more specific pattern wins, and one without `hosts`
/// takes what the others leave.
fn check_distinct(
    section: Section<'_>,
    path: &str,
    prefix: &Node,
    service: &Service,
    others: &[Service],
    prefixes: &[Node],
) {
    let same = |other: &&Service| {
        let both_any = other.hosts.is_empty() && service.hosts.is_empty();
        other.prefix == service.prefix && (both_any || other.hosts.iter().any(|host| service.hosts.contains(host)))
    };
    if let Some(index) = others.iter().position(|other| same(&other)) {
        let other = &others[index];
        let shared = service.hosts.iter().find(|host| other.hosts.contains(host));
        let host = shared.map(|host| format!(" on host {host}")).unwrap_or_default();
        let problem = format!(
            "services \"{}\" ({}) and \"{}\" have the same prefix{host}; each must have its own",
            other.name, prefixes[index].place, service.name
        );
        section.errors.reject(&format!("{path}.prefix"), prefix, problem);
    }
}
