//! Who asks, under which name, through whom: what the gateway adds to a request and takes from it.

use crate::support::backend::Request;
use crate::support::{Backend, Gateway, gateway_to, service};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Sends a GET with these fields, returns it as the backend saw it.
fn ask(gateway: &Gateway, backend: &Backend, fields: &str) -> Request {
    let answer = gateway.send(format!("GET /api HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{fields}\r\n"));
    assert_eq!(answer.status, 200);
    let sent = backend.last();
    assert_eq!(answer.header("x-request-id"), sent.header("x-request-id"), "the client learns the id");
    sent
}

#[test]
fn a_request_gets_its_names() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let sent = ask(&gateway, &backend, "");
    assert_eq!(sent.header("host"), Some(backend.address.to_string().as_str()));
    assert_eq!(sent.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(sent.header("x-forwarded-proto"), Some("http"));
    assert_eq!(sent.header("x-forwarded-host"), Some("a.example"));
    assert_eq!(sent.header("via"), Some("1.1 ringway"));
    let id = sent.header("x-request-id").expect("an id").to_owned();
    let trace = sent.header("traceparent").expect("a trace").to_owned();
    assert!(trace.len() == 55 && trace.starts_with("00-"), "{trace}");
    assert_eq!(id, trace[3..35], "one number to look for");
    let other = ask(&gateway, &backend, "");
    assert_ne!(other.header("x-request-id"), Some(id.as_str()));
    assert_ne!(other.header("traceparent"), Some(trace.as_str()));
}

#[test]
fn requests_of_one_trace_have_names_of_their_own() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let id = || {
        let sent = ask(&gateway, &backend, &format!("traceparent: {TRACE}\r\n"));
        assert_eq!(sent.header("traceparent"), Some(TRACE));
        sent.header("x-request-id").expect("an id").to_owned()
    };
    let ids = [id(), id(), TRACE[3..35].to_owned()];
    assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2], "{ids:?}");
    let sent = ask(&gateway, &backend, "X-Request-Id: abc-123\r\n");
    assert_eq!(sent.header("x-request-id"), Some("abc-123"));
    assert!(sent.header("traceparent").is_some_and(|trace| trace.len() == 55));
}

#[test]
fn well_formed_names_are_kept_and_others_replaced() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let sent =
        ask(&gateway, &backend, &format!("X-Request-Id: abc-123\r\ntraceparent: {TRACE}\r\ntracestate: a=b\r\n"));
    assert_eq!(sent.header("x-request-id"), Some("abc-123"));
    assert_eq!(sent.header("traceparent"), Some(TRACE));
    assert_eq!(sent.header("tracestate"), Some("a=b"));
    for bad in ["", "a b", "a\"b", "a<b", "\u{e9}", &"x".repeat(200)] {
        let sent = ask(&gateway, &backend, &format!("X-Request-Id: {bad}\r\n"));
        assert_ne!(sent.header("x-request-id"), Some(bad));
    }
    for bad in [
        "00-0-0-01",
        &TRACE.to_uppercase(),
        &format!("{TRACE}-x"),
        &TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
    ] {
        let sent = ask(&gateway, &backend, &format!("traceparent: {bad}\r\ntracestate: a=b\r\n"));
        assert_ne!(sent.header("traceparent"), Some(bad));
        assert_eq!(sent.header("tracestate"), None, "a state without its parent means nothing");
    }
}

#[test]
fn an_untrusted_peer_cannot_forge_where_it_comes_from() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let sent = ask(
        &gateway,
        &backend,
        "X-Forwarded-For: 10.9.9.9\r\nX-Forwarded-For: 10.8.8.8\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: forged.example\r\nForwarded: for=10.9.9.9\r\nX-Request-Id: forger\r\n",
    );
    assert_eq!(sent.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(sent.header("x-forwarded-proto"), Some("http"));
    assert_eq!(sent.header("x-forwarded-host"), Some("a.example"));
    assert_eq!(sent.header("forwarded"), None);
    assert_eq!(gateway.logged("forger")["client"], "127.0.0.1");
}

#[test]
fn a_trusted_proxy_is_believed_and_extended() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with(
        "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]",
        &service("api", &[backend.url()], ""),
    );
    let sent = ask(
        &gateway,
        &backend,
        "X-Forwarded-For: 203.0.113.9, 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.example\r\n\
         Via: 1.1 front\r\nX-Request-Id: trusted\r\n",
    );
    assert_eq!(sent.header("x-forwarded-for"), Some("203.0.113.9, 10.0.0.1, 127.0.0.1"));
    assert_eq!(sent.header("x-forwarded-proto"), Some("https"));
    assert_eq!(sent.header("x-forwarded-host"), Some("b.example"));
    assert_eq!(sent.header("via"), Some("1.1 front, 1.1 ringway"));
    assert_eq!(gateway.logged("trusted")["client"], "203.0.113.9");
    // Several lines are one list, and some proxies add the port.
    let lines = "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: [2001:db8::7]:4711\r\nX-Forwarded-For: 10.0.0.1:80\r\n";
    ask(&gateway, &backend, &format!("{lines}X-Request-Id: lines\r\n"));
    assert_eq!(gateway.logged("lines")["client"], "2001:db8::7");
}

#[test]
fn via_tells_the_clients_version() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    gateway.send("GET /api HTTP/1.0\r\n\r\n");
    assert_eq!(backend.last().header("via"), Some("1.0 ringway"));
    assert_eq!(backend.last().header("x-forwarded-host"), None);
}

#[test]
fn forwarded_is_written_when_asked_for() {
    let backend = Backend::answering(OK);
    let check = |server: &str, fields: &str, expected: Option<&str>| {
        let gateway = Gateway::start_with(server, &service("api", &[backend.url()], ""));
        let sent = ask(&gateway, &backend, fields);
        assert_eq!(sent.header("forwarded"), expected, "{server} {fields}");
    };
    let own = "for=127.0.0.1;host=\"a.example\";proto=http";
    let trusting = "trusted_proxies = [\"127.0.0.0/8\"]";
    check("", "Forwarded: for=1.2.3.4\r\n", None);
    check(trusting, "Forwarded: for=1.2.3.4\r\n", Some("for=1.2.3.4"));
    check("forwarded = true", "Forwarded: for=1.2.3.4\r\n", Some(own));
    let both = format!("{trusting}\nforwarded = true");
    check(&both, "Forwarded: for=1.2.3.4\r\n", Some(&format!("for=1.2.3.4, {own}")));
}

/// Backends in the tradition of CGI read `X_User_Id` as `X-User-Id`.
#[test]
fn names_that_are_read_as_others_do_not_pass() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let forged = [
        "X_User_Id: root",
        "x-auth_scopes: admin",
        "X_AUTH_METHOD: jwt",
        "X_Forwarded_For: 1.2.3.4",
        "X_Forwarded-Proto: https",
        "Transfer_Encoding: chunked",
        "Content_Length: 7",
    ];
    let fields: String = forged.iter().map(|field| format!("{field}\r\n")).collect();
    let answer = gateway.send(format!(
        "GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}X_Other: kept\r\nuser_id: kept\r\n\r\n"
    ));
    assert_eq!(answer.status, 200);
    let request = backend.last();
    for field in forged {
        let name = field.split(':').next().expect("a name");
        assert_eq!(request.header(name), None, "{name}");
    }
    assert_eq!((request.header("x_other"), request.header("user_id")), (Some("kept"), Some("kept")));
}
