//! Backends that refuse, break, stall or vanish, at every stage; and clients that do not stay.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Backend, DEADLINE, Gate, Gateway, gateway_to, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET /api HTTP/1.1\r\nHost: a\r\n\r\n";

/// How a backend leaves.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Closing,
    Resetting,
}

/// A backend that reads a request, sends `part` of an answer, and leaves.
fn leaving(part: &'static str, leaves: Leaves) -> Backend {
    Backend::start(move |connection| {
        connection.request()?;
        connection.send(part)?;
        if let Leaves::Resetting = leaves {
            connection.reset();
        }
        Ok(())
    })
}

#[test]
fn a_backend_that_leaves_before_its_answer_begins_is_a_502() {
    let parts = ["", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 100 Continue\r\n\r\n"];
    for part in parts {
        for leaves in [Leaves::Closing, Leaves::Resetting] {
            let backend = leaving(part, leaves);
            let gateway = gateway_to(&backend);
            let mut client = gateway.connect();
            client.send(GET);
            let mut answer = client.response();
            if answer.status == 100 {
                answer = client.response();
            }
            assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_closed"), "{part:?}, {leaves:?}");
            client.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status, 404, "the client's connection lives on");
            assert_eq!(backend.connections(), 1, "a fresh connection that breaks is not tried again");
        }
    }
}

#[test]
fn a_backend_that_leaves_in_the_middle_of_a_body_cuts_the_answer() {
    let parts = [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ];
    for part in parts {
        for leaves in [Leaves::Closing, Leaves::Resetting] {
            for version in ["1.1", "1.0"] {
                let backend = leaving(part, leaves);
                let gateway = gateway_to(&backend);
                let mut client = gateway.connect();
                client.send(format!("GET /api HTTP/{version}\r\nHost: a\r\nX-Request-Id: cut\r\n\r\n"));
                let result = client.try_response(false);
                assert!(result.is_err(), "{part:?}, {leaves:?}, {version}: {result:?}");
                let line = gateway.logged("cut");
                assert_eq!(line["status"], 200);
                assert!(line["error"].is_string(), "{line}");
            }
        }
    }
}

#[test]
fn an_answer_that_ends_with_its_connection_is_complete_only_at_a_clean_close() {
    let part = "HTTP/1.1 200 OK\r\n\r\nhello";
    for version in ["1.1", "1.0"] {
        let ask = |leaves| {
            let backend = leaving(part, leaves);
            let gateway = gateway_to(&backend);
            let mut client = gateway.connect();
            client.send(format!("GET /api HTTP/{version}\r\nHost: a\r\n\r\n"));
            client.try_response(false)
        };
        assert_eq!(ask(Leaves::Closing).expect("a response").text(), "hello");
        assert!(ask(Leaves::Resetting).is_err(), "{version}");
    }
}

#[test]
fn an_answer_that_could_be_read_in_two_ways_is_a_502() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(300));
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(1_000);
    let heads: Vec<String> = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\nok",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "\r\n\r\n\r\n",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([long, many, interim])
    .collect();
    let heads = Arc::new(heads);
    let backend = Backend::start({
        let heads = Arc::clone(&heads);
        move |connection| {
            loop {
                let request = connection.request()?;
                let index: usize =
                    request.line()[5..].split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
                connection.send(&heads[index])?;
            }
        }
    });
    let gateway = gateway_to(&backend);
    for (index, head) in heads.iter().enumerate() {
        // HTTP/1.0, so that no interim answer comes first.
        let answer = gateway.send(format!("GET /api/{index} HTTP/1.0\r\n\r\n"));
        let shown = &head[..head.len().min(100)];
        assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_protocol_error"), "{shown:?}");
        assert_eq!(backend.connections(), index + 1, "the connection is not used again after {shown:?}");
    }
}

#[test]
fn a_backend_that_is_not_there_is_a_502() {
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let missing = std::env::temp_dir().join("ringway-e2e-nobody.sock");
    for endpoint in [format!("http://127.0.0.1:{port}"), format!("unix:{}", missing.display())] {
        let gateway = Gateway::start(&service("api", &[endpoint], ""));
        let answer = gateway.get("/api");
        assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unreachable"));
    }
}

/// A listener that nobody accepts from, and whose queue is full: a connection attempt gets no answer.
fn blackhole() -> (socket2::Socket, SocketAddr, Vec<std::net::TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    socket.listen(0).expect("a queue");
    let address = socket.local_addr().expect("an address").as_socket().expect("TCP");
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queued.push(stream);
        assert!(queued.len() < 100, "the queue never fills");
    }
    (socket, address, queued)
}

#[test]
fn a_backend_that_accepts_nobody_is_a_504_in_time() {
    let (_socket, address, _queued) = blackhole();
    let gateway =
        Gateway::start(&service("api", &[format!("http://{address}")], "[services.api.timeouts]\nconnect = \"300ms\""));
    let started = Instant::now();
    let answer = gateway.get("/api");
    assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_connect_timeout"));
    assert!((250..3_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[test]
fn a_backend_that_says_nothing_is_a_504_in_time() {
    for part in ["", "HTTP/1.1 200 OK\r\n"] {
        let backend = Backend::start(move |connection| {
            connection.request()?;
            connection.send(part)?;
            connection.rest();
            Ok(())
        });
        let timeouts = "[services.api.timeouts]\nresponse_header = \"300ms\"";
        let gateway = Gateway::start(&service("api", &[backend.url()], timeouts));
        let mut client = gateway.connect();
        let started = Instant::now();
        client.send(GET);
        let answer = client.response();
        assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"));
        assert!((250..3_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        client.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 404, "the client's connection lives on");
    }
}

#[test]
fn a_backend_that_stops_in_the_middle_of_its_body_is_cut_off() {
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?;
        connection.rest();
        Ok(())
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.timeouts]\nidle_body = \"300ms\""));
    let mut client = gateway.connect();
    client.send(GET);
    assert!(client.try_response(false).is_err());
}

#[test]
fn a_client_that_stops_in_the_middle_of_its_body_gets_a_408() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.timeouts]\nidle_body = \"300ms\""));
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    let answer = client.response();
    assert_eq!((answer.status, answer.reason().as_str()), (408, "request_timeout"));
    assert!(client.is_closed());
    assert!(backend.requests().is_empty());
}

#[test]
fn a_slow_head_gets_a_408_and_a_slow_connection_goes() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&format!(
        "[timeouts]\nheader_read = \"500ms\"\nkeepalive_idle = \"500ms\"\n{}",
        service("api", &[backend.url()], "")
    ));
    // One byte at a time: each is progress, the head as a whole is not.
    let mut slow = gateway.connect();
    let mut writer = slow.stream.try_clone().expect("a second handle");
    let started = Instant::now();
    let dripping = thread::spawn(move || {
        let head = "GET /api HTTP/1.1\r\nHost: a\r\nX-Padding: ".bytes().chain(std::iter::repeat(b'x'));
        head.take_while(|byte| {
            thread::sleep(Duration::from_millis(40));
            io::Write::write_all(&mut writer, &[*byte]).is_ok() && started.elapsed() < Duration::from_secs(10)
        })
        .count()
    });
    let answer = slow.response();
    assert_eq!((answer.status, answer.reason().as_str()), (408, "request_timeout"));
    assert!((450..5_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(slow.is_closed());
    dripping.join().expect("no panic");

    // Idle, before a first request and between two: closed, without a word.
    assert!(gateway.connect().is_closed());
    let mut idle = gateway.connect();
    idle.send(GET);
    assert_eq!(idle.response().status, 200);
    assert!(idle.is_closed());
    assert!(backend.requests().len() == 1);
}

#[test]
fn a_client_that_leaves_takes_its_upstream_exchange_along() {
    let left = Gate::default();
    let backend = Backend::start({
        let left = left.clone();
        move |connection| {
            let request = connection.request()?;
            if request.line().contains("begun") {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")?;
                while connection.send([0; 10_000]).is_ok() {}
            } else {
                connection.rest();
            }
            left.open();
            Ok(())
        }
    });
    let gateway = gateway_to(&backend);
    for path in ["waiting", "begun"] {
        let mut client = gateway.connect();
        client.send(format!("GET /api/{path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {path}\r\n\r\n"));
        until("the backend has it", || backend.requests().iter().any(|request| request.line().contains(path)));
        if path == "begun" {
            client.head();
        }
        drop(client);
        left.pass();
        let line = gateway.logged(path);
        assert_eq!(line["error"], "client_gone", "{line}");
        if path == "waiting" {
            assert_eq!(line["status"], 499);
        }
    }
    let uploading = gateway.connect();
    let mut client = uploading;
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: upload\r\nContent-Length: 10\r\n\r\nhello");
    until("the backend is connected to", || backend.connections() == 3);
    drop(client);
    let line = gateway.logged("upload");
    assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()));
    assert_eq!(gateway.metric("api_gateway_requests_total{method=\"POST\",endpoint=\"/api\",status=\"499\"}"), 1.0);
}

#[test]
fn an_idempotent_request_is_sent_again_when_a_pooled_connection_dies_on_it() {
    for leaves in [Leaves::Closing, Leaves::Resetting] {
        // The second request on a connection is read, and then the backend leaves without a word.
        let backend = Backend::start(move |connection| {
            connection.request()?;
            connection.send(OK)?;
            connection.request()?;
            if let Leaves::Resetting = leaves {
                connection.reset();
            }
            Ok(())
        });
        let gateway = gateway_to(&backend);
        let mut client = gateway.connect();
        let ask = |client: &mut crate::support::Client, method: &str, id: &str| {
            client.send(format!(
                "{method} /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\nContent-Length: 2\r\n\r\nhi"
            ));
            client.response().status
        };
        assert_eq!(ask(&mut client, "GET", "first"), 200);
        assert_eq!(ask(&mut client, "GET", "again"), 200, "{leaves:?}");
        assert_eq!(gateway.logged("again")["retries"], 1);
        assert_eq!(gateway.logged("first")["retries"], 0);
        // The backend has read it, so it may have acted on it.
        let status = ask(&mut client, "POST", "post");
        let times = backend.requests().iter().filter(|request| request.header("x-request-id") == Some("post")).count();
        assert_eq!((times, status), (1, 502), "a POST that was read is not sent again: {leaves:?}");
        assert_eq!(gateway.logged("post")["error"], "upstream_closed");
    }
}

#[test]
fn a_request_is_sent_again_once_at_most() {
    // Every connection dies on its second request; so does the fresh one, on its first, from then on.
    let backend = Backend::start(|connection| {
        if connection.index == 0 {
            connection.request()?;
            connection.send(OK)?;
        }
        connection.request()?;
        Ok(())
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send(GET);
    assert_eq!(client.response().status, 200);
    client.send(GET);
    assert_eq!(client.response().status, 502);
    assert_eq!(backend.requests().len(), 3);
}

/// The backend closes idle connections at random while clients keep it busy: nobody notices, nothing runs twice.
#[test]
fn random_closes_of_idle_connections_cost_nobody_anything() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 400;
    let seen = Arc::new(Mutex::new(std::collections::HashMap::<String, usize>::new()));
    let draw = Arc::new(AtomicUsize::new(1));
    let backend = Backend::start({
        let (seen, draw) = (Arc::clone(&seen), Arc::clone(&draw));
        move |connection| {
            let mut served = false;
            loop {
                // Closes at once after every fifth answer, after some milliseconds of idleness otherwise. A connection that has not
                // served yet is not idle: on a busy machine its request may take longer than that.
                let wait = match draw.fetch_add(7_919, Ordering::Relaxed) % 5 {
                    _ if !served => DEADLINE,
                    0 => return Ok(()),
                    _ => Duration::from_millis(5),
                };
                if !connection.waits_for_a_request(wait) {
                    return Ok(());
                }
                let request = connection.request()?;
                let id = request.header("x-request-id").expect("an id").to_owned();
                *seen.lock().expect("no panic").entry(id).or_default() += 1;
                connection.send(OK)?;
                served = true;
            }
        }
    });
    let gateway = gateway_to(&backend);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for index in 0..CLIENTS {
            let (gateway, refused) = (&gateway, &refused);
            scope.spawn(move || {
                let mut client = gateway.connect();
                for request in 0..REQUESTS {
                    let method = if request % 2 == 0 { "GET" } else { "POST" };
                    client.send(format!(
                        "{method} /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: {index}-{request}\r\nContent-Length: 0\r\n\r\n"
                    ));
                    let status = client.response().status;
                    match method {
                        "GET" => assert_eq!(status, 200, "client {index}, request {request}"),
                        // Where the kernel cannot say that a request was not delivered, a POST is not sent again.
                        _ if status == 502 => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        _ => assert_eq!(status, 200, "client {index}, request {request}"),
                    }
                }
            });
        }
    });
    let seen = seen.lock().expect("no panic");
    let refused = refused.load(Ordering::Relaxed);
    assert!(seen.values().all(|&times| times == 1), "none runs twice");
    assert_eq!(seen.len() + refused, CLIENTS * REQUESTS, "none is lost");
    assert!(refused <= CLIENTS * REQUESTS / 50, "{refused} POSTs were refused");
    assert!(gateway.metric("api_gateway_upstream_stale_total{worker=\"0\"}") > 10.0, "connections were closed");
}

/// Answers once by a script, on every connection.
fn failing(answer: &'static str, reset: bool) -> Backend {
    Backend::start(move |connection| {
        connection.request()?;
        connection.send(answer)?;
        if reset {
            connection.reset();
        }
        Ok(())
    })
}

#[test]
fn a_body_that_breaks_off_is_never_taken_for_a_whole_one() {
    let one = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    let other = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let inside = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf";
    let wrong = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n";
    for reset in [false, true] {
        for answer in [one, other, inside, wrong] {
            let backend = failing(answer, reset);
            let gateway = Gateway::start(&service("a", &[backend.url()], ""));
            for version in ["1.1", "1.0"] {
                let mut client = gateway.connect();
                client.send(format!("GET /a HTTP/{version}\r\nHost: a\r\nX-Request-Id: cut-{version}\r\n\r\n"));
                let failed = match client.try_response(false) {
                    Err(_) => true,
                    Ok(response) => response.status == 502,
                };
                assert!(failed, "{answer} {reset} HTTP/{version}");
                let line = gateway.logged(&format!("cut-{version}"));
                assert!(line["error"].is_string(), "{line}");
            }
        }
    }
}

#[test]
fn an_answer_that_asks_for_an_upgrade_says_to_what() {
    let backend = Backend::answering(
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: x/1\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
    );
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.response();
    assert_eq!(
        (answer.status, answer.header("upgrade"), answer.header("connection")),
        (426, Some("x/1"), Some("Upgrade"))
    );
}
