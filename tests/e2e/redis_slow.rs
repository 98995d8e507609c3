//! What requests pay for a Redis that is slow, or that refuses: little, once, and not for each other.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::redis::RedisServer;
use crate::support::{Backend, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A way to a Redis whose replies come late.
struct Detour {
    address: SocketAddr,
    delay_ms: Arc<AtomicU64>,
}

impl Detour {
    fn to(redis: &RedisServer) -> Detour {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let detour = Detour { address: listener.local_addr().expect("bound"), delay_ms: Arc::default() };
        let (to, delay_ms) = (redis.address(), Arc::clone(&detour.delay_ms));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(to) else { continue };
                let ends = |from: &TcpStream, to: &TcpStream| {
                    (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"))
                };
                let (there, back) = (ends(&client, &server), ends(&server, &client));
                thread::spawn(move || relay(there, |_| {}));
                let delay_ms = Arc::clone(&delay_ms);
                thread::spawn(move || relay(back, |read| sleep_until(read + delay(&delay_ms))));
            }
        });
        detour
    }

    fn delay(&self, time: Duration) {
        self.delay_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }
}

fn delay(ms: &AtomicU64) -> Duration {
    Duration::from_millis(ms.load(Ordering::Relaxed))
}

fn sleep_until(time: Instant) {
    thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// Passes on what comes, each piece when `wait`, which is told when it came, returns.
fn relay((mut from, mut to): (TcpStream, TcpStream), wait: impl Fn(Instant) + Sync) {
    let (sender, receiver) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    thread::scope(|scope| {
        scope.spawn(|| {
            for (read, piece) in receiver {
                wait(read);
                if to.write_all(&piece).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        let mut buf = [0; 65_536];
        while let Ok(length @ 1..) = from.read(&mut buf) {
            if sender.send((Instant::now(), buf[..length].to_vec())).is_err() {
                break;
            }
        }
        drop(sender);
    });
}

fn gateway(backend: &Backend, url: &str, timeout: &str, limits: &str) -> Gateway {
    let redis = format!("[redis]\nurl = \"{url}\"\ntimeout = \"{timeout}\"\n");
    Gateway::start_with("trusted_proxies = [\"127.0.0.0/8\"]", &(redis + &service("api", &[backend.url()], limits)))
}

fn get_as(gateway: &Gateway, client: &str) -> u16 {
    let fields = format!("X-Forwarded-For: {client}\r\nConnection: close\r\n");
    gateway.send(format!("GET /api HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).status
}

fn is_degraded(gateway: &Gateway) -> bool {
    gateway.metric("api_gateway_redis_degraded{worker=\"0\"}") > 0.0
}

/// How often the log has said that Redis comes or goes.
fn said(gateway: &Gateway) -> usize {
    let events = gateway.events.all();
    events.iter().filter(|event| event["message"].as_str().is_some_and(|text| text.contains("Redis"))).count()
}

#[test]
fn a_redis_that_is_too_slow_is_proved_before_requests_wait_for_it_again() {
    let redis = RedisServer::start(&[]);
    let detour = Detour::to(&redis);
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, &detour.url(), "60ms", "rate_limit = { requests = 10000, window = \"600s\" }");
    assert_eq!(gateway.get("/api").status, 200);
    assert!(!is_degraded(&gateway));
    // Enough for its handshake, too much for an order.
    detour.delay(Duration::from_millis(120));
    let mut client = gateway.connect();
    let mut waits = 0;
    let begun = Instant::now();
    let mut asked = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
        waits += u32::from(asked.elapsed() > Duration::from_millis(55));
        thread::sleep(Duration::from_millis(10));
        asked = Instant::now();
    }
    assert!(waits <= 2, "{waits} requests waited for it");
    assert_eq!(said(&gateway), 1, "it is away, and that is all there is to say");
    assert!(gateway.metric("api_gateway_redis_connects_total{worker=\"0\"}") >= 2.0, "it is asked all the same");
    detour.delay(Duration::ZERO);
    until("it is global again", || !is_degraded(&gateway));
    until("which is said", || said(&gateway) == 2);
}

#[test]
fn a_request_waits_for_its_timeout_at_most() {
    let redis = RedisServer::start(&[]);
    let detour = Detour::to(&redis);
    let backend = Backend::answering(OK);
    let limits = "rate_limit = { requests = 90, window = \"600s\" }\nrate_limits = [{ name = \"b\", requests = 80 }]";
    let gateway = gateway(&backend, &detour.url(), "200ms", limits);
    assert_eq!(gateway.get("/api").status, 200);
    detour.delay(Duration::from_millis(150));
    let burst = || {
        let times: Vec<Duration> = thread::scope(|scope| {
            let clients = (0..6).map(|index| {
                let gateway = &gateway;
                scope.spawn(move || {
                    // Each comes while the orders of those before it are under way.
                    thread::sleep(Duration::from_millis(10 * index));
                    let mut client = gateway.connect();
                    let sent = Instant::now();
                    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(client.response().status, 200);
                    sent.elapsed()
                })
            });
            let clients: Vec<_> = clients.collect();
            clients.into_iter().map(|client| client.join().expect("no panic")).collect()
        });
        assert!(times.iter().all(|&time| time < Duration::from_millis(270)), "{times:?}");
    };
    burst();
    // What is sent a second time has no time of its own.
    assert_eq!(redis.command(&["SCRIPT", "FLUSH"]), "+OK");
    burst();
}

#[test]
fn an_order_that_fails_alone_is_no_outage() {
    let redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, &redis.url(), "1s", "rate_limit = { requests = 3, window = \"600s\" }");
    // One client's counts cannot be read.
    redis.command(&["SET", "ringway:rl:{api:default:600000ms:ip:203.0.113.1/32}", "x"]);
    let asked = |client: &str, count: usize| (0..count).map(|_| get_as(&gateway, client)).collect::<Vec<_>>();
    assert_eq!(asked("203.0.113.2", 2), [200, 200]);
    assert_eq!(asked("203.0.113.1", 4), [200, 200, 200, 429], "it is counted here");
    assert!(!is_degraded(&gateway));
    assert_eq!(asked("203.0.113.2", 2), [200, 429], "and others are not forgotten");
    assert_eq!(said(&gateway), 0);
}

#[test]
fn a_redis_that_refuses_is_said_to_be_away_once() {
    let redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, &redis.url(), "1s", "rate_limit = { requests = 100000, window = \"600s\" }");
    assert_eq!(gateway.get("/api").status, 200);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK");
    // So seldom that what is believed in between shows.
    for _ in 0..4 {
        assert_eq!(gateway.get("/api").status, 200);
        thread::sleep(Duration::from_millis(1_400));
    }
    assert!(is_degraded(&gateway));
    assert_eq!(said(&gateway), 1);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK");
    // No request is needed for that.
    until("it is global again", || !is_degraded(&gateway));
}
