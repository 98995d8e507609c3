//! Where a service's requests go: addresses, names, sockets, and how they share.

use crate::support::{Backend, Gate, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_name_is_an_endpoint() {
    let backend = Backend::answering(OK);
    let name = format!("localhost:{}", backend.address.port());
    let gateway = Gateway::start(&service("api", &[format!("http://{name}")], ""));
    // The name may stand for ::1 too, where nobody listens.
    let answered = (0..4).filter(|_| gateway.get("/api").status == 200).count();
    assert!(answered >= 1);
    assert_eq!(backend.last().header("host"), Some(name.as_str()));
}

#[test]
fn a_name_that_does_not_resolve_is_no_endpoint() {
    let gateway = Gateway::start(&service("api", &["http://no-such-name.invalid:1".to_owned()], ""));
    let answer = gateway.get("/api");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "no_healthy_endpoint"));
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn a_unix_socket_is_an_endpoint() {
    let path = std::env::temp_dir().join(format!("ringway-e2e-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    Backend::unix(&path, |connection| {
        loop {
            connection.request()?;
            connection.send(OK)?;
        }
    });
    let gateway = Gateway::start(&service("api", &[format!("unix:{}", path.display())], ""));
    for _ in 0..3 {
        assert_eq!(gateway.get("/api/x").text(), "ok");
    }
    std::fs::remove_file(path).expect("the socket is there");
    // The scrape itself goes to the control plane, over a connection of its own.
    assert_eq!(gateway.metric("api_gateway_upstream_connects_total{worker=\"0\"}"), 2.0, "it is pooled");
}

/// How many of `requests` each of three backends gets.
fn shares(lines: &str, weights: [u32; 3], requests: usize) -> Vec<usize> {
    let backends = [(); 3].map(|()| Backend::answering(OK));
    let endpoints: Vec<_> = backends
        .iter()
        .zip(weights)
        .map(|(backend, weight)| format!("{{ url = \"{}\", weight = {weight} }}", backend.url()))
        .collect();
    let tables = format!("[services.api]\nprefix = \"/api\"\nendpoints = [{}]\n{lines}", endpoints.join(", "));
    let gateway = Gateway::start(&tables);
    let mut client = gateway.connect();
    for _ in 0..requests {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    backends.iter().map(|backend| backend.requests().len()).collect()
}

#[test]
fn round_robin_gives_each_its_share() {
    assert_eq!(shares("", [1, 1, 1], 30), [10, 10, 10]);
    assert_eq!(shares("load_balancing = \"round_robin\"", [1, 3, 6], 30), [3, 9, 18]);
}

#[test]
fn least_connections_rotates_where_all_are_equal() {
    assert_eq!(shares("load_balancing = \"least_connections\"", [1, 1, 1], 30), [10, 10, 10]);
}

#[test]
fn random_gives_each_about_its_share() {
    let shares = shares("load_balancing = \"random\"", [1, 1, 2], 400);
    assert!((50..150).contains(&shares[0]) && (130..270).contains(&shares[2]), "{shares:?}");
}

#[test]
fn least_connections_avoids_the_busy_one() {
    let gate = Gate::default();
    let slow = Backend::start({
        let gate = gate.clone();
        move |connection| {
            connection.request()?;
            gate.pass();
            connection.send(OK)
        }
    });
    let quick = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[slow.url(), quick.url()], "load_balancing = \"least_connections\""));
    // One of the first two requests hangs; whatever follows goes to the other backend.
    let mut waiting = None;
    while slow.requests().is_empty() {
        let seen = || slow.requests().len() + quick.requests().len();
        let before = seen();
        let mut client = gateway.connect();
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        until("either backend has it", || seen() > before);
        if slow.requests().len() == 1 {
            waiting = Some(client);
        } else {
            client.response();
        }
    }
    let before = quick.requests().len();
    for _ in 0..10 {
        assert_eq!(gateway.get("/api").status, 200);
    }
    assert_eq!((slow.requests().len(), quick.requests().len()), (1, before + 10));
    gate.open();
    assert_eq!(waiting.expect("one waits").response().status, 200);
}
