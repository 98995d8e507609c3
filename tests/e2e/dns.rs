//! Names as endpoints, and a real DNS server that changes its mind, fails and comes back.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::dns::{DnsServer, TTL};
use crate::support::{Backend, Gateway, RaisedAtEnd, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// How long after its TTL a changed answer may take to be acted on: the jitter, the reload of the server, a slow machine.
const GRACE: Duration = Duration::from_secs(4);

const FAILED: &str = "a name does not resolve";
const FAILED_AT_START: &str = "a backend's name does not resolve; its service answers 503 until it does";
const RECOVERED: &str = "a name resolves again";

/// Backends on one port of each of these hosts.
fn on_one_port(hosts: &[&str]) -> Vec<Backend> {
    let listen = |port| -> Option<Vec<TcpListener>> {
        hosts.iter().map(|host| TcpListener::bind(format!("{host}:{port}")).ok()).collect()
    };
    let listeners = (0..50).find_map(|_| {
        // Somebody may have the port on another of the hosts.
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        listen(port)
    });
    listeners.expect("a port").into_iter().map(|listener| Backend::answering_on(listener, OK)).collect()
}

fn port(backends: &[Backend]) -> u16 {
    backends[0].address.port()
}

fn named(dns: &DnsServer, url: String) -> Gateway {
    Gateway::start(&format!("{}{}", dns.discovery(), service("api", &[url], "")))
}

/// Requests on one connection, all of which must succeed.
fn ask(gateway: &Gateway, requests: usize) {
    let mut client = gateway.connect();
    for _ in 0..requests {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.response();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// How many requests of the next `requests` each backend gets.
fn shares(gateway: &Gateway, backends: &[&Backend], requests: usize) -> Vec<usize> {
    let seen = || backends.iter().map(|backend| backend.requests().len());
    let before: Vec<usize> = seen().collect();
    ask(gateway, requests);
    seen().zip(before).map(|(after, before)| after - before).collect()
}

fn count(gateway: &Gateway, message: &str) -> usize {
    gateway.events.all().iter().filter(|event| event["message"] == message).count()
}

fn within_ttl(what: &str, since: Instant) {
    let limit = Duration::from_secs(TTL) + GRACE;
    assert!(since.elapsed() < limit, "{what} took {:?}", since.elapsed());
}

#[test]
fn addresses_come_and_go_while_requests_pass() {
    let backends = on_one_port(&["127.0.0.2", "127.0.0.3", "[::1]"]);
    let [first, second, third] = &backends[..] else { panic!("three") };
    let dns = DnsServer::start(&["app A 127.0.0.2"]);
    let authority = format!("app.example.test:{}", port(&backends));
    let gateway = named(&dns, format!("http://{authority}"));
    assert_eq!(shares(&gateway, &[first, second, third], 4), [4, 0, 0]);
    assert_eq!(first.last().header("host"), Some(authority.as_str()));

    let (stop, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _end = RaisedAtEnd(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    ask(&gateway, 20);
                    passed.fetch_add(20, Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        dns.serve(&["app A 127.0.0.2", "app A 127.0.0.3", "app AAAA ::1"]);
        until("the new addresses get requests", || !second.requests().is_empty() && !third.requests().is_empty());
        within_ttl("new addresses", started);

        let started = Instant::now();
        dns.serve(&["app A 127.0.0.3"]);
        until("the old addresses get none", || {
            let count = || (first.requests().len() + third.requests().len(), second.requests().len());
            let before = count();
            ask(&gateway, 12);
            let after = count();
            after.0 == before.0 && after.1 > before.1
        });
        within_ttl("removed addresses", started);
    });
    assert!(passed.load(Ordering::Relaxed) > 0);
    assert_eq!(count(&gateway, FAILED), 0);
}

#[test]
fn an_address_that_stays_keeps_its_connections() {
    let backends = on_one_port(&["127.0.0.2", "127.0.0.3"]);
    let dns = DnsServer::start(&["app A 127.0.0.3"]);
    let gateway = named(&dns, format!("http://app.example.test:{}", port(&backends)));
    ask(&gateway, 3);
    dns.serve(&["app A 127.0.0.2", "app A 127.0.0.3"]);
    until("the new address gets requests", || {
        ask(&gateway, 2);
        !backends[0].requests().is_empty()
    });
    ask(&gateway, 10);
    assert_eq!((backends[0].connections(), backends[1].connections()), (1, 1));
}

#[test]
fn a_large_answer_comes_whole_and_is_bounded() {
    // All of 127.0.0.0/8 is this machine.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let backend = Backend::answering_on(listener, OK);
    // More than a datagram holds: it is asked for again over TCP.
    let zone: Vec<String> = (1..=150).map(|host| format!("app A 127.0.1.{host}")).collect();
    let dns = DnsServer::start(&zone.iter().map(String::as_str).collect::<Vec<_>>());
    let gateway = named(&dns, format!("http://app.example.test:{}", backend.address.port()));
    ask(&gateway, 200);
    assert_eq!(backend.connections(), 64, "one for each address that is used");
}

#[test]
fn srv_records_are_weighted_endpoints() {
    let backends: Vec<Backend> = (0..4).map(|_| Backend::answering(OK)).collect();
    let all: Vec<&Backend> = backends.iter().collect();
    let srv = |priority: u16, weight: u16, index: usize, target: &str| {
        format!("_sms._tcp SRV {priority} {weight} {} {target}", backends[index].address.port())
    };
    let hosts = ["a A 127.0.0.1", "b A 127.0.0.1", "c A 127.0.0.1"].map(str::to_owned);
    let zone = |records: &[String]| -> Vec<String> { [records, &hosts].concat() };
    let first = zone(&[srv(10, 3, 0, "a"), srv(10, 1, 1, "b"), srv(20, 9, 2, "c"), srv(5, 1, 3, "gone")]);
    let dns = DnsServer::start(&first.iter().map(String::as_str).collect::<Vec<_>>());
    let gateway = named(&dns, "srv+http://_sms._tcp.example.test".to_owned());

    assert_eq!(shares(&gateway, &all, 40), [30, 10, 0, 0], "the lowest priority that has an address");
    let host = format!("a.example.test:{}", backends[0].address.port());
    assert_eq!(backends[0].last().header("host"), Some(host.as_str()));

    let second = zone(&[srv(20, 60_000, 2, "c"), srv(20, 20_000, 1, "b")]);
    dns.serve(&second.iter().map(String::as_str).collect::<Vec<_>>());
    until("the other priority is used", || shares(&gateway, &all, 8)[2] > 0);
    assert_eq!(shares(&gateway, &all, 40), [0, 10, 30, 0]);
}

#[test]
fn a_server_that_fails_takes_nothing_down() {
    let backends = on_one_port(&["127.0.0.2", "127.0.0.3"]);
    let mut dns = DnsServer::start(&["app A 127.0.0.2"]);
    let gateway = named(&dns, format!("http://app.example.test:{}", port(&backends)));
    let failed = |event: &Value| event["message"] == FAILED;

    dns.kill();
    let failure = gateway.events.wait_for(failed);
    let sentence = failure["failure"].as_str().expect("a string");
    assert!(sentence.starts_with("cannot resolve app.example.test: "), "{sentence}");
    assert!(sentence.ends_with("; its last addresses are kept"), "{sentence}");
    ask(&gateway, 20);
    assert_eq!(backends[0].requests().len(), 20);

    dns.restart(&["app A 127.0.0.3"]);
    gateway.events.wait_for(|event| event["message"] == RECOVERED && event["name"] == "app.example.test");
    until("the new address gets the requests", || shares(&gateway, &[&backends[1]], 4) == [4]);
    assert_eq!((count(&gateway, FAILED), count(&gateway, RECOVERED)), (1, 1), "each is said once");

    // SERVFAIL, no such name, a name without an address.
    let zones = ["what is this", "other A 127.0.0.2", "app TXT nothing"];
    for (index, (zone, number)) in zones.into_iter().zip(2..).enumerate() {
        dns.serve(&[zone]);
        until("it fails", || count(&gateway, FAILED) == number);
        let (now, next) = if index % 2 == 0 { (1, 0) } else { (0, 1) };
        assert_eq!(shares(&gateway, &[&backends[now]], 4), [4], "{zone}");
        dns.serve(&[["app A 127.0.0.2", "app A 127.0.0.3"][next]]);
        until("the other address gets the requests", || shares(&gateway, &[&backends[next]], 4) == [4]);
        until("it recovers", || count(&gateway, RECOVERED) == number);
    }
}

#[test]
fn a_name_may_come_to_be_later() {
    let backend = Backend::answering(OK);
    let dns = DnsServer::start(&["other A 127.0.0.1"]);
    let gateway = named(&dns, format!("http://app.example.test:{}", backend.address.port()));
    let answer = gateway.get("/api");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "no_healthy_endpoint"));
    let event = gateway.events.wait_for(|event| event["message"] == FAILED_AT_START);
    assert_eq!(event["failure"], "cannot resolve app.example.test: there is no such name; it has no endpoint");

    dns.serve(&["app A 127.0.0.1"]);
    until("the name is found", || gateway.get("/api").status == 200);
    gateway.events.wait_for(|event| event["message"] == RECOVERED);
    assert_eq!(count(&gateway, FAILED), 0, "it was said at the start");
}

#[test]
fn a_silent_server_delays_the_start_by_seconds_only() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address: SocketAddr = silent.local_addr().expect("an address");
    let discovery = format!("[discovery]\ndns_server = [\"{address}\"]\n");
    let names: Vec<String> = (0..100).map(|i| format!("http://n{i}.example.test")).collect();
    let started = Instant::now();
    let gateway = Gateway::start(&format!("{discovery}{}", service("api", &names, "")));
    assert!(started.elapsed() < Duration::from_secs(5) + GRACE, "{:?}", started.elapsed());
    assert_eq!(gateway.get("/api").status, 503);
    let event = gateway.events.wait_for(|event| event["message"] == FAILED_AT_START);
    let failure = event["failure"].as_str().expect("a string");
    assert!(failure.starts_with("cannot resolve n0.example.test: "), "{failure}");
}
