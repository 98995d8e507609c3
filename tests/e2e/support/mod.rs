//! What the tests stand on: the real binary, clients and backends that send exact bytes, and conditions that are awaited.

pub mod backend;
pub mod client;
pub mod dns;
pub mod gateway;
pub mod kernel;
pub mod prometheus;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use backend::Backend;
pub use client::Client;
pub use gateway::Gateway;

pub use crate::redis::port::free_port;

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long a test watches before it believes that something does not happen.
pub const QUIET: Duration = Duration::from_millis(250);

/// The receive buffer of a slow reader, in bytes.
pub const SMALL: usize = 64 * 1024;

/// Waits for a condition, so long; whether it came to hold.
pub fn holds_within(time: Duration, condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + time;
    loop {
        match condition() {
            true => return true,
            false if Instant::now() >= end => return false,
            false => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Waits for a condition.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    assert!(holds_within(DEADLINE, condition), "waited in vain until {what}");
}

/// Waits until a number has risen above zero and stands still.
pub fn until_still(what: &str, number: impl Fn() -> u64) {
    until(what, || {
        let seen = number();
        thread::sleep(QUIET / 2);
        seen > 0 && number() == seen
    });
}

/// Raises a flag when it is dropped, by the unwinding of a test that fails at the latest: threads that go on until then would
/// otherwise never end, and the test with them.
pub struct RaisedAtEnd<'a>(pub &'a AtomicBool);

impl Drop for RaisedAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `[services.<name>]` with a prefix of the same name, and further lines.
pub fn service(name: &str, endpoints: &[String], lines: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!("[services.{name}]\nprefix = \"/{name}\"\nendpoints = [{}]\n{lines}\n", endpoints.join(", "))
}

/// A gateway with one worker and the one service `/api` in front of `backend`.
pub fn gateway_to(backend: &Backend) -> Gateway {
    Gateway::start(&service("api", &[backend.url()], ""))
}

/// Lets a script go on when the test says so: every [`Gate::open`] lets one [`Gate::pass`] through.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().expect("no panic") += 1;
        self.0.1.notify_one();
    }

    pub fn pass(&self) {
        let opened = self.0.0.lock().expect("no panic");
        let (mut opened, _) = self.0.1.wait_timeout_while(opened, DEADLINE, |opened| *opened == 0).expect("no panic");
        *opened = opened.checked_sub(1).expect("the gate opens in time");
    }
}

/// After so many bytes a [`pattern`] begins anew. No buffer size divides it.
const PERIOD: usize = 65_521;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..PERIOD).map(|at| (at ^ (at >> 8)) as u8).collect());

/// Bytes that tell where in a body they stand: `length` of them, from the body's byte `from` on.
pub fn pattern(from: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    let mut next = &PATTERN[(from % PERIOD as u64) as usize..];
    while bytes.len() < length {
        bytes.extend_from_slice(&next[..next.len().min(length - bytes.len())]);
        next = &PATTERN;
    }
    bytes
}

/// Checks bytes against [`pattern`], however they arrive.
#[derive(Default)]
pub struct PatternCheck {
    at: u64,
}

impl PatternCheck {
    /// Of a body that begins in the middle of the pattern.
    pub fn beginning_at(at: u64) -> PatternCheck {
        PatternCheck { at }
    }

    pub fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PERIOD) {
            assert!(piece == pattern(self.at, piece.len()), "the body differs after byte {}", self.at);
            self.at += piece.len() as u64;
        }
    }

    /// Where in the pattern it is.
    pub fn length(&self) -> u64 {
        self.at
    }
}
