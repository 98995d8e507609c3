//! The series of one metric: the sums of all workers' rows, and no more of them than there may be.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use crate::telemetry::counters::{Counter, OTHER};

/// Which keys of a metric have a series of their own: whoever comes first. Each worker has room for as many as there may be
/// in all, and they need not be the same ones.
#[derive(Debug)]
pub(super) struct Series {
    max: usize,
    known: Mutex<HashSet<u64>>,
}

/// A metric's rows by key, in the order of the keys; [`OTHER`] last, for all that has no series of its own.
pub(super) type Sums = BTreeMap<u64, Vec<u64>>;

impl Series {
    /// Room for `max` of them, beside the one for all others.
    pub(super) fn new(max: usize) -> Series {
        Series { max, known: Mutex::default() }
    }

    /// Adds up rows of different workers. Those whose key is not `named` any more are left out, as series that end are: under
    /// `other` all that they ever counted would look as if it had just happened.
    pub(super) fn sum<'a>(
        &self,
        rows: impl Iterator<Item = (u64, &'a [Counter])>,
        named: impl Fn(u64) -> bool,
    ) -> Sums {
        let mut sums = Sums::new();
        for (key, row) in rows {
            add(&mut sums, key, row.iter().map(Counter::get));
        }
        let known = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Who is gone has left room.
        known.retain(|key| sums.contains_key(key) && named(*key));
        let unknown: Vec<u64> = sums.keys().copied().filter(|key| *key != OTHER && !known.contains(key)).collect();
        for key in unknown {
            if !named(key) {
                sums.remove(&key);
            } else if known.len() < self.max {
                known.insert(key);
            } else if let Some(row) = sums.remove(&key) {
                add(&mut sums, OTHER, row.into_iter());
            }
        }
        sums
    }
}

fn add(sums: &mut Sums, key: u64, row: impl Iterator<Item = u64>) {
    let sum = sums.entry(key).or_default();
    for (place, count) in row.enumerate() {
        match sum.get_mut(place) {
            Some(sum) => *sum += count,
            None => sum.push(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(series: &Series, rows: &[(u64, u64)], named: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let rows: Vec<(u64, Counter)> = rows
            .iter()
            .map(|&(key, count)| {
                let counter = Counter::default();
                counter.set(count);
                (key, counter)
            })
            .collect();
        let rows = rows.iter().map(|(key, counter)| (*key, std::slice::from_ref(counter)));
        series.sum(rows, named).into_iter().map(|(key, row)| (key, row[0])).collect()
    }

    #[test]
    fn rows_of_a_key_are_added_up() {
        let series = Series::new(10);
        assert_eq!(sum(&series, &[(7, 1), (3, 2), (7, 4)], |_| true), [(3, 2), (7, 5)]);
    }

    #[test]
    fn there_are_no_more_series_than_there_may_be_and_those_there_are_stay() {
        let series = Series::new(2);
        assert_eq!(sum(&series, &[(5, 1), (6, 1)], |_| true), [(5, 1), (6, 1)]);
        // Another worker has counted others, with lower keys.
        let all = [(5, 2), (1, 10), (6, 1), (2, 20), (OTHER, 100)];
        assert_eq!(sum(&series, &all, |_| true), [(5, 2), (6, 1), (OTHER, 130)]);
        // One is gone.
        assert_eq!(sum(&series, &[(1, 10), (5, 2)], |_| true), [(1, 10), (5, 2)]);
    }

    #[test]
    fn a_series_whose_name_nobody_knows_any_more_ends_and_is_not_counted_again() {
        let series = Series::new(2);
        let rows = [(5, 1_000), (6, 1), (OTHER, 7)];
        assert_eq!(sum(&series, &rows, |_| true), rows);
        assert_eq!(sum(&series, &rows, |key| key != 5), [(6, 1), (OTHER, 7)]);
        // Its room is free.
        assert_eq!(sum(&series, &[(6, 1), (8, 3), (OTHER, 7)], |_| true), [(6, 1), (8, 3), (OTHER, 7)]);
    }
}
