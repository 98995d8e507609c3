//! File descriptors: how many the process may have open, and how many of them clients may take.
//!
//! Whoever connects takes a descriptor, and a request needs another one for its upstream. So a share is kept back from
//! clients: at the limit accepting stops, and the clients that are in can still be served. Connections to upstreams that lie idle
//! make room for those that are wanted.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::splice::PIPES_MAX;

/// What the process itself may need: rings, listeners, the control plane's sockets, files being read.
const OWN: u64 = 64;
const OWN_PER_WORKER: u64 = 16;

/// What it cannot do without: what it holds when nobody asks anything, and a client and an upstream for each worker.
const LEAST: u64 = 32;
const LEAST_PER_WORKER: u64 = 8;

/// Whether there was no descriptor left, for the process or the whole system.
pub fn are_short(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE].map(Some).contains(&error.raw_os_error())
}

/// Raises the limit on open descriptors as far as it may be raised without privileges (getrlimit(2), RLIMIT_NOFILE), and
/// returns it.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok();
    let current = if raised { limit.maximum } else { limit.current };
    // None means infinity.
    current.unwrap_or(u64::MAX)
}

/// The fewest descriptors that a process with `workers` workers starts with.
pub fn least(workers: usize) -> u64 {
    LEAST + LEAST_PER_WORKER * workers as u64
}

/// How many clients each of `workers` workers can have when the process may have `limit` descriptors: three quarters of
/// what it does not need itself. The others are for upstreams.
pub fn clients_per_worker(limit: u64, workers: usize) -> u32 {
    u32::try_from(left(limit, workers) / 4 * 3 / workers as u64).unwrap_or(u32::MAX).max(1)
}

/// How many pipes for long bodies each of them can have, with two descriptors each: up to a quarter of what is for upstreams.
pub fn pipes_per_worker(limit: u64, workers: usize) -> usize {
    let possible = left(limit, workers) / 16 / 2 / workers as u64;
    usize::try_from(possible).map_or(PIPES_MAX, |possible| possible.min(PIPES_MAX))
}

/// How many the process does not need itself.
fn left(limit: u64, workers: usize) -> u64 {
    limit.saturating_sub(OWN + OWN_PER_WORKER * workers as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_keep_a_quarter() {
        assert_eq!(clients_per_worker(20_000, 1), 14_940);
        assert_eq!(clients_per_worker(20_000, 2), 7_464);
        assert_eq!(clients_per_worker(256, 2), 60);
        assert_eq!(clients_per_worker(u64::MAX, 4), u32::MAX);
        assert_eq!(clients_per_worker(10, 4), 1);
    }

    #[test]
    fn pipes_take_a_quarter_of_that() {
        assert_eq!(pipes_per_worker(20_000, 1), 64);
        assert_eq!(pipes_per_worker(1_024, 4), 7);
        assert_eq!(pipes_per_worker(u64::MAX, 4), 64);
        assert_eq!(pipes_per_worker(10, 4), 0);
    }
}
