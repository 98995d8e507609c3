//! Stand-in until the module arrives.
use std::time::{Duration, Instant};

/// Settings.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    /// x
    pub enabled: bool,
    /// x
    pub failure_threshold: u32,
    /// x
    pub failure_ratio: Option<f64>,
    /// x
    pub minimum_requests: u32,
    /// x
    pub window: Duration,
    /// x
    pub open_for: Duration,
    /// x
    pub open_for_max: Duration,
    /// x
    pub half_open_requests: u32,
}
/// x
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakerState {
    /// x
    Closed,
    /// x
    HalfOpen,
    /// x
    Open,
}
impl BreakerState {
    /// What the log calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }

    /// The state with this number: 0 closed, 1 half-open, 2 open.
    pub fn from_number(number: u64) -> BreakerState {
        match number {
            0 => BreakerState::Closed,
            1 => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }
}
/// x
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// x
    Success,
    /// x
    Failure,
    /// x
    Neutral,
}
/// x
#[derive(Debug)]
#[must_use]
pub struct Permit(u32);
/// x
#[derive(Debug, Clone, Copy)]
pub struct Transition {
    /// x
    pub from: BreakerState,
    /// x
    pub to: BreakerState,
}
/// x
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    trials: u32,
    epoch: u32,
}
#[allow(missing_docs)]
impl Breaker {
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.open_until {
            None => BreakerState::Closed,
            Some(until) if now < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }
    pub fn allows(&self, settings: &BreakerSettings, now: Instant) -> bool {
        !settings.enabled
            || match self.state(now) {
                BreakerState::Closed => true,
                BreakerState::Open => false,
                BreakerState::HalfOpen => self.trials < settings.half_open_requests,
            }
    }
    pub fn retry_at(&self, now: Instant) -> Option<Instant> {
        self.open_until.map(|until| until.max(now))
    }
    pub fn admit(&mut self, settings: &BreakerSettings, now: Instant) -> Option<Permit> {
        if !self.allows(settings, now) {
            return None;
        }
        if self.state(now) == BreakerState::HalfOpen {
            self.trials += 1;
        }
        Some(Permit(self.epoch))
    }
    pub fn settle(
        &mut self,
        permit: Permit,
        verdict: Verdict,
        settings: &BreakerSettings,
        now: Instant,
        _draw: u64,
    ) -> Option<Transition> {
        let from = self.state(now);
        if permit.0 != self.epoch {
            return None;
        }
        if from == BreakerState::HalfOpen {
            self.trials = self.trials.saturating_sub(1);
        }
        match verdict {
            Verdict::Neutral => return None,
            Verdict::Success => {
                self.failures = 0;
                self.open_until = None;
            }
            Verdict::Failure => {
                self.failures += 1;
                if self.failures >= settings.failure_threshold || from == BreakerState::HalfOpen {
                    self.open_until = Some(now + settings.open_for);
                    self.epoch += 1;
                    self.trials = 0;
                }
            }
        }
        let to = self.state(now);
        (from != to).then_some(Transition { from, to })
    }
}
