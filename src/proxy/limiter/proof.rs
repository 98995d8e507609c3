//! Whether Redis counts, as far as that has been proved: what failed once is not believed to work again because some time
//! has passed, nor because a connection could be made, but because a probe was answered.
//!
//! No request pays for a probe, and requests see Redis come and go no more often than the pauses between probes allow: they
//! grow for as long as it does not last. Pure.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::redis::client::backoff;

/// How long Redis must have counted for its next failure to be a first one.
const LASTING: Duration = Duration::from_secs(10);

/// What is known of one connection's Redis.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The generation of the connection that a probe was answered on, and since when that has held.
    holds: Cell<Option<(u64, Instant)>>,
    is_probing: Cell<bool>,
    probe_at: Cell<Option<Instant>>,
    failures: Cell<u32>,
}

impl Proof {
    /// Whether Redis counts, on the connection of this generation.
    pub(super) fn holds(&self, generation: u64) -> bool {
        self.holds.get().is_some_and(|(proven, _)| proven == generation)
    }

    /// An order failed as all others would: nothing is proved any more. `draw` is uniform.
    pub(super) fn lose(&self, now: Instant, draw: u64) {
        // Of many orders that fail together the first one counts.
        if let Some((_, since)) = self.holds.take() {
            let has_lasted = now.saturating_duration_since(since) >= LASTING;
            self.failures.set(if has_lasted { 0 } else { self.failures.get().saturating_add(1) });
            self.probe_at.set(Some(now + backoff::pause(self.failures.get(), draw)));
        }
    }

    /// Whether a probe should begin now, on a connection that stands. If so, one does.
    pub(super) fn begin(&self, now: Instant) -> bool {
        let is_due = self.probe_at.get().is_none_or(|at| at <= now);
        is_due && !self.is_probing.replace(true)
    }

    /// How the probe ended that was sent on the connection of this generation. `draw` is uniform.
    pub(super) fn end(&self, generation: u64, was_answered: bool, now: Instant, draw: u64) {
        self.is_probing.set(false);
        if was_answered {
            self.holds.set(Some((generation, now)));
            self.probe_at.set(None);
        } else {
            self.holds.set(None);
            self.failures.set(self.failures.get().saturating_add(1));
            self.probe_at.set(Some(now + backoff::pause(self.failures.get(), draw)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_proves_anything() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let proof = Proof::default();
        assert!(!proof.holds(1));
        assert!(proof.begin(at(0)));
        assert!(!proof.begin(at(0)), "one at a time");
        proof.end(1, true, at(1), 0);
        assert!(proof.holds(1));
        assert!(!proof.holds(3), "another connection has its own to give");

        proof.lose(at(2), 0);
        proof.lose(at(3), 0);
        assert!(!proof.holds(1), "and time alone does not bring it back");
        assert!(!proof.begin(at(11)), "failed too soon for a first time");
        assert!(proof.begin(at(12)));
        proof.end(1, false, at(13), 0);
        assert!(!proof.holds(1));
        assert!(!proof.begin(at(32)));
        assert!(proof.begin(at(33)));
        proof.end(1, true, at(33), 0);

        // After a while all is forgiven.
        proof.lose(at(20_000), 0);
        assert!(!proof.begin(at(20_004)));
        assert!(proof.begin(at(20_005)));
    }

    #[test]
    fn what_does_not_last_is_asked_ever_less_often() {
        let mut now = Instant::now();
        let start = now;
        let proof = Proof::default();
        let mut probes = 0;
        while now < start + Duration::from_secs(60) {
            if proof.begin(now) {
                probes += 1;
                proof.end(1, true, now, u64::MAX);
                proof.lose(now + Duration::from_millis(1), u64::MAX);
            }
            now += Duration::from_millis(10);
        }
        assert!((30..=80).contains(&probes), "{probes}");
    }
}
