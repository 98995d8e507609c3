//! The OpenAPI 3.1 document of a configuration.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::fetch::Own;
use super::merge;
use super::reasons::REASONS;
use crate::control::admin;
use crate::control::config::{Config, Service};
use crate::http::method::{Method, MethodSet};
use crate::policy::auth::Mode;
use crate::snapshot::RateLimitKey;

/// The methods that OpenAPI has a place for, with the names of those.
const OPERATIONS: [(Method, &str); 8] = [
    (Method::Get, "get"),
    (Method::Head, "head"),
    (Method::Post, "post"),
    (Method::Put, "put"),
    (Method::Patch, "patch"),
    (Method::Delete, "delete"),
    (Method::Options, "options"),
    (Method::Trace, "trace"),
];

/// The document of `config`; `own` are the documents that services have of their own, by their names.
pub fn document(config: &Config, own: &HashMap<String, Own>) -> Value {
    let mut document = serde_json::to_value(admin::api()).unwrap_or_default();
    document["openapi"] = json!("3.1.0");
    document["info"] = json!({
        "title": "ringway API",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "An API gateway, and what it leads to",
        "description": description(),
        "license": {"name": "MIT", "identifier": "MIT"},
    });
    document["servers"] = json!([{"url": "/", "description": "This gateway"}]);
    document["tags"] = json!([
        {"name": "Gateway", "description": "Is it there, and how does it do?"},
        {"name": "Services", "description": "How services and their endpoints do"},
        {"name": "Instances", "description": "Endpoints that register themselves. Behind the admin key"},
    ]);
    let components = entry(&mut document, "components");
    components["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A JWT (RFC 7519)"},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "admin_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The admin key (`admin.key_hash`)"},
        "admin_bearer": {"type": "http", "scheme": "bearer", "description": "The admin key, as a bearer token"},
    });
    components["headers"] = headers();
    components["responses"] = json!({"Problem": problem("An answer of the gateway's own")});
    if let Some(schema) = components.pointer_mut("/schemas/Problem") {
        let words: Vec<&str> = REASONS.iter().map(|reason| reason.word).collect();
        schema["description"] = json!("RFC 9457; `reason` is a stable word, and stands in `X-Gateway-Error` too");
        schema["properties"]["reason"]["enum"] = json!(words);
    }
    let paths = entry(&mut document, "paths");
    merge::extend(paths, gateway(config));
    for service in &config.services {
        merge::extend(paths, routes(service));
    }
    for service in &config.services {
        let tag = json!({
            "name": service.name,
            "description": about(service, own.get(&service.name)),
            "x-ringway": for_programs(service),
        });
        if let Some(tags) = document["tags"].as_array_mut() {
            tags.push(tag);
        }
        if let Some(Own::Document(remote)) = own.get(&service.name) {
            merge::merge(&mut document, remote, service, &operation_extras(service));
        }
    }
    document
}

/// The object at `key`, made if there is none.
fn entry<'a>(document: &'a mut Value, key: &str) -> &'a mut Value {
    let slot = &mut document[key];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot
}

/// What holds for every answer of the gateway's own, and a table of what can go wrong: folded, since it is long.
fn description() -> String {
    let mut text = "What the gateway answers itself is `application/problem+json` (RFC 9457) with a stable `reason`, which is also in \
                    the header field `X-Gateway-Error`; an answer without that field is a backend's own. Every answer has \
                    `X-Request-Id`.\n\n<details><summary>Every <code>reason</code>, and what to do</summary><table><thead><tr>\
                    <th>status</th><th>reason</th><th>meaning</th></tr></thead><tbody>"
        .to_owned();
    for reason in REASONS {
        // Backquotes are what code is written in here; nothing else of Markdown is.
        let parts = reason.meaning.split('`').enumerate();
        let meaning: String = parts
            .map(|(index, part)| if index % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() })
            .collect();
        text.push_str(&format!(
            "<tr><td>{}</td><td><code>{}</code></td><td>{meaning}</td></tr>",
            reason.status, reason.word
        ));
    }
    text + "</tbody></table></details>"
}

fn headers() -> Value {
    let text = |description: &str| json!({"description": description, "schema": {"type": "string"}});
    let number = |description: &str| json!({"description": description, "schema": {"type": "integer"}});
    json!({
        "X-Request-Id": text("The request's identity, as in the gateway's log"),
        "X-Gateway-Error": text("The `reason`: on answers of the gateway's own alone"),
        "Retry-After": number("Seconds to wait"),
        "RateLimit": text("Where the client stands (IETF draft)"),
        "RateLimit-Policy": text("How many in how long (IETF draft)"),
        "X-RateLimit-Limit": number("How many requests in a window"),
        "X-RateLimit-Remaining": number("How many are left"),
        "X-RateLimit-Reset": number("Seconds until there are more"),
    })
}

/// An answer of the gateway's own.
fn problem(description: &str) -> Value {
    json!({
        "description": description,
        "headers": {
            "X-Gateway-Error": {"$ref": "#/components/headers/X-Gateway-Error"},
            "X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"},
        },
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    })
}

/// Problems by status, with the words of each.
fn problems(statuses: &[u16]) -> Map<String, Value> {
    let mut all = Map::new();
    for &status in statuses {
        let words = REASONS.iter().filter(|reason| reason.status == status).map(|reason| format!("`{}`", reason.word));
        let mut answer = problem(&words.collect::<Vec<_>>().join(", "));
        if [429, 503].contains(&status) {
            answer["headers"]["Retry-After"] = json!({"$ref": "#/components/headers/Retry-After"});
        }
        all.insert(status.to_string(), answer);
    }
    all
}

/// What the workers answer themselves, and the pages.
fn gateway(config: &Config) -> Value {
    let json_answer = |description: &str, schema: Value| {
        json!({
        "description": description, "content": {"application/json": {"schema": schema}}})
    };
    let health = json!({"type": "object", "required": ["status"], "properties": {"status": {"type": "string", "enum": ["healthy", "starting", "draining"]}}});
    let live = json!({"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}});
    let probe = |id: &str, summary: &str, description: &str, schema: &Value, may_refuse: bool| {
        let mut responses = json!({"200": json_answer(description, schema.clone())});
        if may_refuse {
            responses["503"] = json_answer("It is starting or draining: send no more", schema.clone());
        }
        json!({"get": {"tags": ["Gateway"], "operationId": id, "summary": summary, "responses": responses}})
    };
    let page = |id: &str, summary: &str, kind: &str| {
        json!({"get": {"tags": ["Gateway"], "operationId": id, "summary": summary,
        "responses": {"200": {"description": "The page", "content": {kind: {"schema": {"type": "string"}}}}}}})
    };
    let mut events = json!({"get": {"tags": ["Gateway"], "operationId": "dashboard_events",
        "summary": "What the dashboard shows, live (Server-Sent Events)",
        "responses": {"200": {"description": "An event a second", "content": {"text/event-stream": {"schema": {"type": "string"}}}}}}});
    let operation = &mut events["get"];
    merge::extend(&mut operation["responses"], Value::Object(problems(&[503])));
    if config.admin.key_hash.is_some() {
        operation["security"] = json!([{"admin_key": []}, {"admin_bearer": []}]);
        merge::extend(&mut operation["responses"], Value::Object(problems(&[401])));
    }
    let mut paths = json!({
        "/health": probe("health", "Is it ready for traffic, and what does it run on?", "It is ready", &health, true),
        "/health/ready": probe("ready", "Is it ready for traffic?", "It is ready", &health, true),
        "/readyz": probe("readyz", "As /health/ready", "It is ready", &health, true),
        "/health/live": probe("live", "Is the process up?", "It is", &live, false),
        "/livez": probe("livez", "As /health/live", "It is", &live, false),
        "/docs": page("docs", "This page", "text/html"),
        "/dashboard": page("dashboard", "What the gateway does, live", "text/html"),
        "/dashboard/events": events,
        "/openapi.json": {"get": {"tags": ["Gateway"], "operationId": "openapi", "summary": "This document",
            "responses": {"200": json_answer("OpenAPI 3.1", json!({"type": "object"}))}}},
    });
    if config.metrics.enabled {
        let text = json!({"schema": {"type": "string"}});
        paths["/metrics"] = json!({"get": {"tags": ["Gateway"], "operationId": "metrics", "summary": "Metrics, for Prometheus",
            "responses": {"200": {"description": "In the format that `Accept` asks for",
                "content": {"text/plain": text, "application/openmetrics-text": text}}}}});
    }
    paths
}

/// A service's routes: its prefix, and everything below it.
fn routes(service: &Service) -> Value {
    let item = |is_below: bool| {
        let mut item = Map::new();
        if is_below {
            let about = "What the service has below its prefix; may hold slashes";
            item.insert(
                "parameters".into(),
                json!([{"name": "path", "in": "path", "required": true, "description": about,
                "schema": {"type": "string"}}]),
            );
        }
        for (method, name) in OPERATIONS {
            if service.methods.contains(method)
                && !(service.methods == MethodSet::ALL && ["trace", "options"].contains(&name))
            {
                item.insert(name.into(), operation(service, name, is_below));
            }
        }
        Value::Object(item)
    };
    let prefix = service.prefix.trim_end_matches('/');
    let mut paths = Map::new();
    if !prefix.is_empty() {
        paths.insert(prefix.to_owned(), item(false));
    }
    paths.insert(format!("{prefix}/{{path}}"), item(true));
    Value::Object(paths)
}

fn operation(service: &Service, method: &str, is_below: bool) -> Value {
    let place = if is_below { "below" } else { "at" };
    let mut operation = json!({
        "tags": [service.name],
        "operationId": format!("{}.{method}.{place}", service.name),
        "summary": format!("{} {place} {}", method.to_uppercase(), service.prefix),
        "responses": {"default": {"description": "The service's own answer",
            "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}}},
    });
    if ["post", "put", "patch"].contains(&method) {
        operation["requestBody"] = json!({"content": {"*/*": {}}});
    }
    merge::extend(&mut operation, operation_extras(service));
    operation
}

/// What the gateway makes of every operation of a service, whoever describes it: who may ask, and what may go wrong.
fn operation_extras(service: &Service) -> Value {
    let mut statuses = vec![400, 405, 408, 414, 417, 431, 501, 502, 503, 504, 505];
    if service.limits.body_bytes > 0 {
        statuses.push(413);
    }
    let schemes = [json!({"bearer": []}), json!({"api_key": []})];
    let security = match service.auth {
        Mode::None => json!([]),
        Mode::Required => json!(schemes),
        Mode::Optional => json!([{}, schemes[0], schemes[1]]),
    };
    if service.auth != Mode::None {
        statuses.extend([401, 403]);
    }
    if !service.rate_limits.is_empty() {
        statuses.push(429);
    }
    let mut responses = problems(&statuses);
    if let Some(refusal) = responses.get_mut("429") {
        for name in ["RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]
        {
            refusal["headers"][name] = json!({"$ref": format!("#/components/headers/{name}")});
        }
    }
    json!({"security": security, "responses": responses})
}

/// What the gateway does for a service, for programs; times in seconds, lengths in bytes.
fn for_programs(service: &Service) -> Value {
    let limits = service.rate_limits.iter().map(|limit| {
        let key = match limit.key {
            RateLimitKey::Identity => "identity",
            RateLimitKey::Ip => "ip",
        };
        json!({"name": limit.name, "requests": limit.limit.requests(), "window": limit.limit.window().as_secs_f64(), "key": key})
    });
    json!({
        "prefix": service.prefix,
        "hosts": service.hosts,
        "auth": match service.auth {
            Mode::None => "none",
            Mode::Required => "required",
            Mode::Optional => "optional",
        },
        "rate_limits": limits.collect::<Vec<_>>(),
        "cors": service.cors.enabled,
        "body_bytes": service.limits.body_bytes,
        "header_bytes": service.limits.header_bytes,
        "uri_bytes": service.limits.uri_bytes,
        "response_header_timeout": service.timeouts.response_header.as_secs_f64(),
        "attempts": if service.retry.settings.enabled { service.retry.settings.attempts } else { 1 },
    })
}

/// The same, in words.
fn about(service: &Service, own: Option<&Own>) -> String {
    let mut lines = vec![format!("Below `{}`.", service.prefix)];
    lines.push(match service.auth {
        Mode::None => "Anybody may ask.".to_owned(),
        Mode::Required => "A JWT or an API key is asked for.".to_owned(),
        Mode::Optional => "A JWT or an API key may be sent.".to_owned(),
    });
    for (methods, scopes) in &service.required_scopes {
        let names: Vec<&str> = methods.named().map(Method::as_str).collect();
        let which = if *methods == MethodSet::ALL { String::new() } else { format!(" for {}", names.join(", ")) };
        lines.push(format!("Scopes{which}: `{}`.", scopes.join("`, `")));
    }
    for limit in &service.rate_limits {
        let whom = match limit.key {
            RateLimitKey::Identity => "user, API key or address",
            RateLimitKey::Ip => "address",
        };
        let seconds = limit.limit.window().as_secs_f64();
        lines.push(format!("{} requests in {seconds} s for each {whom}.", limit.limit.requests()));
    }
    if service.cors.enabled {
        let origins: Vec<String> = service.cors.rules.allow_origins.iter().map(ToString::to_string).collect();
        lines.push(format!("Pages of `{}` may ask.", origins.join("`, `")));
    }
    if service.limits.body_bytes > 0 {
        lines.push(format!("Bodies of {} bytes at most.", service.limits.body_bytes));
    }
    if !service.hosts.is_empty() {
        lines.push(format!("Only at `{}`.", service.hosts.join("`, `")));
    }
    let seconds = service.timeouts.response_header.as_secs_f64();
    lines.push(format!("An answer begins within {seconds} s."));
    if service.retry.settings.enabled {
        lines.push(format!("What is idempotent is tried {} times at most.", service.retry.settings.attempts));
    }
    match own {
        Some(Own::Document(_)) => lines.push("It describes itself.".to_owned()),
        Some(Own::Refused(why)) => lines.push(format!("Its own description is left out: {why}.")),
        None => {}
    }
    lines.join(" ")
}
