//! What happens to Redis, and how the client gets over it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ringway::redis::client::{CallError, Client, Reason, Settings, State};
use ringway::redis::resp::{Arg, Refusal, Script};
use ringway::snapshot::Address;

use crate::server::RedisServer;
use crate::support::*;

const TIMEOUT: Duration = Duration::from_millis(100);

fn hasty(server: &RedisServer) -> Settings {
    let mut settings = settings(server.address());
    settings.timeout = TIMEOUT;
    settings
}

#[test]
fn a_killed_server_is_found_again() {
    on_both_drivers(async || {
        let mut server = RedisServer::start(&[]);
        let script = Rc::new(Script::new("return redis.call('INCR', KEYS[1])"));
        let client = Client::start(settings(server.address()), &[Rc::clone(&script)], 1);
        up(&client).await;
        let eval = async || client.eval(&script, &[b"n"], &[]).await.map(|reply| reply.integer());
        assert_eq!(eval().await, Ok(Some(1)));
        let pending: Vec<_> = (0..10).map(|_| call(&client, &["BLPOP", "nothing", "0"])).collect();
        server.kill();
        for result in join_all(pending).await {
            assert_eq!(result, Err(CallError::Down));
        }
        // Not a moment is lost on it from now on.
        let start = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(eval().await, Err(CallError::Down));
        }
        assert!(start.elapsed() < TIMEOUT);
        down(&client, Reason::Unreachable).await;
        assert_eq!(client.generation(), 2);
        server.restart();
        up(&client).await;
        assert_eq!((client.generation(), client.stats().connects.get()), (3, 2));
        // Loaded again before the first call.
        assert_eq!((eval().await, client.stats().scripts_resent.get()), (Ok(Some(1)), 0));
    });
}

#[test]
fn a_client_may_be_there_before_its_server() {
    on_both_drivers(async || {
        let mut server = RedisServer::start(&[]);
        server.kill();
        let client = Client::start(settings(server.address()), &[], 1);
        assert_eq!(client.state(), State::Down(Reason::Starting));
        assert_eq!(ask(&client, &["PING"]).await, Err(CallError::Down));
        down(&client, Reason::Unreachable).await;
        server.restart();
        up(&client).await;
        assert_eq!(ask(&client, &["PING"]).await, said("PONG"));
    });
}

#[test]
fn a_stalled_server_costs_the_timeout_once() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(hasty(&server)).await;
        assert_eq!(ask(&client, &["ECHO", "before"]).await, said("before"));
        let mut sleeper = server.connect();
        sleeper.send(&["DEBUG", "SLEEP", "1"]);
        let start = Instant::now();
        // Until the sleep has begun.
        let mut late = Vec::new();
        while client.state() == State::Up {
            late.push(call(&client, &["ECHO", "late"]));
            monoio::time::sleep(Duration::from_millis(10)).await;
            assert!(start.elapsed() < Duration::from_millis(800), "calls fail in time");
        }
        assert_eq!(client.state(), State::Down(Reason::Timeout));
        let results = join_all(late).await;
        assert!(results.iter().filter(|result| **result == Err(CallError::Timeout)).count() >= 5, "{results:?}");
        assert_eq!(ask(&client, &["ECHO", "down"]).await, Err(CallError::Down));
        assert_eq!(sleeper.reply(), "+OK");
        up(&client).await;
        // What comes now was asked for now.
        let calls = (0..1_000).map(|number| (number, call(&client, &["ECHO", &number.to_string()])));
        for (number, call) in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.expect("a reply").text(), Some(number.to_string().as_bytes()));
        }
    });
}

#[test]
fn a_single_stalled_call_fails_in_time() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(hasty(&server)).await;
        let start = Instant::now();
        assert_eq!(ask(&client, &["BLPOP", "nothing", "0"]).await, Err(CallError::Timeout));
        let elapsed = start.elapsed();
        assert!(elapsed >= TIMEOUT && elapsed < TIMEOUT * 4, "{elapsed:?}");
        assert_eq!(client.stats().timeouts.get(), 1);
        up(&client).await;
        assert_eq!(ask(&client, &["PING"]).await, said("PONG"));
    });
}

#[test]
fn calls_that_are_answered_in_time_never_time_out() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(hasty(&server)).await;
        let start = Instant::now();
        while start.elapsed() < TIMEOUT * 5 {
            assert_eq!(ask(&client, &["PING"]).await, said("PONG"));
            monoio::time::sleep(Duration::from_millis(3)).await;
        }
        assert_eq!(client.generation(), 1);
    });
}

#[test]
fn a_full_server_is_still_there() {
    let server = RedisServer::start(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]);
    on_both_drivers(async || {
        let script = Script::new("return redis.call('SET', KEYS[1], ARGV[1])");
        let client = client(settings(server.address())).await;
        let full = Err(CallError::Refused(Refusal::OutOfMemory));
        let (mut result, large) = (said("OK"), "x".repeat(50_000));
        for key in 0..100 {
            result = ask(&client, &["SET", &key.to_string(), &large]).await;
        }
        assert_eq!(result, full);
        // Fuller still, so that nothing that Redis itself frees makes room.
        assert_eq!(server.command(&["CONFIG", "SET", "maxmemory", "1kb"]), "+OK");
        let refused = client.stats().refused(Refusal::OutOfMemory);
        let by_script = client.eval(&script, &[b"k"], &[Arg::Bytes(b"v")]).await;
        assert_eq!(by_script.map(|_| ()), Err(CallError::Refused(Refusal::OutOfMemory)));
        assert_eq!(ask(&client, &["GET", "k"]).await, said("(other)"));
        assert_eq!((client.state(), client.generation()), (State::Up, 1));
        assert_eq!(client.stats().refused(Refusal::OutOfMemory), refused + 1);
        assert!(!CallError::Refused(Refusal::OutOfMemory).is_outage());
        assert_eq!(server.command(&["CONFIG", "SET", "maxmemory", "1mb"]), "+OK");
        server.command(&["FLUSHALL"]);
    });
}

#[test]
fn a_master_that_becomes_a_replica_is_left_until_it_is_one_again() {
    let server = RedisServer::start(&["--replica-read-only", "yes"]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        assert_eq!(ask(&client, &["SET", "k", "v"]).await, said("OK"));
        let mut operator = server.connect();
        // Port 1 has no master.
        assert_eq!(operator.command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK");
        let script = Script::new("return redis.call('SET', KEYS[1], ARGV[1])");
        let by_script = client.eval(&script, &[b"k"], &[Arg::Bytes(b"v")]).await;
        assert_eq!(by_script.map(|_| ()), Err(CallError::Refused(Refusal::ReadOnly)));
        down(&client, Reason::Refused(Refusal::ReadOnly)).await;
        // It is asked for its role, so that it stays down without trying callers' patience.
        until(&client, "asked again", |client| client.stats().connect_failures.get() >= 3).await;
        assert_eq!((client.generation(), client.stats().connects.get()), (2, 1));
        assert_eq!(operator.command(&["REPLICAOF", "NO", "ONE"]), "+OK");
        up(&client).await;
        assert_eq!(ask(&client, &["SET", "k", "v"]).await, said("OK"));
    });
}

#[test]
fn a_replica_that_may_not_serve_stale_data_is_down() {
    let server = RedisServer::start(&["--replica-serve-stale-data", "no"]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let mut operator = server.connect();
        assert_eq!(operator.command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK");
        assert_eq!(ask(&client, &["GET", "k"]).await, Err(CallError::Refused(Refusal::MasterDown)));
        until(&client, "asked again", |client| client.stats().connect_failures.get() >= 2).await;
        assert_eq!(client.state(), State::Down(Reason::Refused(Refusal::MasterDown)));
        assert_eq!(operator.command(&["REPLICAOF", "NO", "ONE"]), "+OK");
        up(&client).await;
    });
}

#[test]
fn an_idle_client_that_the_server_closes_comes_back() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        assert_eq!(ask(&client, &["PING"]).await, said("PONG"));
        assert_ne!(server.command(&["CLIENT", "KILL", "TYPE", "normal"]), ":0");
        until(&client, "reconnected", |client| client.stats().connects.get() == 2).await;
        assert_eq!(ask(&client, &["PING"]).await, said("PONG"));
        assert_eq!(client.stats().down.get(), 0);
    });
}

#[test]
fn another_address_is_taken_at_once() {
    let (first, second) = (RedisServer::start(&[]), RedisServer::start(&[]));
    second.command(&["SET", "who", "second"]);
    on_both_drivers(async || {
        let client = client(settings(first.address())).await;
        assert_eq!(ask(&client, &["GET", "who"]).await, said("(other)"));
        let pending = call(&client, &["BLPOP", "nothing", "0"]);
        client.set_address(Address::Tcp(first.address()));
        assert_eq!(client.stats().connects.get(), 1, "the same is none");
        client.set_address(Address::Tcp(second.address()));
        assert_eq!(pending.await, Err(CallError::Down));
        until(&client, "up again", |client| client.stats().connects.get() == 2).await;
        assert_eq!(ask(&client, &["GET", "who"]).await, said("second"));
    });
}

#[test]
fn another_address_ends_a_long_pause() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let mut gone = RedisServer::start(&[]);
        gone.kill();
        let client = Client::start(settings(gone.address()), &[], 1);
        // By now the pause is longer than half a second.
        until(&client, "tired", |client| client.stats().connect_failures.get() >= 8).await;
        let start = Instant::now();
        client.set_address(Address::Tcp(server.address()));
        up(&client).await;
        assert!(start.elapsed() < Duration::from_millis(500));
    });
}
