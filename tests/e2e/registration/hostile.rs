//! What a Redis that others write to, or that refuses, does to the registered instances.

use std::thread;
use std::time::{Duration, Instant};

use ringway::control::registry::book::INSTANCES_MAX;
use serde_json::Value;

use super::{OK, PATH, ask, is_stale, json, listed, on_redis, register, share, tables};
use crate::redis::RedisServer;
use crate::support::{Backend, Gateway, RaisedAtEnd, service, until};

const OTHER: &str = "/api/v1/services/other/instances";
const HASH: &str = "t:registry:api";

/// With a second service, whose instances are somewhere.
fn with_other(backend: &Backend, redis: &RedisServer) -> Gateway {
    Gateway::start(&tables_with_other(backend, redis))
}

fn tables_with_other(backend: &Backend, redis: &RedisServer) -> String {
    let redis = format!("[redis]\nurl = \"{}\"\nprefix = \"t\"", redis.url());
    format!("{}\n{}", tables(backend, &redis), service("other", &[], ""))
}

fn urls(list: &Value) -> Vec<&str> {
    let instances = list["instances"].as_array().expect("an array");
    instances.iter().map(|instance| instance["url"].as_str().expect("a string")).collect()
}

fn list_other(gateway: &Gateway) -> Value {
    json(&ask(gateway, "GET", OTHER, ""))
}

fn register_other(gateway: &Gateway, url: &str) -> String {
    let answer = ask(gateway, "POST", OTHER, &json!({ "url": url, "ttl": 600 }).to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.header("location").expect("a location").to_owned()
}

fn said(gateway: &Gateway, text: &str) -> usize {
    let says = |event: &&Value| event["message"].as_str().is_some_and(|message| message.contains(text));
    gateway.events.all().iter().filter(says).count()
}

/// What a Lua script with the registry's key as `KEYS[1]`, and Redis's clock in ms as `now`, answers.
fn run(redis: &RedisServer, script: &str) -> String {
    let script = format!("local t = redis.call('TIME'); local now = t[1] * 1000; {script}");
    let answer = redis.command(&["EVAL", &script, "1", HASH]);
    assert!(!answer.starts_with('-'), "{answer}");
    answer
}

#[test]
fn what_is_wrong_with_one_service_is_its_own() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let gateway = with_other(&backend, &redis);
    // What is done to the key of the other service, what undoes it, what the log says, and what to do.
    for (broken, mended, why, remedy) in [
        (&["SET", "t:registry:other", "x"][..], &["DEL", "t:registry:other"][..], "WRONGTYPE", "DEL"),
        (
            &["ACL", "SETUSER", "default", "resetkeys", "~t:registry:api"],
            &["ACL", "SETUSER", "default", "~*"],
            "NOPERM",
            "ACL SETUSER",
        ),
    ] {
        let before = gateway.events.all().len();
        let at = register(&gateway, &backend.url(), 600);
        let at_other = register_other(&gateway, "http://127.0.0.1:9");
        redis.command(broken);
        let answer = ask(&gateway, "PUT", &at_other, "");
        assert_eq!((answer.status, answer.reason().as_str()), (503, "registry_unavailable"), "{why}");
        redis.command(&["PUBLISH", "t:registry", "other"]);
        let is_said = |event: &Value| event["service"] == "other" && event["key"] == "t:registry:other";
        gateway.events.wait_for_after(before, is_said);
        let events = gateway.events.all();
        let event = events[before..].iter().find(|event| is_said(event)).expect("it was said");
        assert!(event["error"].as_str().is_some_and(|error| error.contains(why)), "{event}");
        assert!(event["message"].as_str().is_some_and(|message| message.contains(remedy)), "{event}");

        for (method, path, body) in [("PUT", &*at_other, ""), ("POST", OTHER, "{\"url\": \"http://127.0.0.1:10\"}")] {
            let answer = ask(&gateway, method, path, body);
            assert_eq!((answer.status, answer.reason().as_str()), (503, "registry_unavailable"), "{why}");
            assert!(answer.text().contains("t:registry:other") && answer.text().contains(remedy), "{}", answer.text());
        }
        let other = list_other(&gateway);
        assert_eq!((&other["stale"], urls(&other)), (&json!(true), vec!["http://127.0.0.1:9"]), "{why}");
        // The service beside it is as well as before.
        assert!(!is_stale(&gateway));
        assert_eq!(ask(&gateway, "PUT", &at, "").status, 200);
        assert_eq!(ask(&gateway, "DELETE", &at, "").status, 204);
        register(&gateway, &backend.url(), 600);
        let fresh = with_other(&backend, &redis);
        assert_eq!(listed(&fresh), [backend.url()], "{why}");
        until("it is told here too", || said(&fresh, "cannot be read") == 1);
        drop(fresh);

        redis.connect().command(mended);
        until("it is read again", || list_other(&gateway)["stale"] == false);
        assert_eq!(urls(&list_other(&gateway)), ["http://127.0.0.1:9"], "{why}: whoever was known is brought back");
        assert_eq!(ask(&gateway, "PUT", &at_other, "").status, 200);
        assert_eq!(ask(&gateway, "DELETE", &at_other, "").status, 204);
        let times = gateway.events.all()[before..].iter().filter(|event| is_said(event)).count();
        assert_eq!(times, 1, "{why}: once");
    }
}

#[test]
fn what_no_gateway_wrote_is_passed_over_and_swept_out() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateway = on_redis(&first, &redis);
    let at = register(&gateway, &second.url(), 60);
    run(
        &redis,
        "local far = string.format('%d', now + 1000000)
        for _, text in ipairs({'9223372036854775807 gone', '99999999999999999999 gone', far .. ' gone ', far, 'gone', '',
            far .. ' 30000 1 ftp://a', far .. ' 30000 0 http://a', far .. ' 30000 1001 http://a', far .. ' 1 1 http://a',
            far .. ' 9223372036854775807 1 http://a', far .. ' 30000 1 http://a b', far .. ' 30000 1 http://' .. string.rep('a', 600),
            far .. ' 30000 1', '-' .. far .. ' gone', '1e300 30000 1 http://a', '99999999999999 30000 1 http://a', '\\255'}) do
            redis.call('HSET', KEYS[1], string.format('%016x', #text + 7), text)
            redis.call('HSET', KEYS[1], string.format('%016x', #text + 7) .. text, text)
        end
        for i = 1, 300 do redis.call('HSET', KEYS[1], 'junk' .. i, far .. ' 30000 1 http://127.0.0.1:' .. i) end
        redis.call('HSET', KEYS[1], '\\255', far .. ' 30000 1 http://a')
        redis.call('PERSIST', KEYS[1])",
    );
    let fresh = on_redis(&first, &redis);
    assert_eq!(listed(&fresh), [second.url()], "what is beside it is read");
    assert_eq!(ask(&gateway, "PUT", &at, "").status, 200);
    assert_eq!(redis.command(&["HLEN", HASH]), ":1", "nothing else is left");
    let lifetime: u64 = redis.command(&["PTTL", HASH])[1..].parse().expect("a number");
    assert!((50_000..=60_000).contains(&lifetime), "{lifetime}");
    assert_eq!(ask(&fresh, "PUT", &at, "").status, 200);
    assert!(!is_stale(&fresh) && !is_stale(&gateway));
}

#[test]
fn the_longest_times_and_the_largest_weights_are_no_junk() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let gateway = Gateway::start(&tables(
        &backend,
        &format!(
            "[discovery]\nallow = [\"127.0.0.0/8\", \"unix:/run/an app.sock\"]\n[redis]\nurl = \"{}\"\nprefix = \"t\"",
            redis.url()
        ),
    ));
    for body in [
        json!({ "url": "http://127.0.0.1:1", "ttl": "24h", "weight": 1_000 }),
        json!({ "url": "http://127.0.0.1:2", "ttl": 5 }),
        json!({ "url": "unix:/run/an app.sock", "ttl": 60 }),
    ] {
        assert_eq!(ask(&gateway, "POST", PATH, &body.to_string()).status, 201);
    }
    assert_eq!(redis.command(&["HLEN", HASH]), ":3");
    assert_eq!(listed(&gateway).len(), 3);
}

#[test]
fn deregistrations_are_remembered_up_to_a_number() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let gateway = on_redis(&backend, &redis);
    let at = register(&gateway, "http://127.0.0.1:9", 60);
    let written = INSTANCES_MAX + 100;
    run(
        &redis,
        &format!(
            "for i = 1, {written} do
                redis.call('HSET', KEYS[1], string.format('%016x', i), string.format('%d gone', now + 100000 + i * 1000))
            end"
        ),
    );
    assert_eq!(ask(&gateway, "DELETE", &at, "").status, 204);
    assert_eq!(redis.command(&["HLEN", HASH]), format!(":{INSTANCES_MAX}"));
    let id = at.rsplit('/').next().expect("an id");
    assert_eq!(redis.command(&["HEXISTS", HASH, id]), ":1", "the newest is one of them");
    let is_there = |number: usize| redis.command(&["HEXISTS", HASH, &format!("{number:016x}")]) == ":1";
    assert!(!is_there(101) && is_there(102) && is_there(written), "the soonest to end went first");
    register(&gateway, "http://127.0.0.1:9", 60);
}

#[test]
fn what_redis_loses_is_brought_back() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    let at = register(&gateways[0], &second.url(), 600);
    until("the other one has it", || listed(&gateways[1]) == [second.url()]);
    for _ in 0..3 {
        // As when its memory is full and its policy is to evict.
        assert_eq!(redis.command(&["DEL", HASH]), ":1");
        redis.command(&["PUBLISH", "t:registry", "api"]);
        until("it is back", || redis.command(&["HLEN", HASH]) == ":1");
        assert!(gateways.iter().all(|gateway| listed(gateway) == [second.url()]));
    }
    assert_eq!(ask(&gateways[1], "PUT", &at, "").status, 200);
    assert_eq!(ask(&gateways[1], "DELETE", &at, "").status, 204);
    until("it is gone", || gateways.iter().all(|gateway| listed(gateway).is_empty()));
    assert_eq!(said(&gateways[0], "in use, stale"), 0);
}

#[test]
fn a_deregistration_of_one_that_redis_has_lost_is_remembered_too() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let gateway = on_redis(&backend, &redis);
    let at = register(&gateway, "http://127.0.0.1:9", 600);
    let id = at.rsplit('/').next().expect("an id");
    // It has read what was registered, and has no reason to read again for a while.
    thread::sleep(Duration::from_millis(300));
    // As a restart does; another gateway, still cut off, is about to bring it back.
    assert_eq!(redis.command(&["DEL", HASH]), ":1");
    for _ in 0..2 {
        assert_eq!(ask(&gateway, "DELETE", &at, "").reason(), "unknown_instance");
        assert!(redis.command(&["HGET", HASH, id]).ends_with(" gone"));
    }
    let lifetime: u64 = redis.command(&["PTTL", HASH])[1..].parse().expect("a number");
    assert!((590_000..=600_000).contains(&lifetime), "{lifetime}");
    assert_eq!(register(&gateway, "http://127.0.0.1:9", 600), at, "but it may register again");
}

#[test]
fn the_log_says_whether_redis_answers() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let mut redis = RedisServer::start(&[]);
    let gateway = on_redis(&first, &redis);
    register(&gateway, &second.url(), 600);
    let mut own = redis.connect();
    assert_eq!(own.command(&["ACL", "SETUSER", "default", "-time", "-eval"]), "+OK");
    let answer = ask(&gateway, "POST", PATH, "{\"url\": \"http://127.0.0.1:9\"}");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "registry_unavailable"));
    assert!(answer.text().contains("NOPERM"), "{}", answer.text());
    let complaints = || (said(&gateway, "Redis answers with an error"), said(&gateway, "Redis does not answer"));
    until("it is noticed", || is_stale(&gateway) && complaints() != (0, 0));
    assert_eq!(complaints(), (1, 0));
    assert_eq!(own.command(&["ACL", "SETUSER", "default", "+@all"]), "+OK");
    until("it is noticed", || !is_stale(&gateway));
    redis.kill();
    until("it is noticed", || is_stale(&gateway) && complaints() != (1, 0));
    assert_eq!(complaints(), (1, 1));
    assert_eq!(listed(&gateway), [second.url()]);
}

#[test]
fn a_redis_that_takes_no_changes_forgets_nobody() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    let at = register(&gateways[0], &second.url(), 5);
    until("the other one has it", || listed(&gateways[1]) == [second.url()]);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK");
    let start = Instant::now();
    // It is alive, and cannot say so.
    while start.elapsed() < Duration::from_secs(7) {
        assert_eq!(ask(&gateways[0], "PUT", &at, "").status, 503);
        thread::sleep(Duration::from_millis(500));
    }
    for gateway in &gateways {
        assert_eq!((is_stale(gateway), listed(gateway)), (true, vec![second.url()]));
        assert_eq!(share(gateway, &second), 5);
    }
    // Nor does one that has lost everything meanwhile.
    redis.command(&["FLUSHALL"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    thread::sleep(Duration::from_secs(2));
    for gateway in &gateways {
        assert_eq!(share(gateway, &second), 5);
    }
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK");
    for gateway in &gateways {
        until("it is noticed", || !is_stale(gateway));
        assert_eq!(listed(gateway), [second.url()]);
    }
    assert_eq!(ask(&gateways[1], "PUT", &at, "").status, 200);
    until("without a sign of life it is forgotten", || gateways.iter().all(|gateway| listed(gateway).is_empty()));
    assert!(!is_stale(&gateways[0]));
}

#[test]
fn whom_a_redis_that_takes_no_changes_has_lost_is_not_told_that_it_is_unknown() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let gateway = on_redis(&backend, &redis);
    let at = register(&gateway, "http://127.0.0.1:9", 600);
    // What is swept out must not make room for what comes then.
    run(&redis, "redis.call('HSET', KEYS[1], '0123456789abcdef', '1 30000 1 http://127.0.0.1:10')");
    // From here on nobody brings back what is lost.
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK");
    assert_eq!(redis.command(&["HDEL", HASH, at.rsplit('/').next().expect("an id")]), ":1");
    let answer = ask(&gateway, "PUT", &at, "");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "registry_unavailable"));
    assert_eq!(listed(&gateway), ["http://127.0.0.1:9"]);
    until("it is noticed", || is_stale(&gateway));
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK");
    until("it is brought back", || !is_stale(&gateway));
    assert_eq!(ask(&gateway, "PUT", &at, "").status, 200);
}

#[test]
fn a_service_that_a_reload_adds_has_its_instances_at_once() {
    let backend = Backend::answering(OK);
    let redis = RedisServer::start(&[]);
    let other = with_other(&backend, &redis);
    register_other(&other, &backend.url());
    let gateway = on_redis(&backend, &redis);
    assert_eq!(ask(&gateway, "GET", OTHER, "").reason(), "unknown_service");
    // Nothing else gives it reason to read.
    until("all listen", || redis.command(&["PUBSUB", "NUMSUB", "t:registry"]) == "t:registry :2");
    thread::sleep(Duration::from_millis(300));
    gateway.reload(&tables_with_other(&backend, &redis));
    let start = Instant::now();
    until("it answers", || gateway.get("/other").status == 200);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn who_comes_and_goes_quickly_hides_nobody() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let gateways = [on_redis(&first, &redis), on_redis(&first, &redis)];
    let done = std::sync::atomic::AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        let _end = RaisedAtEnd(&done);
        for client in 0..4 {
            let (gateway, done) = (&gateways[0], &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let at = register(gateway, &format!("http://127.0.0.1:{}", 10 + client), 5);
                    assert_eq!(ask(gateway, "DELETE", &at, "").status, 204);
                }
            });
        }
        (0..10)
            .map(|_| {
                let start = Instant::now();
                let at = register(&gateways[1], &second.url(), 60);
                until("the other one has it", || listed(&gateways[0]).contains(&second.url()));
                assert_eq!(ask(&gateways[1], "DELETE", &at, "").status, 204);
                until("the other one has it no more", || !listed(&gateways[0]).contains(&second.url()));
                start.elapsed()
            })
            .max()
    });
    assert!(slowest < Some(Duration::from_secs(1)), "{slowest:?}");
    for gateway in &gateways {
        until("all are gone", || listed(gateway).is_empty());
    }
}
