//! Somebody goes away in the middle, the client or the gateway itself: the others learn it soon, and the log tells it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::kernel::BlackHole;
use crate::support::{Backend, Client, Gate, Gateway, service, until};

/// How soon a leave is noticed.
const SOON: Duration = Duration::from_millis(1_500);

/// A request that hangs in its upstream connect.
fn connecting(server: &str, request: &str) -> (BlackHole, Gateway, Client) {
    let hole = BlackHole::open();
    let timeouts = "[services.api.timeouts]\nconnect = \"30s\"";
    let gateway = Gateway::start_with(server, &service("api", &[hole.url()], timeouts));
    let mut client = gateway.connect();
    client.send(request);
    until("the gateway connects", || hole.is_asked());
    (hole, gateway, client)
}

const GET: &str = "GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: left\r\n\r\n";
const POST: &str = "POST /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: left\r\nContent-Length: 100\r\n\r\nhello";

#[test]
fn a_drain_ends_a_request_that_is_still_connecting() {
    for request in [GET, POST] {
        let (_hole, mut gateway, mut client) = connecting("drain_timeout = \"500ms\"", request);
        let started = Instant::now();
        gateway.signal("TERM");
        assert_eq!(gateway.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_millis(500) + SOON, "{:?}", started.elapsed());
        client.rest();
        let line = gateway.logged_within(SOON, "left");
        assert!(line["error"].as_str().is_some_and(|error| !error.is_empty()), "{line}");
        assert!(matches!(line["status"].as_u64(), Some(499 | 503)), "{line}");
        let lines = gateway.log.all();
        assert_eq!(lines.iter().filter(|line| line["request_id"] == "left").count(), 1, "{lines:#?}");
    }
}

#[test]
fn a_client_that_leaves_during_the_connect_is_not_waited_for() {
    for request in [GET, POST] {
        let (_hole, gateway, client) = connecting("", request);
        drop(client);
        let line = gateway.logged_within(SOON, "left");
        assert_eq!(line["status"], 499, "{line}");
        assert!(line["error"].is_string(), "{line}");
    }
}

/// The drain's time ends in the middle of an answer. Returns how the connection ended, and the line in the log.
fn cut_by_drain(version: &str) -> (io::Result<Vec<u8>>, Value) {
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 203 Fine\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            connection.send("5\r\nhello\r\n")?;
            thread::sleep(Duration::from_millis(50));
        }
    });
    let mut gateway = Gateway::start_with("drain_timeout = \"500ms\"", &service("api", &[backend.url()], ""));
    let mut client = gateway.connect();
    client.send(format!("GET /api {version}\r\nHost: a\r\nX-Request-Id: cut\r\n\r\n"));
    assert!(client.head().contains(" 203 "));
    gateway.signal("TERM");
    let end = client.read_to_end();
    assert_eq!(gateway.wait_exit().code(), Some(0));
    (end, gateway.logged_within(SOON, "cut"))
}

#[test]
fn an_answer_that_ends_with_the_connection_is_reset_by_the_end_of_a_drain() {
    let (end, line) = cut_by_drain("HTTP/1.0");
    let error = end.expect_err("an orderly end would make the answer look complete");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!((&line["status"], &line["error"]), (&203.into(), &"drain_timeout".into()), "{line}");
}

#[test]
fn an_answer_cut_by_the_end_of_a_drain_is_not_the_clients_doing() {
    let (end, line) = cut_by_drain("HTTP/1.1");
    assert!(end.map_or(true, |body| !body.ends_with(b"0\r\n\r\n")), "the answer is not complete");
    assert_eq!((&line["status"], &line["error"]), (&203.into(), &"drain_timeout".into()), "{line}");
}

#[test]
fn a_client_that_leaves_a_silent_stream_is_noticed() {
    let ended = Gate::default();
    let backend = Backend::start({
        let ended = ended.clone();
        move |connection| {
            connection.request()?;
            connection
                .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            connection.send("9\r\ndata: 1\n\n\r\n")?;
            connection.rest();
            ended.open();
            Ok(())
        }
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.timeouts]\nidle_body = \"30s\""));
    let mut client = gateway.connect();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: stream\r\n\r\n");
    client.head();
    assert_eq!(client.chunk().expect("an event"), b"data: 1\n\n");
    drop(client);
    let line = gateway.logged_within(SOON, "stream");
    assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()), "{line}");
    ended.pass();
}

/// How many connections the gateway still has besides the one it is asked on, once the answer to `request` has been read to the end;
/// `late` is sent once the backend has the request.
fn left_open(gateway: &Gateway, request: &str, late: Option<(&Backend, &Gate, &str)>) -> u64 {
    for _ in 0..20 {
        let mut other = gateway.connect();
        let mut client = gateway.connect();
        let begun = Instant::now();
        client.send(request);
        if let Some((backend, gate, late)) = late {
            let before = backend.requests().len();
            until("the backend has it", || backend.requests().len() > before);
            client.send(late);
            gate.open();
        }
        let answer = client.read_to_end().expect("an orderly end");
        assert!(answer.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&answer));
        other.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        let health: Value = serde_json::from_str(&other.response().text()).expect("JSON");
        // Nobody lingers longer: later on it would say nothing.
        if begun.elapsed() < Duration::from_millis(900) {
            return health["connections"].as_u64().expect("a number") - 1;
        }
    }
    panic!("every answer takes too long to say anything");
}

#[test]
fn who_has_nothing_more_to_say_is_not_waited_for() {
    let gate = Gate::default();
    let gated = Backend::gated(&gate);
    let short = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let long = Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{}", "x".repeat(9_000)));
    let services = service("api", &[short.url()], "")
        + &service("long", &[long.url()], "")
        + &service("gated", &[gated.url()], "");
    for driver in ["io_uring", "epoll"] {
        let check = |request: &str, late: Option<&str>, expected: u64| {
            let gateway = Gateway::start_with(&format!("workers = 1\ndriver = \"{driver}\""), &services);
            let left = left_open(&gateway, request, late.map(|late| (&gated, &gate, late)));
            assert_eq!(left, expected, "{driver}: {request}{late:?}");
        };
        check("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", None, 0);
        check("GET /api HTTP/1.0\r\n\r\n", None, 0);
        check("GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", None, 0);
        check("GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", None, 0);
        check("GET /gated/slow HTTP/1.0\r\n\r\n", Some(""), 0);
        // A reset that answers more from the client could overtake the answer: stray line ends, another request.
        check("GET /gated/slow HTTP/1.0\r\n\r\n", Some("\r\n"), 1);
        check("POST /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", None, 1);
        check("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /api HTTP/1.1\r\n", None, 1);
        check("GET /api HTTP/1.1\r\nbroken\r\n\r\n", None, 1);
        // Much of an answer may still have to be sent.
        check("GET /long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", None, 1);
    }
}
