//! Invariant 5: a panic in one connection is caught, counted and logged, and never ends another.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringway::control::config::Config;
use ringway::control::registry::instance::Registered;
use ringway::control::resolve::Resolved;
use ringway::control::{admin, build};
use ringway::proxy::accept::Sharing;
use ringway::proxy::limiter::SharedLimits;
use ringway::proxy::worker::Parts;
use ringway::proxy::{accept, runtime};
use ringway::snapshot::{Phase, Seam};
use ringway::telemetry::counters::{Counters, Shape};
use ringway::telemetry::labels::Labels;
use ringway::telemetry::log;
use ringway::traffic::route::{RouteSpec, RouteTable};

fn ask(address: SocketAddr, path: &str) -> String {
    let mut client = TcpStream::connect(address).expect("a worker");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    write!(client, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("text");
    answer
}

#[test]
fn a_panic_ends_its_own_connection_alone() {
    let (management, management_address) = admin::bind().expect("a socket");
    let mut snapshot = build::snapshot(
        &Config::default(),
        &Resolved::default(),
        &Registered::default(),
        &Arc::default(),
        &Labels::new(),
        management_address,
        1,
    );
    // A snapshot that no configuration leads to: the route names a service that is not there.
    snapshot.routes = RouteTable::new(&[RouteSpec { prefix: "/bug".into(), hosts: Vec::new(), service: 1000 }]);
    let seam = Arc::new(Seam::new(snapshot, 1));
    seam.start();
    let listener = accept::bind((Ipv4Addr::LOCALHOST, 0).into(), 1, 16).expect("a port").pop().expect("one");
    let address = listener.local_addr().expect("an address");
    let counters = Arc::new(Counters::new(&Shape { enabled: true, buckets: vec![1.0], max_series: 10 }));
    let (mut lines, out) = std::io::pipe().expect("a pipe");
    let (mut logs, log_writer) = log::start(1, 1 << 16, out).expect("a thread");
    let parts = Parts {
        sharing: Sharing::Nobody,
        index: 0,
        workers: 1,
        seam: Arc::clone(&seam),
        counters: Arc::clone(&counters),
        log: logs.pop().expect("one"),
        connections_max: 10,
        pipes_max: 1,
        limits: SharedLimits::new(100),
        redis: None,
        token_key: [0; 16],
        spans: None,
    };
    let worker = thread::spawn(move || runtime::run(parts, vec![listener], None, runtime::Driver::Auto, |_| {}));

    let mut bystander = TcpStream::connect(address).expect("a worker");
    for _ in 0..3 {
        assert_eq!(ask(address, "/bug"), "", "the connection just ends");
        assert!(ask(address, "/health").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    bystander.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("still there");
    let mut answer = String::new();
    bystander.read_to_string(&mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(counters.panics.get(), 3);

    seam.advance(Phase::Draining);
    worker.join().expect("no panic outside of a connection").expect("a clean end");
    assert_eq!((counters.active.get(), counters.connections_open.get()), (0, 0));
    log_writer.finish(Duration::from_secs(5));
    let mut log = String::new();
    lines.read_to_string(&mut log).expect("text");
    assert_eq!(log.matches("\"path\":\"/bug\"").count(), 3);
    assert_eq!(log.matches("\"status\":500").count(), 3);
    assert_eq!(log.matches("\"error\":\"panic\"").count(), 3);
    drop(management);
}
