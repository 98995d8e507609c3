//! Descriptors are few: the gateway allows itself what it may, and keeps some to reach backends with.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
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

#[test]
fn a_process_for_whose_workers_there_are_not_enough_serves_or_ends() {
    // Where in its start it runs out depends on what it was given.
    let ended: Vec<bool> = (25..=40)
        .map(|descriptors| {
            let mut process = with_descriptors(descriptors, descriptors)
                .arg("run")
                .current_dir(env::temp_dir())
                .env_clear()
                .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("RINGWAY_SERVER__WORKERS", "6")])
                .env("RINGWAY_SERVER__DRIVER", "io_uring")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a shell");
            let lines = BufReader::new(process.stderr.take().expect("piped")).lines();
            let (tell, told) = mpsc::channel();
            thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
            let end = loop {
                match told.recv_timeout(DEADLINE) {
                    Ok(line) if line.contains("\"listening\"") => break Some(false),
                    Ok(_) => {}
                    Err(RecvTimeoutError::Disconnected) => break Some(true),
                    Err(RecvTimeoutError::Timeout) => break None,
                }
            };
            process.kill().and_then(|()| process.wait()).expect("a process");
            end.unwrap_or_else(|| panic!("with {descriptors} descriptors it neither serves nor ends"))
        })
        .collect();
    assert!(ended.contains(&true), "there were enough each time");
}
