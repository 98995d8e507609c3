//! Which pages may ask, and that a browser can read whatever answers them.

use std::process::Command;

use serde_json::Value;

use crate::support::client::Response;
use crate::support::{Backend, Gateway, free_port, service};

const APP: &str = "https://app.example.com";
/// A backend with a CORS of its own, which must not come through beside the gateway's.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept\r\n\r\nok";

fn gateway(backend: &Backend, lines: &str) -> Gateway {
    let cors = "[cors]\nenabled = true\nallow_origins = [\"https://app.example.com\"]\nallow_credentials = true";
    let open = service("open", &[backend.url()], "[services.open.cors]\nenabled = false");
    let tables = format!("{cors}\n{}{open}", service("api", &[backend.url()], lines));
    Gateway::start(&format!("[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n{tables}"))
}

fn ask(gateway: &Gateway, method: &str, path: &str, origin: &str, fields: &str) -> Response {
    gateway
        .send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nOrigin: {origin}\r\n{fields}\r\n"))
}

fn all<'a>(answer: &'a Response, name: &str) -> Vec<&'a str> {
    let fields = answer.head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[test]
fn preflights_are_answered_here() {
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, "auth = \"required\"\nmethods = [\"PUT\"]");
    let wanted = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: authorization\r\n";
    let answer = ask(&gateway, "OPTIONS", "/api/x", APP, wanted);
    assert_eq!(answer.status, 204, "no credentials are needed, nor that OPTIONS is among the methods");
    assert_eq!(answer.header("access-control-allow-origin"), Some(APP));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert!(answer.header("access-control-allow-methods").is_some_and(|methods| methods.contains("PUT")));
    assert!(answer.header("access-control-allow-headers").is_some_and(|names| names.contains("Authorization")));
    assert_eq!(answer.header("access-control-max-age"), Some("600"));
    assert!(answer.header("vary").is_some_and(|vary| vary.starts_with("Origin, ")));
    let line = gateway.logged(answer.header("x-request-id").expect("an id"));
    assert_eq!((line["status"].as_u64(), line["service"].as_str()), (Some(204), Some("api")));

    let refused = ask(&gateway, "OPTIONS", "/api/x", "https://evil.org", wanted);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (204, None));
    let nowhere = ask(&gateway, "OPTIONS", "/nowhere", APP, wanted);
    assert_eq!((nowhere.status, nowhere.header("access-control-allow-origin")), (204, Some(APP)));
    assert_eq!(backend.requests().len(), 0);
    // Where CORS is the backend's matter, preflights are too.
    assert_eq!(ask(&gateway, "OPTIONS", "/open", APP, wanted).status, 200);
    assert_eq!(backend.last().line(), "OPTIONS / HTTP/1.1");
}

#[test]
fn every_answer_can_be_read() {
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, "");
    let check = |method: &str, path: &str, status: u16| {
        let answer = ask(&gateway, method, path, APP, "");
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(all(&answer, "access-control-allow-origin"), [APP], "{}", answer.head);
        assert!(all(&answer, "vary").contains(&"Origin"), "{}", answer.head);
        assert!(answer.header("access-control-expose-headers").is_some_and(|names| names.contains("X-Request-Id")));
        let stranger = ask(&gateway, method, path, "https://evil.org", "");
        assert_eq!(all(&stranger, "access-control-allow-origin"), Vec::<&str>::new(), "{}", stranger.head);
        assert!(all(&stranger, "vary").contains(&"Origin"), "{}", stranger.head);
    };
    check("GET", "/api", 200);
    check("GET", "/nowhere", 404);
    let open = ask(&gateway, "GET", "/open", APP, "");
    assert_eq!(all(&open, "access-control-allow-origin"), ["*"], "the backend's own");
    assert!(all(&open, "vary") == ["Accept"]);
}

#[test]
fn refusals_can_be_read_too() {
    let backend = Backend::answering(OK);
    let limited = "auth = \"required\"\nmethods = [\"GET\"]\nrate_limit = { requests = 1, window = \"60s\" }";
    let gateway = gateway(&backend, limited);
    for (method, status) in [("PUT", 405), ("GET", 401), ("GET", 429)] {
        let answer = ask(&gateway, method, "/api", APP, "");
        assert_eq!(answer.status, status);
        assert_eq!(all(&answer, "access-control-allow-origin"), [APP], "{}", answer.head);
    }
}

/// Two origins, of which the gateway knows the first, in a real browser (tests/browser/cors.py).
#[test]
fn a_browser_agrees() {
    let backend = Backend::start(|connection| {
        loop {
            let request = connection.request()?;
            let cookie = request.header("cookie").unwrap_or("none").to_owned();
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{cookie}", cookie.len()))?;
        }
    });
    let [allowed, refused] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let cors = format!(
        "[cors]\nenabled = true\nallow_origins = [\"{allowed}\"]\nallow_credentials = true\nallow_methods = [\"PUT\"]\n\
         allow_headers = [\"X-Custom\", \"Content-Type\"]\nexpose_headers = [\"X-Request-Id\"]\n\
         [auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n"
    );
    let url = [backend.url()];
    let gateway = Gateway::start(&format!(
        "{cors}{}{}{}",
        service("open", &url, "rate_limit = { requests = 1000 }"),
        service("private", &url, "auth = \"required\""),
        service("limited", &url, "rate_limit = { requests = 2 }"),
    ));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/cors.py");
    let output = Command::new("python3")
        .args([script, &format!("http://{}", gateway.address), &allowed, &refused])
        .output()
        .expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcomes: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let page = &outcomes["allowed"];
    for (case, status) in
        [("simple", 200), ("credentials", 200), ("preflighted", 200), ("unauthorized", 401), ("limited", 429)]
    {
        assert_eq!(page[case]["status"], status, "{case}: {outcomes:#}");
        assert!(page[case]["headers"]["x-request-id"].is_string(), "{case}: {outcomes:#}");
    }
    assert_eq!(page["simple"]["body"], "none");
    assert_eq!(page["credentials"]["body"], "session=browser");
    assert!(page["unauthorized"]["body"].as_str().is_some_and(|body| body.contains("credentials_missing")));
    for case in ["refused_method", "refused_header", "sandboxed"] {
        assert!(page[case]["error"].is_string(), "{case}: {outcomes:#}");
    }
    let stranger = outcomes["refused"].as_object().expect("an object");
    for (case, outcome) in stranger.iter().filter(|(case, _)| *case != "opaque") {
        assert!(outcome["error"].is_string(), "{case}: {outcomes:#}");
    }
    assert_eq!(stranger["opaque"]["status"], 0, "the gateway was there: {outcomes:#}");
}

#[test]
fn refusals_of_what_was_understood_can_be_read_before_the_service_is_known() {
    let backend = Backend::answering(OK);
    let cors = "[cors]\nenabled = true\nallow_origins = [\"https://app.example.com\"]\n[limits]\nuri_bytes = 300";
    let gateway = Gateway::start(&format!("{cors}\n{}", service("api", &[backend.url()], "")));
    let check = |method: &str, path: &str, fields: &str, status: u16| {
        for (origin, allowed) in [(APP, Some(APP)), ("https://evil.org", None)] {
            let answer = ask(&gateway, method, path, origin, fields);
            assert_eq!(answer.status, status, "{path} {fields}");
            assert_eq!(answer.header("access-control-allow-origin"), allowed, "{path} {fields}");
            assert_eq!(all(&answer, "vary"), ["Origin"], "{path} {fields}");
        }
    };
    check("GET", "/api/%zz", "", 400);
    check("GET", &format!("/api/{}", "a".repeat(400)), "", 414);
    check("GET", "/api", &"X-A: b\r\n".repeat(150), 431);
    check("POST", "/api", "Expect: else\r\nContent-Length: 1\r\n", 417);
    check("POST", "/api", "Content-Length: x\r\n", 400);
    check("POST", "/api", "Transfer-Encoding: chunked\r\n\r\nZZ\r\n", 400);
}
