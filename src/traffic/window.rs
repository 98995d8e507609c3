//! The sliding window of one rate-limited key, and what may be taken from it: the arithmetic of a ledger.
//!
//! Time is cut into slots of `window / SLOTS` of the ledger's clock. A key keeps one count for each slot in which a token
//! was taken, and a token is granted only while the current slot and the [`SLOTS`] before it hold fewer than the limit.
//! Every interval as long as the window lies within `SLOTS + 1` consecutive slots, wherever it begins, hence:
//!
//! - **Never over**: in no interval as long as the window, closed at both ends, are more tokens taken than the limit. (The
//!   common counter of two buckets, the older one weighted, admits almost twice the limit around a burst.)
//! - **Hardly early**: a token comes back at most one slot, 0.8 % of the window, later than a log of every request would
//!   give it back. A client that paces itself at exactly the limit is refused one request in `SLOTS + 1`.
//!
//! Tokens are taken by leases. Those for requests that wait are spent when granted; those taken ahead are *parked* with
//! their worker until it reports them spent or unused, and all that is parked on a key, in whatever slot, is at most
//! [`Limit::parked_max`], 1 % of the limit: no request is refused for more than that.
//!
//! `acquire.lua` in `redis` is this file for Redis, held to it by a common test. Nothing here reads a clock.

use std::collections::VecDeque;
use std::time::Duration;

/// How many slots a window is cut into.
pub const SLOTS: u64 = 128;

/// What a limit counts by: a keyed hash of limit, kind of identity and identity, spread evenly over all 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimitKey(pub u128);

/// How many requests in how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    requests: u32,
    window_us: u64,
}

impl Limit {
    /// The most requests that a limit may allow in its window.
    pub const REQUESTS_MAX: u32 = 1_000_000_000;
    /// The shortest window. In a shorter one a slot would be over before an answer from Redis is back.
    pub const WINDOW_MIN: Duration = Duration::from_millis(10);
    /// The longest window, 400 days.
    pub const WINDOW_MAX: Duration = Duration::from_secs(400 * 86_400);

    /// `requests` in any `window`; both are brought into their ranges, which a validated configuration does not leave:
    /// 1 to [`Limit::REQUESTS_MAX`], [`Limit::WINDOW_MIN`] to [`Limit::WINDOW_MAX`].
    pub fn new(requests: u32, window: Duration) -> Limit {
        let window = window.clamp(Limit::WINDOW_MIN, Limit::WINDOW_MAX);
        Limit { requests: requests.clamp(1, Limit::REQUESTS_MAX), window_us: window.as_micros() as u64 }
    }

    /// The most requests in a window.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// How long the window is.
    pub fn window(&self) -> Duration {
        Duration::from_micros(self.window_us)
    }

    /// The length of a slot, in microseconds; rounded up, so that the slots never cover less than the window.
    pub fn slot_us(&self) -> u64 {
        self.window_us.div_ceil(SLOTS)
    }

    /// The length of a slot.
    pub fn slot(&self) -> Duration {
        Duration::from_micros(self.slot_us())
    }

    /// The most tokens that may lie unspent in leases, over all workers and gateways: 1 % of the limit, so 0 below 100,
    /// where every request asks the ledger.
    pub fn parked_max(&self) -> u32 {
        self.requests / 100
    }
}

/// What a worker asks of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// Tokens for requests that wait for the answer. Granted as far as the limit reaches.
    pub waiting: u32,
    /// Tokens wanted for requests that are still to come. Granted as far as little is parked and much remains.
    pub ahead: u32,
    /// What became of tokens taken before.
    pub report: Report,
}

/// What became of tokens taken in one slot. A token must be reported at most once: reporting it unused gives it to
/// somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// The slot they were taken in, from [`Grant::slot`].
    pub slot: u64,
    /// How many will never be used, and go back.
    pub unused: u32,
    /// How many taken ahead are parked no longer, because they are spent or among the unused.
    pub settled: u32,
}

impl Report {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.unused == 0 && self.settled == 0
    }
}

/// A ledger's answer to an [`Order`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Tokens taken for this order, at most `waiting + ahead`; first those that wait. Fewer than `waiting`: the limit is
    /// reached.
    pub granted: u32,
    /// Tokens that could still be taken by anyone.
    pub remaining: u32,
    /// Until the oldest tokens come back, at least. Zero when none are taken.
    pub reset_after: Duration,
    /// Until the slot ends, and with it the use of tokens taken ahead. Counted from the moment the order was *sent*, by
    /// which a worker errs on the safe side without knowing the ledger's clock.
    pub valid_for: Duration,
    /// The slot that the tokens are counted in.
    pub slot: u64,
}

impl Grant {
    /// Nothing for now, whatever the counts: ask again a slot later.
    pub fn refusal(limit: &Limit, now_us: u64) -> Grant {
        let slot = now_us / limit.slot_us();
        Grant { granted: 0, remaining: 0, reset_after: limit.slot(), valid_for: Duration::ZERO, slot }
    }
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    slot: u64,
    count: u32,
    parked: u32,
}

/// The counts of one key: one entry of 16 bytes for each slot in which tokens are taken, [`SLOTS`] + 1 at most.
#[derive(Debug, Clone, Default)]
pub struct Window {
    slot_us: u64,
    /// The newest slot seen: the ledger's clock as far as this key is concerned, which never runs backwards.
    head: u64,
    total: u32,
    parked: u32,
    /// By slot, ascending; none with a count of zero.
    cells: VecDeque<Cell>,
}

impl Window {
    /// Applies the report, then grants what may be granted. `now_us` is the ledger's clock, in microseconds since the Unix
    /// epoch.
    ///
    /// A clock that is set back stands still for the key until it has caught up; when it is set back by more than a window,
    /// which would lock the key, and when the window's length changes, the key starts anew.
    pub fn acquire(&mut self, limit: &Limit, order: &Order, now_us: u64) -> Grant {
        let slot = self.advance(limit, now_us);
        self.settle(&order.report);

        let free = limit.requests.saturating_sub(self.total);
        let waiting = order.waiting.min(free);
        let free = free - waiting;
        // Half of what may be parked, and of what remains: the next worker finds something too, and leases shrink as the
        // limit nears.
        let ahead = order.ahead.min(limit.parked_max().saturating_sub(self.parked).min(free) / 2);
        let ahead = if waiting < order.waiting { 0 } else { ahead };
        self.take(slot, waiting + ahead, ahead);

        let oldest = self.cells.front().map_or(slot, |cell| cell.slot);
        let reset_us = if self.total == 0 { 0 } else { ((oldest + SLOTS + 1) * self.slot_us).saturating_sub(now_us) };
        Grant {
            granted: waiting + ahead,
            remaining: free - ahead,
            reset_after: Duration::from_micros(reset_us),
            valid_for: Duration::from_micros(((slot + 1) * self.slot_us - now_us).min(self.slot_us)),
            slot,
        }
    }

    /// Whether nothing taken counts any longer at `now_us`: forgetting the key changes no answer.
    pub fn is_over(&self, now_us: u64) -> bool {
        let newest = self.cells.back().map_or(0, |cell| cell.slot);
        self.total == 0 || (newest + SLOTS + 1) * self.slot_us <= now_us
    }

    /// Brings the key to the slot of `now_us` and drops what has left the window.
    fn advance(&mut self, limit: &Limit, now_us: u64) -> u64 {
        let slot = now_us / limit.slot_us();
        if self.slot_us != limit.slot_us() || slot + SLOTS < self.head || self.total == 0 {
            self.slot_us = limit.slot_us();
            self.cells.clear();
            (self.head, self.total, self.parked) = (slot, 0, 0);
        }
        self.head = self.head.max(slot);
        while let Some(cell) = self.cells.front().filter(|cell| cell.slot + SLOTS < self.head) {
            self.total -= cell.count;
            self.parked -= cell.parked;
            self.cells.pop_front();
        }
        self.head
    }

    /// Reports of slots that have left the window, or were never seen, change nothing.
    fn settle(&mut self, report: &Report) {
        if report.is_empty() {
            return;
        }
        let Ok(index) = self.cells.binary_search_by_key(&report.slot, |cell| cell.slot) else { return };
        let cell = &mut self.cells[index];
        let unused = report.unused.min(cell.count);
        cell.count -= unused;
        self.total -= unused;
        let parked = cell.parked.saturating_sub(report.settled).min(cell.count);
        self.parked -= cell.parked - parked;
        cell.parked = parked;
        if cell.count == 0 {
            self.cells.remove(index);
        }
    }

    fn take(&mut self, slot: u64, count: u32, parked: u32) {
        if count == 0 {
            return;
        }
        self.total += count;
        self.parked += parked;
        match self.cells.back_mut() {
            Some(cell) if cell.slot == slot => {
                cell.count += count;
                cell.parked += parked;
            }
            _ => self.cells.push_back(Cell { slot, count, parked }),
        }
    }
}

#[cfg(test)]
mod tests;
