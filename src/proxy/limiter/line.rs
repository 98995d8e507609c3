//! The requests that wait for the ledger: in a queue for each key, first come first served, and none for longer than its time.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::policy::rate_limit::{Standing, Ticket, Token};
use crate::traffic::table::Folded;
use crate::traffic::window::LimitKey;

/// How a wait ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Admitted(Token, Standing),
    Denied(Duration),
    Unanswered,
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiters: Slab<Waiter>,
    ends: HashMap<LimitKey, Ends, BuildHasherDefault<Folded>>,
}

/// One that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    ticket: Ticket,
    deadline: Instant,
    next: Option<usize>,
    pub(super) outcome: Option<Outcome>,
    pub(super) taken: bool,
    pub(super) waker: Option<Waker>,
}

impl Waiter {
    fn settle(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    first: usize,
    last: usize,
}

impl Line {
    /// Lines up for `key`, behind all others; where, for [`Line::waiter`] and [`Line::leave`]. No deadline is before that of
    /// one who came earlier.
    pub(super) fn join(&mut self, key: LimitKey, ticket: Ticket, deadline: Instant) -> usize {
        let waiter = Waiter { ticket, deadline, next: None, outcome: None, taken: false, waker: None };
        let at = self.waiters.insert(waiter);
        match self.ends.get_mut(&key) {
            Some(ends) => {
                self.waiters[ends.last].next = Some(at);
                ends.last = at;
            }
            None => {
                self.ends.insert(key, Ends { first: at, last: at });
            }
        }
        at
    }

    /// The one at `at`.
    pub(super) fn waiter(&mut self, at: usize) -> &mut Waiter {
        &mut self.waiters[at]
    }

    /// Tells the first of those who wait for `key`; whether there was one.
    pub(super) fn settle_next(&mut self, key: LimitKey, outcome: Outcome) -> bool {
        let Some(ends) = self.ends.get_mut(&key) else { return false };
        let waiter = &mut self.waiters[ends.first];
        waiter.settle(outcome);
        match waiter.next.take() {
            Some(next) => ends.first = next,
            None => {
                self.ends.remove(&key);
            }
        }
        true
    }

    /// The earliest deadline of those who wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ends.values().map(|ends| self.waiters[ends.first].deadline).min()
    }

    /// Sends everybody away unanswered whose time is over at `now`; `left` is told of each.
    pub(super) fn expire(&mut self, now: Instant, mut left: impl FnMut(LimitKey, Ticket)) {
        let Line { waiters, ends } = self;
        ends.retain(|&key, ends| {
            loop {
                let waiter = &mut waiters[ends.first];
                if waiter.deadline > now {
                    return true;
                }
                waiter.settle(Outcome::Unanswered);
                left(key, waiter.ticket);
                match waiter.next.take() {
                    Some(next) => ends.first = next,
                    None => return false,
                }
            }
        });
    }

    /// Takes a waiter out, settled or not.
    pub(super) fn leave(&mut self, key: LimitKey, at: usize) -> Waiter {
        let left = self.waiters.remove(at);
        if left.outcome.is_some() || left.taken {
            return left;
        }
        // It still stands in line: whoever is before it gets the one behind it.
        let Some(ends) = self.ends.get_mut(&key) else { return left };
        if ends.first == at {
            match left.next {
                Some(next) => ends.first = next,
                None => {
                    self.ends.remove(&key);
                }
            }
            return left;
        }
        let mut before = ends.first;
        while let Some(next) = self.waiters.get(before).and_then(|waiter| waiter.next) {
            if next == at {
                self.waiters[before].next = left.next;
                if ends.last == at {
                    ends.last = before;
                }
                break;
            }
            before = next;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_whose_time_is_over_go_in_order_and_the_others_stay() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let tickets = crate::policy::rate_limit::tickets::<4>();
        let (key, other) = (LimitKey(1), LimitKey(2));
        let mut line = Line::default();
        let first = line.join(key, tickets[0], at(10));
        let second = line.join(key, tickets[1], at(20));
        let third = line.join(key, tickets[2], at(30));
        let fourth = line.join(other, tickets[3], at(15));
        assert_eq!(line.deadline(), Some(at(10)));
        let mut expired = Vec::new();
        line.expire(at(9), |key, ticket| expired.push((key, ticket)));
        assert!(expired.is_empty());
        line.expire(at(20), |key, ticket| expired.push((key, ticket)));
        expired.sort_by_key(|&(key, _)| key);
        assert_eq!(expired, [(key, tickets[0]), (key, tickets[1]), (other, tickets[3])]);
        for at in [first, second, fourth] {
            assert!(matches!(line.waiter(at).outcome, Some(Outcome::Unanswered)));
        }
        assert_eq!(line.deadline(), Some(at(30)));
        // One who has been sent away leaves without taking others along.
        line.leave(key, first);
        line.leave(key, second);
        line.leave(other, fourth);
        assert!(!line.settle_next(other, Outcome::Unanswered));
        assert!(line.settle_next(key, Outcome::Denied(Duration::ZERO)));
        assert!(matches!(line.waiter(third).outcome, Some(Outcome::Denied(_))));
        line.leave(key, third);
        assert_eq!((line.deadline(), line.waiters.len(), line.ends.len()), (None, 0, 0));
    }
}
