//! Deadlines without timers: one coarse sweep a worker.
//!
//! Every socket has a [`Watch`]. Whoever waits on it notes until when, in a few plain stores; the worker's tick looks at all
//! of them and shuts a socket down whose time is over, which wakes the waiting read or write. So a deadline costs a request
//! nothing but those stores, and no byte is lost to it.
//!
//! The same sweep notices clients that leave while an upstream is being waited for: one poll(2) for all that have waited
//! longer than a tick, instead of an operation a request.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use slab::Slab;

use super::failure::Failure;
use super::socket::{self, Shut};
use crate::telemetry::counters::Deadline;

/// How often the sweep runs, and so how late a deadline may fire.
pub const TICK: Duration = Duration::from_millis(50);

/// A worker's coarse clock: milliseconds since it started.
pub type Millis = u64;

/// No deadline.
const NEVER: Millis = Millis::MAX;

/// The deadline of what the gateway itself ends.
const ENDED: Millis = 0;

/// How often a client whose upstream keeps silent is looked at, after the first time.
const LOOK_EVERY: Millis = 400;

/// The fewest idle connections that a sweep of the drain ends, and the share of them beyond that. Few at a time, so that
/// each is closed right after it was found to be idle.
const DRAIN_BATCH_MIN: usize = 32;
const DRAIN_BATCH_SHARE: usize = 16;

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A client's.
    Client,
    /// An endpoint's.
    Upstream,
}

/// One socket's deadlines, and what became of them.
pub struct Watch {
    fd: Cell<RawFd>,
    side: Side,
    read_until: Cell<Millis>,
    /// Whose deadline that is.
    awaited: Cell<Deadline>,
    write_until: Cell<Millis>,
    /// Whether writes may take as long as they like.
    writes_freely: Cell<bool>,
    /// How long the pending write may go without progress.
    write_time: Cell<Millis>,
    /// What the kernel had still to deliver when the pending write was last looked at, in bytes.
    undelivered: Cell<Option<usize>>,
    /// When to find out whether a client that waits for its upstream is still there.
    look_at: Cell<Millis>,
    upstream: Cell<Option<Rc<Watch>>>,
    idle_since: Cell<Millis>,
    ended_idle: Cell<bool>,
    read_shut: Cell<bool>,
    read_expired: Cell<bool>,
    write_expired: Cell<bool>,
    stopped: Cell<bool>,
    peer_gone: Cell<bool>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("fd", &self.fd.get()).finish_non_exhaustive()
    }
}

impl Watch {
    /// Gives the pending read until `until`, where `deadline` fires.
    pub fn read_until(&self, until: Millis, deadline: Deadline) {
        self.read_until.set(until);
        self.awaited.set(deadline);
    }

    /// The read is over, or may take as long as it likes.
    pub fn read_done(&self) {
        self.read_until.set(NEVER);
    }

    /// Gives the write that begins at `now` so long for each step forward: a byte that the kernel takes, or that the peer
    /// acknowledges.
    fn write_within(&self, now: Millis, time: Millis) {
        if self.writes_freely.get() {
            return;
        }
        self.write_until.set(now.saturating_add(time));
        self.write_time.set(time);
        self.undelivered.set(None);
    }

    /// Whether writes, the pending one among them, have deadlines.
    pub fn limit_writes(&self, limited: bool) {
        self.writes_freely.set(!limited);
        if !limited {
            self.write_done();
        }
    }

    /// The next sweep ends both directions.
    pub fn end(&self) {
        self.read_until.set(ENDED);
        self.writes_freely.set(false);
        self.write_within(ENDED, 0);
    }

    /// The write is over.
    fn write_done(&self) {
        self.write_until.set(NEVER);
    }

    /// Marks a connection as waiting between two requests since `now`: it may be ended.
    pub fn idle(&self, now: Millis) {
        self.idle_since.set(now);
    }

    /// A request is under way.
    pub fn busy(&self) {
        self.idle_since.set(NEVER);
    }

    /// Ends a connection between two requests. Its task looks once more whether a request has come meanwhile.
    fn end_idle(&self) {
        self.idle_since.set(NEVER);
        self.ended_idle.set(true);
        self.shut(Shut::Read);
    }

    /// Whether the gateway ended the connection because no request was under way on it.
    pub fn ended_idle(&self) -> bool {
        self.ended_idle.get()
    }

    /// From `now` on the client waits for an upstream: once there is a connection, the one that is shut down when the
    /// client leaves.
    pub fn wait_for(&self, upstream: Option<&Rc<Watch>>, now: Millis) {
        self.upstream.set(upstream.map(Rc::clone));
        self.keep_waiting(now);
    }

    /// The upstream has just said something, and is waited for again from `now` on.
    pub fn keep_waiting(&self, now: Millis) {
        self.look_at.set(now + 2 * TICK.as_millis() as Millis);
    }

    /// The upstream has spoken; whether the client takes that in is for the writes to find out.
    pub fn stop_waiting(&self) {
        self.look_at.set(NEVER);
    }

    /// The wait is over.
    pub fn waited(&self) {
        self.look_at.set(NEVER);
        self.upstream.set(None);
    }

    /// Whether a read's time ran out.
    pub fn read_expired(&self) -> bool {
        self.read_expired.get()
    }

    /// Whether a read's or write's time ran out.
    pub fn expired(&self) -> bool {
        self.read_expired.get() || self.write_expired.get()
    }

    /// Whether the connection was ended because the drain's time was over.
    pub fn stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Whether the peer left while its answer was waited for.
    pub fn peer_gone(&self) -> bool {
        self.peer_gone.get()
    }

    /// Why the socket ended: the gateway's own doing, or else the peer's, which is `otherwise`.
    pub fn ending(&self, otherwise: Failure) -> Failure {
        match (self.stopped.get(), self.side) {
            (true, _) => Failure::Stopped,
            (_, Side::Upstream) if self.expired() => Failure::UpstreamTimeout,
            (_, Side::Client) if self.write_expired.get() => Failure::ClientStalled,
            (_, Side::Client) if self.read_expired.get() => Failure::ClientTimeout,
            _ => otherwise,
        }
    }

    /// Resets the connection, so that the peer cannot take a body that was cut for one that is complete.
    pub fn reset(&self) {
        if self.fd.get() >= 0 {
            socket::reset(self.fd.get());
        }
    }

    /// Wakes whatever waits on the socket, for good.
    fn shut(&self, how: Shut) {
        self.read_shut.set(true);
        if self.fd.get() >= 0 {
            socket::shut(self.fd.get(), how);
        }
    }

    /// Whether the pending write has made no step forward in its time. A slow peer may take in bytes for long before the
    /// kernel has room for more, so the kernel is asked what is still to be delivered.
    fn write_is_stuck(&self, now: Millis) -> bool {
        let (until, time) = (self.write_until.get(), self.write_time.get());
        let is_due = until <= now;
        let is_young = until.saturating_sub(time) + TICK.as_millis() as Millis > now;
        if until == NEVER || !is_due && (is_young || self.undelivered.get().is_some()) {
            return false;
        }
        let left = socket::unacknowledged(self.fd.get());
        let before = self.undelivered.replace(left);
        if !is_due {
            return false;
        }
        let moves = matches!((before, left), (Some(before), Some(left)) if left < before);
        if moves {
            self.write_until.set(now.saturating_add(time));
        }
        !moves
    }
}

/// How long a write may wait for each step forward.
#[derive(Debug, Clone, Copy)]
pub struct Patience<'a> {
    watch: &'a Watch,
    now: &'a Cell<Millis>,
    time: Millis,
}

impl<'a> Patience<'a> {
    /// `time` for each step, on the coarse clock `now`.
    pub fn new(watch: &'a Watch, now: &'a Cell<Millis>, time: Duration) -> Patience<'a> {
        Patience { watch, now, time: time.as_millis() as Millis }
    }

    /// A write begins, or has moved on.
    pub fn renew(&self) {
        self.watch.write_within(self.now.get(), self.time);
    }

    /// The write is over.
    pub fn done(&self) {
        self.watch.write_done();
    }
}

/// All watches of a worker.
#[derive(Debug, Default)]
pub struct Registry {
    watches: RefCell<Slab<Rc<Watch>>>,
    leaving: RefCell<Vec<Rc<Watch>>>,
}

/// A watch in its registry; leaves it when dropped, which must be before the descriptor is closed.
#[derive(Debug)]
pub struct Watched {
    watch: Rc<Watch>,
    registry: Rc<Registry>,
    key: usize,
}

impl Watched {
    /// Watches `fd` from now on.
    pub fn new(registry: &Rc<Registry>, fd: RawFd, side: Side) -> Watched {
        let watch = Rc::new(Watch {
            fd: Cell::new(fd),
            side,
            read_until: Cell::new(NEVER),
            awaited: Cell::default(),
            write_until: Cell::new(NEVER),
            writes_freely: Cell::new(false),
            write_time: Cell::new(NEVER),
            undelivered: Cell::new(None),
            look_at: Cell::new(NEVER),
            upstream: Cell::new(None),
            idle_since: Cell::new(NEVER),
            ended_idle: Cell::new(false),
            read_shut: Cell::new(false),
            read_expired: Cell::new(false),
            write_expired: Cell::new(false),
            stopped: Cell::new(false),
            peer_gone: Cell::new(false),
        });
        let key = registry.watches.borrow_mut().insert(Rc::clone(&watch));
        Watched { watch, registry: Rc::clone(registry), key }
    }

    /// The watch itself, to be named by another one.
    pub fn shared(&self) -> &Rc<Watch> {
        &self.watch
    }
}

impl std::ops::Deref for Watched {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.fd.set(-1);
        self.watch.upstream.set(None);
        self.registry.watches.borrow_mut().remove(self.key);
    }
}

impl Registry {
    /// One sweep. With `drain_idle_before` some of the connections that have been idle since before it are ended as well.
    /// `fired` is told of each deadline that fires.
    pub fn sweep(&self, now: Millis, drain_idle_before: Option<Millis>, fired: impl Fn(Deadline)) {
        let watches = self.watches.borrow();
        let mut leaving = self.leaving.borrow_mut();
        let mut may_drain = DRAIN_BATCH_MIN.max(watches.len() / DRAIN_BATCH_SHARE);
        for (_, watch) in watches.iter() {
            let read_until = watch.read_until.get();
            if read_until <= now {
                watch.read_until.set(NEVER);
                watch.read_expired.set(true);
                // Only reading ends: a 408 may still be written.
                watch.shut(Shut::Read);
                if read_until > ENDED {
                    fired(watch.awaited.get());
                }
            } else if may_drain > 0 && drain_idle_before.is_some_and(|before| watch.idle_since.get() <= before) {
                watch.end_idle();
                may_drain -= 1;
            }
            if watch.write_is_stuck(now) {
                let write_until = watch.write_until.replace(NEVER);
                watch.write_expired.set(true);
                watch.shut(Shut::Both);
                if write_until > ENDED {
                    fired(Deadline::IdleBody);
                }
            }
            // One that the gateway has shut looks like one that left.
            if watch.look_at.get() <= now && !watch.read_shut.get() {
                watch.look_at.set(now + LOOK_EVERY);
                leaving.push(Rc::clone(watch));
            }
        }
        mark_leavers(&leaving);
        leaving.clear();
    }

    /// How many sockets of that side there are.
    pub fn count(&self, side: Side) -> usize {
        self.watches.borrow().iter().filter(|(_, watch)| watch.side == side).count()
    }

    /// Ends connections that have been idle for `idle_min` at least, those that have been so for longest, up to `most`:
    /// others need their places.
    pub fn end_idlest(&self, now: Millis, idle_min: Millis, most: usize) {
        let watches = self.watches.borrow();
        let idle = watches.iter().filter(|(_, watch)| watch.idle_since.get().saturating_add(idle_min) <= now);
        let mut idle: Vec<(Millis, usize)> = idle.map(|(key, watch)| (watch.idle_since.get(), key)).collect();
        if idle.len() > most {
            idle.select_nth_unstable(most);
        }
        for (_, key) in idle.into_iter().take(most) {
            watches[key].end_idle();
        }
    }

    /// The drain's time is over: upstreams are cut off and clients are read no further, so that whatever is under way ends,
    /// and is still told so.
    pub fn stop(&self) {
        for (_, watch) in self.watches.borrow().iter() {
            watch.stopped.set(true);
            watch.shut(match watch.side {
                Side::Client => Shut::Read,
                Side::Upstream => Shut::Both,
            });
        }
    }

    /// Ends those that are still there a moment after [`Registry::stop`], since they do not take what they are told.
    pub fn reset_all(&self) {
        for (_, watch) in self.watches.borrow().iter() {
            watch.reset();
            watch.shut(Shut::Both);
        }
    }
}

/// Asks the kernel, once for all, which of the waiting clients are gone.
fn mark_leavers(waiting: &[Rc<Watch>]) {
    for group in waiting.chunks(256) {
        let mut polled: Vec<PollFd<'_>> = group
            .iter()
            .map(|watch| PollFd::from_borrowed_fd(socket::borrow(watch.fd.get()), PollFlags::RDHUP))
            .collect();
        if rustix::event::poll(&mut polled, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_err() {
            continue;
        }
        for (watch, poll) in group.iter().zip(&polled) {
            if poll.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
                watch.peer_gone.set(true);
                watch.look_at.set(NEVER);
                if let Some(upstream) = watch.upstream.take() {
                    upstream.shut(Shut::Both);
                }
            }
        }
    }
}
