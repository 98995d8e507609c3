//! Messages on the wire: where they are split, how they follow each other, how their bodies are delimited.

use std::thread;
use std::time::Duration;

use crate::support::backend::Request;
use crate::support::{Backend, Gateway, gateway_to, service};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NAMES: &str = "X-Request-Id: split\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";

/// Sends `message` in two pieces, at every place where it can be split, and in single bytes; the backend sees the same
/// request each time.
fn check_every_split(message: &str) {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    let mut send = |pieces: &[&[u8]]| -> Request {
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                // Nothing tells when the gateway has read a piece; a moment is enough nearly always, and a piece that is
                // read together with the next is one split less, no failure.
                thread::sleep(Duration::from_millis(1));
            }
            client.send(piece);
        }
        assert_eq!(client.response().text(), "ok", "{pieces:?}");
        backend.last()
    };
    let message = message.as_bytes();
    let whole = send(&[message]);
    let check = |sent: Request, what: String| {
        assert_eq!((&sent.head, &sent.body, &sent.trailers), (&whole.head, &whole.body, &whole.trailers), "{what}");
    };
    for split in 1..message.len() {
        check(send(&[&message[..split], &message[split..]]), format!("split at {split}"));
    }
    check(send(&message.chunks(1).collect::<Vec<_>>()), "single bytes".to_owned());
    check(send(&message.chunks(3).collect::<Vec<_>>()), "threes".to_owned());
}

#[test]
fn a_get_is_the_same_however_it_is_split() {
    check_every_split(&format!("GET /api/x?y=z HTTP/1.1\r\nHost: a\r\n{NAMES}Accept: */*\r\n\r\n"));
}

#[test]
fn a_counted_body_is_the_same_however_it_is_split() {
    check_every_split(&format!("POST /api HTTP/1.1\r\nHost: a\r\n{NAMES}Content-Length: 11\r\n\r\nhello world"));
}

#[test]
fn a_chunked_body_is_the_same_however_it_is_split() {
    check_every_split(&format!(
        "POST /api HTTP/1.1\r\nHost: a\r\n{NAMES}TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         5;name=\"value\"\r\nhello\r\n00b\r\n world, say\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n"
    ));
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("\r\n\r\nGET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn a_connection_lives_as_long_as_both_want() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let check = |request: &str, persistent: bool| {
        let mut client = gateway.connect();
        client.send(request);
        let answer = client.response();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection") == Some("close"), !persistent, "{request}: {}", answer.head);
        match persistent {
            true => {
                client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
                assert_eq!(client.response().status, 200, "{request}");
            }
            false => assert!(client.is_closed(), "{request}"),
        }
    };
    check("GET /api HTTP/1.1\r\nHost: a\r\n\r\n", true);
    check("GET /api HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", true);
    check("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false);
    check("GET /api HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, CLOSE\r\n\r\n", false);
    check("GET /api HTTP/1.0\r\n\r\n", false);
    check("GET /api HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true);
    check("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", true);
}

#[test]
fn a_refusal_that_leaves_nothing_unread_keeps_the_connection() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status, 404);
    client.send("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.response().status, 404);
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    let requests: Vec<_> = (0..51)
        .map(|index| match index % 4 {
            0 => format!("GET /api/{index} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("POST /api/{index} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /"),
            2 => format!(
                "PUT /api/{index} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
            _ => format!("GET /nowhere/{index} HTTP/1.1\r\nHost: a\r\n\r\n"),
        })
        .collect();
    client.send(requests.concat());
    for index in 0..51 {
        let answer = client.response();
        let expected = match index % 4 {
            0 => format!("GET /{index} HTTP/1.1\n"),
            1 => format!("POST /{index} HTTP/1.1\nGET /"),
            2 => format!("PUT /{index} HTTP/1.1\nabc"),
            _ => {
                assert_eq!(answer.status, 404);
                continue;
            }
        };
        assert_eq!(answer.text(), expected);
    }
}

#[test]
fn nothing_behind_a_request_that_closes_is_served() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /api/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /api/2 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "GET /1 HTTP/1.1\n");
    assert!(client.is_closed());
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn absolute_form_overrides_host() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    gateway.send("GET http://b.example/api HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    assert_eq!(backend.last().header("x-forwarded-host"), Some("b.example"));
}

/// A backend whose answer has a body delimited in each way, as the path asks.
fn delimiting() -> Backend {
    Backend::start(|connection| {
        loop {
            let request = connection.request()?;
            let path = request.line().split(' ').nth(1).expect("a target").to_owned();
            match path.as_str() {
                "/length" => connection.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")?,
                "/chunked" => connection.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n",
                )?,
                "/none" => connection.send("HTTP/1.1 204 No Content\r\n\r\n")?,
                "/unchanged" => connection.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n")?,
                "/old" => {
                    connection.send("HTTP/1.0 200 OK\r\n\r\nhello")?;
                    return Ok(());
                }
                _ => {
                    connection.send("HTTP/1.1 200 OK\r\n\r\nhello")?;
                    return Ok(());
                }
            }
        }
    })
}

#[test]
fn every_way_to_delimit_an_answer_is_understood() {
    let backend = delimiting();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    for path in ["length", "chunked", "close", "none", "old", "unchanged", "length", "chunked"] {
        client.send(format!("GET /api/{path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.response();
        let (status, body, framing) = match path {
            "none" => (204, "", (None, None)),
            "unchanged" => (304, "", (Some("5"), None)),
            "length" => (200, "hello", (Some("5"), None)),
            _ => (200, "hello", (None, Some("chunked"))),
        };
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{path}");
        assert_eq!((answer.header("content-length"), answer.header("transfer-encoding")), framing, "{path}");
        assert_eq!(answer.header("connection"), None, "the client's connection lives on after {path}");
        assert!(answer.head.starts_with("HTTP/1.1 "));
    }
}

#[test]
fn an_http_1_0_client_gets_no_chunks() {
    let backend = delimiting();
    let gateway = gateway_to(&backend);
    for path in ["length", "chunked", "close", "old"] {
        let mut client = gateway.connect();
        client.send(format!("GET /api/{path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
        let answer = client.response();
        assert_eq!((answer.text().as_str(), answer.header("transfer-encoding")), ("hello", None), "{path}");
        let expected = if path == "length" { "keep-alive" } else { "close" };
        assert_eq!(answer.header("connection"), Some(expected), "{path}");
    }
}

#[test]
fn trailers_cross_where_they_are_wanted() {
    let backend = delimiting();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /api/chunked HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("hello", "X-Sum: 1\r\n"));
    assert_eq!(backend.last().header("te"), Some("trailers"));
    client.send("GET /api/chunked HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("hello", ""));
}

#[test]
fn trailers_of_a_request_cross_unless_they_would_change_its_meaning() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    gateway.send(
        "POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n\
         X-Sum: 1\r\nContent-Length: 7\r\nHost: b\r\nX-Forwarded-For: 1.1.1.1\r\nAuthorization: x\r\n\r\n",
    );
    let sent = backend.last();
    assert_eq!((sent.body.as_slice(), sent.trailers.as_str()), (&b"hi"[..], "X-Sum: 1\n"));
}

#[test]
fn interim_answers_are_passed_on_to_those_who_know_them() {
    let backend = Backend::start(|connection| {
        loop {
            connection.request()?;
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: x\r\n\r\n")?;
            connection.send(format!("HTTP/1.1 102 Processing\r\n\r\n{OK}"))?;
        }
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        let hints = client.response();
        assert_eq!((hints.status, hints.header("link")), (103, Some("</a>; rel=preload")));
        assert_eq!((hints.header("connection"), hints.header("content-length")), (None, None));
        assert_eq!(client.response().status, 102);
        assert_eq!(client.response().text(), "ok");
    }
    assert_eq!(gateway.send("GET /api HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn upstream_connections_are_pooled_after_clean_exchanges_only() {
    let check = |answer: &'static str, expected: usize| {
        let backend = Backend::start(move |connection| {
            loop {
                connection.request()?;
                connection.send(answer)?;
            }
        });
        let gateway = gateway_to(&backend);
        let mut client = gateway.connect();
        for _ in 0..3 {
            client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().text(), "ok", "{answer}");
        }
        assert_eq!(backend.connections(), expected, "{answer}");
    };
    check(OK, 1);
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1);
    check("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 1);
    check("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 3);
    check("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 3);
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", 3);
}

#[test]
fn a_body_past_its_limit_is_refused() {
    let backend = Backend::answering(OK);
    let tables = service("api", &[backend.url()], "[services.api.limits]\nbody_bytes = 10");
    let gateway = Gateway::start(&(tables + &service("free", &[backend.url()], "")));
    let check = |request: &str, status: u16| {
        let mut client = gateway.connect();
        client.send(request);
        let answer = client.response();
        assert_eq!(answer.status, status, "{request}");
        if status == 413 {
            assert_eq!(answer.reason(), "body_too_large");
        }
    };
    check("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789", 200);
    check("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413);
    check("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n", 413);
    check("POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n", 413);
    check("POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n0123456789a", 200);
}

#[test]
fn a_chunked_body_past_its_limit_is_refused_on_the_way() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.limits]\nbody_bytes = 10"));
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n");
    crate::support::until("the backend is connected to", || backend.connections() == 1);
    client.send("8\r\n01234567\r\n");
    assert_eq!(client.response().status, 413);
    assert!(client.is_closed());
    assert!(backend.requests().is_empty(), "the backend never saw a whole request");
}
