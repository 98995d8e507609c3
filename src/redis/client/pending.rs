//! Calls that wait for their replies, in the order in which they went out.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use slab::Slab;

use super::CallError;
use crate::redis::resp::Reply;

/// What a call comes to.
pub(super) type Outcome = Result<Reply, CallError>;

/// A reply came that nobody had asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsolicited;

/// The calls of one client.
#[derive(Debug, Default)]
pub(super) struct Pending {
    calls: Slab<Stage>,
    /// Those without an outcome, oldest first.
    order: VecDeque<Waiting>,
    /// How many of the newest have not been given to the kernel yet.
    unsent: usize,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    key: usize,
    deadline: Instant,
}

/// Where a call stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Not answered; whom to wake when it is.
    Waiting(Option<Waker>),
    /// The outcome was not taken yet.
    Done(Outcome),
    /// Nobody waits any more; the reply is still to come.
    Abandoned,
}

impl Pending {
    /// How many are without an outcome.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// A new call, whose key this is until its outcome has been taken or it is abandoned.
    pub(super) fn push(&mut self, deadline: Instant) -> usize {
        let key = self.calls.insert(Stage::Waiting(None));
        self.order.push_back(Waiting { key, deadline });
        self.unsent += 1;
        key
    }

    /// Takes the outcome of `key` if there is one; otherwise `waker` is woken when there is, instead of the one returned.
    pub(super) fn poll(&mut self, key: usize, waker: &Waker) -> (Option<Outcome>, Option<Waker>) {
        match &mut self.calls[key] {
            Stage::Waiting(Some(known)) if known.will_wake(waker) => (None, None),
            Stage::Waiting(known) => (None, known.replace(waker.clone())),
            Stage::Done(_) | Stage::Abandoned => match self.calls.remove(key) {
                Stage::Done(outcome) => (Some(outcome), None),
                _ => (None, None),
            },
        }
    }

    /// Nobody asks for `key` any more. Returns what it held.
    pub(super) fn abandon(&mut self, key: usize) -> Stage {
        match self.calls[key] {
            Stage::Waiting(_) => std::mem::replace(&mut self.calls[key], Stage::Abandoned),
            Stage::Done(_) | Stage::Abandoned => self.calls.remove(key),
        }
    }

    /// All that are pending have been given to the kernel.
    pub(super) fn sent(&mut self) {
        self.unsent = 0;
    }

    /// The oldest call's outcome has come; whom to wake.
    pub(super) fn answer(&mut self, outcome: Outcome) -> Result<Option<Waker>, Unsolicited> {
        if self.order.len() <= self.unsent {
            return Err(Unsolicited);
        }
        let Some(oldest) = self.order.pop_front() else { return Err(Unsolicited) };
        Ok(self.settle(oldest.key, outcome))
    }

    /// The oldest call fails, sent or not; whom to wake. `None` when there is none left.
    pub(super) fn fail_one(&mut self, error: CallError) -> Option<Option<Waker>> {
        let oldest = self.order.pop_front()?;
        self.unsent = self.unsent.min(self.order.len());
        Some(self.settle(oldest.key, Err(error)))
    }

    /// The earliest deadline; looks through all.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.order.iter().map(|waiting| waiting.deadline).min()
    }

    fn settle(&mut self, key: usize, outcome: Outcome) -> Option<Waker> {
        let stage = &mut self.calls[key];
        match std::mem::replace(stage, Stage::Done(outcome)) {
            Stage::Waiting(waker) => waker,
            Stage::Done(_) | Stage::Abandoned => {
                self.calls.remove(key);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn deadline(ms: u64) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_millis(ms)
    }

    fn reply() -> Outcome {
        let mut decoder = crate::redis::resp::Decoder::default();
        decoder.push(b"+OK\r\n");
        Ok(decoder.next_reply().expect("well-formed").expect("whole"))
    }

    #[test]
    fn outcomes_go_to_the_oldest_first() {
        let mut pending = Pending::default();
        let (first, second) = (pending.push(deadline(5)), pending.push(deadline(3)));
        assert_eq!(pending.deadline(), Some(deadline(3)));
        pending.sent();
        assert!(pending.answer(reply()).is_ok());
        assert_eq!(pending.poll(second, Waker::noop()).0, None);
        assert_eq!(pending.poll(first, Waker::noop()).0, Some(reply()));
        assert!(pending.answer(Err(CallError::Timeout)).expect("asked for").is_some());
        assert_eq!(pending.poll(second, Waker::noop()).0, Some(Err(CallError::Timeout)));
        assert_eq!((pending.len(), pending.calls.len(), pending.deadline()), (0, 0, None));
    }

    #[test]
    fn a_reply_before_its_call_was_sent_is_unsolicited() {
        let mut pending = Pending::default();
        assert_eq!(pending.answer(reply()).expect_err("none"), Unsolicited);
        pending.push(deadline(1));
        pending.sent();
        pending.push(deadline(1));
        assert!(pending.answer(reply()).is_ok());
        assert_eq!(pending.answer(reply()).expect_err("not sent"), Unsolicited);
    }

    #[test]
    fn an_abandoned_call_keeps_its_place() {
        let mut pending = Pending::default();
        let keys = [pending.push(deadline(1)), pending.push(deadline(1)), pending.push(deadline(1))];
        pending.sent();
        pending.abandon(keys[0]);
        pending.abandon(keys[2]);
        assert_eq!(pending.len(), 3);
        assert!(pending.answer(Err(CallError::Down)).is_ok());
        assert!(pending.answer(reply()).is_ok());
        assert_eq!(pending.poll(keys[1], Waker::noop()).0, Some(reply()));
        assert_eq!(pending.fail_one(CallError::Down).map(|waker| waker.is_some()), Some(false));
        assert!(pending.fail_one(CallError::Down).is_none());
        assert_eq!(pending.calls.len(), 0);
        // Answered, and then not wanted.
        let key = pending.push(deadline(1));
        pending.fail_one(CallError::Down);
        assert!(matches!(pending.abandon(key), Stage::Done(_)));
        assert_eq!((pending.calls.len(), pending.unsent), (0, 0));
    }
}
