//! How often each event may come.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;

use super::{BURST, PERIOD};

/// How often each has come lately. There are as many as there are places in the code that tell of something.
#[derive(Debug)]
pub(super) struct Throttle<K = Identifier>(Mutex<Account<K>>);

#[derive(Debug)]
struct Account<K> {
    periods: HashMap<K, Period>,
    refused: u64,
}

#[derive(Debug)]
struct Period {
    began: Instant,
    admitted: u32,
}

impl<K> Default for Throttle<K> {
    fn default() -> Throttle<K> {
        Throttle(Mutex::new(Account { periods: HashMap::new(), refused: 0 }))
    }
}

impl<K: Eq + Hash> Throttle<K> {
    /// Whether the event of this place may be written at `now`.
    pub(super) fn admit(&self, place: K, now: Instant) -> bool {
        let Account { periods, refused } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let period = periods.entry(place).or_insert(Period { began: now, admitted: 0 });
        if now.saturating_duration_since(period.began) >= PERIOD {
            *period = Period { began: now, admitted: 0 };
        }
        let is_admitted = period.admitted < BURST;
        if is_admitted {
            period.admitted += 1;
        } else {
            *refused += 1;
        }
        is_admitted
    }

    /// How many were refused since the last call.
    pub(super) fn take_refused(&self) -> u64 {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_may_come_so_often_and_no_oftener() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let admitted = |place: &'static str, now| (0..100).filter(|_| throttle.admit(place, now)).count() as u32;
        assert_eq!(admitted("opened", start), BURST);
        assert_eq!(admitted("opened", start + PERIOD / 2), 0);
        assert_eq!(admitted("closed", start + PERIOD / 2), BURST, "another is not held to it");
        assert_eq!(admitted("opened", start + PERIOD), BURST);
        assert_eq!(throttle.take_refused(), u64::from(4 * 100 - 3 * BURST));
        assert_eq!(throttle.take_refused(), 0);
    }
}
