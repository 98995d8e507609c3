//! The ledger in memory: one per process, shared by all workers, exact across them.
//!
//! Keys are spread over [`SHARDS`] locks, each held for one step of [`Window`] arithmetic. The number of keys is bounded:
//! each new key first looks at a few old ones and evicts those whose windows are over. When that is not enough, a new key
//! does not get a window of its own but shares one with every other such key of its limit and shard. So a flood of keys
//! can neither get past the limiter (the flooding keys have one limit's worth per shard together) nor shut out anyone who
//! was there before it (a live window is never evicted). When there is room again, a key takes the shared window's counts
//! along: never over the limit on the way in or out, at the price of being counted with strangers for one window.
//!
//! It is handed a clock that should not be set back: a key evicted before that is not remembered after it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::traffic::table::Table;
use crate::traffic::window::{Grant, Limit, LimitKey, Order, Window};

/// How many locks there are.
pub const SHARDS: usize = 64;

/// The most keys unless said otherwise: about 60 MB when as many clients each have a few requests in their window.
pub const KEYS_MAX: usize = 1 << 18;

/// How many old keys a new one looks at.
const PROBES: usize = 4;

/// The most shared windows in a shard, one for each limit that overflows.
const SHARED_MAX: usize = 1_024;

/// All counts of one process.
#[derive(Debug)]
pub struct MemoryLedger {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug)]
struct Shard {
    own: Table<Window>,
    /// Under keys made of the limit's figures.
    shared: Table<Window>,
}

impl MemoryLedger {
    /// A ledger of at most `keys_max` keys of their own, rounded up to a multiple of [`SHARDS`].
    pub fn new(keys_max: usize) -> MemoryLedger {
        let shard = || Shard { own: Table::new(keys_max.div_ceil(SHARDS)), shared: Table::new(SHARED_MAX) };
        MemoryLedger { shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect() }
    }

    /// Applies `order` to `key`. `now_us` is the process's clock, in microseconds since the Unix epoch. Reports alone are
    /// an order for nothing.
    pub fn acquire(&self, key: LimitKey, limit: &Limit, order: &Order, now_us: u64) -> Grant {
        match self.shard(key).window(key, limit, now_us) {
            Some(window) => window.acquire(limit, order, now_us),
            None => Grant::refusal(limit, now_us),
        }
    }

    /// How many keys have a window of their own.
    pub fn len(&self) -> usize {
        (0..SHARDS).map(|at| lock(&self.shards[at]).own.len()).sum()
    }

    /// Whether no key has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: LimitKey) -> MutexGuard<'_, Shard> {
        // The upper bits: within a shard the tables fold all of them.
        lock(&self.shards[(key.0 >> 122) as usize])
    }
}

/// A window is changed by arithmetic that does not panic: a poisoned lock guards sound counts.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// The window that counts `key`: its own, or the shared one.
    fn window(&mut self, key: LimitKey, limit: &Limit, now_us: u64) -> Option<&mut Window> {
        match self.own.find(key).or_else(|| self.admit(key, limit, now_us)) {
            Some(at) => Some(self.own.at_mut(at)),
            None => self.shared(limit),
        }
    }

    /// Gives `key` a window of its own if there is room.
    fn admit(&mut self, key: LimitKey, limit: &Limit, now_us: u64) -> Option<usize> {
        self.own.walk(PROBES, |_, window| window.is_over(now_us));
        if self.own.is_full() {
            return None;
        }
        self.shared.walk(PROBES, |_, window| window.is_over(now_us));
        let counted = self.shared.get_mut(shared_key(limit)).cloned();
        self.own.insert(key, counted.unwrap_or_default())
    }

    /// The window that the keys without one share; `None` when there are more limits than a configuration can hold.
    fn shared(&mut self, limit: &Limit) -> Option<&mut Window> {
        let key = shared_key(limit);
        let at = self.shared.find(key).or_else(|| self.shared.insert(key, Window::default()))?;
        Some(self.shared.at_mut(at))
    }
}

fn shared_key(limit: &Limit) -> LimitKey {
    LimitKey(u128::from(limit.slot_us()) << 64 | u128::from(limit.requests()))
}
