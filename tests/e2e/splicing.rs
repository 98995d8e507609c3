//! Long bodies go through a pipe in the kernel, answers' here and requests' in [`uploads`]: byte for byte, with every end that they may come
//! to, and no byte of one ever in another.

mod uploads;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Backend, Client, Gateway, PatternCheck, pattern, service, until, until_still};

const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

const MIB: usize = 1024 * 1024;

/// Far more than the kernel holds on the way to a client that reads nothing.
const LENGTH: usize = 64 * MIB;

/// Of several pieces, and not of whole ones.
const SHORT: usize = 3 * MIB + 12_345;

fn gateway_on(driver: &str, backend: &Backend, lines: &str) -> Gateway {
    Gateway::start_with(&format!("driver = \"{driver}\""), &service("api", &[backend.url()], lines))
}

/// The pipes both of whose ends are the gateway's: one end of each.
fn pipes(gateway: &Gateway) -> Vec<PathBuf> {
    let folder = PathBuf::from(format!("/proc/{}/fd", gateway.pid()));
    let given = ["0", "1", "2"].map(|name| fs::read_link(folder.join(name)).ok());
    let mut ends = BTreeMap::<PathBuf, Vec<PathBuf>>::new();
    for entry in fs::read_dir(folder).expect("the process lives") {
        let path = entry.expect("an entry").path();
        // It may be closed meanwhile.
        if let Ok(target) = fs::read_link(&path) {
            ends.entry(target).or_default().push(path);
        }
    }
    ends.retain(|target, ends| target.to_string_lossy().starts_with("pipe:") && ends.len() == 2);
    ends.retain(|target, _| !given.contains(&Some(target.clone())));
    ends.into_values().flat_map(|ends| ends.into_iter().take(1)).collect()
}

/// How many bytes are in them.
fn held(gateway: &Gateway) -> u64 {
    let ends = pipes(gateway).into_iter();
    ends.filter_map(|end| File::open(end).ok()).filter_map(|end| rustix::io::ioctl_fionread(&end).ok()).sum()
}

/// How many bytes have come to the client's kernel.
fn unread(client: &Client) -> u64 {
    rustix::io::ioctl_fionread(&client.stream).expect("a socket")
}

/// A client that reads no more, once its answer waits for it in a pipe: what has been read of that by then.
fn stall(gateway: &Gateway, client: &mut Client) -> PatternCheck {
    client.head();
    let mut check = PatternCheck::default();
    while check.length() < LENGTH as u64 / 2 {
        until_still("no more fits in between", || unread(client));
        if held(gateway) > 0 {
            return check;
        }
        // The end of a piece may have been too little to wait there.
        check.take(&client.take(MIB).expect("more of the body"));
    }
    panic!("nothing is in a pipe");
}

/// Answers with the pattern: a long one or a short one, whole or cut in the middle, as the path says.
fn sends_pattern() -> Backend {
    Backend::start(|connection| {
        loop {
            let line = connection.request()?.line().to_owned();
            let is_cut = line.contains("cut");
            let length = if line.contains("short") { SHORT } else { LENGTH };
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
            connection.send(pattern(0, if is_cut { length / 2 } else { length }))?;
            if is_cut {
                return Ok(());
            }
        }
    })
}

fn ask(client: &mut Client, path: &str) {
    client.send(format!("GET /api/{path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {path}\r\n\r\n"));
}

fn check(client: &mut Client, length: usize) {
    client.head();
    let mut check = PatternCheck::default();
    check.take(&client.take(length).expect("the body"));
}

#[test]
fn a_long_answer_goes_through_a_pipe_and_its_connections_live_on() {
    for driver in DRIVERS {
        let backend = sends_pattern();
        let gateway = gateway_on(driver, &backend, "");
        let mut client = gateway.connect();
        assert_eq!(pipes(&gateway).len(), 0);
        for _ in 0..5 {
            ask(&mut client, "short");
            check(&mut client, SHORT);
        }
        assert_eq!(gateway.logged("short")["bytes_out"], SHORT);
        assert_eq!(backend.connections(), 1);
        assert_eq!((pipes(&gateway).len(), held(&gateway)), (1, 0), "{driver}: one pipe is kept");
    }
}

#[test]
fn a_client_that_reads_nothing_finds_all_there_when_it_does() {
    for driver in DRIVERS {
        let backend = sends_pattern();
        let gateway = gateway_on(driver, &backend, "");
        let mut client = gateway.connect();
        ask(&mut client, "long");
        let mut check_long = stall(&gateway, &mut client);
        let mut other = gateway.connect();
        ask(&mut other, "short");
        check(&mut other, SHORT);
        check_long.take(&client.take(LENGTH - check_long.length() as usize).expect("the rest"));
        assert_eq!(gateway.logged("long")["error"], Value::Null);
        until("both pipes are kept", || pipes(&gateway).len() == 2 && held(&gateway) == 0);
    }
}

#[test]
fn what_a_client_leaves_behind_in_a_pipe_reaches_nobody() {
    for driver in DRIVERS {
        let backend = sends_pattern();
        let gateway = gateway_on(driver, &backend, "");
        let mut client = gateway.connect();
        ask(&mut client, "long");
        stall(&gateway, &mut client);
        drop(client);
        let line = gateway.logged("long");
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()), "{driver}: {line}");
        until("the pipe is closed", || pipes(&gateway).is_empty());
        let mut client = gateway.connect();
        ask(&mut client, "short");
        check(&mut client, SHORT);
    }
}

#[test]
fn a_client_that_takes_no_more_is_cut_in_time() {
    for driver in DRIVERS {
        let backend = sends_pattern();
        let gateway = gateway_on(driver, &backend, "[services.api.timeouts]\nidle_body = \"1s\"");
        let mut client = gateway.connect_small();
        ask(&mut client, "long");
        stall(&gateway, &mut client);
        let line = gateway.logged_within(Duration::from_secs(3), "long");
        assert_eq!(line["error"], "client_stalled", "{driver}: {line}");
        until("the pipe is closed", || pipes(&gateway).is_empty());
    }
}

#[test]
fn an_upstream_that_closes_in_the_middle_cuts_its_answer() {
    for driver in DRIVERS {
        let backend = sends_pattern();
        let gateway = gateway_on(driver, &backend, "");
        let mut client = gateway.connect();
        ask(&mut client, "short-cut");
        client.head();
        let mut check_half = PatternCheck::default();
        check_half.take(&client.take(SHORT / 2).expect("what was sent"));
        assert!(client.is_closed());
        let line = gateway.logged("short-cut");
        assert_eq!(
            (&line["error"], &line["bytes_out"]),
            (&"upstream_cut".into(), &(SHORT / 2).into()),
            "{driver}: {line}"
        );
        let mut client = gateway.connect();
        ask(&mut client, "short");
        check(&mut client, SHORT);
        assert_eq!(pipes(&gateway).len(), 1, "{driver}: the empty pipe is used again");
    }
}

#[test]
fn an_upstream_that_falls_silent_in_the_middle_is_given_up() {
    for driver in DRIVERS {
        let backend = Backend::start(|connection| {
            connection.request()?;
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"))?;
            connection.send(pattern(0, SHORT))?;
            connection.rest();
            Ok(())
        });
        let gateway = gateway_on(driver, &backend, "[services.api.timeouts]\nidle_body = \"1s\"");
        let mut client = gateway.connect();
        ask(&mut client, "silent");
        check(&mut client, SHORT);
        let line = gateway.logged_within(Duration::from_secs(3), "silent");
        assert_eq!(line["error"], "upstream_timeout", "{driver}: {line}");
        assert!(client.is_closed());
        assert_eq!(pipes(&gateway).len(), 1, "{driver}");
    }
}

#[test]
fn a_drain_ends_an_answer_that_waits_for_its_client() {
    for driver in DRIVERS {
        let backend = sends_pattern();
        let server = format!("driver = \"{driver}\"\ndrain_timeout = \"500ms\"");
        let mut gateway = Gateway::start_with(&server, &service("api", &[backend.url()], ""));
        let mut client = gateway.connect();
        ask(&mut client, "long");
        stall(&gateway, &mut client);
        gateway.signal("TERM");
        assert_eq!(gateway.wait_exit().code(), Some(0));
        assert_eq!(gateway.logged("long")["error"], "drain_timeout", "{driver}");
        drop(client);
    }
}

/// The client's socket is written to by a call of its own while the driver waits for what comes on it.
#[test]
fn a_body_comes_in_while_another_goes_out() {
    for driver in DRIVERS {
        let backend = Backend::start(|connection| {
            connection.head()?;
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * SHORT))?;
            connection.send(pattern(0, SHORT))?;
            let mut check = PatternCheck::default();
            check.take(&connection.take(SHORT)?);
            connection.send(pattern(SHORT as u64, SHORT))
        });
        let gateway = gateway_on(driver, &backend, "[services.api.limits]\nbody_bytes = 0");
        let mut client = gateway.connect();
        client.send(format!("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: {SHORT}\r\n\r\n"));
        client.head();
        let mut check = PatternCheck::default();
        check.take(&client.take(SHORT).expect("the first half"));
        assert_eq!(pipes(&gateway).len(), 1, "{driver}");
        client.send(pattern(0, SHORT));
        check.take(&client.take(SHORT).expect("the second half"));
        assert!(client.is_closed());
        assert_eq!(pipes(&gateway).len(), 1, "{driver}: nobody has one while he waits for more");
    }
}

#[test]
fn an_answer_that_slows_down_and_hurries_again_comes_whole() {
    const PIECES: usize = 20;
    const PIECE: usize = 5_000;
    /// Fills the buffer that a head comes in, and not the one that a body which slowed down is given.
    const MIDDLE: usize = 40_000;
    const ALL: usize = SHORT + PIECES * PIECE + MIDDLE + SHORT;
    for driver in DRIVERS {
        let backend = Backend::start(|connection| {
            if connection.head()?.line().starts_with("GET") {
                connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SHORT}\r\n\r\n"))?;
                return connection.send(pattern(0, SHORT));
            }
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n"))?;
            connection.send(pattern(0, SHORT))?;
            for at in 0..PIECES {
                // The client has all that came before.
                connection.take(1)?;
                connection.send(pattern((SHORT + at * PIECE) as u64, PIECE))?;
            }
            connection.take(1)?;
            connection.send(pattern((ALL - SHORT - MIDDLE) as u64, MIDDLE))?;
            connection.take(1)?;
            connection.send(pattern((ALL - SHORT) as u64, SHORT))
        });
        let gateway = gateway_on(driver, &backend, "");
        let mut client = gateway.connect();
        let length = PIECES + 2;
        client.send(format!("POST /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: slow\r\nContent-Length: {length}\r\n\r\n"));
        client.head();
        let mut check = PatternCheck::default();
        check.take(&client.take(SHORT).expect("what comes fast"));
        for _ in 0..PIECES {
            client.send("x");
            check.take(&client.take(PIECE).expect("a small piece"));
        }
        let others_need_no_other_pipe = || {
            let mut other = gateway.connect();
            ask(&mut other, "other");
            self::check(&mut other, SHORT);
            assert_eq!(pipes(&gateway).len(), 1, "{driver}: who is slow has none");
        };
        others_need_no_other_pipe();
        client.send("x");
        check.take(&client.take(MIDDLE).expect("a larger piece"));
        others_need_no_other_pipe();
        client.send("x");
        check.take(&client.take(SHORT).expect("the rest"));
        assert_eq!(gateway.logged("slow")["bytes_out"], ALL, "{driver}");
    }
}

#[test]
fn what_is_chunked_or_short_needs_no_pipe() {
    for driver in DRIVERS {
        let backend = Backend::start(|connection| {
            loop {
                let body = pattern(0, 200_000);
                match connection.request()?.line().contains("chunked") {
                    true => {
                        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                        connection
                            .send([format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat())?;
                    }
                    false => {
                        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
                        connection.send(&body[..100_000])?;
                    }
                }
            }
        });
        let gateway = gateway_on(driver, &backend, "");
        for path in ["/api/chunked", "/api/short"] {
            let body = gateway.get(path).body;
            let mut check = PatternCheck::default();
            check.take(&body);
            assert!(body.len() >= 100_000);
        }
        assert_eq!(pipes(&gateway).len(), 0, "{driver}");
    }
}
