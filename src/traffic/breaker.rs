//! A circuit breaker for one endpoint, on one worker.
//!
//! **Closed**, it lets requests through and watches what becomes of them. Too many failures in a row, or too large a share
//! of them within a sliding window, **open** it: no request passes for a while. Then it is **half-open**: a few requests pass
//! as trials; it closes when all of them succeed, and opens again, for twice as long, when one fails.
//!
//! Every leave to pass is a [`Permit`], which is settled once. A permit knows in which round it was given: what becomes of a
//! request that was let through before the breaker opened, or in an earlier half-open round, says nothing about now and
//! counts for nothing.
//!
//! Breakers are a worker's own: they see its requests only, need no lock, and open within `failure_threshold` failures of
//! each worker. Memory is a fixed few hundred bytes; nothing is allocated.

use std::time::{Duration, Instant};

/// When a breaker opens and closes. May be others at each call: a reload changes them under way.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    /// Off: everything passes, and the breaker is closed from the next verdict on.
    pub enabled: bool,
    /// So many failures in a row open it, at least 1.
    pub failure_threshold: u32,
    /// So large a share of failures within `window` opens it, above 0.0 to 1.0; `None`: none does.
    pub failure_ratio: Option<f64>,
    /// The fewest requests within `window` that a share is taken of, at least 1.
    pub minimum_requests: u32,
    /// How far back the share looks, in eighths of which requests are forgotten.
    pub window: Duration,
    /// How long it stays open at first, give or take a tenth.
    pub open_for: Duration,
    /// How long at most, whatever the number of times that it opened again.
    pub open_for_max: Duration,
    /// How many requests pass while it is half-open, and must all succeed, at least 1.
    pub half_open_requests: u32,
}

/// Whether traffic passes; in the order from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakerState {
    /// Traffic passes.
    Closed = 0,
    /// Trials pass.
    HalfOpen = 1,
    /// Nothing passes.
    Open = 2,
}

impl BreakerState {
    /// What logs and answers call it.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }

    /// The state with this number: 0 closed, 1 half-open, 2 and above open.
    pub fn from_number(number: u64) -> BreakerState {
        match number {
            0 => BreakerState::Closed,
            1 => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }
}

/// What became of a request that was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint answered.
    Success,
    /// The endpoint failed: no connection, no answer in time, a reset, nonsense, or a status that counts as failure.
    Failure,
    /// Nothing was learned of the endpoint: the client left, or the request was never sent.
    Neutral,
}

/// Leave for one request, to be [settled](Breaker::settle) whatever becomes of it.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    round: u32,
    is_trial: bool,
}

/// A change of state, for those who tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: BreakerState,
    /// What it is.
    pub to: BreakerState,
}

/// The breaker. New ones are closed.
#[derive(Debug, Default)]
pub struct Breaker {
    phase: Phase,
    /// Counts changes of phase: permits of an earlier round count for nothing.
    round: u32,
    failures_in_row: u32,
    /// Times that it opened since it was last calm.
    trips: u32,
    /// How long it was open the last time.
    open_for: Duration,
    closed_at: Option<Instant>,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
enum Phase {
    #[default]
    Closed,
    /// Half-open from `until` on.
    Open { until: Instant },
    /// Trials under way, and those that have succeeded.
    Trial { pending: u32, passed: u32 },
}

impl Breaker {
    /// What it is at `now`.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open,
            Phase::Open { .. } | Phase::Trial { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether a request may pass; [`Breaker::admit`] then lets it.
    pub fn allows(&self, settings: &BreakerSettings, now: Instant) -> bool {
        match self.phase {
            Phase::Closed => true,
            _ if !settings.enabled => true,
            Phase::Open { until } => now >= until,
            Phase::Trial { pending, passed } => pending.saturating_add(passed) < settings.half_open_requests,
        }
    }

    /// When it is worth asking again, while it refuses.
    pub fn retry_at(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Open { until } => Some(until.max(now)),
            Phase::Trial { .. } => Some(now),
        }
    }

    /// Lets a request pass; `None` when none may.
    pub fn admit(&mut self, settings: &BreakerSettings, now: Instant) -> Option<Permit> {
        if !self.allows(settings, now) {
            return None;
        }
        if !settings.enabled {
            return Some(Permit { round: self.round, is_trial: false });
        }
        if let Phase::Open { .. } = self.phase {
            self.phase = Phase::Trial { pending: 0, passed: 0 };
        }
        let is_trial = match &mut self.phase {
            Phase::Trial { pending, .. } => {
                *pending += 1;
                true
            }
            Phase::Closed | Phase::Open { .. } => false,
        };
        Some(Permit { round: self.round, is_trial })
    }

    /// Takes a permit back, and what became of its request. `draw` is uniformly random.
    #[expect(clippy::needless_pass_by_value, reason = "a permit is settled once")]
    pub fn settle(
        &mut self,
        permit: Permit,
        verdict: Verdict,
        settings: &BreakerSettings,
        now: Instant,
        draw: u64,
    ) -> Option<Transition> {
        let from = self.state(now);
        if !settings.enabled {
            self.close();
            self.trips = 0;
        } else if permit.round == self.round {
            match (permit.is_trial, verdict) {
                (true, verdict) => self.settle_trial(verdict, settings, now, draw),
                (false, Verdict::Neutral) => {}
                (false, Verdict::Success) => {
                    self.failures_in_row = 0;
                    self.counts.add(settings.window, now, 1, 0);
                }
                (false, Verdict::Failure) => {
                    self.failures_in_row = self.failures_in_row.saturating_add(1);
                    self.counts.add(settings.window, now, 0, 1);
                    if self.failures_in_row >= settings.failure_threshold || self.counts.are_too_bad(settings) {
                        self.open(settings, now, draw);
                    }
                }
            }
        }
        let to = self.state(now);
        (from != to).then_some(Transition { from, to })
    }

    fn settle_trial(&mut self, verdict: Verdict, settings: &BreakerSettings, now: Instant, draw: u64) {
        let Phase::Trial { pending, passed } = &mut self.phase else { return };
        *pending = pending.saturating_sub(1);
        match verdict {
            Verdict::Neutral => {}
            Verdict::Success => {
                *passed += 1;
                if *passed >= settings.half_open_requests {
                    self.close();
                    self.closed_at = Some(now);
                }
            }
            Verdict::Failure => self.open(settings, now, draw),
        }
    }

    fn open(&mut self, settings: &BreakerSettings, now: Instant, draw: u64) {
        // One that was closed for as long as it had been open before has become calm.
        if self.closed_at.is_some_and(|at| now.saturating_duration_since(at) >= self.open_for) {
            self.trips = 0;
        }
        let doubled = settings.open_for.saturating_mul(1 << self.trips.min(20));
        self.open_for = doubled.min(settings.open_for_max);
        self.trips = self.trips.saturating_add(1);
        self.phase = Phase::Open { until: now + jittered(self.open_for, draw) };
        self.next_round();
    }

    fn close(&mut self) {
        if !matches!(self.phase, Phase::Closed) {
            self.phase = Phase::Closed;
            self.next_round();
        }
    }

    fn next_round(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.failures_in_row = 0;
        self.closed_at = None;
        self.counts = Counts::default();
    }
}

/// `time`, up to a tenth shorter or longer: the breakers of many workers do not all try at once.
fn jittered(time: Duration, draw: u64) -> Duration {
    // The upper 53 bits are a uniform fraction (IEEE 754).
    let fraction = (draw >> 11) as f64 / (1_u64 << 53) as f64;
    time.mul_f64(0.9 + 0.2 * fraction)
}

const SLOTS: usize = 8;

/// Successes and failures of the last window, in slots that are forgotten one by one.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    slots: [(u32, u32); SLOTS],
    began: Option<Instant>,
    /// The slot that `began` plus so many slots' lengths lies in.
    at: u64,
}

impl Counts {
    fn add(&mut self, window: Duration, now: Instant, good: u32, bad: u32) {
        let began = *self.began.get_or_insert(now);
        let length = (window / SLOTS as u32).max(Duration::from_millis(1));
        let at = (now.saturating_duration_since(began).as_nanos() / length.as_nanos()) as u64;
        // A window that has just become longer puts `now` into an earlier slot; that one will do.
        for passed in self.at + 1..=at.min(self.at + SLOTS as u64) {
            self.slots[passed as usize % SLOTS] = (0, 0);
        }
        if at > self.at + SLOTS as u64 {
            self.slots = Default::default();
        }
        self.at = self.at.max(at);
        let slot = &mut self.slots[self.at as usize % SLOTS];
        *slot = (slot.0.saturating_add(good), slot.1.saturating_add(bad));
    }

    fn are_too_bad(&self, settings: &BreakerSettings) -> bool {
        let Some(ratio) = settings.failure_ratio else { return false };
        let (good, bad) =
            self.slots.iter().fold((0_u64, 0_u64), |sum, slot| (sum.0 + u64::from(slot.0), sum.1 + u64::from(slot.1)));
        let all = good + bad;
        all >= u64::from(settings.minimum_requests) && bad as f64 >= all as f64 * ratio
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// No jitter.
    const MIDDLE: u64 = 1 << 63;

    fn settings() -> BreakerSettings {
        BreakerSettings {
            enabled: true,
            failure_threshold: 3,
            failure_ratio: Some(0.5),
            minimum_requests: 10,
            window: 8 * SECOND,
            open_for: 10 * SECOND,
            open_for_max: 60 * SECOND,
            half_open_requests: 2,
        }
    }

    /// A breaker with a clock of its own.
    struct Bench {
        breaker: Breaker,
        settings: BreakerSettings,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { breaker: Breaker::default(), settings: settings(), now: Instant::now() }
        }

        fn admit(&mut self) -> Option<Permit> {
            self.breaker.admit(&self.settings, self.now)
        }

        fn settle(&mut self, permit: Permit, verdict: Verdict) -> Option<(BreakerState, BreakerState)> {
            let change = self.breaker.settle(permit, verdict, &self.settings, self.now, MIDDLE);
            change.map(|change| (change.from, change.to))
        }

        /// One request after another; what the last one changed.
        fn requests(&mut self, verdicts: &[Verdict]) -> Option<(BreakerState, BreakerState)> {
            let mut last = None;
            for &verdict in verdicts {
                let permit = self.admit().expect("it may pass");
                last = self.settle(permit, verdict);
            }
            last
        }

        fn state(&self) -> BreakerState {
            self.breaker.state(self.now)
        }
    }

    use BreakerState::{Closed, HalfOpen, Open};
    use Verdict::{Failure, Neutral, Success};

    #[test]
    fn failures_in_a_row_open_it() {
        let mut bench = Bench::new();
        assert_eq!(bench.requests(&[Failure, Failure, Success, Failure, Neutral, Failure]), None);
        assert_eq!(bench.requests(&[Failure]), Some((Closed, Open)));
        assert_eq!(bench.admit(), None);
        assert_eq!(bench.breaker.retry_at(bench.now), Some(bench.now + 10 * SECOND));
    }

    #[test]
    fn a_share_of_failures_opens_it() {
        let mut bench = Bench::new();
        bench.settings.failure_threshold = 100;
        // Too few to tell.
        assert_eq!(
            bench.requests(&[Failure, Failure, Failure, Failure, Success, Success, Success, Success, Success]),
            None
        );
        assert_eq!(bench.requests(&[Failure]), Some((Closed, Open)), "five of ten");
        // What lies behind the window is forgotten.
        let mut bench = Bench::new();
        bench.settings.failure_threshold = 100;
        assert_eq!(bench.requests(&[Failure; 9]), None);
        bench.now += 9 * SECOND;
        assert_eq!(
            bench.requests(&[Success, Success, Success, Success, Success, Success, Failure, Failure, Failure]),
            None
        );
        assert_eq!(bench.requests(&[Failure]), None, "four of ten");
        let mut bench = Bench::new();
        (bench.settings.failure_threshold, bench.settings.failure_ratio) = (100, None);
        assert_eq!(bench.requests(&[Failure; 99]), None);
    }

    #[test]
    fn trials_close_it_or_open_it_for_longer() {
        let mut bench = Bench::new();
        bench.requests(&[Failure; 3]);
        for seconds in [10, 20, 40, 60, 60] {
            bench.now += SECOND * seconds - Duration::from_millis(1);
            assert_eq!((bench.state(), bench.admit()), (Open, None), "{seconds}");
            bench.now += Duration::from_millis(1);
            assert_eq!(bench.state(), HalfOpen, "{seconds}");
            assert_eq!(bench.requests(&[Failure]), Some((HalfOpen, Open)));
        }
        bench.now += 60 * SECOND;
        assert_eq!(bench.requests(&[Success]), None);
        assert_eq!(bench.requests(&[Success]), Some((HalfOpen, Closed)));
        // Soon again: as long as before. After a calm time: as at first.
        assert_eq!(bench.requests(&[Failure; 3]), Some((Closed, Open)));
        assert_eq!(bench.breaker.retry_at(bench.now), Some(bench.now + 60 * SECOND));
        bench.now += 60 * SECOND;
        assert_eq!(bench.requests(&[Success, Success]), Some((HalfOpen, Closed)));
        bench.now += 60 * SECOND;
        assert_eq!(bench.requests(&[Failure; 3]), Some((Closed, Open)));
        assert_eq!(bench.breaker.retry_at(bench.now), Some(bench.now + 10 * SECOND));
    }

    #[test]
    fn half_open_lets_its_count_through() {
        let mut bench = Bench::new();
        bench.requests(&[Failure; 3]);
        bench.now += 10 * SECOND;
        let (one, other) = (bench.admit().expect("a trial"), bench.admit().expect("a trial"));
        assert_eq!(bench.admit(), None);
        assert_eq!(bench.breaker.retry_at(bench.now), Some(bench.now));
        // One that told nothing makes room, one that succeeded does not.
        assert_eq!(bench.settle(one, Neutral), None);
        let again = bench.admit().expect("a trial");
        assert_eq!((bench.settle(other, Success), bench.admit()), (None, None));
        assert_eq!(bench.settle(again, Success), Some((HalfOpen, Closed)));
    }

    #[test]
    fn late_news_count_for_nothing() {
        let mut bench = Bench::new();
        let old: Vec<Permit> = (0..4).map(|_| bench.admit().expect("it is closed")).collect();
        let [a, b, c, d]: [Permit; 4] = old.try_into().expect("four");
        bench.requests(&[Failure; 3]);
        assert_eq!(bench.settle(a, Failure), None);
        bench.now += 10 * SECOND;
        let trial = bench.admit().expect("a trial");
        assert_eq!((bench.settle(b, Success), bench.settle(c, Success), bench.settle(d, Failure)), (None, None, None));
        assert_eq!(bench.state(), HalfOpen);
        let other = bench.admit().expect("a trial");
        assert_eq!(bench.settle(trial, Failure), Some((HalfOpen, Open)));
        bench.now += 20 * SECOND;
        // The other trial of the round before.
        let (next, last) = (bench.admit().expect("a trial"), bench.admit().expect("a trial"));
        assert_eq!(bench.settle(other, Failure), None);
        assert_eq!((bench.settle(next, Success), bench.settle(last, Success)), (None, Some((HalfOpen, Closed))));
    }

    #[test]
    fn switched_off_it_is_closed_and_forgets() {
        let mut bench = Bench::new();
        bench.requests(&[Failure; 3]);
        bench.settings.enabled = false;
        assert_eq!(bench.requests(&[Failure]), Some((Open, Closed)));
        assert_eq!(bench.requests(&[Failure; 20]), None);
        bench.settings.enabled = true;
        assert_eq!(bench.requests(&[Failure; 2]), None);
    }

    #[test]
    fn the_pause_differs_by_a_tenth_at_most() {
        for (draw, expected) in [(0, 9.0), (MIDDLE, 10.0), (u64::MAX, 11.0)] {
            let seconds = jittered(10 * SECOND, draw).as_secs_f64();
            assert!((seconds - expected).abs() < 1e-6, "{draw}: {seconds}");
        }
    }

    proptest! {
        /// Whatever happens in whatever order: no more trials at once than there may be, nothing passes an open breaker, and
        /// once everything is settled a breaker is never stuck.
        #[test]
        fn nothing_leaks(steps in proptest::collection::vec((0_u8..8, any::<u64>()), 1..300)) {
            let mut bench = Bench::new();
            let mut permits: Vec<Permit> = Vec::new();
            for (step, draw) in steps {
                match step {
                    0..=2 => {
                        let (state, allowed) = (bench.state(), bench.breaker.allows(&bench.settings, bench.now));
                        let permit = bench.admit();
                        prop_assert_eq!(permit.is_some(), allowed);
                        prop_assert!(state != Open || permit.is_none());
                        prop_assert!(state != Closed || permit.is_some());
                        permits.extend(permit);
                    }
                    3..=6 if !permits.is_empty() => {
                        let permit = permits.swap_remove(draw as usize % permits.len());
                        let verdict = [Success, Failure, Failure, Neutral][step as usize - 3];
                        bench.breaker.settle(permit, verdict, &bench.settings, bench.now, draw);
                    }
                    _ => bench.now += Duration::from_millis(draw % 15_000),
                }
                let round = bench.breaker.round;
                let trials = permits.iter().filter(|permit| permit.is_trial && permit.round == round).count();
                prop_assert!(trials <= 2, "{} trials at once", trials);
            }
            for permit in permits {
                let _ = bench.breaker.settle(permit, Neutral, &bench.settings, bench.now, 0);
            }
            bench.now += 70 * SECOND;
            // Two more tries at most: one round may have had one success already.
            for _ in 0..2 {
                if let Some(permit) = bench.admit() {
                    bench.settle(permit, Success);
                }
            }
            prop_assert_eq!(bench.state(), Closed);
        }
    }
}
