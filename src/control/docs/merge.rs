//! Takes what a service says of itself into the gateway's document. Pure.
//!
//! Nothing in it is trusted: it has a maximum of size and depth, may refer to nothing but itself, and what it says of
//! servers and security is dropped, since the gateway is in between.

use serde_json::{Map, Value, json};

use crate::control::config::Service;
use crate::http::method::Method;

/// The most values of a document: objects, arrays, and what is in them.
const VALUES_MAX: usize = 50_000;

/// The deepest that they may be nested.
const DEPTH_MAX: usize = 64;

/// The parts of `components` that are taken over.
const SECTIONS: [&str; 8] =
    ["schemas", "responses", "parameters", "examples", "requestBodies", "headers", "links", "pathItems"];

/// What an item of `paths` has for operations.
const OPERATIONS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// Reads a document that a service has of itself.
///
/// # Errors
/// It is no OpenAPI 3 document, or one that cannot be taken over; in words.
pub fn read(bytes: &[u8]) -> Result<Value, String> {
    // Its own depth is bounded by the parser's.
    let mut document: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON ({error})"))?;
    let version = document["openapi"].as_str().unwrap_or_default().to_owned();
    if !version.starts_with("3.0.") && !version.starts_with("3.1.") {
        return Err("it is no OpenAPI 3.0 or 3.1 document".to_owned());
    }
    if !document["paths"].is_object() {
        return Err("it has no paths".to_owned());
    }
    let mut left = VALUES_MAX;
    check(&document, DEPTH_MAX, &mut left)?;
    if version.starts_with("3.0.") {
        modernise(&mut document);
    }
    Ok(document)
}

fn check(value: &Value, depth: usize, left: &mut usize) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or("it is nested too deep")?;
    *left = left.checked_sub(1).ok_or("it is too large")?;
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| check(value, depth, left)),
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            match (name.as_str(), value) {
                ("$ref", Value::String(target)) if own_reference(target).is_none() => {
                    return Err("it refers to something that is not in its components".to_owned());
                }
                ("$id" | "$dynamicRef" | "$anchor" | "$dynamicAnchor", Value::String(_)) => {
                    return Err(format!("it uses {name}"));
                }
                _ => {}
            }
            check(value, depth, left)
        }),
        _ => Ok(()),
    }
}

/// Section and name of a reference to a component, and what is behind them.
fn own_reference(target: &str) -> Option<(&str, &str, &str)> {
    let (section, rest) = target.strip_prefix("#/components/")?.split_once('/')?;
    let (name, behind) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    (SECTIONS.contains(&section) && is_name(name)).then_some((section, name, behind))
}

/// What the name of a component may be (OpenAPI 3.1, section 4.8.7.1).
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Turns what 3.0 says in its own way into JSON Schema, as 3.1 has it.
fn modernise(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(modernise),
        Value::Object(members) => {
            if members.get("nullable").is_some_and(Value::is_boolean) {
                let is_nullable = members.remove("nullable") == Some(Value::Bool(true));
                if let (true, Some(Value::String(kind))) = (is_nullable, members.get("type")) {
                    members.insert("type".to_owned(), json!([kind, "null"]));
                }
            }
            for (exclusive, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
                match members.get(exclusive) {
                    Some(Value::Bool(true)) => {
                        let bound = members.remove(bound);
                        members.remove(exclusive);
                        members.extend(bound.map(|bound| (exclusive.to_owned(), bound)));
                    }
                    Some(Value::Bool(false)) => drop(members.remove(exclusive)),
                    _ => {}
                }
            }
            members.values_mut().for_each(modernise);
        }
        _ => {}
    }
}

/// Takes the paths of `remote`, which [`read`] has read, into `document` below the service's prefix, and its components under
/// its name. Each operation gets what the gateway makes of it, `extras`.
pub fn merge(document: &mut Value, remote: &Value, service: &Service, extras: &Value) {
    let name = &service.name;
    for section in SECTIONS {
        let Some(components) = remote["components"][section].as_object() else { continue };
        for (key, component) in components.iter().filter(|(key, _)| is_name(key)) {
            let mut component = component.clone();
            rename(&mut component, name);
            if section == "pathItems" {
                own(&mut component, service, extras);
            }
            let known = &mut document["components"][section];
            if !known.is_object() {
                *known = Value::Object(Map::new());
            }
            known[format!("{name}.{key}")] = component;
        }
    }
    let Some(items) = remote["paths"].as_object() else { return };
    let Some(paths) = document["paths"].as_object_mut() else { return };
    let prefix = service.prefix.trim_end_matches('/');
    // What it says of itself takes the place of what the gateway knows.
    for generic in [prefix.to_owned(), format!("{prefix}/{{path}}")] {
        paths.remove(&generic);
    }
    for (path, item) in items.iter().filter(|(path, item)| path.starts_with('/') && item.is_object()) {
        let mut item = item.clone();
        rename(&mut item, name);
        own(&mut item, service, extras);
        let path = if path == "/" { prefix.to_owned() } else { format!("{prefix}{path}") };
        paths.insert(if path.is_empty() { "/".to_owned() } else { path }, item);
    }
}

/// Names components as they are called in the gateway's document.
fn rename(value: &mut Value, name: &str) {
    let renamed = |target: &str| {
        own_reference(target).map(|(section, key, behind)| format!("#/components/{section}/{name}.{key}{behind}"))
    };
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, name)),
        Value::Object(members) => {
            for (key, value) in members.iter_mut() {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(renamed) = renamed(target) {
                            *target = renamed;
                        }
                    }
                    Value::Object(mapping) if key == "mapping" => {
                        for target in mapping.values_mut() {
                            if let Some(renamed) = target.as_str().and_then(renamed) {
                                *target = Value::String(renamed);
                            }
                        }
                    }
                    _ => rename(value, name),
                }
            }
        }
        _ => {}
    }
}

/// Makes the operations of an item of `paths` the gateway's: those that pass, under the service's name, with its security.
fn own(item: &mut Value, service: &Service, extras: &Value) {
    let Some(members) = item.as_object_mut() else { return };
    members.remove("servers");
    for method in OPERATIONS {
        let passes = service.methods.contains(Method::from_bytes(method.to_uppercase().as_bytes()));
        let Some(operation) = members.get_mut(method).filter(|operation| passes && operation.is_object()) else {
            members.remove(method);
            continue;
        };
        if let Some(operation) = operation.as_object_mut() {
            for dropped in ["servers", "security", "callbacks"] {
                operation.remove(dropped);
            }
            operation.insert("tags".to_owned(), json!([service.name]));
            if let Some(Value::String(id)) = operation.get("operationId") {
                let id = format!("{}.{id}", service.name);
                operation.insert("operationId".to_owned(), Value::String(id));
            }
        }
        extend(operation, extras.clone());
    }
}

/// Puts what `more` has into `target`, object by object; what is there already stays.
pub fn extend(target: &mut Value, more: Value) {
    let (Value::Object(known), Value::Object(more)) = (target, more) else { return };
    for (key, value) in more {
        match known.get_mut(&key) {
            Some(known) => extend(known, value),
            None => {
                known.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Config;

    fn service(lines: &str) -> Service {
        let text =
            format!("[services.sms]\nprefix = \"/api/sms\"\nendpoints = [\"http://a\"]\nauth = \"none\"\n{lines}");
        Config::from_toml(&text, "c.toml", &[], &[]).expect("good").services.remove(0)
    }

    fn merged(remote: &Value, lines: &str) -> Value {
        let mut document = json!({"components": {}, "paths": {"/api/sms": {}, "/api/sms/{path}": {}, "/health": {}}});
        let remote = read(remote.to_string().as_bytes()).expect("good");
        merge(
            &mut document,
            &remote,
            &service(lines),
            &json!({"security": [], "responses": {"429": {"description": "slow"}}}),
        );
        document
    }

    #[test]
    fn paths_and_components_are_taken_over_under_the_services_name() {
        let remote = json!({
            "openapi": "3.0.3",
            "servers": [{"url": "https://elsewhere.example"}],
            "paths": {
                "/": {"get": {"responses": {"200": {"description": "ok"}}}},
                "/send/{id}": {
                    "servers": [{"url": "https://elsewhere.example"}],
                    "post": {
                        "operationId": "send", "tags": ["x"], "security": [{"evil": []}],
                        "requestBody": {"$ref": "#/components/requestBodies/Message"},
                        "responses": {"200": {"description": "ok"}, "429": {"description": "mine"}},
                    },
                    "trace": {"responses": {}},
                },
                "relative": {},
            },
            "components": {
                "schemas": {"Pet": {"type": "string", "nullable": true, "minimum": 3, "exclusiveMinimum": true,
                    "discriminator": {"propertyName": "a", "mapping": {"b": "#/components/schemas/Pet", "c": "d"}}}},
                "requestBodies": {"Message": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}}},
                "securitySchemes": {"evil": {"type": "http", "scheme": "basic"}},
            },
        });
        let document = merged(&remote, "methods = [\"GET\", \"HEAD\", \"POST\"]");
        let paths: Vec<&String> = document["paths"].as_object().expect("paths").keys().collect();
        assert_eq!(paths, ["/api/sms", "/api/sms/send/{id}", "/health"]);
        let send = &document["paths"]["/api/sms/send/{id}"];
        assert!(send.get("servers").is_none() && send.get("trace").is_none());
        let post = &send["post"];
        assert_eq!(
            (&post["operationId"], &post["tags"], &post["security"]),
            (&json!("sms.send"), &json!(["sms"]), &json!([]))
        );
        assert_eq!(post["requestBody"]["$ref"], "#/components/requestBodies/sms.Message");
        assert_eq!(post["responses"]["429"]["description"], "mine", "what it says itself stays");
        assert_eq!(document["paths"]["/api/sms"]["get"]["responses"]["429"]["description"], "slow");
        let pet = &document["components"]["schemas"]["sms.Pet"];
        assert_eq!(
            (&pet["type"], &pet["exclusiveMinimum"], pet.get("minimum")),
            (&json!(["string", "null"]), &json!(3), None)
        );
        assert_eq!(pet["discriminator"]["mapping"], json!({"b": "#/components/schemas/sms.Pet", "c": "d"}));
        assert!(document["components"].get("securitySchemes").is_none());
    }

    #[test]
    fn what_cannot_be_taken_over_says_why() {
        let check = |document: Value, expected: &str| {
            let problem = read(document.to_string().as_bytes()).expect_err(expected);
            assert!(problem.contains(expected), "{problem}");
        };
        check(json!({"swagger": "2.0", "paths": {}}), "OpenAPI 3.0 or 3.1");
        check(json!({"openapi": 3}), "OpenAPI 3.0 or 3.1");
        check(json!({"openapi": "3.1.0"}), "no paths");
        check(json!([]), "OpenAPI");
        for target in [
            "https://evil.example/x",
            "other.json",
            "#/paths/x",
            "#/components/securitySchemes/x",
            "#/components/schemas/a b",
            "#/components/schemas/",
        ] {
            check(json!({"openapi": "3.1.0", "paths": {"/a": {"$ref": target}}}), "refers to something");
        }
        check(json!({"openapi": "3.1.0", "paths": {}, "components": {"schemas": {"A": {"$id": "x"}}}}), "uses $id");
        check(json!({"openapi": "3.1.0", "paths": {}, "x": vec![0; VALUES_MAX]}), "too large");
        let mut deep = json!(1);
        for _ in 0..DEPTH_MAX {
            deep = json!([deep]);
        }
        check(json!({"openapi": "3.1.0", "paths": {}, "x": deep}), "too deep");
        assert!(read("[".repeat(100_000).as_bytes()).expect_err("no JSON").contains("no JSON"));
    }
}
