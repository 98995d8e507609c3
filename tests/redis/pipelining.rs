//! Many calls, few writes, each its own reply.

use std::cell::Cell;
use std::rc::Rc;

use futures_util::future::join_all;
use ringway::redis::client::{CallError, OUT_MAX, PENDING_MAX};
use ringway::redis::resp::command::{array, bulk, command, integer};
use ringway::redis::resp::{Arg, Script};
use ringway::snapshot::Address;

use crate::server::RedisServer;
use crate::support::*;

#[test]
fn calls_of_one_turn_leave_as_one_write() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let calls: Vec<_> = (0..500).map(|_| call(&client, &["PING"])).collect();
        assert_eq!(client.pending(), 500);
        assert!(join_all(calls).await.iter().all(Result::is_ok));
        assert_eq!((client.stats().writes.get(), client.stats().calls.get()), (1, 500));
        assert_eq!((client.stats().replies.get(), client.pending()), (500, 0));
        assert_eq!(client.stats().bytes_in.get(), 500 * b"+PONG\r\n".len() as u64);
    });
}

#[test]
fn calls_of_many_tasks_share_writes() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = Rc::new(client(settings(server.address())).await);
        let tasks = (0..100).map(|_| {
            let client = Rc::clone(&client);
            monoio::spawn(async move {
                for _ in 0..20 {
                    assert_eq!(ask(&client, &["PING"]).await, said("PONG"));
                }
            })
        });
        join_all(tasks.collect::<Vec<_>>()).await;
        let (calls, writes) = (client.stats().calls.get(), client.stats().writes.get());
        assert_eq!(calls, 2_000);
        assert!(writes <= calls / 10, "{writes} writes");
    });
}

#[test]
fn every_call_gets_its_own_reply() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let mut next = 0;
        for batch in [1, 7, 1_000, 4_000, 3, 4_096, 893] {
            let numbers = next..next + batch;
            next += batch;
            let calls = numbers.clone().map(|number| {
                client.call(|out| {
                    array(2, out);
                    bulk(b"ECHO", out);
                    integer(number, out);
                })
            });
            for (number, reply) in numbers.zip(join_all(calls.collect::<Vec<_>>()).await) {
                assert_eq!(reply.expect("a reply").text(), Some(number.to_string().as_bytes()));
            }
        }
        assert_eq!((next, client.stats().replies.get()), (10_000, 10_000));
    });
}

#[test]
fn large_replies_and_commands_come_through() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let large = "x".repeat(60_000);
        assert_eq!(ask(&client, &["SET", "large", &large]).await, said("OK"));
        let calls: Vec<_> = (0..50).map(|_| call(&client, &["GET", "large"])).collect();
        let replies = join_all(calls).await;
        assert!(replies.iter().all(|reply| reply.as_ref().expect("a reply").text() == Some(large.as_bytes())));
        assert_eq!(ask(&client, &["GET", "nothing"]).await, said("(other)"));
        let list = call(&client, &["TIME"]).await.expect("a reply");
        assert!(list.integers::<2>().is_none(), "TIME answers in bulk strings");
    });
}

#[test]
fn too_much_at_once_is_refused_at_once() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let calls: Vec<_> = (0..PENDING_MAX + 10).map(|_| call(&client, &["PING"])).collect();
        assert_eq!(client.pending(), PENDING_MAX);
        let results = join_all(calls).await;
        assert!(results[..PENDING_MAX].iter().all(Result::is_ok));
        assert!(results[PENDING_MAX..].iter().all(|result| *result == Err(CallError::Overloaded)));
        assert_eq!(client.stats().overloaded.get(), 10);

        // Bytes have a maximum too; what would go over it is not sent in part.
        let half = "x".repeat(OUT_MAX / 2);
        let (first, second) = (call(&client, &["ECHO", &half]), call(&client, &["SET", "k", &half]));
        assert_eq!(second.await, Err(CallError::Overloaded));
        drop(first);
        assert_eq!(client.stats().overloaded.get(), 11);
    });
}

#[test]
fn a_dropped_call_leaves_the_others_their_replies() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let mut calls: Vec<_> = (0..100).map(|number| Some(call(&client, &["ECHO", &number.to_string()]))).collect();
        for index in (0..100).filter(|index| index % 3 != 0) {
            calls[index] = None;
        }
        for (number, call) in calls.into_iter().enumerate() {
            if let Some(call) = call {
                assert_eq!(call.await.expect("a reply").text(), Some(number.to_string().as_bytes()));
            }
        }
        assert_eq!(client.stats().abandoned.get(), 66);
        assert_eq!(ask(&client, &["ECHO", "after"]).await, said("after"));
        assert_eq!((client.pending(), client.stats().replies.get()), (0, 101));
    });
}

#[test]
fn dropping_the_client_ends_its_connection() {
    on_both_drivers(async || {
        let server = RedisServer::start(&[]);
        let mut watcher = server.connect();
        let dropped = client(settings(server.address())).await;
        let unanswered = call(&dropped, &["BLPOP", "nothing", "0"]);
        assert_eq!(watcher.command(&["CLIENT", "LIST"]).matches("name=ringway").count(), 1);
        drop(dropped);
        assert_eq!(unanswered.await, Err(CallError::Down));
        let start = std::time::Instant::now();
        while watcher.command(&["CLIENT", "LIST"]).contains("name=ringway") {
            assert!(start.elapsed() < std::time::Duration::from_secs(10));
            monoio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn scripts_are_called_by_name_and_survive_being_forgotten() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let script = Rc::new(Script::new("return {tonumber(ARGV[1]) + 1, #KEYS, redis.call('INCR', KEYS[1])}"));
        server.command(&["FLUSHALL"]);
        let client = ringway::redis::client::Client::start(settings(server.address()), &[Rc::clone(&script)], 1);
        up(&client).await;
        let eval = async |number| {
            let reply = client.eval(&script, &[b"a", b"b"], &[Arg::Integer(number), Arg::Bytes(b"x")]).await;
            reply.map(|reply| reply.integers().expect("three numbers"))
        };
        assert_eq!(eval(41).await, Ok([42, 2, 1]));
        assert_eq!(client.stats().scripts_resent.get(), 0);
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "+OK");
        // Those that leave together all find it missing; each is done once.
        let results = join_all((0..10).map(eval)).await;
        let expected: Vec<_> = (0..10).map(|number| Ok([number + 1, 2, number + 2])).collect();
        assert_eq!(results, expected);
        assert_eq!(client.stats().scripts_resent.get(), 10);
        assert_eq!(eval(0).await, Ok([1, 2, 12]));
        assert_eq!(client.stats().scripts_resent.get(), 10);
    });
}

#[test]
fn unix_sockets_do_as_well() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let mut settings = settings(server.address());
        settings.address = Address::Unix(server.unix_path());
        let client = client(settings).await;
        assert_eq!(ask(&client, &["ECHO", "hello"]).await, said("hello"));
    });
}

#[test]
fn what_a_call_renders_is_rendered_at_once() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let client = client(settings(server.address())).await;
        let rendered = Cell::new(false);
        let call = client.call(|out| {
            rendered.set(true);
            command(&[b"PING"], out);
        });
        assert!(rendered.get());
        drop(call);
    });
}
