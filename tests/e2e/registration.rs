//! Instances that register themselves: alone, with gateways that share a Redis, and when that is away.

mod hostile;
mod ways;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringway::control::config::EndpointUrl;
use ringway::control::registry::instance::InstanceId;
use ringway::policy::auth::api_key::KeyHash;
use serde_json::{Value, json};

use crate::redis::RedisServer;
use crate::support::client::Response;
use crate::support::{Backend, Gate, Gateway, RaisedAtEnd, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const KEY: &str = "rw_the-key-of-the-admin-is-long";
const PATH: &str = "/api/v1/services/api/instances";

/// The service `/api` before `backend`, and the admin's key.
fn tables(backend: &Backend, more: &str) -> String {
    let hash = KeyHash::of(KEY.as_bytes());
    format!("{more}\n[admin]\nkey_hash = \"{hash}\"\n{}", service("api", &[backend.url()], ""))
}

fn on_redis(backend: &Backend, redis: &RedisServer) -> Gateway {
    Gateway::start(&tables(backend, &format!("[redis]\nurl = \"{}\"\nprefix = \"t\"", redis.url())))
}

fn ask_as(gateway: &Gateway, credentials: &str, method: &str, path: &str, body: &str) -> Response {
    let length = body.len();
    gateway.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{credentials}Content-Length: {length}\r\n\r\n{body}"
    ))
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &str) -> Response {
    ask_as(gateway, &format!("X-API-Key: {KEY}\r\n"), method, path, body)
}

fn json(answer: &Response) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// Registers `url`; where it is from then on.
fn register(gateway: &Gateway, url: &str, ttl: u64) -> String {
    let answer = ask(gateway, "POST", PATH, &json!({ "url": url, "ttl": ttl }).to_string());
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    answer.header("location").expect("a location").to_owned()
}

fn listed(gateway: &Gateway) -> Vec<String> {
    let list = json(&ask(gateway, "GET", PATH, ""));
    let urls = list["instances"].as_array().expect("an array").iter();
    urls.map(|instance| instance["url"].as_str().expect("a string").to_owned()).collect()
}

fn is_stale(gateway: &Gateway) -> bool {
    json(&ask(gateway, "GET", PATH, ""))["stale"].as_bool().expect("a boolean")
}

/// The Unix time in so many ms.
fn in_ms(more: u128) -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() + more
}

/// How many of ten requests `backend` gets.
fn share(gateway: &Gateway, backend: &Backend) -> usize {
    let before = backend.requests().len();
    let mut client = gateway.connect();
    for _ in 0..10 {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    backend.requests().len() - before
}

#[test]
fn an_instance_comes_and_goes() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&tables(&first, ""));
    assert_eq!(json(&ask(&gateway, "GET", PATH, "")), json!({ "service": "api", "stale": false, "instances": [] }));

    let body = json!({ "url": second.url(), "weight": 4, "ttl": "1m" }).to_string();
    let answer = ask(&gateway, "POST", PATH, &body);
    assert_eq!(answer.status, 201);
    let shown = json(&answer);
    let id = shown["id"].as_str().expect("a string");
    assert_eq!(shown, json!({ "id": id, "url": second.url(), "weight": 4, "ttl": 60.0, "expires_in": 60 }));
    let at = answer.header("location").expect("a location");
    assert_eq!(at, format!("{PATH}/{id}"));
    assert_eq!(json(&ask(&gateway, "GET", at, ""))["url"], second.url());
    until("it gets its share", || share(&gateway, &second) == 8);

    let again = ask(&gateway, "POST", PATH, &json!({ "url": second.url().to_uppercase() }).to_string());
    assert_eq!((again.status, again.header("location")), (200, Some(at)), "the same place is the same instance");
    assert_eq!(json(&again)["weight"], 1);
    let renewed = ask(&gateway, "PUT", at, &json!({ "weight": 9, "ttl": 3_600 }).to_string());
    assert_eq!((renewed.status, &json(&renewed)["weight"]), (200, &json!(9)));
    let renewed = json(&ask(&gateway, "PUT", at, ""));
    assert_eq!((&renewed["weight"], &renewed["expires_in"]), (&json!(9), &json!(3_600)), "a heartbeat needs no body");
    until("it gets its share", || share(&gateway, &second) == 9);

    assert_eq!(ask(&gateway, "DELETE", at, "").status, 204);
    until("it gets nothing", || share(&gateway, &second) == 0);
    for method in ["PUT", "DELETE", "GET"] {
        let answer = ask(&gateway, method, at, "");
        assert_eq!((answer.status, answer.reason().as_str()), (404, "unknown_instance"), "{method}");
    }
    // One that is configured as well is there once.
    register(&gateway, &first.url(), 30);
    assert_eq!(share(&gateway, &first), 10);
    let answer = ask(&gateway, "PATCH", PATH, "");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD, POST")));
}

#[test]
fn without_a_sign_of_life_it_is_forgotten() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let alone = Gateway::start(&tables(&first, ""));
    let sharing = on_redis(&first, &redis);
    thread::scope(|scope| {
        for gateway in [&alone, &sharing] {
            scope.spawn(|| {
                let at = register(gateway, &second.url(), 5);
                let mut alive = Instant::now();
                for _ in 0..3 {
                    thread::sleep(Duration::from_secs(2));
                    alive = Instant::now();
                    assert_eq!(ask(gateway, "PUT", &at, "").status, 200, "heartbeats keep it");
                }
                until("it is forgotten", || listed(gateway).is_empty());
                let lived = alive.elapsed();
                assert!(lived > Duration::from_millis(4_900) && lived < Duration::from_secs(6), "{lived:?}");
                assert_eq!(ask(gateway, "PUT", &at, "").reason(), "unknown_instance");
            });
        }
    });
    assert_eq!(share(&alone, &second) + share(&sharing, &second), 0);
    assert_eq!(redis.command(&["EXISTS", "t:registry:api"]), ":0", "nothing is left in Redis");
}

#[test]
fn nobody_registers_without_the_key() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&tables(&backend, ""));
    let body = json!({ "url": "http://127.0.0.1:1" }).to_string();
    let check = |credentials: &str, status, reason: &str| {
        for (method, path) in [
            ("POST", PATH),
            ("GET", PATH),
            ("GET", "/api/v1/services/nobody/instances"),
            ("PUT", "/api/v1/services/api/instances/0123456789abcdef"),
            ("DELETE", "/api/v1/services/api/instances/0123456789abcdef"),
        ] {
            let answer = ask_as(&gateway, credentials, method, path, &body);
            assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{credentials} {method} {path}");
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401 || status == 400);
        }
    };
    check("", 401, "credentials_missing");
    check("X-API-Key: rw_the-key-of-the-admin-is-lonG\r\n", 401, "admin_key_wrong");
    check(&format!("Authorization: Bearer {KEY}x\r\n"), 401, "admin_key_wrong");
    check(&format!("X-API-Key: {KEY}\r\nX-API-Key: {KEY}\r\n"), 400, "credentials_several");
    check(&format!("X-API-Key: {KEY}\r\nAuthorization: Bearer {KEY}\r\n"), 400, "credentials_several");
    check("X-API-Key:\r\n", 400, "credentials_malformed");
    check("Authorization: Basic YTpi\r\n", 401, "credentials_missing");
    assert!(listed(&gateway).is_empty());
    let bearer = format!("Authorization: Bearer {KEY}\r\n");
    assert_eq!(ask_as(&gateway, &bearer, "POST", PATH, &body).status, 201);

    let off = Gateway::start(&service("api", &[backend.url()], ""));
    for credentials in ["", bearer.as_str()] {
        let answer = ask_as(&off, credentials, "POST", PATH, &body);
        assert_eq!((answer.status, answer.reason().as_str()), (403, "admin_key_not_configured"));
        assert!(answer.text().contains("admin.key_hash"));
    }
}

#[test]
fn what_is_refused() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&tables(&backend, ""));
    let check = |body: &str, status, reason: &str| {
        let answer = ask(&gateway, "POST", PATH, body);
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{body}: {}", answer.text());
    };
    for body in [
        "",
        "{",
        "[]",
        "[\"http://127.0.0.1:1\", 1, \"30s\"]",
        " \r\n\t[\"http://127.0.0.1:1\"]",
        "null",
        "\"http://127.0.0.1:1\"",
        "{}",
        "{\"url\": 1}",
        "{\"url\": \"http://a\", \"wait\": 1}",
        "{\"url\": \"http://a\", \"url\": \"http://b\"}",
        "{\"url\": \"http://127.0.0.1:1\", \"weight\": -1}",
        "{\"url\": \"http://127.0.0.1:1\", \"weight\": 1.5}",
        "{\"url\": \"http://127.0.0.1:1\", \"ttl\": []}",
        "{\"url\": \"http://127.0.0.1:1\"} x",
    ] {
        check(body, 400, "malformed_json");
    }
    let url = |url: &str| json!({ "url": url }).to_string();
    for host in ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "100.100.100.200", "0.0.0.0", "224.0.0.1"]
    {
        check(&url(&format!("http://{host}/")), 422, "instance_address_forbidden");
    }
    for bad in
        ["http://2852039166", "http://0xa9fea9fe", "http://u:p@127.0.0.1", "https://127.0.0.1", "http://127.0.0.1/x"]
    {
        check(&url(bad), 422, "instance_url_malformed");
    }
    check(&url("http://127.0.0.1\r\nX: y"), 422, "instance_url_malformed");
    check(&url("unix:/run/app.sock"), 422, "instance_not_allowed");
    check(&url("http://no-such-name.invalid"), 422, "instance_name_unresolved");
    for weight in [0, 1_001, 65_537] {
        check(&json!({ "url": "http://127.0.0.1:1", "weight": weight }).to_string(), 422, "instance_weight_invalid");
    }
    for ttl in [json!(4), json!(86_401), json!(-1), json!(1e300), json!("soon"), json!("4s")] {
        check(&json!({ "url": "http://127.0.0.1:1", "ttl": ttl }).to_string(), 422, "instance_ttl_invalid");
    }
    for body in ["[]", "[7]", "[7, \"60s\"]", "{", "null", "{\"weight\": [1]}"] {
        let answer = ask(&gateway, "PUT", &format!("{PATH}/0123456789abcdef"), body);
        assert_eq!((answer.status, answer.reason().as_str()), (400, "malformed_json"), "{body}: {}", answer.text());
    }
    let long = format!("{{\"url\": \"http://127.0.0.1:1\"{}}}", " ".repeat(20_000));
    check(&long, 413, "body_too_large");
    let unknown = ask(&gateway, "POST", "/api/v1/services/nobody/instances", &url("http://127.0.0.1:1"));
    assert_eq!((unknown.status, unknown.reason().as_str()), (404, "unknown_service"));
    let unknown = ask(&gateway, "GET", "/api/v1/services/%ff/instances", "");
    assert_eq!((unknown.status, unknown.reason().as_str()), (404, "unknown_service"));
    let management = ask(&gateway, "POST", "/api/v1/services/management/instances", &url("http://127.0.0.1:1"));
    assert_eq!(management.reason(), "unknown_service", "the gateway's own service takes nobody");
    for id in ["x", "0123456789ABCDEF", "%ff", "0123456789abcdef0"] {
        assert_eq!(ask(&gateway, "PUT", &format!("{PATH}/{id}"), "").status, 404, "{id}");
    }
    assert!(listed(&gateway).is_empty());
}

#[test]
fn the_operator_decides_where_instances_may_be() {
    let backend = Backend::answering(OK);
    let allow = "[discovery]\nallow = [\"127.0.0.2\", \"localhost\", \"169.254.7.0/24\", \"unix:/run/app.sock\"]";
    let gateway = Gateway::start(&tables(&backend, allow));
    let check = |url: &str, expected: Result<(), &str>| {
        let answer = ask(&gateway, "POST", PATH, &json!({ "url": url }).to_string());
        let result = if answer.status == 201 { Ok(()) } else { Err(answer.reason()) };
        assert_eq!(result.as_ref().err().map(String::as_str), expected.err(), "{url}");
    };
    check("http://127.0.0.2:9", Ok(()));
    check("http://localhost:9", Ok(()));
    check("http://169.254.7.9:9", Ok(()));
    check("unix:/run/app.sock", Ok(()));
    check("http://127.0.0.1:9", Err("instance_not_allowed"));
    check("http://169.254.169.254", Err("instance_not_allowed"));
    check("unix:/run/other.sock", Err("instance_not_allowed"));
}

#[test]
fn a_name_is_an_instance() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&tables(&first, "[discovery]\ndns_refresh = \"1s\""));
    let name = format!("localhost:{}", second.address.port());
    register(&gateway, &format!("http://{name}"), 60);
    until("it gets its share", || share(&gateway, &second) == 5);
    assert_eq!(second.last().header("host"), Some(name.as_str()));
    // Looked up again, and still there.
    thread::sleep(Duration::from_millis(1_500));
    assert_eq!(share(&gateway, &second), 5);
}

#[test]
fn traffic_moves_without_losing_a_request() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start_with("workers = 2", &tables(&first, ""));
    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let end = RaisedAtEnd(&done);
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut sent) = (gateway.connect(), 0);
                    while !done.load(Ordering::Relaxed) {
                        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
                        assert_eq!(client.response().status, 200);
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        for _ in 0..10 {
            let before = second.requests().len();
            let at = register(&gateway, &second.url(), 30);
            until("it gets requests", || second.requests().len() > before + 10);
            assert_eq!(ask(&gateway, "DELETE", &at, "").status, 204);
        }
        drop(end);
        clients.into_iter().map(|client| client.join().expect("no panic")).sum::<usize>()
    });
    assert_eq!(first.requests().len() + second.requests().len(), sent, "each once");
}

#[test]
fn what_is_in_flight_finishes() {
    let gate = Gate::default();
    let slow = Backend::start({
        let gate = gate.clone();
        move |connection| {
            connection.request()?;
            gate.pass();
            connection.send(OK)
        }
    });
    let first = Backend::answering(OK);
    let gateway = Gateway::start(&tables(&first, ""));
    let at = register(&gateway, &slow.url(), 30);
    // One of these hangs.
    let mut clients = [gateway.connect(), gateway.connect()];
    for client in &mut clients {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    until("both are under way", || slow.requests().len() + first.requests().len() == 2);
    assert_eq!(slow.requests().len(), 1);
    assert_eq!(ask(&gateway, "DELETE", &at, "").status, 204);
    assert_eq!(share(&gateway, &slow), 0);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
}

#[test]
fn gateways_that_share_a_redis_share_their_instances() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    let within_a_second = |what: &str, condition: &dyn Fn() -> bool| {
        let start = Instant::now();
        until(what, condition);
        assert!(start.elapsed() < Duration::from_secs(1), "{what}: {:?}", start.elapsed());
    };
    // The subscription is there when the notice of another gateway comes through at once.
    until("all listen", || redis.command(&["PUBSUB", "NUMSUB", "t:registry"]) == "t:registry :2");

    let at = register(&gateways[0], &second.url(), 30);
    within_a_second("the other one has it", &|| listed(&gateways[1]) == [second.url()]);
    within_a_second("and its requests go there", &|| share(&gateways[1], &second) == 5);
    assert_eq!(ask(&gateways[1], "PUT", &at, "{\"weight\": 4}").status, 200, "any gateway takes its heartbeats");
    within_a_second("the weight is everywhere", &|| share(&gateways[0], &second) == 8);
    let late = on_redis(&first, &redis);
    within_a_second("one that starts later has it", &|| share(&late, &second) == 8);
    assert_eq!(ask(&late, "DELETE", &at, "").status, 204);
    within_a_second("it is gone everywhere", &|| gateways.iter().all(|gateway| listed(gateway).is_empty()));
    assert_eq!(gateways.iter().map(|gateway| share(gateway, &second)).sum::<usize>(), 0);
    // Another gateway's word is not believed.
    let forbidden =
        EndpointUrl::Address { authority: "169.254.169.254".to_owned(), address: ([169, 254, 169, 254], 80).into() };
    let id = InstanceId::of("api", &forbidden).to_string();
    let entry = format!("{} 30000 1 {forbidden}", in_ms(30_000));
    assert_eq!(redis.command(&["HSET", "t:registry:api", &id, &entry]), ":1");
    redis.command(&["PUBLISH", "t:registry", "api"]);
    thread::sleep(Duration::from_millis(300));
    assert!(gateways.iter().all(|gateway| listed(gateway).is_empty()));
}

#[test]
fn a_lost_notice_delays_a_change_only() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    // Who may not use channels neither tells nor hears anything.
    let redis = RedisServer::start(&["--user", "default", "on", "nopass", "~*", "resetchannels", "+@all"]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    register(&gateways[0], &second.url(), 60);
    until("the other one has read it", || listed(&gateways[1]) == [second.url()]);
}

#[test]
fn without_redis_the_last_known_stay_and_nothing_changes() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let mut redis = RedisServer::start(&[]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    let at = register(&gateways[0], &second.url(), 5);
    until("the other one has it", || listed(&gateways[1]) == [second.url()]);
    redis.kill();
    for gateway in &gateways {
        until("it is noticed", || is_stale(gateway));
        for (method, path, body) in
            [("PUT", &*at, ""), ("DELETE", &*at, ""), ("POST", PATH, "{\"url\": \"http://127.0.0.1:1\"}")]
        {
            let answer = ask(gateway, method, path, body);
            assert_eq!((answer.status, answer.reason().as_str()), (503, "registry_unavailable"), "{method}");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        let said = |event: &Value| event["message"].as_str().is_some_and(|text| text.contains("instances known last"));
        gateway.events.wait_for(said);
        assert_eq!(gateway.events.all().iter().filter(|event| said(event)).count(), 1, "once");
    }
    // Longer than it may live without a sign of life, which cannot arrive.
    thread::sleep(Duration::from_secs(6));
    for gateway in &gateways {
        assert_eq!(share(gateway, &second), 5);
    }
    // Empty: nothing was kept on disk.
    redis.restart();
    for gateway in &gateways {
        until("it is noticed", || !is_stale(gateway));
        assert_eq!(listed(gateway), [second.url()], "a restart of Redis takes nobody out");
        assert_eq!(share(gateway, &second), 5);
    }
    assert_eq!(ask(&gateways[1], "PUT", &at, "").status, 200, "and it is registered");
    until("without a sign of life it is forgotten", || gateways.iter().all(|gateway| listed(gateway).is_empty()));
}

#[test]
fn a_quick_restart_of_redis_takes_nobody_out() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let mut redis = RedisServer::start(&[]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    let at = register(&gateways[0], &second.url(), 600);
    until("the other one has it", || listed(&gateways[1]) == [second.url()]);
    for _ in 0..3 {
        redis.restart();
        for gateway in &gateways {
            until("heartbeats arrive again", || {
                let status = ask(gateway, "PUT", &at, "").status;
                assert!(matches!(status, 200 | 503), "{status}");
                assert_eq!(listed(gateway), [second.url()]);
                status == 200
            });
            assert_eq!(share(gateway, &second), 5);
        }
    }
}

#[test]
fn any_redis_that_takes_the_counts_takes_the_instances() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let locked = RedisServer::start(&["--requirepass", "p@ss"]);
    let unix = format!("unix:{}", redis.unix_path().display());
    let named = format!("redis://localhost:{}", redis.port);
    let with_password = format!("redis://:p%40ss@127.0.0.1:{}/3", locked.port);
    for (url, server, database) in [(unix, &redis, "0"), (named, &redis, "0"), (with_password, &locked, "3")] {
        let gateway = Gateway::start(&tables(&backend, &format!("[redis]\nurl = \"{url}\"\nprefix = \"t\"")));
        let at = register(&gateway, "http://127.0.0.1:9", 60);
        let mut own = server.connect();
        own.command(&["SELECT", database]);
        assert_eq!(own.command(&["HLEN", "t:registry:api"]), ":1", "{url}");
        let lifetime: u64 = own.command(&["PTTL", "t:registry:api"])[1..].parse().expect("a number");
        // As long as an instance or, from the round before, a deregistration is to be remembered.
        assert!((50_000..=600_000).contains(&lifetime), "{lifetime}");
        assert_eq!(ask(&gateway, "DELETE", &at, "").status, 204);
    }
    // One that lets nobody write is read all the same.
    let gateway = on_redis(&backend, &redis);
    register(&gateway, "http://127.0.0.1:9", 60);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK");
    let answer = ask(&gateway, "POST", PATH, "{\"url\": \"http://127.0.0.1:10\"}");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "registry_unavailable"));
    assert_eq!((is_stale(&gateway), listed(&gateway).len()), (false, 1));
}

#[test]
fn who_was_deregistered_is_not_brought_back() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateway = on_redis(&first, &redis);
    let at = register(&gateway, &second.url(), 600);
    // For this gateway alone Redis is away: its password has changed.
    assert_eq!(redis.command(&["CONFIG", "SET", "requirepass", "x"]), "+OK");
    let mut own = redis.connect();
    assert_eq!(own.command(&["AUTH", "x"]), "+OK");
    own.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until("it is noticed", || is_stale(&gateway));
    let id = at.rsplit('/').next().expect("an id");
    // What another gateway does meanwhile.
    assert_eq!(own.command(&["HSET", "t:registry:api", id, &format!("{} gone", in_ms(600_000))]), ":0");
    assert_eq!(own.command(&["CONFIG", "SET", "requirepass", ""]), "+OK");
    until("it is noticed", || !is_stale(&gateway));
    until("it is gone", || listed(&gateway).is_empty());
    assert_eq!(register(&gateway, &second.url(), 600), at, "but may register again");
    assert_eq!(listed(&gateway), [second.url()]);
}

#[test]
fn a_gateway_that_restarts_finds_them_there() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateway = on_redis(&first, &redis);
    let at = register(&gateway, &second.url(), 60);
    drop(gateway);
    let gateway = on_redis(&first, &redis);
    assert_eq!(share(&gateway, &second), 5, "from its first request on");
    assert_eq!(ask(&gateway, "PUT", &at, "").status, 200);
}

#[test]
fn a_service_may_have_no_other_instances() {
    let backend = Backend::answering(OK);
    let hash = KeyHash::of(KEY.as_bytes());
    let gateway = Gateway::start(&format!("[admin]\nkey_hash = \"{hash}\"\n{}", service("api", &[], "")));
    assert_eq!(gateway.get("/api").reason(), "no_healthy_endpoint");
    let at = register(&gateway, &backend.url(), 60);
    until("it answers", || gateway.get("/api").status == 200);
    assert_eq!(ask(&gateway, "DELETE", &at, "").status, 204);
    until("nobody answers", || gateway.get("/api").status == 503);
}

#[test]
fn a_reload_keeps_the_instances_and_changes_the_rules() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&tables(&first, ""));
    let name = format!("http://localhost:{}", second.address.port());
    let at = register(&gateway, &name, 60);
    until("it gets its share", || share(&gateway, &second) == 5);
    gateway.reload(&tables(&first, "[timeouts]\nconnect = \"1s\""));
    assert_eq!(share(&gateway, &second), 5, "its name is still known");
    gateway.reload(&tables(&first, "[discovery]\nallow = [\"10.0.0.0/8\"]"));
    assert_eq!(share(&gateway, &second), 0, "where it is not allowed any more");
    let hash = KeyHash::of(b"another-key-of-the-admin");
    gateway.reload(&tables(&first, "").replace(&KeyHash::of(KEY.as_bytes()).to_string(), &hash.to_string()));
    assert_eq!(ask(&gateway, "PUT", &at, "").reason(), "admin_key_wrong");
    let renewed = ask_as(&gateway, "X-API-Key: another-key-of-the-admin\r\n", "PUT", &at, "");
    assert_eq!(renewed.status, 200);
    assert_eq!(share(&gateway, &second), 5);
}

#[test]
fn many_at_once() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let alone = [Gateway::start(&tables(&backend, ""))];
    let sharing = [on_redis(&backend, &redis), on_redis(&backend, &redis)];
    for gateways in [&alone[..], &sharing] {
        let statuses: Vec<u16> = thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|client| {
                    scope.spawn(move || {
                        let gateway = &gateways[client % gateways.len()];
                        let body = |index| json!({ "url": format!("http://127.0.0.1:{}", 1_000 + index) }).to_string();
                        // 260 in all, each twice, by different clients.
                        let own = (0..520).filter(|index| index % 8 == client).map(|index| index % 260);
                        own.map(|index| ask(gateway, "POST", PATH, &body(index)).status).collect::<Vec<_>>()
                    })
                })
                .collect();
            clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
        });
        let count = |status| statuses.iter().filter(|found| **found == status).count();
        assert_eq!(count(201), 256, "{statuses:?}");
        assert_eq!(count(200) + count(409), 264);
        for gateway in gateways {
            until("all have all", || listed(gateway).len() == 256);
            let one_more = ask(gateway, "POST", PATH, "{\"url\": \"http://127.0.0.1:999\"}");
            assert_eq!((one_more.status, one_more.reason().as_str()), (409, "instances_full"));
        }
    }
}

#[test]
fn an_event_that_comes_again_and_again_is_left_out() {
    let gateway = Gateway::start(&tables(&Backend::answering(OK), ""));
    for port in 1..=75 {
        register(&gateway, &format!("http://127.0.0.1:{port}"), 600);
    }
    let left_out =
        gateway.events.wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("left out")));
    assert!(left_out["count"].as_u64() > Some(0), "{left_out}");
    let written = gateway.events.all().iter().filter(|event| event["message"] == "an instance was registered").count();
    assert_eq!(written, 60);
}
