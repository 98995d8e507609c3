//! Servers that are none: whatever they send, the client neither panics nor hangs nor believes them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ringway::redis::client::{CallError, Client, Reason, Settings, State};
use ringway::redis::resp::Refusal;

use crate::support::*;

/// The replies to the handshake: SETNAME and PING.
const WELCOME: &[u8] = b"+OK\r\n+PONG\r\n";

/// A server that does this with every connection, for as long as the test runs.
fn fake(serve: impl Fn(&mut TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let serve = serve.clone();
            thread::spawn(move || serve(&mut stream));
        }
    });
    address
}

fn hasty(address: SocketAddr) -> Settings {
    let mut settings = settings(address);
    settings.timeout = Duration::from_millis(100);
    settings.connect_timeout = Duration::from_millis(100);
    settings
}

/// Reads until the client has sent `end`; false when it has closed.
fn take(stream: &mut TcpStream, end: &[u8]) -> bool {
    let mut taken = Vec::new();
    let mut byte = [0];
    while !taken.ends_with(end) {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return false;
        }
        taken.push(byte[0]);
    }
    true
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    // The client may have had enough.
    let _ = stream.write_all(bytes);
}

/// Waits for the client to close.
fn outlast(stream: &mut TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

/// What three calls that leave together come to when the server, after a good handshake, answers them like this.
fn check(answer: &'static [u8], expected: [Result<&str, CallError>; 3], reason: Reason) {
    let address = fake(move |stream| {
        if take(stream, b"PING\r\n") {
            send(stream, WELCOME);
            if take(stream, b"third\r\n") {
                send(stream, answer);
                outlast(stream);
            }
        }
    });
    on_both_drivers(async || {
        let client = client(hasty(address)).await;
        let start = Instant::now();
        let calls = ["first", "second", "third"].map(|word| call(&client, &["ECHO", word]));
        let replies = join_all(calls).await;
        let results: Vec<_> = replies
            .iter()
            .map(|result| match result {
                Ok(reply) => Ok(str::from_utf8(reply.text().expect("a text")).expect("ASCII")),
                Err(error) => Err(*error),
            })
            .collect();
        assert_eq!(results, expected, "{}", answer[..answer.len().min(60)].escape_ascii());
        assert!(start.elapsed() < Duration::from_secs(5));
        down(&client, reason).await;
        up(&client).await;
        assert!(client.stats().connects.get() >= 2);
    });
}

#[test]
fn nonsense_ends_the_connection() {
    let lost = Err(CallError::Down);
    check(b"HTTP/1.1 400 Bad Request\r\n\r\n", [lost, lost, lost], Reason::Protocol);
    check(b"$5\r\nfirst\r\n\x16\x03\x01\x02\x00", [Ok("first"), lost, lost], Reason::Protocol);
    check(b"+first\r\n>2\r\n+message\r\n+x\r\n", [Ok("first"), lost, lost], Reason::Protocol);
    check(b"$9999999999\r\n", [lost, lost, lost], Reason::Protocol);
    check(b"$65537\r\n", [lost, lost, lost], Reason::Protocol);
    check(b"*1000000000\r\n", [lost, lost, lost], Reason::Protocol);
    check(b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", [lost, lost, lost], Reason::Protocol);
}

#[test]
fn replies_that_nobody_asked_for_end_the_connection() {
    // The fourth comes with the other three, which are right.
    check(b"+first\r\n+second\r\n+third\r\n+fourth\r\n", [Ok("first"), Ok("second"), Ok("third")], Reason::Protocol);
}

#[test]
fn silence_ends_the_connection_in_time() {
    let late = Err(CallError::Timeout);
    check(b"", [late, late, late], Reason::Timeout);
    check(b"+first\r\n$6\r\nsec", [Ok("first"), late, late], Reason::Timeout);
    check(b"+first\r\n+second\r\n$65536\r\nx", [Ok("first"), Ok("second"), late], Reason::Timeout);
    check(b"*3\r\n:1\r\n:2\r\n", [late, late, late], Reason::Timeout);
}

#[test]
fn errors_that_end_a_connection_fail_those_behind() {
    let refused = |refusal| Err(CallError::Refused(refusal));
    let lost = Err(CallError::Down);
    for (answer, refusal) in [
        (&b"+first\r\n-LOADING Redis is loading the dataset in memory\r\n+third\r\n"[..], Refusal::Loading),
        (b"+first\r\n-CLUSTERDOWN The cluster is down\r\n", Refusal::ClusterDown),
        (b"+first\r\n-NOAUTH Authentication required.\r\n", Refusal::Unauthenticated),
    ] {
        check(answer, [Ok("first"), refused(refusal), lost], Reason::Refused(refusal));
    }
}

#[test]
fn a_reply_ahead_of_its_call_ends_the_connection() {
    let address = fake(|stream| {
        if take(stream, b"PING\r\n") {
            send(stream, WELCOME);
            thread::sleep(Duration::from_millis(20));
            send(stream, b"+early\r\n");
            outlast(stream);
        }
    });
    on_both_drivers(async || {
        let client = client(hasty(address)).await;
        down(&client, Reason::Protocol).await;
        assert!(client.stats().protocol_errors.get() >= 1);
    });
}

/// A server that says this to whoever connects, and the client's opinion of it.
fn check_greeting(greeting: &'static [u8], reason: Reason) {
    let address = fake(move |stream| {
        send(stream, greeting);
        outlast(stream);
    });
    on_both_drivers(async || {
        let client = Client::start(hasty(address), &[], 1);
        down(&client, reason).await;
        assert_eq!(ask(&client, &["PING"]).await, Err(CallError::Down));
        assert_eq!((client.generation(), client.stats().connects.get()), (0, 0));
    });
}

#[test]
fn a_handshake_that_makes_no_sense_is_none() {
    check_greeting(b"", Reason::ConnectTimeout);
    check_greeting(b"+OK\r\n+PO", Reason::ConnectTimeout);
    check_greeting(b"SSH-2.0-OpenSSH_9.2p1\r\n", Reason::Protocol);
    check_greeting(b"+OK\r\n+PONG\r\n+extra\r\n", Reason::Protocol);
    check_greeting(b"-LOADING Redis is loading the dataset in memory\r\n", Reason::Refused(Refusal::Loading));
    check_greeting(b"+OK\r\n-MASTERDOWN Link with MASTER is down\r\n", Reason::Refused(Refusal::MasterDown));
}

#[test]
fn a_server_that_takes_nothing_costs_the_timeout() {
    // It reads the handshake, and then nothing more: the kernel's buffers fill up.
    let address = fake(|stream| {
        if take(stream, b"PING\r\n") {
            send(stream, WELCOME);
            thread::sleep(Duration::from_millis(600));
        }
    });
    on_both_drivers(async || {
        let client = client(hasty(address)).await;
        let large = "x".repeat(500_000);
        let start = Instant::now();
        let mut calls = Vec::new();
        while client.state() == State::Up {
            calls.push(call(&client, &["ECHO", &large]));
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(start.elapsed() < Duration::from_millis(550), "{:?}", start.elapsed());
        let results = join_all(calls).await;
        assert_eq!(results[0], Err(CallError::Timeout));
        assert!(results.iter().any(|result| *result == Err(CallError::Overloaded)));
    });
}
