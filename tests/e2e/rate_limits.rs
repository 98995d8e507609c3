//! How often one may ask: alone, together with other workers and gateways, and when Redis is away.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway::policy::auth::api_key::KeyHash;

use crate::redis::RedisServer;
use crate::support::client::Response;
use crate::support::{Backend, Client, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET /api HTTP/1.1\r\nHost: a\r\n\r\n";

/// The service `/api` with these limits, and further tables.
fn tables(backend: &Backend, limits: &str, tables: &str) -> String {
    format!("{tables}\n{}", service("api", &[backend.url()], limits))
}

fn numbers(answer: &Response) -> (u32, u32) {
    let number = |name| answer.header(name).and_then(|value| value.parse().ok()).expect("a number");
    (number("x-ratelimit-limit"), number("x-ratelimit-remaining"))
}

#[test]
fn a_client_learns_where_it_stands_until_it_is_refused() {
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-RateLimit-Limit: 7\r\n\r\nok");
    let gateway = Gateway::start(&tables(&backend, "rate_limit = { requests = 5, window = \"60s\" }", ""));
    let mut client = gateway.connect();
    for left in (0..5).rev() {
        client.send(GET);
        let answer = client.response();
        assert_eq!(answer.status, 200);
        assert_eq!(numbers(&answer), (5, left), "the gateway's word replaces the backend's");
        assert_eq!(answer.header("ratelimit-policy"), Some("\"default\";q=5;w=60"));
        assert!(answer.header("ratelimit").is_some_and(|value| value.starts_with(&format!("\"default\";r={left};t="))));
    }
    for _ in 0..3 {
        client.send(GET);
        let answer = client.response();
        assert_eq!((answer.status, answer.reason().as_str()), (429, "rate_limited"));
        let wait: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("seconds");
        assert!((1..=61).contains(&wait), "{wait}");
        assert_eq!(numbers(&answer), (5, 0));
        let line = gateway.logged(answer.header("x-request-id").expect("an id"));
        assert_eq!(line["rate_limited"], true);
    }
    assert_eq!(backend.requests().len(), 5);
    assert_eq!(gateway.metric("api_gateway_rate_limit_hits_total{service=\"api\",key_type=\"ip\"}"), 3.0);
}

#[test]
fn the_window_slides() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&tables(&backend, "rate_limit = { requests = 3, window = \"1s\" }", ""));
    let mut admitted: Vec<Instant> = Vec::new();
    let mut client = gateway.connect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3_500) {
        let sent = Instant::now();
        client.send(GET);
        if client.response().status == 200 {
            admitted.push(sent);
        }
    }
    assert!(admitted.len() >= 9, "it lets pass again: {}", admitted.len());
    for four in admitted.windows(4) {
        // Sent is before admitted, by the time of one exchange at most.
        assert!(four[3] - four[0] > Duration::from_millis(900), "four within a second");
    }
}

#[test]
fn several_limits_hold_at_once() {
    let backend = Backend::answering(OK);
    let limits =
        "rate_limit = { requests = 100 }\nrate_limits = [{ name = \"burst\", requests = 2, window = \"60s\" }]";
    let gateway = Gateway::start(&tables(&backend, limits, ""));
    let statuses: Vec<u16> = (0..4).map(|_| gateway.get("/api").status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    let answer = gateway.get("/api");
    assert_eq!(answer.header("ratelimit-policy"), Some("\"burst\";q=2;w=60"), "the one that refuses is named");
}

#[test]
fn keys_have_limits_of_their_own_and_bad_ones_count_against_the_address() {
    let backend = Backend::answering(OK);
    let key = |name: &str| format!("rw_the-key-of-{name}-is-long");
    let spec = |name: &str, more: &str| {
        let hash = KeyHash::of(key(name).as_bytes());
        format!("[[auth.api_keys]]\nname = \"{name}\"\nhash = \"{hash}\"\n{more}\n")
    };
    let keys = spec("big", "rate_limit = { requests = 6, window = \"60s\" }") + &spec("small", "");
    let gateway = Gateway::start(&tables(&backend, "auth = \"required\"\nrate_limit = { requests = 3 }", &keys));
    let ask = |name: &str| {
        let fields = format!("Connection: close\r\nX-API-Key: {}\r\n", key(name));
        gateway.send(format!("GET /api HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).status
    };
    let statuses = |name: &str, count: usize| (0..count).map(|_| ask(name)).collect::<Vec<_>>();
    assert_eq!(statuses("nobody", 5), [401, 401, 401, 429, 429], "who is unknown counts against its address");
    assert_eq!(statuses("small", 4), [200, 200, 200, 429], "who is known does not");
    assert_eq!(statuses("big", 7), [200, 200, 200, 200, 200, 200, 429]);
}

#[test]
fn a_keys_own_limit_takes_the_place_of_the_default_one_alone() {
    const KEY: &str = "rw_the-key-of-big-is-long";
    let hash = KeyHash::of(KEY.as_bytes());
    let key = format!(
        "[[auth.api_keys]]\nname = \"big\"\nhash = \"{hash}\"\nrate_limit = {{ requests = 4, window = \"60s\" }}\n"
    );
    let backend = Backend::answering(OK);
    let check = |limits: &str, passed: usize, policy: &str| {
        let gateway = Gateway::start(&tables(&backend, &format!("auth = \"required\"\n{limits}"), &key));
        let fields = format!("Connection: close\r\nX-API-Key: {KEY}\r\n");
        let ask = || gateway.send(format!("GET /api HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        let statuses: Vec<u16> = (0..passed + 1).map(|_| ask().status).collect();
        let expected = [vec![200; passed], vec![429]].concat();
        assert_eq!(statuses, expected, "{limits}");
        assert_eq!(ask().header("ratelimit-policy"), Some(policy), "{limits}");
    };
    check("rate_limit = { requests = 1 }", 4, "\"default\";q=4;w=60");
    let burst = "rate_limits = [{ name = \"burst\", requests = 2, window = \"50s\" }]";
    check(&format!("rate_limit = {{ requests = 9 }}\n{burst}"), 2, "\"burst\";q=2;w=50");
    check(&format!("rate_limit = {{ enabled = false }}\n{burst}"), 2, "\"burst\";q=2;w=50");
    check("rate_limit = { enabled = false }", 4, "\"own\";q=4;w=60");
    check("rate_limit = { requests = 9, key = \"ip\" }", 4, "\"own\";q=4;w=60");
    check("rate_limit = { requests = 3, key = \"ip\" }", 3, "\"default\";q=3;w=60");
}

#[test]
fn whoever_guesses_is_stopped_by_whichever_limit_counts_addresses() {
    let backend = Backend::answering(OK);
    let secret =
        "[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[cors]\nenabled = true\nallow_origins = [\"*\"]";
    let limits = "auth = \"required\"\nrate_limit = { requests = 1000 }\nrate_limits = [{ name = \"ip\", requests = 3, key = \"ip\" }]";
    let gateway = Gateway::start(&tables(&backend, limits, secret));
    let bad = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIiwiZXhwIjo5OTk5OTk5OTk5fQ.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let ask = |token: &str| {
        let fields = format!("Connection: close\r\nOrigin: https://a\r\nAuthorization: Bearer {token}\r\n");
        gateway.send(format!("GET /api HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
    };
    for _ in 0..3 {
        let answer = ask(bad);
        assert_eq!((answer.status, answer.header("www-authenticate").is_some()), (401, true));
    }
    // The first of them finds the limit used up after its token was looked at, the others before.
    for _ in 0..3 {
        let answer = ask(bad);
        assert_eq!((answer.status, answer.reason().as_str()), (429, "rate_limited"));
        assert_eq!(answer.header("www-authenticate"), None, "that is no matter of credentials");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
    let token =
        ringway::policy::auth::mint::Mint { subject: "a", scopes: &[], lifetime: 600, issuer: None, audience: None };
    ringway::policy::auth::install();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let secret = b"0123456789abcdef0123456789abcdef";
    let good = ringway::policy::auth::mint::mint(&token, secret, ringway::policy::auth::Algorithm::HS256, now);
    assert_eq!(ask(&good.expect("a token")).status, 429, "no signature is looked at");
}

/// How many of `count` requests each of `clients` gets through, all at once.
fn storm(gateways: &[&Gateway], clients: usize, count: usize) -> (usize, usize) {
    let (passed, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for index in 0..clients {
            let gateway = gateways[index % gateways.len()];
            let (passed, refused) = (&passed, &refused);
            scope.spawn(move || {
                let mut client = gateway.connect();
                for _ in 0..count {
                    client.send(GET);
                    match client.response().status {
                        200 => passed.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        other => panic!("status {other}"),
                    };
                }
            });
        }
    });
    (passed.into_inner(), refused.into_inner())
}

#[test]
fn workers_share_a_limit_exactly() {
    let backend = Backend::answering(OK);
    let tables = tables(&backend, "rate_limit = { requests = 150, window = \"600s\" }", "");
    let gateway = Gateway::start_with("workers = 2", &tables);
    assert_eq!(storm(&[&gateway], 8, 50), (150, 250));
    assert_eq!(backend.requests().len(), 150);
}

#[test]
fn gateways_share_a_limit_on_redis() {
    let redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    for limit in [100, 1_000] {
        let limits = format!("rate_limit = {{ requests = {limit}, window = \"600s\" }}");
        let tables = tables(&backend, &limits, &format!("[redis]\nurl = \"{}\"\nprefix = \"t{limit}\"", redis.url()));
        let gateways: Vec<Gateway> = (0..3).map(|_| Gateway::start_with("workers = 2", &tables)).collect();
        let (passed, _) = storm(&gateways.iter().collect::<Vec<_>>(), 12, 200);
        assert!(passed <= limit, "{passed} of {limit}");
        assert!(passed >= limit - limit / 100, "{passed} of {limit}: nobody is refused early by more than 1 %");
    }
    let keys = redis.command(&["KEYS", "t100:rl:*"]);
    assert!(keys.contains("t100:rl:{api:default:600000ms:ip:127.0.0.1/32}"), "{keys}");
}

/// A gateway on `redis` with a limit of `requests` in ten minutes.
fn on_redis(redis: &RedisServer, backend: &Backend, requests: u32, lines: &str) -> Gateway {
    let limits = format!("rate_limit = {{ requests = {requests}, window = \"600s\" }}");
    let redis = format!("[redis]\nurl = \"{}\"\n{lines}", redis.url());
    Gateway::start(&tables(backend, &limits, &redis))
}

fn is_degraded(gateway: &Gateway) -> bool {
    gateway.metric("api_gateway_redis_degraded{worker=\"0\"}") > 0.0
}

#[test]
fn without_redis_each_gateway_goes_on_with_its_share() {
    let mut redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateways = [on_redis(&redis, &backend, 10, ""), on_redis(&redis, &backend, 10, "")];
    let (passed, _) = storm(&[&gateways[0]], 1, 4);
    assert_eq!(passed, 4);
    until("both gateways know of each other", || {
        gateways.iter().all(|gateway| gateway.metric("api_gateway_rate_limit_gateways") == 2.0)
    });
    redis.kill();
    let (passed, refused) = storm(&[&gateways[0]], 1, 8);
    assert_eq!((passed, refused), (5, 3), "half of the limit, counted by itself");
    let is_said =
        |event: &serde_json::Value| event["message"].as_str().is_some_and(|text| text.contains("rate limits are"));
    gateways[0].events.wait_for(is_said);
    until("the metric says so too", || is_degraded(&gateways[0]));
    redis.restart();
    until("it is global again", || !gateways.iter().any(is_degraded));
    let (passed, refused) = storm(&[&gateways[0], &gateways[1]], 2, 10);
    assert_eq!((passed, refused), (10, 10), "and Redis counts");
    gateways[0].events.wait_for(|event| {
        event["message"].as_str().is_some_and(|text| text.contains("Redis answers again; rate limits"))
    });
    let said = gateways[0].events.all().iter().filter(|event| is_said(event)).count();
    assert_eq!(said, 2, "once each way, not once a request");
}

#[test]
fn without_redis_all_or_nobody_may_pass() {
    let mut redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let allow = on_redis(&redis, &backend, 3, "on_error = \"allow\"");
    let deny = on_redis(&redis, &backend, 3, "on_error = \"deny\"");
    assert_eq!(storm(&[&allow], 1, 2), (2, 0));
    redis.kill();
    assert_eq!(storm(&[&allow], 1, 20), (20, 0));
    assert_eq!(storm(&[&deny], 1, 20), (0, 20));
    assert_eq!(deny.get("/api").header("retry-after"), Some("1"));
}

#[test]
fn killing_redis_under_load_fails_no_request() {
    let mut redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateway = on_redis(&redis, &backend, 1_000_000, "");
    let served = AtomicUsize::new(0);
    let slowest = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (gateway, served) = (&gateway, &served);
                scope.spawn(move || {
                    let mut client = gateway.connect();
                    let mut slowest = Duration::ZERO;
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_millis(1_500) {
                        let sent = Instant::now();
                        client.send(GET);
                        assert_eq!(client.response().status, 200);
                        served.fetch_add(1, Ordering::Relaxed);
                        slowest = slowest.max(sent.elapsed());
                    }
                    slowest
                })
            })
            .collect();
        until("the load is on", || served.load(Ordering::Relaxed) > 500);
        redis.kill();
        clients.into_iter().map(|client| client.join().expect("no panic")).max()
    });
    assert!(slowest.is_some_and(|slowest| slowest < Duration::from_millis(500)), "{slowest:?}");
    redis.restart();
    until("it is global again", || !is_degraded(&gateway));
}

#[test]
fn a_stalled_redis_costs_its_timeout_once() {
    let redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateway = on_redis(&redis, &backend, 100, "timeout = \"50ms\"");
    assert_eq!(gateway.get("/api").status, 200);
    redis.stall();
    let mut client = gateway.connect();
    let mut times = Vec::new();
    for _ in 0..20 {
        let sent = Instant::now();
        client.send(GET);
        assert_eq!(client.response().status, 200);
        times.push(sent.elapsed());
    }
    times.sort();
    assert!(times[19] < Duration::from_millis(500) && times[18] < Duration::from_millis(45), "{times:?}");
    redis.resume();
    until("it is global again", || !is_degraded(&gateway));
}

#[test]
fn a_full_or_read_only_redis_is_no_redis() {
    let backend = Backend::answering(OK);
    for (how, undo) in [
        (&["CONFIG", "SET", "maxmemory", "1"][..], &["CONFIG", "SET", "maxmemory", "0"][..]),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ] {
        let redis = RedisServer::start(&[]);
        let gateway = on_redis(&redis, &backend, 20, "");
        assert_eq!(storm(&[&gateway], 1, 2), (2, 0));
        assert_eq!(redis.command(how), "+OK");
        assert_eq!(storm(&[&gateway], 1, 5), (5, 0), "{how:?}: no request fails");
        until("it is noticed", || is_degraded(&gateway));
        assert_eq!(redis.command(undo), "+OK");
        until("it is global again", || {
            gateway.get("/api");
            !is_degraded(&gateway)
        });
    }
}

#[test]
fn a_script_that_redis_forgot_is_sent_again() {
    let redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateway = on_redis(&redis, &backend, 5, "");
    assert_eq!(storm(&[&gateway], 1, 2), (2, 0));
    assert_eq!(redis.command(&["SCRIPT", "FLUSH"]), "+OK");
    assert_eq!(storm(&[&gateway], 1, 4), (3, 1), "and nothing was forgotten");
    assert!(!is_degraded(&gateway));
}

#[test]
fn a_client_that_leaves_while_redis_is_asked_takes_nobody_along() {
    let redis = RedisServer::start(&[]);
    let backend = Backend::answering(OK);
    let gateway = on_redis(&redis, &backend, 100, "timeout = \"3s\"");
    assert_eq!(gateway.get("/api").status, 200);
    redis.stall();
    let mut clients: Vec<Client> = (0..10).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(GET);
    }
    // The first, whose order all others wait for, and one in the middle.
    drop(clients.remove(5));
    drop(clients.remove(0));
    redis.resume();
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}
