//! From counts to what a person reads: rates, percentiles, skew. Pure.

use std::time::Duration;

use serde::Serialize;

/// A percentile of durations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentile {
    /// Milliseconds.
    pub ms: f64,
    /// It lies above the histogram's highest bound, which is what `ms` then is: how far above, nobody knows.
    pub above: bool,
}

/// The duration that `share` (0 to 1) of the durations were not longer than, out of a histogram: `counts` has one for each
/// of `bounds` (upper ones, in seconds, ascending) and one for what is above them all. Within a bucket durations count as
/// spread evenly, as Prometheus' `histogram_quantile` has it. `None` where there are no durations.
pub fn percentile(bounds: &[f64], counts: &[u64], share: f64) -> Option<Percentile> {
    let total: u64 = counts.iter().sum();
    let top = *bounds.last()?;
    if total == 0 {
        return None;
    }
    let rank = share.clamp(0.0, 1.0) * total as f64;
    let mut below = 0;
    for (index, (&bound, &count)) in bounds.iter().zip(counts).enumerate() {
        if count > 0 && (below + count) as f64 >= rank {
            let lower = if index == 0 { 0.0 } else { bounds[index - 1] };
            let part = ((rank - below as f64) / count as f64).clamp(0.0, 1.0);
            return Some(Percentile { ms: rounded((lower + (bound - lower) * part) * 1e3), above: false });
        }
        below += count;
    }
    Some(Percentile { ms: rounded(top * 1e3), above: true })
}

/// How many a second, from one count to a later one; 0 where the count started anew or no time has passed.
pub fn per_second(before: u64, after: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { rounded(after.saturating_sub(before) as f64 / seconds) } else { 0.0 }
}

/// The mean of `count` durations of `nanos` nanoseconds in all, in milliseconds.
pub fn mean_ms(nanos: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| rounded(nanos as f64 / count as f64 / 1e6))
}

/// The busiest over the mean: 1 where all have the same, the number of `loads` where one has it all. `None` without load.
pub fn skew(loads: impl Iterator<Item = u64> + Clone) -> Option<f64> {
    let (total, count) = (loads.clone().sum::<u64>(), loads.clone().count());
    let busiest = loads.max()?;
    (total > 0).then(|| rounded(busiest as f64 * count as f64 / total as f64))
}

/// To three decimals: nobody reads more, and every one of them is sent each second.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let check = |bounds: &[f64], counts: &[u64], share: f64, expected: Option<(f64, bool)>| {
            let found = percentile(bounds, counts, share).map(|it| (it.ms, it.above));
            assert_eq!(found, expected, "{bounds:?} {counts:?} {share}");
        };
        let bounds = [0.001, 0.01, 0.1];
        check(&bounds, &[0, 0, 0, 0], 0.5, None);
        check(&bounds, &[], 0.5, None);
        check(&[], &[7], 0.5, None);
        // The lowest bucket begins at nothing.
        check(&bounds, &[10, 0, 0, 0], 0.5, Some((0.5, false)));
        check(&bounds, &[10, 0, 0, 0], 1.0, Some((1.0, false)));
        check(&bounds, &[10, 10, 0, 0], 0.5, Some((1.0, false)));
        check(&bounds, &[10, 10, 0, 0], 0.75, Some((5.5, false)));
        // Empty buckets are not where anything lies.
        check(&bounds, &[0, 0, 4, 0], 0.0, Some((10.0, false)));
        check(&bounds, &[0, 0, 4, 0], 0.5, Some((55.0, false)));
        // Above the highest bound nothing is made up.
        check(&bounds, &[0, 0, 0, 1], 0.5, Some((100.0, true)));
        check(&bounds, &[98, 0, 0, 2], 0.99, Some((100.0, true)));
        check(&bounds, &[99, 0, 0, 1], 0.99, Some((1.0, false)));
        check(&bounds, &[1, 0, 0, 0], 7.0, Some((1.0, false)));
    }

    #[test]
    fn rates() {
        let check = |before, after, ms, expected: f64| {
            assert_eq!(per_second(before, after, Duration::from_millis(ms)), expected, "{before} {after} {ms}");
        };
        check(0, 10, 1_000, 10.0);
        check(5, 10, 2_500, 2.0);
        check(0, 1, 3_000, 0.333);
        check(10, 3, 1_000, 0.0);
        check(0, 10, 0, 0.0);
        assert_eq!((mean_ms(0, 0), mean_ms(3_000_000, 2)), (None, Some(1.5)));
    }

    #[test]
    fn skews() {
        let check = |loads: &[u64], expected| assert_eq!(skew(loads.iter().copied()), expected, "{loads:?}");
        check(&[], None);
        check(&[0, 0], None);
        check(&[5], Some(1.0));
        check(&[5, 5], Some(1.0));
        check(&[9, 0, 0], Some(3.0));
        check(&[3, 1], Some(1.5));
    }
}
