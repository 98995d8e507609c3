//! What a backend is asked, and what of its answer comes back.

use crate::support::client::Response;
use crate::support::{Backend, Gateway, gateway_to, service};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn the_prefix_is_cut_off_and_the_query_untouched() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let check = |target: &str, expected: &str| {
        let answer = gateway.get(target);
        assert_eq!((answer.status, answer.text()), (200, format!("GET {expected} HTTP/1.1\n")), "{target}");
    };
    check("/api", "/");
    check("/api/", "/");
    check("/api/x/y", "/x/y");
    check("/api/x/", "/x/");
    check("/api//x", "/x");
    check("/api?q", "/?q");
    check("/api/x?", "/x?");
    check("/api/x?a=%2e%2E/../b&&=c?d%zz", "/x?a=%2e%2E/../b&&=c?d%zz");
    check("/api/%7euser/%c3%a9", "/~user/%C3%A9");
    check("/api/a%2fb", "/a%2Fb");
    check("http://elsewhere.example/api/x?y", "/x?y");
    check("HTTP://elsewhere.example:81/api", "/");
}

#[test]
fn what_no_prefix_matches_is_not_found() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    for target in ["/", "/apix", "/ap", "/API", "/x/api", "/?/api", "/api%2fx"] {
        let answer = gateway.get(target);
        assert_eq!((answer.status, answer.reason().as_str()), (404, "no_route"), "{target}");
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn the_longest_prefix_wins() {
    let (short, long) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&format!(
        "[services.short]\nprefix = \"/a\"\nendpoints = [\"{}\"]\n[services.long]\nprefix = \"/a/b\"\nendpoints = [\"{}\"]",
        short.url(),
        long.url()
    ));
    for target in ["/a/b", "/a/b/c", "/a/bc", "/a/c/b"] {
        assert_eq!(gateway.get(target).status, 200);
    }
    let lines = |backend: &Backend| backend.requests().iter().map(|r| r.line().to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(&long), ["GET / HTTP/1.1", "GET /c HTTP/1.1"]);
    assert_eq!(lines(&short), ["GET /bc HTTP/1.1", "GET /c/b HTTP/1.1"]);
}

#[test]
fn a_service_may_belong_to_hosts() {
    let (named, any) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&format!(
        "[services.named]\nprefix = \"/\"\nhosts = [\"a.example\", \"*.b.example\"]\nendpoints = [\"{}\"]\n\
         [services.any]\nprefix = \"/\"\nendpoints = [\"{}\"]",
        named.url(),
        any.url()
    ));
    let check = |host: &str, expected: &Backend| {
        let before = expected.requests().len();
        gateway.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(expected.requests().len(), before + 1, "{host}");
    };
    check("a.example", &named);
    check("A.Example:8080", &named);
    check("x.b.example", &named);
    check("b.example", &any);
    check("xa.example", &any);
    check("127.0.0.1", &any);
}

#[test]
fn methods_are_passed_on_or_refused_with_allow() {
    let backend = Backend::echo();
    let limited = service("some", &[backend.url()], "methods = [\"GET\", \"POST\"]");
    let gateway = Gateway::start(&(service("api", &[backend.url()], "") + &limited));
    let ask = |method: &str, path: &str| {
        gateway.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
    };
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "M-SEARCH", "get"] {
        assert_eq!(ask(method, "/api/x").text(), format!("{method} /x HTTP/1.1\n"));
    }
    for method in ["PUT", "DELETE", "PURGE", "get", "OPTIONS"] {
        let answer = ask(method, "/some");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, POST")), "{method}");
        assert_eq!(answer.reason(), "method_not_allowed");
    }
    assert_eq!(ask("POST", "/some").status, 200);
}

#[test]
fn head_is_answered_without_a_body() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("HEAD /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.head_response();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("17")));
        client.send("HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.head_response();
        assert_eq!((answer.status, answer.header("x-gateway-error")), (404, Some("no_route")));
        assert!(answer.header("content-length").is_some_and(|length| length != "0"));
    }
    client.send("GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "GET /x HTTP/1.1\n");
}

#[test]
fn hop_by_hop_fields_do_not_cross() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Secret, x-other\r\nX-Secret: a\r\nX-OTHER: b\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Gateway-Error: forged\r\n\
         X-Request-Id: forged\r\nX-Kept: yes\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n\r\nok",
    );
    let gateway = gateway_to(&backend);
    let answer = gateway.send(
        "GET /api HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret , x-other,,\r\nConnection: X-Third\r\nX-Secret: a\r\n\
         X-OTHER: b\r\nx-third: c\r\nKeep-Alive: 300\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\n\
         TE: gzip\r\nTrailer: X\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nX-User-Id: root\r\nX-Auth-Method: jwt\r\n\
         X-Auth-Scopes: all\r\nX-Kept: yes\r\nCookie: a\r\nAccept: */*\r\n\r\n",
    );
    let sent = backend.last();
    for gone in [
        "x-secret",
        "x-other",
        "x-third",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "x-user-id",
        "x-auth-method",
        "x-auth-scopes",
        "connection",
    ] {
        assert_eq!(sent.header(gone), None, "{gone} in {}", sent.head);
    }
    for kept in ["x-kept", "cookie", "accept"] {
        assert!(sent.header(kept).is_some(), "{kept} in {}", sent.head);
    }
    for gone in ["x-secret", "x-other", "keep-alive", "proxy-authenticate", "upgrade", "x-gateway-error"] {
        assert_eq!(answer.header(gone), None, "{gone} in {}", answer.head);
    }
    assert_eq!((answer.header("x-kept"), answer.header("connection")), (Some("yes"), Some("close")));
    assert_ne!(answer.header("x-request-id"), Some("forged"));
    assert!(answer.head.contains("Set-Cookie: a=1\r\nset-cookie: b=2\r\n"), "order and spelling stay: {}", answer.head);
}

#[test]
fn connection_cannot_take_away_what_the_gateway_relies_on() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    gateway.send(
        "POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\
         Connection: close, Host, Content-Length, X-Forwarded-For, X-Request-Id, Via\r\n\r\nhi",
    );
    let sent = backend.last();
    assert_eq!(sent.body, b"hi");
    for kept in ["host", "content-length", "x-forwarded-for", "x-request-id", "via"] {
        assert!(sent.header(kept).is_some(), "{kept} in {}", sent.head);
    }
}

#[test]
fn date_and_server_are_the_backends_or_sane() {
    let backend = Backend::start(|connection| {
        loop {
            let request = connection.request()?;
            connection.send(match request.line().contains("/own") {
                true => "HTTP/1.1 200 OK\r\nDate: yesterday\r\nServer: s\r\nContent-Length: 0\r\n\r\n",
                false => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            })?;
        }
    });
    let gateway = gateway_to(&backend);
    let own = gateway.get("/api/own");
    assert_eq!((own.header("date"), own.header("server")), (Some("yesterday"), Some("s")));
    let is_date = |answer: &Response| answer.header("date").is_some_and(|d| d.len() == 29 && d.ends_with(" GMT"));
    assert!(is_date(&gateway.get("/api")));
    assert!(is_date(&gateway.get("/health")) && is_date(&gateway.get("/nowhere")));
}

#[test]
fn options_asterisk_is_about_the_gateway_itself() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let answer = gateway.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 204);
    assert!(answer.header("allow").is_some());
    assert!(backend.requests().is_empty());
}

#[test]
fn hosts_choose_among_services() {
    let (one, other) = (Backend::echo(), Backend::echo());
    let tables = format!(
        "[services.one]\nprefix = \"/a\"\nhosts = [\"*.example.com\"]\nendpoints = [\"{}\"]\n\
         [services.other]\nprefix = \"/a\"\nendpoints = [\"{}\"]\n",
        one.url(),
        other.url()
    );
    let gateway = Gateway::start(&tables);
    let check = |host: &str, path: &str, expected: &Backend| {
        let before = expected.requests().len();
        let response = gateway.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!((response.status, expected.requests().len()), (200, before + 1), "{host}");
    };
    check("api.example.com", "/a", &one);
    check("API.Example.com:8080", "/a", &one);
    check("example.com", "/a", &other);
    check("elsewhere", "/a", &other);
    check("elsewhere", "http://api.example.com/a", &one);
    // The gateway's own paths are there on every host.
    assert_eq!(gateway.send("GET /metrics HTTP/1.1\r\nHost: api.example.com\r\n\r\n").status, 200);
}
