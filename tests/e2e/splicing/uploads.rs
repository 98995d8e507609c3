//! Long requests through a pipe.

use std::io::ErrorKind::WouldBlock;
use std::net::Shutdown;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::SendFlags;
use serde_json::Value;

use super::{DRIVERS, LENGTH, SHORT, gateway_on, held, pipes};
use crate::support::{
    Backend, Client, DEADLINE, Gate, Gateway, PatternCheck, kernel, pattern, service, until, until_still,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// No limit on the size of bodies,
const LIMITS: &str = "[services.api.limits]\nbody_bytes = 0";

/// and little patience.
const IMPATIENT: &str = "[services.api.limits]\nbody_bytes = 0\n[services.api.timeouts]\nidle_body = \"1s\"";

/// An upstream that answers when it has the whole pattern.
struct Upstream {
    backend: Backend,
    /// It reads nothing of a body whose path says `stalls` until this is opened,
    gate: Gate,
    /// and then, once this is set, answers first, and goes on when the gate is opened once more.
    is_early: Arc<AtomicBool>,
    /// See [`Upstream::cut`].
    cuts: Receiver<usize>,
}

impl Upstream {
    fn start() -> Upstream {
        let (tell, cuts) = channel();
        let (gate, is_early, tell) = (Gate::default(), Arc::new(AtomicBool::new(false)), Mutex::new(tell));
        let backend = Backend::start_small({
            let (gate, is_early) = (gate.clone(), Arc::clone(&is_early));
            move |connection| {
                loop {
                    let head = connection.head()?;
                    if head.line().contains("stalls") {
                        gate.pass();
                        if is_early.load(SeqCst) {
                            connection.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nless")?;
                            gate.pass();
                        }
                    }
                    let length: u64 = head.header("content-length").expect("counted").parse().expect("a number");
                    let mut check = PatternCheck::default();
                    while check.length() < length {
                        match connection.take((length - check.length()).min(10_000) as usize) {
                            Ok(piece) => check.take(&piece),
                            Err(error) => {
                                assert_ne!(error.kind(), WouldBlock, "it is neither there nor cut");
                                check.take(&connection.rest());
                                tell.lock().expect("no panic").send(check.length() as usize).expect("somebody asks");
                                return Ok(());
                            }
                        }
                    }
                    connection.send(OK)?;
                }
            }
        });
        Upstream { backend, gate, is_early, cuts }
    }

    /// How much came of a body that was cut.
    fn cut(&self) -> usize {
        self.cuts.recv_timeout(DEADLINE).expect("it was cut")
    }

    /// Sends a long body until its rest waits in a pipe, and in the kernel before it: the request's id, and the thread that sends, which
    /// ends with the connection, or when all is sent.
    fn stall(&self, gateway: &Gateway, client: &mut Client) -> (String, thread::JoinHandle<()>) {
        for attempt in 0..20 {
            let (id, body) = (format!("stalls-{attempt}"), pattern(0, LENGTH));
            begin(client, &id, LENGTH);
            let mut sender = client.sender();
            // An error is the end that the test looks for.
            let sends = thread::spawn(move || drop(sender.try_send(body)));
            until_still("no more fits in between", || kernel::held_for(gateway.address));
            if held(gateway) > 0 {
                return (id, sends);
            }
            // What came last may have been too little to wait there.
            self.gate.open();
            assert_eq!(client.response().text(), "ok");
            sends.join().expect("all is sent");
        }
        panic!("nothing is in a pipe");
    }
}

fn begin(client: &mut Client, path: &str, length: usize) {
    client.send(format!(
        "POST /api/{path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {path}\r\nContent-Length: {length}\r\n\r\n"
    ));
}

fn check(client: &mut Client, path: &str) {
    begin(client, path, SHORT);
    client.send(pattern(0, SHORT));
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn a_long_request_goes_through_a_pipe_and_its_connections_live_on() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        for _ in 0..5 {
            check(&mut client, "short");
        }
        assert_eq!(gateway.logged("short")["bytes_in"], SHORT);
        assert_eq!(upstream.backend.connections(), 1);
        assert_eq!((pipes(&gateway).len(), held(&gateway)), (1, 0), "{driver}: one pipe is kept");
    }
}

/// Its body ends in a pipe, and what follows it is not taken for a part of it.
#[test]
fn the_next_request_may_come_right_behind() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        let one = format!("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: {SHORT}\r\n\r\n");
        let one = [one.into_bytes(), pattern(0, SHORT)].concat();
        let mut sender = client.sender();
        let sends = thread::spawn(move || (0..3).for_each(|_| sender.send(&one)));
        for _ in 0..3 {
            assert_eq!(client.response().text(), "ok", "{driver}");
        }
        sends.join().expect("all is sent");
        assert_eq!(pipes(&gateway).len(), 1, "{driver}");
    }
}

#[test]
fn an_upstream_that_reads_nothing_finds_all_there_when_it_does() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        let (id, sends) = upstream.stall(&gateway, &mut client);
        check(&mut gateway.connect(), "short");
        upstream.gate.open();
        assert_eq!(client.response().text(), "ok");
        sends.join().expect("all is sent");
        let line = gateway.logged(&id);
        assert_eq!((&line["bytes_in"], &line["error"]), (&LENGTH.into(), &Value::Null), "{driver}");
        until("both pipes are kept", || pipes(&gateway).len() == 2 && held(&gateway) == 0);
    }
}

#[test]
fn what_a_client_leaves_behind_in_a_pipe_reaches_nobody() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        let (id, sends) = upstream.stall(&gateway, &mut client);
        client.stream.shutdown(Shutdown::Both).expect("open");
        sends.join().expect("it is told");
        // Its end would have to wait behind what it sent.
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(client);
        let line = gateway.logged(&id);
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()), "{driver}: {line}");
        until("the pipe is closed", || pipes(&gateway).is_empty());
        upstream.gate.open();
        assert!(upstream.cut() < LENGTH);
        check(&mut gateway.connect(), "short");
        assert_eq!(upstream.backend.connections(), 2, "{driver}: the one in the middle of a body serves no other");
    }
}

#[test]
fn an_upstream_that_takes_no_more_is_given_up_in_time() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, &IMPATIENT.replace("1s", "3s"));
        let mut client = gateway.connect();
        let (id, sends) = upstream.stall(&gateway, &mut client);
        let answer = client.response();
        assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"), "{driver}");
        assert_eq!(gateway.logged(&id)["error"], "upstream_timeout");
        until("the pipe is closed", || pipes(&gateway).is_empty());
        upstream.gate.open();
        assert!(upstream.cut() < LENGTH);
        sends.join().expect("it is told");
    }
}

#[test]
fn an_upstream_that_is_slow_is_waited_for() {
    for driver in DRIVERS {
        let backend = Backend::start_small(|connection| {
            connection.head()?;
            let mut check = PatternCheck::default();
            // A pipe takes longer than `idle_body` to become empty.
            for _ in 0..25 {
                thread::sleep(Duration::from_millis(100));
                check.take(&connection.take(30_000)?);
            }
            check.take(&connection.take(LENGTH - 25 * 30_000)?);
            connection.send(OK)
        });
        let gateway = gateway_on(driver, &backend, IMPATIENT);
        let (mut client, body) = (gateway.connect(), pattern(0, LENGTH));
        begin(&mut client, "slow", LENGTH);
        client.send(body);
        assert_eq!(client.response().text(), "ok", "{driver}");
        assert_eq!(pipes(&gateway).len(), 1, "{driver}");
        assert_eq!(gateway.logged("slow")["error"], Value::Null);
    }
}

#[test]
fn a_client_that_closes_in_the_middle_cuts_its_request() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        begin(&mut client, "cut", SHORT);
        client.send(pattern(0, SHORT / 2));
        drop(client);
        let came = upstream.cut();
        let line = gateway.logged("cut");
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()), "{driver}: {line}");
        assert!(came <= SHORT / 2 && line["bytes_in"].as_u64().expect("a number") >= came as u64);
        assert_eq!((pipes(&gateway).len(), held(&gateway)), (1, 0), "{driver}");
        check(&mut gateway.connect(), "short");
    }
}

#[test]
fn a_client_that_falls_silent_in_the_middle_is_given_up() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, IMPATIENT);
        let mut client = gateway.connect();
        begin(&mut client, "silent", LENGTH);
        client.send(pattern(0, SHORT));
        let answer = client.response();
        assert_eq!((answer.status, answer.reason().as_str()), (408, "request_timeout"), "{driver}");
        assert_eq!(upstream.cut(), SHORT);
        assert_eq!(gateway.logged("silent")["bytes_in"], SHORT);
        assert_eq!((pipes(&gateway).len(), held(&gateway)), (1, 0), "{driver}: it is empty, and kept");
    }
}

#[test]
fn an_answer_in_the_middle_ends_it() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        let (_, sends) = upstream.stall(&gateway, &mut client);
        upstream.is_early.store(true, SeqCst);
        upstream.gate.open();
        let answer = client.response();
        assert_eq!((answer.status, answer.text().as_str()), (413, "less"), "{driver}");
        until("the pipe is closed", || pipes(&gateway).is_empty());
        upstream.gate.open();
        assert!(upstream.cut() < LENGTH);
        drop(client);
        sends.join().expect("it is told");
        let connections = upstream.backend.connections();
        check(&mut gateway.connect(), "short");
        assert_eq!(
            upstream.backend.connections(),
            connections + 1,
            "{driver}: the one in the middle of a body serves no other"
        );
    }
}

#[test]
fn a_drain_ends_a_request_that_waits_for_its_upstream() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let server = format!("driver = \"{driver}\"\ndrain_timeout = \"500ms\"");
        let tables = service("api", &[upstream.backend.url()], LIMITS);
        let mut gateway = Gateway::start_with(&server, &tables);
        let mut client = gateway.connect();
        let (id, sends) = upstream.stall(&gateway, &mut client);
        gateway.signal("TERM");
        assert_eq!(gateway.wait_exit().code(), Some(0));
        assert_eq!(gateway.logged(&id)["error"], "drain_timeout", "{driver}");
        upstream.gate.open();
        assert!(upstream.cut() < LENGTH);
        sends.join().expect("it is told");
    }
}

#[test]
fn a_request_that_slows_down_and_hurries_again_comes_whole() {
    const PIECES: usize = 20;
    const PIECE: usize = 5_000;
    const ALL: usize = SHORT + PIECES * PIECE + SHORT;
    for driver in DRIVERS {
        let (came, seen) = channel();
        let came = Mutex::new(came);
        let backend = Backend::start(move |connection| {
            connection.head()?;
            let mut check = PatternCheck::default();
            while check.length() < ALL as u64 {
                check.take(&connection.piece()?);
                came.lock().expect("no panic").send(check.length()).expect("somebody asks");
            }
            connection.send(OK)
        });
        let gateway = gateway_on(driver, &backend, LIMITS);
        let until_there = |at: usize| while seen.recv_timeout(DEADLINE).expect("it comes") < at as u64 {};
        let mut client = gateway.connect();
        begin(&mut client, "slow", ALL);
        client.send(pattern(0, SHORT));
        until_there(SHORT);
        for at in (SHORT..ALL - SHORT).step_by(PIECE) {
            client.send(pattern(at as u64, PIECE));
            until_there(at + PIECE);
        }
        assert_eq!(pipes(&gateway).len(), 1, "{driver}");
        client.send(pattern((ALL - SHORT) as u64, SHORT));
        assert_eq!(client.response().text(), "ok");
        assert_eq!(gateway.logged("slow")["bytes_in"], ALL, "{driver}");
        assert_eq!((pipes(&gateway).len(), held(&gateway)), (1, 0), "{driver}");
    }
}

/// A byte that is sent as urgent is no part of the stream (tcp(7)), and splice(2) does not get past the place where it was.
#[test]
fn an_urgent_byte_in_between_does_not_stop_it() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, LIMITS);
        let mut client = gateway.connect();
        // What comes in small pieces, as on a machine that is busy otherwise, needs no pipe.
        for attempt in 0..20 {
            let id = format!("urgent-{attempt}");
            begin(&mut client, &id, SHORT);
            client.send(pattern(0, SHORT / 2));
            assert_eq!(rustix::net::send(&client.stream, b"!", SendFlags::OOB), Ok(1));
            client.send(pattern((SHORT / 2) as u64, SHORT - SHORT / 2));
            assert_eq!(client.response().text(), "ok", "{driver}");
            assert_eq!(gateway.logged(&id)["bytes_in"], SHORT, "{driver}");
            if !pipes(&gateway).is_empty() {
                break;
            }
        }
        assert_eq!((pipes(&gateway).len(), held(&gateway)), (1, 0), "{driver}");
    }
}

#[test]
fn what_is_chunked_or_short_needs_no_pipe() {
    for driver in DRIVERS {
        let backend = Backend::start(|connection| {
            loop {
                PatternCheck::default().take(&connection.request()?.body);
                connection.send(OK)?;
            }
        });
        let gateway = gateway_on(driver, &backend, LIMITS);
        let mut client = gateway.connect();
        client.send("POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send([format!("{SHORT:x}\r\n").into_bytes(), pattern(0, SHORT), b"\r\n0\r\n\r\n".to_vec()].concat());
        assert_eq!(client.response().text(), "ok", "{driver}");
        begin(&mut client, "short", 100_000);
        client.send(pattern(0, 100_000));
        assert_eq!(client.response().text(), "ok", "{driver}");
        assert_eq!(pipes(&gateway).len(), 0, "{driver}");
    }
}

/// What a pipe took counts towards the limit, though it never has to stop anything: a counted body's length is known before.
#[test]
fn a_request_as_long_as_it_may_be_goes_through() {
    for driver in DRIVERS {
        let upstream = Upstream::start();
        let gateway = gateway_on(driver, &upstream.backend, &format!("[services.api.limits]\nbody_bytes = {SHORT}"));
        check(&mut gateway.connect(), "longest");
        assert_eq!(pipes(&gateway).len(), 1, "{driver}");
        let answer = gateway.send(format!("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", SHORT + 1));
        assert_eq!(answer.status, 413, "{driver}");
    }
}

/// Each is another part of the pattern, so that none can stand for another.
#[test]
fn many_requests_at_once_come_whole() {
    const CLIENTS: usize = 8;
    let part = |client: usize, turn: usize| (7_919 * (client + CLIENTS * turn), SHORT + 10_007 * client);
    for driver in DRIVERS {
        let backend = Backend::start(|connection| {
            loop {
                let head = connection.head()?;
                let number = |name| head.header(name).expect("sent").parse::<u64>().expect("a number");
                let mut check = PatternCheck::beginning_at(number("x-from"));
                check.take(&connection.take(number("content-length") as usize)?);
                connection.send(OK)?;
            }
        });
        let gateway = gateway_on(driver, &backend, LIMITS);
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let mut connection = gateway.connect();
                scope.spawn(move || {
                    for turn in 0..3 {
                        let (from, length) = part(client, turn);
                        let body = pattern(from as u64, length);
                        connection.send(format!(
                            "POST /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: {client}-{turn}\r\nX-From: {from}\r\nContent-Length: {length}\r\n\r\n"
                        ));
                        connection.send(body);
                        assert_eq!(connection.response().text(), "ok", "{driver}");
                    }
                });
            }
        });
        for client in 0..CLIENTS {
            let (_, length) = part(client, 2);
            assert_eq!(gateway.logged(&format!("{client}-2"))["bytes_in"], length, "{driver}");
        }
        assert!((1..=CLIENTS).contains(&pipes(&gateway).len()) && held(&gateway) == 0, "{driver}");
    }
}
