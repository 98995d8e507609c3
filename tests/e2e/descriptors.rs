//! Descriptors are few: the gateway allows itself what it may, and keeps some to reach backends with.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use crate::support::client::Sight;
use crate::support::gateway::with_descriptors;
use crate::support::kernel::allow_descriptors;
use crate::support::{Backend, Client, DEADLINE, Gate, Gateway, service, until, until_still};

/// A request in two parts: a client that has sent the first is not idle, so nobody takes its place.
const BEGINNING: &str = "GET /api HTTP/1.1\r\n";
const REST: &str = "Host: a\r\n\r\n";

/// More than the gateway has descriptors.
const CLIENTS: usize = 400;

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let backend = Backend::echo();
    let gateway = Gateway::start_command(with_descriptors(64, 256), "", &service("api", &[backend.url()], ""));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).expect("the process lives");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit");
    let numbers: Vec<_> = line.split_whitespace().collect();
    assert_eq!(numbers[..2], ["256", "256"]);
}

#[test]
fn clients_that_take_all_they_can_get_do_not_keep_requests_from_their_backend() {
    allow_descriptors();
    let gate = Gate::default();
    let backend = Backend::start({
        let gate = gate.clone();
        move |connection| {
            loop {
                connection.request()?;
                gate.pass();
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
        }
    });
    let gateway = Gateway::start_command(with_descriptors(64, 256), "", &service("api", &[backend.url()], ""));
    let begun = || {
        let mut client = gateway.connect();
        client.send(BEGINNING);
        client
    };
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| begun()).collect();
    until_still("all are in who get in", || gateway.descriptors() as u64);

    // Each of these needs a connection of its own to the backend.
    let asking = &mut clients[..8];
    for client in asking.iter_mut() {
        client.send(REST);
    }
    let is_answered = |client: &Client| client.sight() != Sight::Nothing;
    until("the backend has them", || backend.connections() == asking.len() || asking.iter().any(is_answered));
    asking.iter().for_each(|_| gate.open());
    for client in asking.iter_mut() {
        let answer = client.response();
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    // The last ones wait until others leave.
    let mut waiting = clients.split_off(CLIENTS - 20);
    for client in &mut waiting {
        client.send(REST);
    }
    assert!(waiting[0].is_quiet(), "there is no place yet");
    drop(clients);
    waiting.iter().for_each(|_| gate.open());
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
}

/// What a gateway with six workers on io_uring says last before it ends; nothing if it comes to listen. Of the descriptors
/// that it may have, some are `taken`, as by a parent that leaves files open to it.
fn end_of_start(descriptors: usize, taken: usize) -> Option<String> {
    let script = format!(
        "for ((i = 0; i < {taken}; i++)); do exec {{file}}</dev/null; done; ulimit -n {descriptors}; exec \"$0\" run"
    );
    let mut process = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_ringway")])
        .current_dir(env::temp_dir())
        .env_clear()
        .envs([("HOST", "127.0.0.1"), ("PORT", "0")])
        .envs([("RINGWAY_SERVER__WORKERS", "6"), ("RINGWAY_SERVER__DRIVER", "io_uring")])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let lines = BufReader::new(process.stderr.take().expect("piped")).lines();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let mut last = String::new();
    let end = loop {
        match told.recv_timeout(DEADLINE) {
            Ok(line) if line.contains("\"listening\"") => break Ok(None),
            Ok(line) => last = line,
            Err(RecvTimeoutError::Disconnected) => break Ok(Some(last)),
            Err(RecvTimeoutError::Timeout) => break Err(last),
        }
    };
    process.kill().and_then(|()| process.wait()).expect("a process");
    end.unwrap_or_else(|last| panic!("with {taken} taken it neither listens nor ends, and last said {last:?}"))
}

#[test]
fn a_process_with_too_few_for_its_workers_says_how_many_it_needs() {
    let said = end_of_start(79, 0).expect("it ends");
    assert!(said.contains("the limit on open files is 79") && said.contains("must be 80 or more"), "{said}");
    assert_eq!(end_of_start(80, 0), None);
}

#[test]
fn a_worker_that_cannot_start_ends_the_process() {
    // Where in its start it runs out depends on how many are left.
    let ends: Vec<_> = (40..=64).map(|taken| end_of_start(80, taken)).collect();
    let is_a_workers =
        |end: &Option<String>| end.as_ref().is_some_and(|said| said.contains("io_uring is not available"));
    assert!(ends.iter().any(is_a_workers), "{ends:#?}");
}
