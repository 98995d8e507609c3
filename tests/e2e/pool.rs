//! Connections to a backend are kept and used again, and nobody notices when that goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Sight;
use crate::support::kernel::allow_descriptors;
use crate::support::{Backend, Client, DEADLINE, Gate, Gateway, service, until};

#[test]
fn a_pooled_connection_that_died_costs_the_client_nothing() {
    // Every connection serves one request and is closed behind it, sometimes at once, sometimes when the next one comes.
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let backend = Backend::start(move |connection| {
        let request = connection.request()?;
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len()))?;
        connection.send(request.body)?;
        if connection.index % 4 == 0 {
            thread::sleep(Duration::from_micros(connection.index as u64 % 7 * 300));
        }
        if connection.index % 3 == 0 {
            connection.reset();
        }
        connection.close();
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut client = gateway.connect();
    for index in 0..300 {
        let method = if index % 2 == 0 { "GET" } else { "POST" };
        if method == "POST" {
            // A POST that reaches a backend which closes just then may or may not have been served: nobody can tell, and
            // it is not sent again. One that comes later is safe.
            until("the connection is closed", || closed.load(Ordering::SeqCst) == backend.connections());
        }
        let body = format!("{index:05}");
        client.send(format!("{method} /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{body}"));
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, body.clone()), "{method} {index}");
    }
    let mut bodies: Vec<_> = backend.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies.len(), 300, "a request was lost or came twice");
    bodies.dedup();
    assert_eq!(bodies.len(), 300);
}

#[test]
fn a_request_that_may_have_been_served_is_not_sent_again_unless_idempotent() {
    // The second request of a connection is read, and answered with a close.
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        connection.request()?;
        Ok(())
    });
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut client = gateway.connect();
    let mut status = |method: &str| {
        client.send(format!("{method} /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        client.response().status
    };
    assert_eq!((status("POST"), status("POST")), (200, 502));
    assert_eq!(backend.requests().len(), 2);
    assert_eq!((status("PUT"), status("PUT")), (200, 200));
    assert_eq!(backend.requests().len(), 5);
    assert_eq!(gateway.metric("api_gateway_retries_total{worker=\"0\"}"), 1.0);
}

/// How a pooled connection ends when a request's head has come on it.
#[derive(Debug, Clone, Copy)]
enum End {
    Orderly,
    Reset,
}

/// A backend whose first connection serves one request and dies of the second one's head, and the gateway in front of it.
/// Behind the head on the next connection the backend says `go_on`.
fn dies_once(end: End, go_on: &'static str) -> (Backend, Gateway, Client) {
    let backend = Backend::start(move |connection| {
        if connection.index == 0 {
            connection.request()?;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            connection.head()?;
            if let End::Reset = end {
                connection.reset();
            }
            return Ok(());
        }
        let head = connection.head()?;
        connection.send(go_on)?;
        let body = match head.header("content-length") {
            Some(_) => connection.take(5)?,
            None => connection.chunk()?,
        };
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")?;
        connection.send(body)
    });
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut client = gateway.connect();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status, 200);
    (backend, gateway, client)
}

#[test]
fn a_body_that_waits_for_100_survives_a_pooled_connection_that_died() {
    for end in [End::Orderly, End::Reset] {
        let (backend, gateway, mut client) = dies_once(end, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(
            "PUT /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: put\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(client.response().status, 100, "{end:?}");
        client.send("hello");
        let answer = client.response();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{end:?}");
        assert_eq!(backend.connections(), 2);
        assert_eq!(gateway.logged("put")["retries"], 1);
    }
}

#[test]
fn a_body_that_comes_later_survives_a_pooled_connection_that_died() {
    for end in [End::Orderly, End::Reset] {
        for framing in [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")] {
            let (backend, gateway, mut client) = dies_once(end, "");
            client.send(format!("PUT /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: put\r\n{}\r\n\r\n", framing.0));
            until("it is sent again", || backend.connections() == 2 || client.sight() != Sight::Nothing);
            client.send(framing.1);
            let answer = client.response();
            assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{end:?} {}", framing.0);
            assert_eq!(gateway.logged("put")["retries"], 1);
        }
    }
}

#[test]
fn a_head_that_may_have_been_acted_on_is_not_sent_again() {
    for end in [End::Orderly, End::Reset] {
        let (backend, _gateway, mut client) = dies_once(end, "");
        client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_closed"), "{end:?}");
        assert_eq!(backend.connections(), 1);
    }
}

#[test]
fn what_a_backend_says_unasked_is_nobodys_answer() {
    let evil = Arc::new(AtomicUsize::new(0));
    let said = Arc::clone(&evil);
    let backend = Backend::start(move |connection| {
        loop {
            connection.request()?;
            const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
            if connection.index % 2 == 0 {
                connection.send(format!("{OK}{EVIL}"))?;
            } else {
                connection.send(OK)?;
                connection.send(EVIL)?;
            }
            said.fetch_add(1, Ordering::SeqCst);
        }
    });
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut client = gateway.connect();
    for index in 1..=100 {
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "ok");
        until("the backend has said it", || evil.load(Ordering::SeqCst) == index);
    }
}

#[test]
fn a_body_sent_with_head_does_not_poison_the_next_answer() {
    let backend = Backend::start(|connection| {
        loop {
            connection.request()?;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nHTTP/1.1 200 Evil\r\n\r\n__________")?;
        }
    });
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut client = gateway.connect();
    for _ in 0..3 {
        client.send("HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.head_response().head.starts_with("HTTP/1.1 200 OK\r\n"));
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{response:?}");
        assert_eq!(response.body.len(), 30);
    }
}

#[test]
fn a_body_that_comes_late_after_head_does_not_either() {
    let late = Arc::new(AtomicUsize::new(0));
    let said = Arc::clone(&late);
    let backend = Backend::start(move |connection| {
        loop {
            let request = connection.request()?;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n")?;
            connection.send("HTTP/1.1 200 Evil\r\n\r\n__________")?;
            if request.line().starts_with("HEAD") {
                said.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut client = gateway.connect();
    for index in 1..=100 {
        client.send("HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.head_response().head.starts_with("HTTP/1.1 200 OK\r\n"));
        until("the backend has said it", || late.load(Ordering::SeqCst) == index);
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{response:?}");
        assert_eq!(response.body.len(), 30);
    }
}

#[test]
fn a_service_has_its_own_limits_and_timeouts() {
    let long_head = Backend::start(|connection| {
        loop {
            connection.request()?;
            let padding = "x".repeat(30_000);
            connection.send(format!("HTTP/1.1 200 OK\r\nX-Long: {padding}\r\nContent-Length: 2\r\n\r\nok"))?;
        }
    });
    let gateway = Gateway::start(
        &(service(
            "short",
            &[long_head.url()],
            "[services.short.limits]\nheader_count = 8\nuri_bytes = 64\nheader_bytes = 2048",
        ) + &service(
            "long",
            &[long_head.url()],
            "[services.long.limits]\nheader_bytes = 65536\n[services.long.timeouts]\nkeepalive_idle = \"100ms\"",
        )),
    );
    let status =
        |path: &str, fields: &str| gateway.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).status;
    assert_eq!(status("/short", ""), 502);
    assert_eq!(status("/long", ""), 200);
    assert_eq!(status("/short", &"A: b\r\n".repeat(8)), 431);
    assert_eq!(status("/short", &format!("A: {}\r\n", "b".repeat(3000))), 431);
    assert_eq!(status(&format!("/short/{}", "a".repeat(60)), ""), 414);
    assert_eq!(status(&format!("/long/{}", "a".repeat(60)), &"A: b\r\n".repeat(50)), 200);
    // The idle connection to the backend ages out, and the next request opens another.
    let before = long_head.connections();
    until("the pool has been tidied", || {
        thread::sleep(Duration::from_millis(300));
        status("/long", "") == 200 && long_head.connections() > before
    });
}

#[test]
fn as_many_connections_are_kept_as_were_in_use_at_once() {
    const CLIENTS: usize = 800;
    allow_descriptors();
    let gate = Gate::default();
    let backend = Backend::gated(&gate);
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    let begun = Instant::now();
    for round in 0..2 {
        for (index, client) in clients.iter_mut().enumerate() {
            client.send("GET /a/slow HTTP/1.1\r\nHost: a\r\n\r\n");
            // The backend's queue has room for no more.
            if index % 64 == 63 || index == CLIENTS - 1 {
                until("the backend has them", || backend.requests().len() == round * CLIENTS + index + 1);
            }
        }
        (0..CLIENTS).for_each(|_| gate.open());
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
    assert!(begun.elapsed() < DEADLINE, "too slow to tell");
    // A 64th is forgotten each second.
    let forgotten = CLIENTS.div_ceil(64) * (begun.elapsed().as_secs() as usize + 1);
    let opened = backend.connections();
    assert!((CLIENTS..=CLIENTS + forgotten).contains(&opened), "{opened} connections, {forgotten} more may be");
}
