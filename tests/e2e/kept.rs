//! Connections that have served a request already: on io_uring, their receives stay armed and short answers are sent without being waited for.

use std::thread;

use crate::support::{Backend, Gate, Gateway, service, until};

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn who_has_said_all_gets_every_answer() {
    for server in ["", "driver = \"epoll\""] {
        let gateway = Gateway::start_with(server, "");
        for pipelined in (1..=4).cycle().take(100) {
            let mut client = gateway.connect();
            client.send(HEALTH);
            assert_eq!(client.response().status, 200);
            client.send(HEALTH.repeat(pipelined));
            client.finish();
            for _ in 0..pipelined {
                assert_eq!(client.response().status, 200);
            }
            assert!(client.is_closed());
        }
    }
}

#[test]
fn what_clients_send_ahead_is_bounded_and_answered() {
    const CLIENTS: usize = 8;
    const AHEAD: usize = 500;
    let gate = Gate::default();
    let backend = Backend::gated(&gate);
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let padded = format!("GET /health HTTP/1.1\r\nHost: a\r\nX-Padding: {}\r\n\r\n", "x".repeat(4000));
    let mut others: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
    let mut ask_others = || {
        for other in &mut others {
            other.send(HEALTH);
            assert_eq!(other.response().status, 200);
        }
    };
    ask_others();
    let before = gateway.resident_kib();
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = gateway.connect();
            client.send(HEALTH);
            assert_eq!(client.response().status, 200);
            let (mut sender, padded) = (client.sender(), &padded);
            scope.spawn(move || {
                sender.send("GET /api/slow HTTP/1.1\r\nHost: a\r\n\r\n");
                sender.send(padded.repeat(AHEAD));
            });
            clients.push(client);
        }
        until("the backend has them", || backend.requests().len() == CLIENTS);
        // What has come by then, has come; the rest of the 16 MB is in the kernel.
        (0..50).for_each(|_| ask_others());
        let held = gateway.resident_kib().saturating_sub(before);
        assert!(held < 8 * 1024, "{held} KiB more");
        ask_others();
        (0..CLIENTS).for_each(|_| gate.open());
        for client in &mut clients {
            for _ in 0..1 + AHEAD {
                assert_eq!(client.response().status, 200);
            }
        }
    });
}

#[test]
fn who_takes_no_answers_is_cut_off() {
    for server in ["", "driver = \"epoll\""] {
        let gateway = Gateway::start_with(server, "[timeouts]\nidle_body = \"500ms\"\n");
        let mut client = gateway.connect_small();
        client.send(HEALTH);
        assert_eq!(client.response().status, 200);
        // As long as the gateway takes requests, and no longer.
        let requests = HEALTH.repeat(1000);
        while client.try_send(&requests).is_ok() {}
        until("the connection is gone", || gateway.metric("api_gateway_connections_open{worker=\"0\"}") == 1.0);
    }
}
