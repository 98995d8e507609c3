//! Answers that come before the request is through: they reach the client, and leave nothing behind for the next request.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::backend::Connection;
use crate::support::{Backend, Gate, Gateway, QUIET, holds_within, kernel, pattern, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// More than the kernel takes for a connection whose other end reads nothing, in bytes.
const TOO_LONG: usize = 16 * 1024 * 1024;
/// The most that the gateway reads at once, in bytes.
const PIECE: usize = 64 * 1024;
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Sends one chunk each 100 ms.
fn send_slowly(connection: &mut Connection, pieces: usize) -> io::Result<()> {
    connection.send(CHUNKED)?;
    for index in 0..pieces {
        thread::sleep(Duration::from_millis(100));
        connection.send(format!("3\r\n{index:02},\r\n"))?;
    }
    connection.send("0\r\n\r\n")
}

#[test]
fn a_connection_in_the_middle_of_a_request_serves_no_other() {
    let (begun, answer, look) = (Gate::default(), Gate::default(), Gate::default());
    let backend = Backend::start_small({
        let (begun, answer, look) = (begun.clone(), answer.clone(), look.clone());
        move |connection| {
            loop {
                let head = connection.head()?;
                let Some(length) = head.header("content-length") else {
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")?;
                    continue;
                };
                begun.open();
                answer.pass();
                connection.send(OK)?;
                look.pass();
                let taken = connection.take(length.parse().expect("a number"));
                let is_whole = taken.is_ok();
                let body = taken.unwrap_or_else(|_| connection.rest());
                assert!(body == pattern(0, body.len()), "something else stands in the body");
                if !is_whole {
                    return Ok(());
                }
            }
        }
    });
    let limits = "[services.api.limits]\nbody_bytes = 0\n";
    let timeouts = "[services.api.timeouts]\nresponse_header = \"2s\"\nidle_body = \"2s\"";
    let gateway = Gateway::start(&service("api", &[backend.url()], &format!("{limits}{timeouts}")));

    // What is on its way may be counted at both ends, so it can be a little too much.
    let held = || kernel::held_for(backend.address) as usize;
    // An upload of `length` bytes is sent piece by piece, each when the one before has gone out, until one gets stuck or all of
    // it is through. It is answered, and another client asks. Returns how much was sent, how much of that the gateway had read,
    // and how much had gone out.
    let round = |length: usize| {
        let body = pattern(0, length);
        let mut client = gateway.connect();
        client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        begun.pass();
        let mut sent = 0;
        let mut is_stuck = false;
        while !is_stuck && sent < length {
            let end = length.min(sent + PIECE);
            client.send(&body[sent..end]);
            sent = end;
            is_stuck = !holds_within(QUIET, || held() >= sent);
        }
        // Nobody reads now, so this stays as it is until the backend looks. An upload that is not whole is read on once it is
        // answered, and thrown away.
        let (gone_out, read) = (held(), sent - kernel::held_for(gateway.address) as usize);
        answer.open();
        assert_eq!(client.response().text(), "ok");
        if gone_out < sent {
            let next = gateway.get("/api");
            assert_eq!((next.status, next.text().as_str()), (200, "next"), "{gone_out} of {length} bytes had gone out");
        }
        look.open();
        drop(client);
        until("the backend has taken the rest", || held() == 0);
        (sent, read, gone_out)
    };
    // The danger is a body whose end has been read and has not gone out: one that is a little longer than what the kernel
    // takes, which differs a little from time to time.
    let mut length = TOO_LONG;
    let mut tried = Vec::new();
    loop {
        assert!(tried.len() < 20, "no upload stops right before its end: {tried:?}");
        let (sent, read, gone_out) = round(length);
        tried.push((length, sent, read, gone_out));
        match gone_out < sent {
            true if read == length => break,
            true => length = read,
            false => length = TOO_LONG,
        }
    }
}

#[test]
fn an_interim_answer_is_no_silence() {
    let backend = Backend::start(|connection| {
        if connection.index > 0 {
            assert_eq!(String::from_utf8_lossy(&connection.rest()), "", "nothing is sent again");
            return Ok(());
        }
        connection.request()?;
        connection.send(OK)?;
        connection.request()?;
        connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
    });
    let gateway =
        Gateway::start(&service("api", &[backend.url()], "[services.api.timeouts]\nresponse_header = \"2s\""));
    let mut client = gateway.connect();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status, 200);
    client.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: hinted\r\n\r\n");
    assert_eq!(client.response().status, 103);
    let answer = client.response();
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_closed"));
    assert_eq!(gateway.logged("hinted")["retries"], 0);
    assert_eq!(backend.connections(), 1, "it is not sent again");
}

/// The client's body stops coming, while its answer streams for longer than `idle_body`.
fn check_stalled_upload(version: &str) {
    let backend = Backend::start(|connection| {
        connection.head()?;
        connection.take(10)?;
        send_slowly(connection, 15)
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.timeouts]\nidle_body = \"500ms\""));
    let mut client = gateway.connect();
    client.send(format!("POST /api {version}\r\nHost: a\r\nContent-Length: 100\r\n\r\n0123456789"));
    let answer = client.response();
    let expected: String = (0..15).map(|index| format!("{index:02},")).collect();
    assert_eq!((answer.status, answer.text()), (200, expected));
    assert!(client.is_closed(), "the rest of the body was never read");
}

#[test]
fn a_stalled_upload_does_not_cut_its_answer() {
    check_stalled_upload("HTTP/1.1");
}

#[test]
fn a_stalled_upload_does_not_cut_an_answer_that_ends_with_the_connection() {
    check_stalled_upload("HTTP/1.0");
}

#[test]
fn an_upstream_that_takes_no_more_may_still_answer_slowly() {
    let path = std::env::temp_dir().join(format!("ringway-e2e-deaf-{}", std::process::id()));
    let refused = Gate::default();
    // A Unix socket: there a receiver that stops is noticed at once by the sender.
    Backend::unix(&path, {
        let refused = refused.clone();
        move |connection| {
            connection.head()?;
            connection.stop_reading()?;
            connection.send(CHUNKED)?;
            connection.send("5\r\nfirst\r\n")?;
            refused.pass();
            for word in ["2nd", "3rd"] {
                thread::sleep(Duration::from_millis(900));
                connection.send(format!("3\r\n{word}\r\n"))?;
            }
            connection.send("0\r\n\r\n")
        }
    });
    let endpoint = format!("unix:{}", path.display());
    let gateway = Gateway::start(&service("api", &[endpoint], "[services.api.timeouts]\nresponse_header = \"500ms\""));
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n0123456789");
    client.head();
    assert_eq!(client.chunk().expect("the first chunk"), b"first");
    client.send("0123456789");
    refused.open();
    for expected in ["2nd", "3rd", ""] {
        assert_eq!(client.chunk().expect("the next chunk"), expected.as_bytes());
    }
    std::fs::remove_file(path).expect("the socket is there");
}

#[test]
fn a_silent_upstream_is_waited_for_no_longer_by_an_expectation() {
    let backend = Backend::start(|connection| {
        connection.head()?;
        assert_eq!(connection.rest(), b"");
        Ok(())
    });
    let timeouts = "[services.api.timeouts]\nresponse_header = \"500ms\"\nidle_body = \"3s\"";
    let gateway = Gateway::start(&service("api", &[backend.url()], timeouts));
    let mut client = gateway.connect();
    let started = Instant::now();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"));
    assert!((400..2_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(client.is_closed(), "whether the body follows is not known");
}

/// The upstream goes on with its answer, though it does not take the rest of the request.
#[test]
fn a_stream_lives_on_while_its_upload_is_stuck() {
    let backend = Backend::start_small(|connection| {
        connection.head()?;
        send_slowly(connection, 30)
    });
    let lines = "[services.api.limits]\nbody_bytes = 0\n[services.api.timeouts]\nidle_body = \"1s\"";
    let gateway = Gateway::start(&service("api", &[backend.url()], lines));
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: stuck\r\nContent-Length: 50000000\r\n\r\n");
    let mut sender = client.sender();
    let sending = thread::spawn(move || sender.try_send(pattern(0, 50_000_000)));
    client.head();
    let pieces = (0..).map_while(|_| client.chunk().ok().filter(|chunk| !chunk.is_empty())).count();
    assert_eq!(pieces, 30);
    let line = gateway.logged("stuck");
    assert_eq!((&line["status"], &line["error"]), (&200.into(), &serde_json::Value::Null), "{line}");
    // The connection is closed with what was not read of it.
    assert!(sending.join().expect("no panic").is_err());
}

/// With the whole body at hand nobody waits for leave to send it, whatever the upstream says of that.
#[test]
fn a_100_after_the_whole_request_changes_no_deadline() {
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        connection.rest();
        Ok(())
    });
    let lines = "[services.api.timeouts]\nresponse_header = \"1s\"\nidle_body = \"1s\"";
    let gateway = Gateway::start(&service("api", &[backend.url()], lines));
    let request = |body: &str| {
        format!("POST /api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n{body}")
    };
    let mut client = gateway.connect();
    client.send(request("hello"));
    assert!(client.head().starts_with("HTTP/1.1 100 "));
    assert_eq!(client.response().status, 504);
    // And one that leaves is noticed.
    let mut leaving = gateway.connect();
    leaving.send(request("hello"));
    leaving.head();
    drop(leaving);
    until("nothing is under way", || gateway.metric("api_gateway_active_requests") == 1.0);
}

#[test]
fn who_has_begun_to_send_a_body_is_expected_to_go_on() {
    let backend = Backend::start(|connection| {
        connection.head()?;
        connection.rest();
        Ok(())
    });
    let lines = "[services.api.timeouts]\nresponse_header = \"500ms\"\nidle_body = \"1s\"";
    let gateway = Gateway::start(&service("api", &[backend.url()], lines));
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\nhello");
    assert_eq!(client.response().status, 408, "it is not the upstream's fault");
}
