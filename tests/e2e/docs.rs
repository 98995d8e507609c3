//! The document that describes this gateway, the page that shows it, and the listener that both may have to themselves.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::devtools::Page;
use crate::support::gateway::is_alive;
use crate::support::prometheus::{PYTHON, complaints};
use crate::support::{Backend, Client, Gateway, gateway_to, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SECRET: &str = "[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";

/// Reads a document as strictly as the specification asks for, and says so where it cannot.
const VALIDATE: &str = "import json, sys; from openapi_spec_validator import validate; validate(json.load(sys.stdin))";

fn document(gateway: &Gateway) -> Value {
    let answer = gateway.get("/openapi.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(complaints(&[PYTHON, "-c", VALIDATE], &answer.text()), "");
    let document = serde_json::from_slice(&answer.body).expect("JSON");
    let mut targets = BTreeSet::new();
    references(&document, &mut targets);
    for target in targets {
        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target} is not there");
    }
    document
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

/// A backend that describes itself, by what `document` comes to.
fn describing(document: &Value) -> Backend {
    let text = document.to_string();
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
}

#[test]
fn services_are_described_as_they_are_configured() {
    let backend = Backend::answering(OK);
    let closed = "auth = \"required\"\nmethods = [\"GET\", \"POST\"]\nrequired_scopes = { POST = [\"sms:send\"] }\n\
                  rate_limit = { enabled = true, requests = 7, window = \"1m\" }";
    let open = "cors = { enabled = true, allow_origins = [\"https://a.example\"] }\nrate_limit = { enabled = false }";
    let tables =
        SECRET.to_owned() + &service("sms", &[backend.url()], closed) + &service("llm", &[backend.url()], open);
    let gateway = Gateway::start(&tables);
    let described = document(&gateway);
    let post = &described["paths"]["/sms/{path}"]["post"];
    assert_eq!(post["security"], json!([{"bearer": []}, {"api_key": []}]));
    for (status, word) in [("401", "token_expired"), ("429", "rate_limited"), ("503", "breaker_open")] {
        let text = post["responses"][status]["description"].as_str().expect("a description");
        assert!(text.contains(word), "{status}: {text}");
    }
    assert!(post["responses"]["429"]["headers"]["Retry-After"].is_object());
    assert!(described["paths"]["/sms"].get("put").is_none(), "what is not let pass is not there");
    let get = &described["paths"]["/llm"]["get"];
    assert_eq!((&get["security"], get["responses"].get("401"), get["responses"].get("429")), (&json!([]), None, None));
    let tags = described["tags"].as_array().expect("tags");
    let about = |name: &str| tags.iter().find(|tag| tag["name"] == name).expect("its tag")["description"].to_string();
    for expected in ["JWT or an API key", "sms:send", "7 requests in 60 s"] {
        assert!(about("sms").contains(expected), "{}", about("sms"));
    }
    assert!(about("llm").contains("https://a.example"));

    // It follows the configuration, and says what a client has already.
    let tag = gateway.get("/openapi.json").header("etag").expect("a tag").to_owned();
    let again = |tag: &str| {
        gateway
            .send(format!("GET /openapi.json HTTP/1.1\r\nHost: a\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n"))
            .status
    };
    assert_eq!((again(&tag), again("\"other\"")), (304, 200));
    gateway.reload(&service("other", &[backend.url()], ""));
    until("the document has changed", || again(&tag) == 200);
    let paths = document(&gateway)["paths"].clone();
    assert!(paths.get("/other/{path}").is_some() && paths.get("/sms").is_none());
}

#[test]
fn what_is_managed_answers_as_it_is_described() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let described = document(&gateway);
    for (path, item) in described["paths"].as_object().expect("paths") {
        if path.starts_with("/api/") && !path.starts_with("/api/v1/services")
            || path == "/api"
            || path == "/dashboard/events"
        {
            continue;
        }
        let target = path.replace("{service}", "api").replace("{id}", "0123456789abcdef");
        for (method, operation) in item.as_object().expect("operations") {
            let request = format!(
                "{} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                method.to_uppercase()
            );
            let answer = gateway.send(request);
            let known = &operation["responses"][answer.status.to_string()];
            assert!(known.is_object(), "{method} {path} answers {}", answer.status);
            let kind =
                answer.header("content-type").expect("a content type").split(';').next().expect("a type").to_owned();
            assert!(known["content"].get(&kind).is_some(), "{method} {path} answers {} with {kind}", answer.status);
        }
    }
    for path in ["/openapi.json", "/docs", "/docs/swagger-ui.css"] {
        let answer =
            gateway.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
    for path in ["/docs/index.html", "/docs/../config.toml", "/docs/%2e%2e/x", "/docs/swagger-ui.css/x"] {
        assert_eq!(gateway.get(path).status, 404, "{path}");
    }
}

#[test]
fn services_may_describe_themselves() {
    let own = describing(&json!({
        "openapi": "3.0.3", "info": {"title": "SMS", "version": "1"},
        "servers": [{"url": "https://elsewhere.example"}],
        "paths": {"/send/{id}": {"post": {
            "operationId": "send", "security": [{"theirs": []}],
            "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string", "nullable": true}}],
            "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Message"}}}},
            "responses": {"200": {"description": "sent"}},
        }}},
        "components": {"schemas": {"Message": {"type": "object", "properties": {"to": {"type": "string"}}}},
            "securitySchemes": {"theirs": {"type": "http", "scheme": "basic"}}},
    }));
    let hostile = describing(
        &json!({"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": {"/x": {"$ref": "http://169.254.169.254/"}}}),
    );
    let plain = Backend::answering(OK);
    let tables = SECRET.to_owned()
        + &service("sms", &[own.url()], "openapi_url = \"/openapi.json?x=1\"\nauth = \"required\"")
        + &service("odd", &[plain.url()], &format!("openapi_url = \"{}/x\"", hostile.url()))
        + &service("none", &[plain.url()], "openapi_url = \"/docs\"");
    let gateway = Gateway::start(&tables);
    until("it is taken over", || document(&gateway)["paths"].get("/sms/send/{id}").is_some());
    assert_eq!(own.last().line(), "GET /openapi.json?x=1 HTTP/1.1");
    let described = document(&gateway);
    let post = &described["paths"]["/sms/send/{id}"]["post"];
    assert_eq!(
        (&post["operationId"], &post["security"]),
        (&json!("sms.send"), &json!([{"bearer": []}, {"api_key": []}]))
    );
    assert!(post["responses"]["401"].is_object() && post["responses"]["200"].is_object());
    assert!(described["components"]["schemas"]["sms.Message"].is_object());
    assert!(!described.to_string().contains("elsewhere.example") && !described.to_string().contains("169.254"));
    for service in ["odd", "none"] {
        let left_out = |event: &Value| {
            event["service"] == service && event["message"].as_str().is_some_and(|text| text.contains("left out"))
        };
        gateway.events.wait_for(left_out);
        assert!(described["paths"].get(format!("/{service}/{{path}}")).is_some(), "what is known of it stays");
    }
}

#[test]
fn a_listener_of_its_own_takes_them_off_the_public_port() {
    let backend = Backend::answering(OK);
    let tables = service("shop", &[backend.url()], "") + "[admin]\nlisten = \"127.0.0.1:0\"\n";
    let gateway = Gateway::start(&tables);
    let said = gateway
        .events
        .wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("management endpoints listen")));
    let address = said["address"].as_str().expect("an address").parse().expect("an address");
    let ask = |path: &str| {
        let mut client = Client::connect(address);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        client.response().status
    };
    for path in ["/metrics", "/docs", "/openapi.json", "/api/v1/services/status", "/dashboard"] {
        assert_eq!((gateway.get(path).status, ask(path)), (404, 200), "{path}");
    }
    assert_eq!(
        (gateway.get("/health").status, gateway.get("/readyz").status, gateway.get("/shop").status),
        (200, 200, 200)
    );
    // A head that does not come holds nothing up.
    let mut slow: Vec<Client> = (0..20).map(|_| Client::connect(address)).collect();
    slow.iter_mut().for_each(|client| client.send("GET /metrics HTTP/1.1\r\nHo"));
    assert_eq!(ask("/metrics"), 200);
    assert!(slow.remove(0).is_closed());
    // The next process goes on with it, and whoever asks meanwhile is answered by one of the two.
    let old = gateway.pid();
    gateway.upgrade().expect("it serves");
    until("the old process is gone", || {
        assert_eq!(ask("/metrics"), 200);
        !is_alive(old)
    });
    assert_eq!(ask("/metrics"), 200);
    assert_eq!(gateway.get("/metrics").status, 404);
}

#[test]
fn a_browser_shows_the_page() {
    let backend = Backend::answering(OK);
    let tables = SECRET.to_owned()
        + &service("sms", &[backend.url()], "auth = \"required\"\nmethods = [\"GET\", \"POST\"]")
        + &service("llm", &[backend.url()], "auth = \"optional\"");
    let gateway = Gateway::start(&tables);
    let origin = format!("http://{}/", gateway.address);
    let mut page = Page::open(&format!("{origin}docs"));
    page.until("document.querySelectorAll('.opblock').length > 20");
    assert_eq!(page.text("document.title"), "ringway API");
    let text = page.text("document.body.innerText");
    for expected in ["/sms/{path}", "/llm/{path}", "/api/v1/services/status", "A JWT or an API key is asked for"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    page.picture("docs-light", false);
    page.prefer("dark");
    page.picture("docs-dark", false);
    page.ask("document.querySelector('[id^=operations-Services-status_of_services] button').click()");
    page.until("document.querySelector('.opblock.is-open .responses-table') !== null");
    page.ask("document.querySelector('.opblock.is-open').scrollIntoView()");
    page.picture("docs-operation-dark", false);
    page.prefer("light");
    page.picture("docs-operation-light", false);
    page.size(390, 844);
    page.ask("window.scrollTo(0, 0)");
    page.until("document.documentElement.scrollWidth <= 390");
    page.picture("docs-phone-light", false);
    assert!(page.complaints.is_empty(), "{:?}", page.complaints);
    let foreign: Vec<_> =
        page.asked.iter().filter(|url| !url.starts_with(&origin) && !url.starts_with("data:")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}
