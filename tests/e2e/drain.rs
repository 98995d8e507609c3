//! Going down without losing anybody.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Sight;
use crate::support::kernel::allow_descriptors;
use crate::support::{Backend, Client, Gate, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET /api HTTP/1.1\r\nHost: a\r\n\r\n";

/// A connection to the gateway, or nothing once it takes no more.
fn try_connect(gateway: &Gateway) -> Option<Client> {
    match TcpStream::connect(gateway.address) {
        Ok(stream) => {
            stream.set_read_timeout(Some(crate::support::DEADLINE)).expect("a timeout");
            Some(Client::from(stream))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Err(error) => panic!("a client that was let in is thrown out: {error}"),
    }
}

/// Every request that was written on an established connection is answered, whenever the drain begins; every request that
/// was answered ran once, and none ran that was not.
fn check_drain_under_load(server: &str, reconnect: bool) {
    const CLIENTS: usize = 16;
    let ran = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let backend = Backend::start({
        let ran = Arc::clone(&ran);
        move |connection| {
            loop {
                let request = connection.request()?;
                let id = request.header("x-request-id").expect("an id").to_owned();
                *ran.lock().expect("no panic").entry(id).or_default() += 1;
                connection.send(OK)?;
            }
        }
    });
    let mut gateway = Gateway::start_with(server, &service("api", &[backend.url()], ""));
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for index in 0..CLIENTS {
            let (gateway, answered) = (&gateway, &answered);
            scope.spawn(move || {
                let mut request = 0;
                // A draining gateway says `Connection: close`, and then refuses.
                'connections: while let Some(mut client) = try_connect(gateway) {
                    loop {
                        let close = if reconnect { "Connection: close\r\n" } else { "" };
                        client.send(format!(
                            "POST /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: {index}-{request}\r\n{close}Content-Length: 2\r\n\r\nhi"
                        ));
                        let answer = client.try_response(false);
                        let answer = answer.unwrap_or_else(|error| panic!("request {index}-{request}: {error}"));
                        assert_eq!(answer.status, 200, "request {index}-{request}");
                        answered.fetch_add(1, Ordering::Relaxed);
                        request += 1;
                        if answer.header("connection") == Some("close") {
                            continue 'connections;
                        }
                    }
                }
            });
        }
        until("there is load", || answered.load(Ordering::Relaxed) > 500);
        gateway.signal("TERM");
    });
    assert_eq!(gateway.wait_exit().code(), Some(0));
    let ran = ran.lock().expect("no panic");
    assert!(ran.values().all(|&times| times == 1), "none runs twice");
    assert_eq!(ran.len(), answered.load(Ordering::Relaxed), "what ran was answered, what was answered ran");
}

#[test]
fn a_drain_under_load_loses_no_request_of_kept_connections() {
    check_drain_under_load("", false);
}

#[test]
fn a_drain_under_load_loses_no_request_of_new_connections() {
    check_drain_under_load("workers = 2", true);
}

#[test]
fn a_drain_under_load_loses_no_request_on_epoll() {
    check_drain_under_load("driver = \"epoll\"", true);
}

#[test]
fn a_request_in_flight_finishes_and_idle_connections_close() {
    let gate = Gate::default();
    let backend = Backend::start({
        let gate = gate.clone();
        move |connection| {
            connection.request()?;
            gate.pass();
            connection.send(OK)
        }
    });
    let mut gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let mut idle = gateway.connect();
    idle.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.response().status, 200);
    let mut busy = gateway.connect();
    busy.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    until("the backend has it", || backend.requests().len() == 1);
    gateway.signal("INT");
    assert!(idle.is_closed());
    until("the port is closed", || TcpStream::connect(gateway.address).is_err());
    gate.open();
    let answer = busy.response();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(busy.is_closed());
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn a_drain_ends_when_its_time_is_over() {
    let backend = Backend::silent();
    let mut gateway = Gateway::start_with("drain_timeout = \"500ms\"", &service("api", &[backend.url()], ""));
    let mut stuck = gateway.connect();
    stuck.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: stuck\r\n\r\n");
    until("the backend has it", || backend.requests().len() == 1);
    let started = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
    assert!((400..5_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    stuck.rest();
    gateway.logged("stuck");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let backend = Backend::silent();
    let mut gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let mut stuck = gateway.connect();
    stuck.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    until("the backend has it", || backend.requests().len() == 1);
    gateway.signal("TERM");
    until("the port is closed", || TcpStream::connect_timeout(&gateway.address, Duration::from_millis(50)).is_err());
    let started = Instant::now();
    gateway.signal("TERM");
    gateway.wait_exit();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn readiness_goes_before_the_listener_does() {
    let backend = Backend::answering(OK);
    let mut gateway = Gateway::start_with("drain_delay = \"1s\"", &service("api", &[backend.url()], ""));
    assert_eq!(gateway.get("/health/ready").status, 200);
    gateway.signal("TERM");
    until("readiness says no", || gateway.get("/readyz").status == 503);
    let health = gateway.get("/health");
    assert_eq!(health.status, 503);
    assert!(health.text().contains("\"draining\""), "{}", health.text());
    assert_eq!(gateway.get("/health/live").status, 200);
    assert_eq!(gateway.get("/livez").status, 200);
    assert_eq!(gateway.get("/api").status, 200, "traffic that still comes is served");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

/// Clients with an idle connection ask again during a drain: one each millisecond, and all that are left as soon as the
/// first goodbye is seen. Whoever asked before its own goodbye had come is answered.
fn check_drain_of_idle_connections(server: &str) {
    const CLIENTS: usize = 300;
    // Nobody can rule out a request that arrives between the gateway's last look and its goodbye. One that arrives any
    // earlier is not lost; when those are, dozens are.
    const UNLUCKY: usize = 3;
    allow_descriptors();
    let backend = Backend::answering(OK);
    let mut gateway = Gateway::start_with(server, &service("api", &[backend.url()], ""));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.response().status, 200);
    }
    // Off the worker's core: who shares it sees nothing of what happens in between.
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        core_affinity::set_for_current(core);
    }
    // A drain leaves connections alone that were used within the last second.
    thread::sleep(Duration::from_millis(1_100));
    gateway.signal("TERM");
    let first = clients.remove(0);
    fastrand::Rng::with_seed(9).shuffle(&mut clients);
    let mut asking = Vec::new();
    for mut client in clients {
        let pause = Instant::now();
        while pause.elapsed() < Duration::from_millis(1) && first.sight() == Sight::Nothing {}
        // On loopback a request has arrived when its write returns, and so has a goodbye. The second look leaves out the
        // request that crossed one: nobody could have told.
        if client.sight() == Sight::Nothing && client.try_send(GET).is_ok() && client.sight() != Sight::End {
            asking.push(client);
        }
    }
    let asked = asking.len();
    assert!(asked > 0, "nobody asked before the first was closed");
    let lost = asking.iter_mut().filter_map(|client| client.try_response(false).err()).count();
    assert!(lost <= UNLUCKY, "{lost} of {asked} requests were lost");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn a_drain_loses_no_request_of_idle_connections() {
    check_drain_of_idle_connections("");
}

#[test]
fn a_drain_loses_no_request_of_idle_connections_on_epoll() {
    check_drain_of_idle_connections("driver = \"epoll\"");
}
