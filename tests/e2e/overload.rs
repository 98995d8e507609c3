//! More than there is room for: it waits or is refused, and afterwards all is as before.

use serde_json::Value;

use crate::support::gateway::with_descriptors;
use crate::support::kernel::allow_descriptors;
use crate::support::{Backend, Client, Gate, Gateway, QUIET, gateway_to, holds_within, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET /api HTTP/1.1\r\nHost: a\r\n\r\n";

/// Answers every request once the gate lets it.
fn gated(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(move |connection| {
        loop {
            connection.request()?;
            gate.pass();
            connection.send(OK)?;
        }
    })
}

#[test]
fn connections_past_the_limit_wait_until_one_closes() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with("max_connections_per_worker = 4", &service("api", &[backend.url()], ""));
    let mut clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(GET);
            assert_eq!(client.response().status, 200);
            client
        })
        .collect();
    let mut waiting: Vec<_> = (0..3)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(GET);
            client
        })
        .collect();
    assert!(waiting[0].is_quiet(), "the fifth client is not accepted");
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.response().status, 200, "those who are in are served");
    }
    for mut client in waiting.drain(..) {
        clients.pop();
        assert_eq!(client.response().status, 200, "a place that becomes free is taken");
        clients.push(client);
    }
}

#[test]
fn a_rush_fills_the_worker_and_no_more() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let gateway = Gateway::start_with("max_connections_per_worker = 40", &service("api", &[backend.url()], ""));
    let mut clients: Vec<_> = (0..100).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(GET);
    }
    until("the worker is full", || backend.requests().len() >= 40);
    assert!(!holds_within(QUIET, || backend.requests().len() > 40), "nobody else is let in");
    clients.iter().for_each(|_| gate.open());
    for mut client in clients {
        assert_eq!(client.response().status, 200, "whoever leaves makes a place");
    }
}

#[test]
fn clients_that_keep_connections_open_for_nothing_do_not_lock_others_out() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with("max_connections_per_worker = 4", &service("api", &[backend.url()], ""));
    let mut idle: Vec<_> = (0..4).map(|_| gateway.connect()).collect();
    for client in &mut idle {
        client.send(GET);
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(gateway.get("/health").status, 200, "places are made, from those that have been idle for a second");
    let served = idle.iter_mut().map(Client::is_quiet).filter(|quiet| *quiet).count();
    assert!(served < 4, "an idle connection was ended");
}

#[test]
fn requests_in_flight_past_the_limit_are_refused() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.limits]\nrequests_in_flight = 2"));
    let mut clients = [gateway.connect(), gateway.connect()];
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(GET);
        until("the backend has it", || backend.requests().len() == index + 1);
    }
    let answer = gateway.get("/api");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "overloaded"));
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    assert_eq!(gateway.get("/health").status, 200, "other paths are served");
    for client in &mut clients {
        gate.open();
        gate.open();
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(gateway.get("/api").status, 200, "what was taken is given back");
}

#[test]
fn the_descriptor_limit_crashes_nothing() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_command(with_descriptors(64, 64), "", &service("api", &[backend.url()], ""));
    let mut clients: Vec<_> = (0..100).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(GET);
    }
    // Some wait in the queue; as places become free, everybody gets an answer. A request for which there is no descriptor
    // left to reach the backend with is answered too.
    for mut client in clients {
        let status = client.response().status;
        assert!(matches!(status, 200 | 502 | 503), "{status}");
    }
    until("the gateway serves again", || gateway.get("/api").status == 200);
}

#[test]
fn idle_upstream_connections_make_room_for_those_that_are_wanted() {
    // Descriptors are short by more than 30 as long as the first ones' connections lie idle.
    check_room(256, 1, [(0, 80), (0, 100)]);
}

#[test]
fn those_of_another_worker_make_room_too() {
    check_room(800, 2, [(0, 260), (1, 260)]);
}

/// So many clients of a worker ask one service and leave, and then as many as are said of a worker ask another.
fn check_room(descriptors: u32, workers: usize, rounds: [(usize, usize); 2]) {
    allow_descriptors();
    let gate = Gate::default();
    let backends = [gated(&gate), gated(&gate)];
    let services = [service("a", &[backends[0].url()], ""), service("b", &[backends[1].url()], "")].concat();
    let limited = with_descriptors(descriptors, descriptors);
    let gateway = Gateway::start_command(limited, &format!("workers = {workers}"), &services);
    for ((backend, path), (worker, count)) in backends.iter().zip(["/a", "/b"]).zip(rounds) {
        let mut clients: Vec<_> = (0..count).map(|_| client_of(&gateway, worker)).collect();
        for client in &mut clients {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        until("all of them have reached the backend", || backend.requests().len() == count);
        clients.iter().for_each(|_| gate.open());
        for mut client in clients {
            assert_eq!(client.response().status, 200);
        }
        let open = |worker| gateway.metric(&format!("api_gateway_connections_open{{worker=\"{worker}\"}}"));
        until("they have left", || (0..workers).map(open).sum::<f64>() == 1.0);
    }
}

/// A client that the kernel has given to that worker.
fn client_of(gateway: &Gateway, worker: usize) -> Client {
    loop {
        let mut client = gateway.connect();
        client.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        let health: Value = serde_json::from_str(&client.response().text()).expect("JSON");
        if health["worker"] == worker {
            return client;
        }
    }
}

#[test]
fn many_clients_at_once_are_all_served() {
    let backend = Backend::echo();
    let gateway = gateway_to(&backend);
    std::thread::scope(|scope| {
        for index in 0..32 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut client = gateway.connect();
                for request in 0..50 {
                    client.send(format!("GET /api/{index}/{request} HTTP/1.1\r\nHost: a\r\n\r\n"));
                    assert_eq!(client.response().text(), format!("GET /{index}/{request} HTTP/1.1\n"));
                }
            });
        }
    });
    assert!(backend.connections() <= 32, "{} upstream connections", backend.connections());
}
