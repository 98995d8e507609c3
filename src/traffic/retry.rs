//! Stand-in until the module arrives.
use std::time::{Duration, Instant};
/// The most tries of one request, the first among them.
pub const ATTEMPTS_MAX: u8 = 10;
/// x
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct RetrySettings {
    pub enabled: bool,
    pub attempts: u8,
    pub budget: f64,
    pub budget_minimum: u32,
    pub backoff: Duration,
    pub backoff_max: Duration,
}
/// x
#[derive(Debug, Default)]
pub struct RetryBudget {
    tokens: f64,
}
#[allow(missing_docs)]
impl RetryBudget {
    pub fn note_request(&mut self, _now: Instant) {
        self.tokens += 1.0;
    }
    pub fn try_take(&mut self, _settings: &RetrySettings, _now: Instant) -> bool {
        true
    }
}
/// x
pub fn backoff(settings: &RetrySettings, number: u8, draw: u64) -> Duration {
    let ceiling = settings.backoff.saturating_mul(1 << number.min(16)).min(settings.backoff_max);
    ceiling.mul_f64((draw >> 11) as f64 / (1u64 << 53) as f64)
}
