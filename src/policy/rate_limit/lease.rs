//! One key's lease: the tokens at hand, the order under way, and the denial.
//!
//! Tokens taken ahead are good until their slot ends, which the worker knows from [`Grant::valid_for`] and the moment it sent
//! its order. How many to take follows from use: nothing for a key seen once, as many as were used in the slot before for a
//! steady one, and for one that runs dry twice as many as before or as the rest of its slot will need, whichever is more.
//! The ledger cuts that down.

use std::time::{Duration, Instant};

use super::{Settled, Standing, Ticket, Token, Verdict};
use crate::traffic::window::{Grant, Limit, Order, Report};

/// The longest that a lease nobody uses keeps its tokens.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// The smallest lease that is refilled before it is empty: for a slower key that saves no wait worth an order.
const REFILL_MIN: u32 = 16;

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) era: u32,
    /// Set by the shell, see [`super::LeaseTable::address`].
    pub(super) address: Vec<u8>,
    /// Tokens dropped without a report, until the table has counted them.
    pub(super) dropped: u32,
    pub(super) limit: Limit,

    /// The slot of the tokens at hand, and its end by this worker's clock, at the latest.
    slot: u64,
    valid_until: Instant,
    /// Tokens at hand, and how many there were when they were last topped up.
    left: u32,
    size: u32,
    /// Tokens of `slot` spent since the last report.
    settled: u32,
    /// Requests admitted in `slot`.
    used: u32,
    last_use: Instant,
    /// Of slots before, or of tokens that were never leased; empty ones are free places.
    reports: [Report; 2],

    is_asking: bool,
    /// Tokens that the order under way asks for requests that wait, and how many of those still do.
    asked: u32,
    asked_live: u32,
    /// Requests that have come since.
    joined: u32,
    next_ticket: u32,
    /// The first ticket that the order under way does not ask for.
    joined_from: u32,

    denied_until: Option<Instant>,
    /// The limit, in requests, that the denial was under: it holds under lower ones too.
    denied_under: u32,
    /// The same of the order under way.
    asked_under: u32,
    remaining: u32,
    reset_at: Instant,
}

impl Lease {
    pub(super) fn new(era: u32, limit: &Limit, now: Instant) -> Lease {
        Lease {
            era,
            address: Vec::new(),
            dropped: 0,
            limit: *limit,
            slot: 0,
            valid_until: now,
            left: 0,
            size: 0,
            settled: 0,
            used: 0,
            last_use: now,
            reports: [Report::default(); 2],
            is_asking: false,
            asked: 0,
            asked_live: 0,
            joined: 0,
            next_ticket: 0,
            joined_from: 0,
            denied_until: None,
            denied_under: 0,
            asked_under: 0,
            remaining: 0,
            reset_at: now,
        }
    }

    /// Follows a change of the limit or the ledger. Slots of another length or ledger are nobody's any more.
    pub(super) fn adapt(&mut self, era: u32, limit: &Limit, now: Instant) {
        if self.era != era || self.limit.slot_us() != limit.slot_us() {
            self.era = era;
            self.dropped += self.left;
            (self.left, self.size, self.settled, self.used) = (0, 0, 0, 0);
            self.valid_until = now;
            self.reports = [Report::default(); 2];
            self.denied_until = None;
        }
        self.limit = *limit;
    }

    pub(super) fn check(&mut self, now: Instant) -> Verdict {
        if let Some(retry_after) = self.denied(&self.limit, now) {
            return Verdict::Deny { retry_after };
        }
        if self.left > 0 && now < self.valid_until {
            self.spend(1, now);
            let refill = self.refill(now);
            return Verdict::Allow {
                token: Token { slot: self.slot, leased: true },
                standing: self.standing(now),
                refill,
            };
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket = self.next_ticket.wrapping_add(1);
        if self.is_asking {
            self.joined += 1;
            return Verdict::Join { ticket };
        }
        Verdict::Ask { ticket, order: self.ask(1, now) }
    }

    /// How long the key is still denied under `limit`, without asking.
    pub(super) fn denied(&self, limit: &Limit, now: Instant) -> Option<Duration> {
        self.denial(now).filter(|_| limit.requests() <= self.denied_under)
    }

    fn denial(&self, now: Instant) -> Option<Duration> {
        self.denied_until?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    pub(super) fn granted(&mut self, grant: &Grant, sent_at: Instant, now: Instant) -> Option<Settled> {
        if !self.is_asking {
            return None;
        }
        self.is_asking = false;
        let immediate = grant.granted.min(self.asked);
        let is_refused = immediate < self.asked;
        let asked = immediate.min(self.asked_live);
        self.enter(grant, immediate, sent_at, now);
        self.report(Report { slot: grant.slot, unused: immediate - asked, settled: 0 });
        self.used += asked;
        if is_refused {
            (self.denied_until, self.denied_under) = (Some(sent_at + grant.reset_after), self.asked_under);
        } else if self.asked_under <= self.denied_under {
            self.denied_until = None;
        }

        let leased = if now < self.valid_until && !is_refused { self.joined.min(self.left) } else { 0 };
        self.spend(leased, now);
        let waiting = self.asked_live - asked + self.joined - leased;
        (self.asked, self.asked_live, self.joined) = (0, 0, 0);
        let order = (waiting > 0 && !is_refused).then(|| self.ask(waiting, now));
        Some(Settled {
            admitted: asked + leased,
            asked,
            slot: grant.slot,
            standing: self.standing(now),
            // A denial that is over by now is still a denial of those who waited for it.
            denied: is_refused.then(|| self.denial(now).unwrap_or_default()),
            order,
        })
    }

    pub(super) fn failed(&mut self) -> u32 {
        let waiting = self.asked_live + self.joined;
        self.is_asking = false;
        (self.asked, self.asked_live, self.joined) = (0, 0, 0);
        waiting
    }

    pub(super) fn cancel(&mut self, ticket: Ticket) {
        // Tickets wrap around: the sign of the distance tells which side one is on.
        let is_asked = (ticket.0.wrapping_sub(self.joined_from) as i32) < 0;
        let waiting = if is_asked { &mut self.asked_live } else { &mut self.joined };
        *waiting = waiting.saturating_sub(1);
    }

    pub(super) fn refund(&mut self, token: Token, now: Instant) {
        let is_current = token.leased && token.slot == self.slot && self.settled > 0;
        if is_current {
            self.settled -= 1;
            self.left += 1;
            if now >= self.valid_until {
                self.retire();
            }
        } else {
            // Whether a leased token has been reported spent already or will be: it is not parked twice.
            self.report(Report { slot: token.slot, unused: 1, settled: 0 });
        }
    }

    /// Hands out the reports of a key that has not been used for a while. A key in use sends them with its orders.
    pub(super) fn sweep(&mut self, now: Instant, mut send: impl FnMut(&Limit, &[u8], Report)) {
        if now < self.last_use + (self.limit.slot() / 4).min(IDLE_MAX) {
            return;
        }
        self.retire();
        for report in &mut self.reports {
            if !report.is_empty() {
                send(&self.limit, &self.address, std::mem::take(report));
            }
        }
    }

    /// Whether forgetting the key changes nothing.
    pub(super) fn is_idle(&self, era: u32, now: Instant) -> bool {
        let is_known =
            self.unreported() > 0 || self.denial(now).is_some() || now < self.valid_until + self.limit.slot();
        !self.is_asking && (self.era != era || !is_known)
    }

    pub(super) fn is_asking(&self) -> bool {
        self.is_asking
    }

    /// Tokens that the ledger still waits to hear of.
    pub(super) fn unreported(&self) -> u32 {
        let reported: u32 = self.reports.iter().map(|report| report.unused.max(report.settled)).sum();
        self.left + self.settled + reported
    }

    /// Goes over to the slot of `grant`, and takes the tokens beyond the `immediate` ones.
    fn enter(&mut self, grant: &Grant, immediate: u32, sent_at: Instant, now: Instant) {
        // A worker's clock may run slower than the ledger's, by less than a thousandth.
        let valid_until = sent_at + grant.valid_for - grant.valid_for / 1_024;
        if grant.slot != self.slot {
            self.retire();
            self.slot = grant.slot;
            self.valid_until = valid_until;
            self.used = 0;
        }
        let ahead = grant.granted - immediate;
        self.valid_until = self.valid_until.max(valid_until);
        self.left += ahead;
        self.size = self.left;
        self.last_use = now;
        self.remaining = grant.remaining;
        self.reset_at = sent_at + grant.reset_after;
    }

    fn spend(&mut self, count: u32, now: Instant) {
        if count > 0 {
            self.left -= count;
            self.settled += count;
            self.used += count;
            self.last_use = now;
        }
    }

    /// Makes a report of all that is at hand; nothing is, afterwards.
    fn retire(&mut self) {
        self.report(Report { slot: self.slot, unused: self.left, settled: self.left + self.settled });
        (self.left, self.size, self.settled) = (0, 0, 0);
    }

    fn report(&mut self, what: Report) {
        if what.is_empty() {
            return;
        }
        let place = self.reports.iter_mut().find(|report| report.is_empty() || report.slot == what.slot);
        match place {
            Some(report) => {
                report.slot = what.slot;
                report.unused += what.unused;
                report.settled += what.settled;
            }
            None => self.dropped += what.unused,
        }
    }

    fn ask(&mut self, waiting: u32, now: Instant) -> Order {
        let ahead = self.wanted(now);
        self.order(waiting, ahead, now)
    }

    fn order(&mut self, waiting: u32, ahead: u32, now: Instant) -> Order {
        if now >= self.valid_until {
            self.retire();
        }
        let report = match self.reports.iter_mut().find(|report| !report.is_empty()) {
            Some(report) => std::mem::take(report),
            None => Report { slot: self.slot, unused: 0, settled: std::mem::take(&mut self.settled) },
        };
        self.is_asking = true;
        self.asked_under = self.limit.requests();
        (self.asked, self.asked_live) = (waiting, waiting);
        self.joined_from = self.next_ticket;
        self.last_use = now;
        Order { waiting, ahead, report }
    }

    /// How many tokens to take ahead when none are left.
    fn wanted(&self, now: Instant) -> u32 {
        let wanted = if now < self.valid_until {
            self.expected(now).max(2 * self.size).max(1)
        } else if now < self.valid_until + self.limit.slot() {
            // One of them is the request that waits; the root more, since requests come at random.
            let ahead = self.used.saturating_sub(1);
            ahead + ahead.isqrt()
        } else {
            0
        };
        wanted.min(self.limit.parked_max())
    }

    /// An order for more when a quarter is left and the slot will need more than that.
    fn refill(&mut self, now: Instant) -> Option<Order> {
        if self.is_asking || self.left > self.size / 4 || self.size < REFILL_MIN {
            return None;
        }
        let expected = self.expected(now).min(self.limit.parked_max());
        // Rather a little too few than an order at every end of a slot.
        (expected > 2 * self.left).then(|| self.order(0, expected - self.left, now))
    }

    /// How many requests the rest of the slot will bring at the rate of its part so far.
    fn expected(&self, now: Instant) -> u32 {
        let slot = self.limit.slot_us();
        let ahead = self.valid_until.saturating_duration_since(now).as_micros() as u64;
        let behind = slot.saturating_sub(ahead).max(slot / 64).max(1);
        u32::try_from(u64::from(self.used) * ahead / behind).unwrap_or(u32::MAX)
    }

    fn standing(&self, now: Instant) -> Standing {
        Standing {
            remaining: self.remaining.saturating_add(self.left),
            reset_after: self.reset_at.saturating_duration_since(now),
        }
    }
}
