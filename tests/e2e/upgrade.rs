//! Another process takes over, and nobody notices.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{is_alive, signal};
use crate::support::{Backend, DEADLINE, Gate, Gateway, RaisedAtEnd, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// One request on a connection of its own: nothing but an answer will do.
fn ask_anew(gateway: &Gateway) -> io::Result<()> {
    let mut stream = TcpStream::connect(gateway.address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok") { Ok(()) } else { Err(io::Error::other(answer)) }
}

/// Many requests on one connection, until the gateway ends it between two of them. Before it does, it says so.
fn ask_on(gateway: &Gateway, answered: &AtomicUsize, done: &AtomicBool) -> io::Result<()> {
    let mut client = gateway.connect();
    while !done.load(Ordering::Relaxed) {
        client.try_send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let answer = client.try_response(false)?;
        if answer.status != 200 {
            return Err(io::Error::other(format!("{answer:?}")));
        }
        answered.fetch_add(1, Ordering::Relaxed);
        if answer.header("connection") == Some("close") {
            break;
        }
    }
    Ok(())
}

fn check_upgrades_under_load(server: &str) {
    const UPGRADES: usize = 10;
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with(server, &service("api", &[backend.url()], ""));
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _end = RaisedAtEnd(&done);
        for index in 0..8 {
            let (gateway, done, answered) = (&gateway, &done, &answered);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    match index % 2 {
                        0 => {
                            ask_anew(gateway).map(|()| _ = answered.fetch_add(1, Ordering::Relaxed)).expect("an answer")
                        }
                        _ => ask_on(gateway, answered, done).expect("an answer"),
                    }
                }
            });
        }
        // Probes, which must not hear of the old process's end.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!((gateway.get("/readyz").status, gateway.get("/health").status), (200, 200));
            }
        });
        let mut before = gateway.pid();
        for upgrade in 0..UPGRADES {
            let seen = answered.load(Ordering::Relaxed);
            let next = gateway.upgrade().expect("the next process serves");
            assert_ne!(next, before, "upgrade {upgrade}");
            until("the old process is gone", || !is_alive(before));
            until("requests are answered", || answered.load(Ordering::Relaxed) > seen + 20);
            assert_eq!(gateway.serving_pid(), next);
            before = next;
        }
    });
    assert!(answered.load(Ordering::Relaxed) > 100);
}

#[test]
fn ten_upgrades_under_load_lose_nothing() {
    check_upgrades_under_load("workers = 2");
}

#[test]
fn ten_upgrades_under_load_lose_nothing_on_epoll() {
    check_upgrades_under_load("workers = 2\ndriver = \"epoll\"");
}

#[test]
fn a_next_process_that_does_not_come_up_changes_nothing() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let mut client = gateway.connect();
    let good = fs::read(gateway.config()).expect("it is there");
    // Not the reload's matter: that would say so too.
    fs::write(gateway.config(), "[server]\nport = \"none\"").expect("writable");
    let refused = gateway.upgrade().expect_err("it cannot serve");
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("exit status: 2")), "{refused}");
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    assert_eq!(gateway.serving_pid(), gateway.pid());
    fs::write(gateway.config(), good).expect("writable");
    gateway.upgrade().expect("now it can");
    assert_eq!(gateway.get("/api").text(), "ok");
}

#[test]
fn the_next_process_may_have_more_workers_or_fewer() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with("workers = 2", &service("api", &[backend.url()], ""));
    let text = fs::read_to_string(gateway.config()).expect("it is there");
    for workers in [4, 1, 3] {
        let next = text.replace("workers = 2", &format!("workers = {workers}"));
        fs::write(gateway.config(), next).expect("writable");
        let before = gateway.serving_pid();
        gateway.upgrade().expect("the next process serves");
        until("the old process is gone", || !is_alive(before));
        // Whichever socket a connection is queued on, somebody accepts it.
        for _ in 0..50 {
            ask_anew(&gateway).expect("an answer");
        }
        assert!(gateway.get("/health").text().contains(&format!("\"workers\":{workers}")));
    }
}

#[test]
fn the_next_process_may_run_on_another_driver() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with("workers = 2\ndriver = \"epoll\"", &service("api", &[backend.url()], ""));
    // Port 0, and so no other socket than the one that it is given listens where the clients ask.
    let text = fs::read_to_string(gateway.config()).expect("it is there");
    assert!(text.contains("port = 0"), "{text}");
    for next in ["io_uring", "epoll", "io_uring"] {
        let config = text.replace("driver = \"epoll\"", &format!("driver = \"{next}\""));
        fs::write(gateway.config(), config).expect("writable");
        let before = gateway.serving_pid();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = RaisedAtEnd(&done);
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        ask_anew(&gateway).expect("an answer");
                    }
                });
            }
            gateway.upgrade().expect("the next process serves");
            until("the old process is gone", || !is_alive(before));
        });
        assert!(gateway.get("/health").text().contains(&format!("\"driver\":\"{next}\"")), "{next}");
    }
}

#[test]
fn a_request_in_flight_ends_where_it_began() {
    let gate = Gate::default();
    let backend = Backend::gated(&gate);
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let mut slow = gateway.connect();
    slow.send("GET /api/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    until("the backend has it", || backend.requests().len() == 1);
    gateway.upgrade().expect("the next process serves");
    ask_anew(&gateway).expect("the next one answers");
    assert!(is_alive(gateway.pid()));
    gate.open();
    let answer = slow.response();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(slow.is_closed());
    until("the old process is gone", || !is_alive(gateway.pid()));
}

/// A connection that two processes hold does not close when one of them closes it.
#[test]
fn the_next_process_gets_no_connection_along() {
    // Each with what it stands for, since a number that becomes free is given to the next one; what is closed meanwhile is left out.
    let descriptors = |pid: u32| -> Vec<(OsString, PathBuf)> {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
        open.map(|entry| entry.expect("an entry"))
            .filter_map(|entry| Some((entry.file_name(), fs::read_link(entry.path()).ok()?)))
            .collect()
    };
    let gateway = Gateway::start("");
    let before = descriptors(gateway.pid());
    let mut clients: Vec<_> = (0..50).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    let mut connections = descriptors(gateway.pid());
    connections.retain(|descriptor| !before.contains(descriptor));
    let mut kept_back = 0;
    for (descriptor, _) in &connections {
        let file = Path::new("/proc").join(gateway.pid().to_string()).join("fdinfo").join(descriptor);
        let Ok(info) = fs::read_to_string(file) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags");
        let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
        assert!(flags & libc::O_CLOEXEC != 0, "descriptor {descriptor:?} is passed on: {info}");
        kept_back += 1;
    }
    assert!(kept_back >= clients.len(), "{connections:?}");
    let next = gateway.upgrade().expect("the next process serves");
    let after = descriptors(next).len();
    assert!(after < before.len() + 20, "{before:?} before, {after} after");
}

#[test]
fn nobody_in_the_queue_is_lost() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with("max_connections_per_worker = 4", &service("api", &[backend.url()], ""));
    // The worker is full, so that others wait in the listener's queue.
    let mut full: Vec<_> = (0..4).map(|_| gateway.connect()).collect();
    for client in &mut full {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n");
    }
    let mut waiting: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
    for client in &mut waiting {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    }
    gateway.upgrade().expect("the next process serves");
    for client in &mut waiting {
        assert_eq!(client.response().text(), "ok");
    }
    for client in &mut full {
        client.send("\r\n");
        assert_eq!(client.response().text(), "ok");
    }
}

#[test]
fn an_end_that_is_asked_for_meanwhile_is_the_end() {
    let mut command = Command::new("/bin/sh");
    // The next process hangs before it takes anything over.
    let script = "if [ -n \"$RINGWAY_HANDOVER\" ]; then exec sleep 60; fi; exec \"$RINGWAY\" \"$@\"";
    let wrapper = std::env::temp_dir().join(format!("ringway-hangs-{}", std::process::id()));
    fs::write(&wrapper, format!("#!/bin/sh\nRINGWAY={}\n{script}\n", env!("CARGO_BIN_EXE_ringway"))).expect("writable");
    // argv[0] is what the next process is started by.
    let python = "import os, sys; os.chmod(sys.argv[1], 0o755); os.execv(sys.argv[2], [sys.argv[1]] + sys.argv[3:])";
    command
        .args(["-c", &format!("exec python3 -c '{python}' \"$0\" \"$@\"")])
        .arg(&wrapper)
        .arg(env!("CARGO_BIN_EXE_ringway"));
    let mut gateway = Gateway::start_command(command, "", "");
    gateway.signal("QUIT");
    gateway.events.wait_for(|event| event["message"] == "SIGQUIT: the next process is started");
    gateway.signal("QUIT");
    gateway.events.wait_for(|event| event["message"] == "SIGQUIT: the next process is being started already");
    let begun = Instant::now();
    gateway.signal("TERM");
    assert!(gateway.wait_exit().success());
    assert!(begun.elapsed() < Duration::from_secs(10));
    fs::remove_file(wrapper).expect("it is there");
}

#[test]
fn another_address_is_another_socket() {
    let gateway = Gateway::start("");
    let text = fs::read_to_string(gateway.config()).expect("it is there");
    fs::write(gateway.config(), text.replace("127.0.0.1", "127.0.0.2")).expect("writable");
    let next = gateway.upgrade().expect("the next process serves");
    gateway.events.wait_for(|event| {
        event["message"].as_str().is_some_and(|message| message.starts_with("the address is another one"))
    });
    let address = |event: &Value| event["address"].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
    let its_own =
        |event: &Value| address(event).is_some_and(|at| at.ip() == Ipv4Addr::new(127, 0, 0, 2) && at.port() != 0);
    let listening = gateway.events.wait_for(its_own);
    until("the old process is gone", || !is_alive(gateway.pid()));
    // The kernel lets go of a ring's sockets a little after the process has gone.
    until("nobody listens where it did", || TcpStream::connect(gateway.address).is_err());
    assert!(is_alive(next), "the next process is gone as well");
    TcpStream::connect(address(&listening).expect("it was parsed before")).expect("the next process listens");
    signal(next, "TERM");
    until("the next one is gone as well", || !is_alive(next));
}
