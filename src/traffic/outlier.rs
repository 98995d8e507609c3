//! Which endpoints of a service do clearly worse than their siblings, and so get no requests for a while.
//!
//! A breaker asks whether an endpoint fails too much; this asks whether it fails more than the others do, which a service
//! whose requests fail here and there anyhow hides from a breaker. It only ever takes a share of the endpoints out, and never
//! all of them: when everybody fails, nobody is an outlier.
//!
//! An [`OutlierRecord`] belongs to an endpoint on one worker and follows it from one snapshot to the next. Noting an outcome
//! is two additions; [`evaluate`] is called once an interval.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// `[outlier_detection]`
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierSettings {
    /// Off: nobody is ejected.
    pub enabled: bool,
    /// How often the endpoints are compared, by what became of their requests since the last time.
    pub interval: Duration,
    /// The fewest requests of an endpoint, and of its siblings together, that say anything.
    pub minimum_requests: u32,
    /// By how much the share of its failures must exceed its siblings', above 0.0 to 1.0.
    pub threshold: f64,
    /// The largest share of a service's endpoints that may be out at once, 0.0 to 1.0.
    pub max_ejected: f64,
    /// How long an endpoint is out the first time; as much longer each further time in a row.
    pub eject_for: Duration,
    /// How long at most.
    pub eject_for_max: Duration,
}

impl OutlierSettings {
    /// Nobody is ejected.
    pub const OFF: OutlierSettings = OutlierSettings {
        enabled: false,
        interval: Duration::from_secs(3_600),
        minimum_requests: u32::MAX,
        threshold: 1.0,
        max_ejected: 0.0,
        eject_for: Duration::ZERO,
        eject_for_max: Duration::ZERO,
    };
}

/// What is known of one endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutlierRecord {
    good: u32,
    bad: u32,
    /// Ejections, less one for each interval that it was no outlier in.
    ejections: u32,
    until: Option<Instant>,
}

impl OutlierRecord {
    /// A request ended: whether the endpoint failed it.
    pub fn note(&mut self, is_failure: bool) {
        let count = if is_failure { &mut self.bad } else { &mut self.good };
        *count = count.saturating_add(1);
    }

    /// Whether it is out.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn requests(&self) -> u32 {
        self.good.saturating_add(self.bad)
    }
}

/// Compares a service's endpoints, ejects those that are outliers, and begins to count anew.
pub fn evaluate(settings: &OutlierSettings, records: &[&Cell<OutlierRecord>], now: Instant) {
    let sums = |records: &mut dyn Iterator<Item = OutlierRecord>| {
        records
            .fold((0_u64, 0_u64), |sum, record| (sum.0 + u64::from(record.requests()), sum.1 + u64::from(record.bad)))
    };
    let all = sums(&mut records.iter().map(|record| record.get()));
    let enough = u64::from(settings.minimum_requests);
    let excess = |record: OutlierRecord| {
        let (requests, bad) = (u64::from(record.requests()), u64::from(record.bad));
        let (others, others_bad) = (all.0 - requests, all.1 - bad);
        let is_known = settings.enabled && !record.is_ejected(now) && requests >= enough && others >= enough;
        is_known.then(|| bad as f64 / requests as f64 - others_bad as f64 / others as f64)
    };
    let mut ejected = records.iter().filter(|record| record.get().is_ejected(now)).count();
    let most = ((records.len() as f64 * settings.max_ejected) as usize).min(records.len().saturating_sub(1));
    // A reload may have left those alone that are out: who would be back soonest is so now.
    while ejected > most {
        let out = records.iter().filter(|record| record.get().is_ejected(now));
        let Some(soonest) = out.min_by_key(|record| record.get().until) else { break };
        soonest.set(OutlierRecord { until: None, ..soonest.get() });
        ejected -= 1;
    }
    // The worst first: there may be no room for all.
    let mut outliers: Vec<(f64, usize)> = records
        .iter()
        .enumerate()
        .filter_map(|(index, record)| Some((excess(record.get())?, index)))
        .filter(|&(excess, _)| excess >= settings.threshold)
        .collect();
    outliers.sort_by(|one, other| other.0.total_cmp(&one.0));
    outliers.truncate(most.saturating_sub(ejected));
    for &(_, index) in &outliers {
        let mut record = records[index].get();
        record.ejections = record.ejections.saturating_add(1);
        let time = settings.eject_for.saturating_mul(record.ejections).min(settings.eject_for_max);
        record.until = Some(now + time);
        records[index].set(record);
        ejected += 1;
    }
    debug_assert!(ejected <= most, "somebody is left");
    for (index, cell) in records.iter().enumerate() {
        let mut record = cell.get();
        let is_outlier = outliers.iter().any(|&(_, other)| other == index);
        if !is_outlier && !record.is_ejected(now) && record.requests() > 0 {
            record.ejections = record.ejections.saturating_sub(1);
        }
        if !settings.enabled {
            record = OutlierRecord::default();
        }
        (record.good, record.bad) = (0, 0);
        cell.set(record);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> OutlierSettings {
        OutlierSettings {
            enabled: true,
            interval: 10 * SECOND,
            minimum_requests: 100,
            threshold: 0.2,
            max_ejected: 0.5,
            eject_for: 30 * SECOND,
            eject_for_max: 100 * SECOND,
        }
    }

    fn note(records: &[Cell<OutlierRecord>], outcomes: &[(u32, u32)]) {
        for (cell, &(good, bad)) in records.iter().zip(outcomes) {
            let mut record = cell.get();
            (0..good).for_each(|_| record.note(false));
            (0..bad).for_each(|_| record.note(true));
            cell.set(record);
        }
    }

    fn evaluate_all(settings: &OutlierSettings, records: &[Cell<OutlierRecord>], now: Instant) -> String {
        evaluate(settings, &records.iter().collect::<Vec<_>>(), now);
        records.iter().map(|record| if record.get().is_ejected(now) { 'x' } else { '.' }).collect()
    }

    #[test]
    fn who_does_worse_than_the_others_is_out() {
        let check = |outcomes: &[(u32, u32)], expected: &str| {
            let records = vec![Cell::default(); outcomes.len()];
            note(&records, outcomes);
            assert_eq!(evaluate_all(&settings(), &records, Instant::now()), expected, "{outcomes:?}");
        };
        check(&[(100, 0), (100, 0)], "..");
        check(&[(100, 0), (75, 25)], ".x");
        check(&[(100, 0), (85, 15)], "..");
        // All fail alike: nobody is an outlier.
        check(&[(50, 50), (40, 60), (45, 55)], "...");
        check(&[(0, 100), (0, 100)], "..");
        // Too little is known of it, or of the others.
        check(&[(100, 0), (0, 99)], "..");
        check(&[(99, 0), (0, 100)], "..");
        // Half of them at most, the worst.
        check(&[(100, 0), (60, 40), (50, 50), (100, 0), (100, 0)], ".xx..");
        check(&[(1000, 0), (60, 40), (50, 50), (40, 60)], "..xx");
        check(&[(0, 1000)], ".");
    }

    #[test]
    fn each_time_in_a_row_is_longer() {
        let records = vec![Cell::default(); 2];
        let mut now = Instant::now();
        for seconds in [30, 60, 90, 100, 100] {
            note(&records, &[(100, 0), (50, 50)]);
            assert_eq!(evaluate_all(&settings(), &records, now), ".x");
            now += SECOND * seconds;
            assert!(!records[1].get().is_ejected(now) && records[1].get().is_ejected(now - SECOND), "{seconds}");
        }
        for _ in 0..5 {
            note(&records, &[(100, 0), (100, 0)]);
            evaluate_all(&settings(), &records, now);
        }
        note(&records, &[(100, 0), (50, 50)]);
        evaluate_all(&settings(), &records, now);
        assert!(!records[1].get().is_ejected(now + 30 * SECOND), "that was long ago");
    }

    /// Found by the simulation of staying up, seed 8.
    #[test]
    fn whom_a_reload_leaves_alone_is_taken_back() {
        let records = vec![Cell::default(); 3];
        let now = Instant::now();
        note(&records, &[(100, 0), (50, 50), (100, 0)]);
        assert_eq!(evaluate_all(&settings(), &records, now), ".x.");
        assert_eq!(evaluate_all(&settings(), &records[1..2], now), ".");
    }

    #[test]
    fn switched_off_everybody_is_back() {
        let records = vec![Cell::default(); 2];
        let now = Instant::now();
        note(&records, &[(100, 0), (50, 50)]);
        assert_eq!(evaluate_all(&settings(), &records, now), ".x");
        assert_eq!(evaluate_all(&OutlierSettings { enabled: false, ..settings() }, &records, now), "..");
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_and_never_all(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0_u32..300, 0_u32..300), 1..8), 1..30),
            max_ejected in 0.0..=1.0_f64,
        ) {
            let settings = OutlierSettings { max_ejected, ..settings() };
            let count = rounds.iter().map(Vec::len).max().unwrap_or(1);
            let records = vec![Cell::default(); count];
            let mut now = Instant::now();
            for outcomes in rounds {
                note(&records, &outcomes);
                let out = evaluate_all(&settings, &records, now).matches('x').count();
                prop_assert!(out < count && out as f64 <= count as f64 * max_ejected, "{out} of {count}");
                now += 10 * SECOND;
            }
        }
    }
}
