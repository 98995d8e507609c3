//! Deadlines without timers: one coarse sweep a worker.
//!
//! Every socket has a [`Watch`]. Whoever waits on it notes until when, in two plain stores; the worker's tick looks at all
//! of them and shuts a socket down whose time is over, which wakes the waiting read or write. So a deadline costs a request
//! nothing but those stores, no operation of the ring is ever cancelled, and none loses bytes.
//!
//! The same sweep notices clients that leave while an upstream is being waited for: one poll(2) for all that wait longer
//! than a tick, instead of an operation a request.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use slab::Slab;

use super::socket::{self, Shut};

/// How often the sweep runs, and so how late a deadline may fire.
pub const TICK: Duration = Duration::from_millis(50);

/// A worker's coarse clock: milliseconds since it started.
pub type Millis = u64;

/// No deadline.
const NEVER: Millis = Millis::MAX;

/// One socket's deadlines, and what became of them.
pub struct Watch {
    fd: Cell<RawFd>,
    read_until: Cell<Millis>,
    write_until: Cell<Millis>,
    /// Since when a client waits for its upstream, so that its leaving is worth noticing.
    waits_since: Cell<Millis>,
    upstream: Cell<Option<Rc<Watch>>>,
    idle_since: Cell<Millis>,
    read_expired: Cell<bool>,
    write_expired: Cell<bool>,
    peer_gone: Cell<bool>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("fd", &self.fd.get()).finish_non_exhaustive()
    }
}

impl Watch {
    /// Gives the pending read until `until`.
    pub fn read_until(&self, until: Millis) {
        self.read_until.set(until);
    }

    /// Gives the pending write until `until`.
    pub fn write_until(&self, until: Millis) {
        self.write_until.set(until);
    }

    /// The read is over.
    pub fn read_done(&self) {
        self.read_until.set(NEVER);
    }

    /// The write is over.
    pub fn write_done(&self) {
        self.write_until.set(NEVER);
    }

    /// Marks a connection as waiting between two requests since `now`: a drain may end it.
    pub fn idle(&self, now: Millis) {
        self.idle_since.set(now);
    }

    /// A request is under way.
    pub fn busy(&self) {
        self.idle_since.set(NEVER);
    }

    /// From `now` on the client waits for `upstream`; when it leaves, that socket is shut down.
    pub fn wait_for(&self, upstream: &Rc<Watch>, now: Millis) {
        self.waits_since.set(now);
        self.upstream.set(Some(Rc::clone(upstream)));
    }

    /// The wait is over.
    pub fn waited(&self) {
        self.waits_since.set(NEVER);
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

    /// Whether the peer left while its answer was waited for.
    pub fn peer_gone(&self) -> bool {
        self.peer_gone.get()
    }

    /// Resets the connection, so that the peer cannot take a body that was cut for one that is complete.
    pub fn reset(&self) {
        socket::reset(self.fd.get());
    }

    /// Wakes whatever waits on the socket, for good.
    fn shut(&self, how: Shut) {
        if self.fd.get() >= 0 {
            socket::shut(self.fd.get(), how);
        }
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
    pub fn new(registry: &Rc<Registry>, fd: RawFd) -> Watched {
        let watch = Rc::new(Watch {
            fd: Cell::new(fd),
            read_until: Cell::new(NEVER),
            write_until: Cell::new(NEVER),
            waits_since: Cell::new(NEVER),
            upstream: Cell::new(None),
            idle_since: Cell::new(NEVER),
            read_expired: Cell::new(false),
            write_expired: Cell::new(false),
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
    /// One sweep. With `drain_idle_before` connections that have been idle since before it are ended as well. Returns how
    /// many deadlines fired.
    pub fn sweep(&self, now: Millis, drain_idle_before: Option<Millis>) -> u64 {
        let mut fired = 0;
        let mut leaving = self.leaving.borrow_mut();
        for (_, watch) in self.watches.borrow().iter() {
            if watch.read_until.get() <= now {
                watch.read_until.set(NEVER);
                watch.read_expired.set(true);
                // Only reading ends: a 408 may still be written.
                watch.shut(Shut::Read);
                fired += 1;
            } else if drain_idle_before.is_some_and(|before| watch.idle_since.get() <= before) {
                watch.idle_since.set(NEVER);
                watch.shut(Shut::Read);
            }
            if watch.write_until.get() <= now {
                watch.write_until.set(NEVER);
                watch.write_expired.set(true);
                watch.shut(Shut::Both);
                fired += 1;
            }
            // One that this sweep has shut looks like one that left.
            if !watch.expired() && watch.waits_since.get() < now.saturating_sub(TICK.as_millis() as Millis) {
                leaving.push(Rc::clone(watch));
            }
        }
        mark_leavers(&leaving);
        leaving.clear();
        fired
    }
}

impl Registry {
    /// Ends every connection: the drain's time is over.
    pub fn shut_all(&self) {
        for (_, watch) in self.watches.borrow().iter() {
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
                watch.waits_since.set(NEVER);
                if let Some(upstream) = watch.upstream.take() {
                    upstream.shut(Shut::Both);
                }
            }
        }
    }
}
