//! Idle upstream connections of one worker to one endpoint, last in first out.
//!
//! The connection used last is the one least likely to have been closed by the upstream meanwhile, and the ones that are
//! not needed age out.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::socket::Socket;
use super::watch::Millis;
use crate::snapshot::EndpointId;
use crate::telemetry::counters::{Counters, EndpointSight};
use crate::traffic::breaker::Breaker;
use crate::traffic::outlier::OutlierRecord;

/// So many idle connections a worker keeps to an endpoint, or as many as there were requests under way at once lately: with
/// fewer, a worker with many requests under way would close connections and open others all the time.
const IDLE_MAX: usize = 512;

/// How many there were is forgotten by a 64th a second: half of it in three quarters of a minute.
const FORGOTTEN: u32 = 64;

/// How long an endpoint is asked one request at a time after a batch came apart.
const ALONE_FOR: Millis = 10_000;

/// A worker's side of an endpoint: what outlives a snapshot.
#[derive(Debug, Default)]
pub struct EndpointState {
    idle: RefCell<Vec<Idle>>,
    in_flight: Cell<u32>,
    /// How many requests were under way at once, lately.
    peak: Cell<u32>,
    /// Answers, and how long they took to come, in nanoseconds all together.
    answers: Cell<u64>,
    nanos: Cell<u64>,
    /// Whether it gets requests from this worker.
    pub breaker: RefCell<Breaker>,
    /// How it does beside its siblings.
    pub outlier: Cell<OutlierRecord>,
    retired: Cell<bool>,
    /// The batch that requests may join, and how many at most.
    pub open_batch: RefCell<Option<(Rc<Batch>, usize)>>,
    alone_until: Cell<Millis>,
}

#[derive(Debug)]
struct Idle {
    socket: Socket,
    since: Millis,
}

impl EndpointState {
    /// The connection that was used last, if any is idle.
    pub fn take(&self) -> Option<Socket> {
        let mut socket = self.idle.borrow_mut().pop()?.socket;
        socket.reader.in_use();
        Some(socket)
    }

    /// Keeps a connection whose exchange was complete and clean.
    pub fn give(&self, socket: Socket, now: Millis) {
        socket.watch.read_done();
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.idle_max() && !self.retired.get() {
            idle.push(Idle { socket, since: now });
        }
    }

    /// Drops connections that lay idle since before `before`, and those that the upstream has closed. Returns how many the
    /// upstream had closed.
    pub fn tidy(&self, before: Millis) -> u64 {
        let mut closed = 0;
        self.idle.borrow_mut().retain_mut(|idle| {
            let quiet = idle.socket.is_quiet();
            closed += u64::from(!quiet);
            quiet && idle.since >= before
        });
        closed
    }

    fn idle_max(&self) -> usize {
        IDLE_MAX.max(self.peak.get() as usize)
    }

    /// Closes the half of the idle connections that lay idle longer, and forgets how many were in use.
    pub fn shed(&self) {
        self.peak.set(self.in_flight.get());
        let mut idle = self.idle.borrow_mut();
        let half = idle.len().div_ceil(2);
        idle.drain(..half);
    }

    /// Closes connections that lay idle the longest, as the need for them is forgotten. To be called once a second.
    pub fn shrink(&self) {
        let peak = self.peak.get();
        self.peak.set((peak - peak / FORGOTTEN).max(self.in_flight.get()));
        let mut idle = self.idle.borrow_mut();
        let excess = idle.len().saturating_sub(self.idle_max());
        idle.drain(..excess);
    }

    /// Whether the current snapshot has left the endpoint out: then it keeps no idle connections.
    pub fn retire(&self, retired: bool) {
        self.retired.set(retired);
    }

    /// Closes the idle connections of an endpoint that was left out.
    pub fn close_if_retired(&self) {
        if self.retired.get() {
            self.idle.borrow_mut().clear();
        }
    }

    /// Requests that went out together had to be sent again: for a while, each goes alone from the start.
    pub fn leave_alone(&self, now: Millis) {
        self.alone_until.set(now + ALONE_FOR);
    }

    /// Whether requests may go out together.
    pub fn takes_batches(&self, now: Millis) -> bool {
        self.alone_until.get() <= now
    }

    /// How many connections lie idle.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    /// How many requests this worker has under way to the endpoint.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Counts an answer whose head came `after` the request.
    pub fn answered(&self, after: Duration) {
        self.answers.set(self.answers.get() + 1);
        self.nanos.set(self.nanos.get() + after.as_nanos() as u64);
    }

    /// Shows others how the endpoint stands.
    pub fn export(&self, endpoint: EndpointId, counters: &Counters, now: Instant) {
        let breaker = self.breaker.borrow().state(now);
        let (in_flight, answers, nanos) = (self.in_flight.get(), self.answers.get(), self.nanos.get());
        let ejected = u32::from(self.outlier.get().is_ejected(now));
        counters.endpoint_stands(endpoint, &EndpointSight { breaker, ejected, in_flight, answers, nanos });
    }

    /// Counts one request more or less.
    pub fn count(&self, change: i32) {
        let in_flight = self.in_flight.get().saturating_add_signed(change);
        self.in_flight.set(in_flight);
        self.peak.set(self.peak.get().max(in_flight));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_kept_as_were_in_use_lately() {
        let state = EndpointState::default();
        assert_eq!(state.idle_max(), IDLE_MAX);
        (0..6_400).for_each(|_| state.count(1));
        (0..6_300).for_each(|_| state.count(-1));
        assert_eq!(state.idle_max(), 6_400);
        state.shrink();
        assert_eq!(state.idle_max(), 6_300);
        (0..44).for_each(|_| state.shrink());
        assert!((3_100..3_300).contains(&state.idle_max()), "{}", state.idle_max());
        (0..300).for_each(|_| state.shrink());
        assert_eq!(state.idle_max(), IDLE_MAX);
        (0..800).for_each(|_| state.count(1));
        (0..300).for_each(|_| state.shrink());
        assert_eq!(state.idle_max(), 900, "those in use are not forgotten");
    }
}
