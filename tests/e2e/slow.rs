//! Slow is not idle: whoever makes progress is waited for, whoever makes none is not.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Backend, Client, Gateway, PatternCheck, SMALL, gateway_to, pattern, service};

/// Far more than the kernel's buffers hold.
const LENGTH: usize = 16 * 1024 * 1024;

/// How long a slow peer reads slowly: several times `idle_body`.
const ROUNDS: usize = 15;
const PAUSE: Duration = Duration::from_millis(200);

const IDLE_BODY_1S: &str = "[services.api.limits]\nbody_bytes = 0\n[services.api.timeouts]\nidle_body = \"1s\"";

/// A gateway whose `idle_body` is a second.
fn impatient(backend: &Backend) -> Gateway {
    Gateway::start(&service("api", &[backend.url()], IDLE_BODY_1S))
}

/// Reads the pattern, at first 64 KiB each 200 ms. So little does not make room that the kernel thinks worth telling the
/// sender of: a single write takes longer than `idle_body`.
fn read_slowly(mut take: impl FnMut(usize) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let mut check = PatternCheck::default();
    for round in 0..LENGTH / SMALL {
        if round < ROUNDS {
            thread::sleep(PAUSE);
        }
        check.take(&take(SMALL)?);
    }
    Ok(())
}

fn sends_much() -> Backend {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").into_bytes();
    answer.extend_from_slice(&pattern(0, LENGTH));
    Backend::start(move |connection| {
        connection.request()?;
        connection.send(&answer)
    })
}

/// Begins to send a large body, in a thread.
fn upload(client: &mut Client) {
    // Not after the head: to make it up may take a while, too.
    let body = pattern(0, LENGTH);
    client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: slow\r\nContent-Length: {LENGTH}\r\n\r\n"));
    let mut sender = client.sender();
    // The gateway may cut it off; the answer tells.
    thread::spawn(move || sender.try_send(body));
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let backend = sends_much();
    let gateway = impatient(&backend);
    let mut client = gateway.connect_small();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: slow\r\n\r\n");
    client.head();
    read_slowly(|length| client.take(length)).expect("it is not cut");
    assert_eq!(gateway.logged("slow")["error"], serde_json::Value::Null);
}

#[test]
fn a_client_that_reads_nothing_is_cut() {
    let backend = sends_much();
    let gateway = impatient(&backend);
    let mut client = gateway.connect_small();
    let started = Instant::now();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: slow\r\n\r\n");
    let line = gateway.logged_within(Duration::from_secs(3), "slow");
    assert!(started.elapsed() > Duration::from_millis(900), "{:?}", started.elapsed());
    assert!(line["error"].is_string(), "{line}");
}

#[test]
fn a_backend_that_reads_slowly_gets_everything() {
    let backend = Backend::start_small(|connection| {
        connection.head()?;
        read_slowly(|length| connection.take(length))?;
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    });
    let gateway = impatient(&backend);
    let mut client = gateway.connect();
    upload(&mut client);
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}

#[test]
fn a_backend_that_reads_nothing_is_given_up() {
    let backend = Backend::start_small(|connection| {
        connection.head()?;
        thread::sleep(Duration::from_secs(4));
        Ok(())
    });
    let gateway = impatient(&backend);
    let mut client = gateway.connect();
    let started = Instant::now();
    upload(&mut client);
    let answer = client.response();
    assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"));
    assert!((900..3_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

const GET: &str = "GET /api HTTP/1.1\r\nHost: a\r\n\r\n";

/// A client that has been served, on a gateway that soon tires of waiting.
fn served(backend: &Backend) -> (Gateway, Client) {
    let timeouts = "[timeouts]\nheader_read = \"300ms\"\nkeepalive_idle = \"900ms\"\n";
    let gateway = Gateway::start(&format!("{timeouts}{}", service("api", &[backend.url()], "")));
    let mut client = gateway.connect();
    client.send(GET);
    assert_eq!(client.response().status, 200);
    (gateway, client)
}

#[test]
fn an_empty_line_begins_no_request() {
    let backend = Backend::echo();
    for stray in ["\r\n", "\r\n\r\n"] {
        let (gateway, mut client) = served(&backend);
        let started = Instant::now();
        client.send(stray);
        assert_eq!(client.rest(), b"", "nobody asked for an answer");
        assert!((700..2_500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        assert!(gateway.log.all().iter().all(|line| line["status"] != 408), "{:#?}", gateway.log.all());
    }
}

#[test]
fn a_request_may_follow_an_empty_line() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    // As some clients do behind a body (RFC 9112, section 2.2).
    for _ in 0..2 {
        client.send("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\n");
        assert_eq!(client.response().text(), "POST / HTTP/1.1\nhi");
    }
    assert!(client.is_quiet());
    client.send("\r");
    assert!(client.is_quiet());
    client.send("\n");
    client.send(GET);
    assert_eq!(client.response().text(), "GET / HTTP/1.1\n");
}

#[test]
fn a_request_that_begins_behind_an_empty_line_has_its_time() {
    let backend = Backend::echo();
    let (_gateway, mut client) = served(&backend);
    client.send("\r\n");
    thread::sleep(Duration::from_millis(400));
    let started = Instant::now();
    client.send(&GET[..10]);
    assert_eq!(client.response().status, 408);
    assert!((200..2_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(client.is_closed());
}

/// A close with unread bytes is a reset, which throws away what the kernel still has to deliver.
#[test]
fn a_last_answer_is_whole_whatever_its_client_says_meanwhile() {
    let backend = sends_much();
    let gateway = gateway_to(&backend);
    for request in ["GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET /api HTTP/1.0\r\nHost: a\r\n\r\n"]
    {
        let mut client = gateway.connect_small();
        client.send(request);
        client.head();
        client.send("\r\n");
        thread::sleep(PAUSE);
        read_slowly(|length| client.take(length)).expect("the whole answer");
        assert!(client.is_closed());
    }
}

#[test]
fn a_client_that_closed_its_side_may_read_slowly_what_is_there() {
    let backend = sends_much();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect_small();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: half\r\nConnection: close\r\n\r\n");
    client.head();
    client.finish();
    thread::sleep(4 * PAUSE);
    read_slowly(|length| client.take(length)).expect("the whole answer");
    assert_eq!(gateway.logged("half")["status"], 200);
}
