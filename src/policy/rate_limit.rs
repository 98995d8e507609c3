//! Rate limits, a worker's side: leases on a shared ledger, spent without asking anyone.
//!
//! [`LeaseTable::check`] decides from what the worker holds: it spends a leased token, denies a key that the ledger denied
//! until its reset, or says what to ask the ledger. The shell sends the [`Order`], parks the request, and feeds the answer to
//! [`LeaseTable::granted`] or, when there is none, to [`LeaseTable::failed`].
//!
//! What holds, for any number of workers and gateways on one ledger whose clock does not run backwards:
//!
//! - **Never over the limit.** Every admitted request has a token that the ledger counted at a moment between the request's
//!   arrival and its admission, or in the slot (a 128th of the window) that its admission falls in. No interval as long as
//!   the window holds more of the tokens counted than the limit. So, by the ledger's clock, an interval shorter than the
//!   window by the longest time that an answer took holds no more *admissions* than the limit; and when answers come within
//!   their slot, no interval as long as the window does.
//! - **Hardly refused early.** The ledger refuses a request only when it counts, in the current slot and the 128 before it,
//!   at least the limit less 1 % of it (rounded down) in tokens that are spent, under way to waiting requests, on their way
//!   back, or lost with an answer or a worker. A worker refuses on its own only until the oldest of those slots leaves the
//!   window.
//! - **A refusal takes nothing**, and a denied key asks nothing until its reset.
//! - **Nothing leaks.** A token not used is reported once, with the next order or by [`LeaseTable::sweep`]. What is lost with
//!   a crash or a reply counts until its slot leaves the window, and is never used.
//!
//! Several limits on one request: nothing is taken of any where [`LeaseTable::denied`] knows that one denies; where an answer
//! denies later, [`LeaseTable::refund`] gives the others' tokens back.
//!
//! The table allocates when a key is new to it, never for one that it knows. Its size is bounded; when it is full of keys
//! that all wait for an answer, it says [`Verdict::Full`].

pub mod headers;
pub mod identity;
mod lease;

use std::time::{Duration, Instant};

pub use headers::Standing;
use lease::Lease;

use crate::traffic::table::Table;
use crate::traffic::window::{Grant, Limit, LimitKey, Order, Report};

/// The most keys a worker holds state for, unless said otherwise: about 25 MB when full.
pub const KEYS_MAX: usize = 65_536;

/// The most limits on one request.
pub const LIMITS_MAX: usize = 10;

/// How many entries a new key looks at when the table is full.
const PROBES: usize = 8;

/// What a key's lease says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes, and has spent a token.
    Allow {
        /// For [`LeaseTable::refund`].
        token: Token,
        /// For the headers.
        standing: Standing,
        /// To be sent for requests to come; this one does not wait for it. Its answer goes to `granted` too.
        refill: Option<Order>,
    },
    /// It is refused, and nothing was taken: 429.
    Deny {
        /// The earliest time that a token can come back.
        retry_after: Duration,
    },
    /// It waits for the answer to this order.
    Ask {
        /// For [`LeaseTable::cancel`].
        ticket: Ticket,
        /// To be sent.
        order: Order,
    },
    /// It waits for the answer to an order under way.
    Join {
        /// For [`LeaseTable::cancel`].
        ticket: Ticket,
    },
    /// There is no room to keep track of the key: to be treated as a ledger that does not answer.
    Full,
}

/// A token taken for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    slot: u64,
    /// Taken ahead, and parked at the ledger until reported.
    leased: bool,
}

impl Token {
    /// The slot of the ledger's clock that it is counted in.
    pub fn slot(&self) -> u64 {
        self.slot
    }

    /// Whether it was taken ahead, rather than for the request that has it.
    pub fn is_leased(&self) -> bool {
        self.leased
    }
}

/// A waiting request's place in its key's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u32);

/// Tickets for tests of what holds them.
#[cfg(test)]
pub(crate) fn tickets<const N: usize>() -> [Ticket; N] {
    std::array::from_fn(|index| Ticket(index as u32))
}

/// What an answer of the ledger settles. The waiting requests of the key, oldest first: the first `admitted` pass; of the
/// others all are denied when `denied` says so, and otherwise all go on waiting, for the answer to `order`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// How many pass.
    pub admitted: u32,
    /// How many of those have a token asked for them, oldest first; the others' are leased.
    asked: u32,
    /// The slot of the tokens.
    slot: u64,
    /// For the headers of those admitted.
    pub standing: Standing,
    /// After how long the others may try again.
    pub denied: Option<Duration>,
    /// To be sent for those that go on waiting.
    pub order: Option<Order>,
}

impl Settled {
    /// The token of the admitted request at `index`, oldest first.
    pub fn token(&self, index: u32) -> Token {
        Token { slot: self.slot, leased: index >= self.asked }
    }
}

/// A worker's leases.
#[derive(Debug)]
pub struct LeaseTable {
    leases: Table<Lease>,
    /// Which ledger the leases are on: grows with each change of ledger.
    era: u32,
    /// Tokens that were dropped without a report, to make room.
    dropped: u64,
}

impl LeaseTable {
    /// A table for at most `keys_max` keys.
    pub fn new(keys_max: usize) -> LeaseTable {
        LeaseTable { leases: Table::new(keys_max), era: 0, dropped: 0 }
    }

    /// Decides about one request under one limit at `now`, the worker's clock.
    pub fn check(&mut self, key: LimitKey, limit: &Limit, now: Instant) -> Verdict {
        let era = self.era;
        match self.entry(key, limit, now) {
            Some(lease) => {
                lease.adapt(era, limit, now);
                lease.check(now)
            }
            None => Verdict::Full,
        }
    }

    /// How long `key` is known to be denied still under `limit`; nothing is taken. What was denied under a lower limit is no
    /// answer.
    pub fn denied(&mut self, key: LimitKey, limit: &Limit, now: Instant) -> Option<Duration> {
        let era = self.era;
        let lease =
            self.leases.get_mut(key).filter(|lease| lease.era == era && lease.limit.slot_us() == limit.slot_us());
        lease.and_then(|lease| lease.denied(limit, now))
    }

    /// Where the shell keeps what the ledger calls the key: to be filled in with the first order, and there, unchanged, for
    /// every later one and in [`LeaseTable::sweep`]. `None` for a key unknown.
    pub fn address(&mut self, key: LimitKey) -> Option<&mut Vec<u8>> {
        self.leases.get_mut(key).map(|lease| &mut lease.address)
    }

    /// Takes the ledger's answer to the key's order, which was sent at `sent_at`. `None` when the key asked nothing.
    pub fn granted(&mut self, key: LimitKey, grant: &Grant, sent_at: Instant, now: Instant) -> Option<Settled> {
        let lease = self.leases.get_mut(key)?;
        let settled = lease.granted(grant, sent_at, now);
        self.dropped += u64::from(std::mem::take(&mut lease.dropped));
        settled
    }

    /// Notes that the key's order has no answer. All that wait for it, as many as returned, are the shell's to decide about.
    /// Whether the tokens were taken is unknown: they are never used. The answer, should it still come, must not be fed to
    /// `granted`.
    pub fn failed(&mut self, key: LimitKey) -> u32 {
        self.leases.get_mut(key).map_or(0, Lease::failed)
    }

    /// Takes a waiting request out of its key's queue: its client is gone.
    pub fn cancel(&mut self, key: LimitKey, ticket: Ticket) {
        if let Some(lease) = self.leases.get_mut(key) {
            lease.cancel(ticket);
        }
    }

    /// Gives a token back that its request did not use after all, because another limit denied it.
    pub fn refund(&mut self, key: LimitKey, token: Token, now: Instant) {
        if let Some(lease) = self.leases.get_mut(key) {
            lease.refund(token, now);
            self.dropped += u64::from(std::mem::take(&mut lease.dropped));
        }
    }

    /// Looks at the next `count` keys, round and round: `report` is handed what goes back to the ledger (key, its address,
    /// limit, report; to be sent as an order for nothing), and keys without any state are forgotten. A worker sweeps all
    /// keys about once a second: an idle lease lies parked that much longer.
    pub fn sweep(&mut self, count: usize, now: Instant, mut report: impl FnMut(LimitKey, &[u8], &Limit, Report)) {
        let era = self.era;
        self.leases.walk(count, |key, lease| {
            if lease.era == era {
                lease.sweep(now, |limit, address, what| report(key, address, limit, what));
            }
            lease.is_idle(era, now)
        });
    }

    /// Forgets all leases and denials, with those that wait left waiting: the ledger is another one from now on, and what the
    /// old one granted must be reported neither to it nor to the new one. Orders under way are the shell's to fail.
    pub fn forget(&mut self) {
        self.era = self.era.wrapping_add(1);
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Tokens that were dropped without a report to make room, since the start: they count until they leave the window.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn entry(&mut self, key: LimitKey, limit: &Limit, now: Instant) -> Option<&mut Lease> {
        let at = match self.leases.find(key) {
            Some(at) => at,
            None => {
                self.make_room(now);
                self.leases.insert(key, Lease::new(self.era, limit, now))?
            }
        };
        Some(self.leases.at_mut(at))
    }

    /// Evicts keys without state, and when there are none nearby, one that nobody waits for.
    fn make_room(&mut self, now: Instant) {
        let era = self.era;
        if self.leases.is_full() && self.leases.walk(PROBES, |_, lease| lease.is_idle(era, now)) == 0 {
            let mut evicted = false;
            let dropped = &mut self.dropped;
            self.leases.walk(PROBES, |_, lease| {
                if evicted || lease.is_asking() {
                    return false;
                }
                evicted = true;
                *dropped += u64::from(lease.unreported());
                true
            });
        }
    }
}

#[cfg(test)]
mod tests;
