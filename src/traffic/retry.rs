//! How often a request is sent again, and how soon.
//!
//! A retry helps the request whose endpoint has failed, and harms a service that fails because it has too much to do. So
//! there is a budget: retries are a share of the requests of the last seconds, beside a few a second for services that are
//! asked rarely (Finagle's `RetryBudget` is the model). A service that is down altogether gets that much more, no more.

use std::time::{Duration, Instant};

/// The most tries of one request, the first among them.
pub const ATTEMPTS_MAX: u8 = 10;

/// How many seconds a budget looks back.
const SECONDS: usize = 10;

/// `[retry]`, as far as it is about how often and how soon.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySettings {
    /// Off: one try each.
    pub enabled: bool,
    /// The tries of one request in all, 1 to [`ATTEMPTS_MAX`].
    pub attempts: u8,
    /// The share of the requests of the last ten seconds that may be sent again, 0.0 to 1.0.
    pub budget: f64,
    /// Retries a second beside that share.
    pub budget_minimum: u32,
    /// The pause before the first retry is a random part of this; it doubles with each further one.
    pub backoff: Duration,
    /// What it grows to at most.
    pub backoff_max: Duration,
}

/// What a service may spend on retries, on one worker.
#[derive(Debug, Default)]
pub struct RetryBudget {
    /// Requests and retries, by second.
    seconds: [(u32, u32); SECONDS],
    began: Option<Instant>,
    /// The second that the budget is in, counted from `began`.
    at: u64,
}

impl RetryBudget {
    /// A request has come; retries are no requests.
    pub fn note_request(&mut self, now: Instant) {
        let second = self.advance(now);
        second.0 = second.0.saturating_add(1);
    }

    /// Takes one retry out of the budget, if it holds one.
    pub fn try_take(&mut self, settings: &RetrySettings, now: Instant) -> bool {
        self.advance(now);
        let (requests, retries) = self
            .seconds
            .iter()
            .fold((0_u64, 0_u64), |sum, second| (sum.0 + u64::from(second.0), sum.1 + u64::from(second.1)));
        let allowed = requests as f64 * settings.budget + f64::from(settings.budget_minimum) * SECONDS as f64;
        let has_one = (retries + 1) as f64 <= allowed;
        if has_one {
            let second = self.advance(now);
            second.1 = second.1.saturating_add(1);
        }
        has_one
    }

    /// The second of `now`; those that have passed since are empty.
    fn advance(&mut self, now: Instant) -> &mut (u32, u32) {
        let began = *self.began.get_or_insert(now);
        let at = now.saturating_duration_since(began).as_secs();
        if at > self.at {
            let passed = (at - self.at).min(SECONDS as u64);
            for second in at + 1 - passed..=at {
                self.seconds[second as usize % SECONDS] = (0, 0);
            }
            self.at = at;
        }
        &mut self.seconds[self.at as usize % SECONDS]
    }
}

/// How long to wait before retry number `number`, from 0: a random part of a time that doubles ("full jitter"). `draw` is
/// uniformly random.
pub fn backoff(settings: &RetrySettings, number: u8, draw: u64) -> Duration {
    let most = settings.backoff.saturating_mul(1 << number.min(20)).min(settings.backoff_max);
    // The upper 53 bits are a uniform fraction (IEEE 754).
    most.mul_f64((draw >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(budget: f64, budget_minimum: u32) -> RetrySettings {
        let (backoff, backoff_max) = (Duration::from_millis(25), Duration::from_millis(250));
        RetrySettings { enabled: true, attempts: 3, budget, budget_minimum, backoff, backoff_max }
    }

    #[test]
    fn a_share_and_a_few() {
        let check = |requests: usize, budget: f64, minimum: u32, expected: usize| {
            let mut own = RetryBudget::default();
            let now = Instant::now();
            (0..requests).for_each(|_| own.note_request(now));
            let taken = (0..10_000).filter(|_| own.try_take(&settings(budget, minimum), now)).count();
            assert_eq!(taken, expected, "{requests} {budget} {minimum}");
        };
        check(0, 0.2, 0, 0);
        check(100, 0.2, 0, 20);
        check(4, 0.2, 0, 0);
        check(5, 0.2, 0, 1);
        check(0, 0.2, 3, 30);
        check(100, 0.2, 3, 50);
        check(100, 0.0, 0, 0);
        check(100, 1.0, 0, 100);
    }

    #[test]
    fn what_lies_ten_seconds_back_is_forgotten() {
        let mut own = RetryBudget::default();
        let begun = Instant::now();
        (0..100).for_each(|_| own.note_request(begun));
        let settings = settings(0.1, 0);
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!((0..5).filter(|_| own.try_take(&settings, after(3))).count(), 5);
        assert_eq!((0..9).filter(|_| own.try_take(&settings, after(9))).count(), 5, "ten in all");
        assert!(!own.try_take(&settings, after(10)), "nor the requests");
        own.note_request(after(500));
        assert!(!own.try_take(&settings, after(500)));
        // A clock that stands still, or an earlier moment, changes nothing.
        own.note_request(begun);
        assert_eq!(own.at, 500);
    }

    #[test]
    fn pauses_double_and_end() {
        let most = |number| backoff(&settings(0.2, 3), number, u64::MAX).as_secs_f64() * 1e3;
        for (number, expected) in [(0, 25.0), (1, 50.0), (2, 100.0), (3, 200.0), (4, 250.0), (255, 250.0)] {
            assert!((most(number) - expected).abs() < 1e-6, "{number}: {}", most(number));
        }
        assert_eq!(backoff(&settings(0.2, 3), 3, 0), Duration::ZERO);
    }

    proptest! {
        /// In no ten seconds more than the share of the requests of the twenty before their end, and the minimum.
        #[test]
        fn never_more_than_the_budget(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..1_500), 1..400),
            budget in 0.0..1.0_f64,
            minimum in 0_u32..3,
        ) {
            let settings = settings(budget, minimum);
            let mut own = RetryBudget::default();
            let mut now = Instant::now();
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (is_request, pause) in steps {
                now += Duration::from_millis(pause);
                if is_request {
                    own.note_request(now);
                    requests.push(now);
                } else if own.try_take(&settings, now) {
                    retries.push(now);
                }
                let within = |all: &[Instant], seconds| {
                    all.iter().filter(|&&at| now - at < Duration::from_secs(seconds)).count() as f64
                };
                // Seconds are whole, so that up to one more is seen.
                prop_assert!(within(&retries, 9) <= within(&requests, 20) * budget + f64::from(minimum) * 10.0);
            }
        }
    }
}
