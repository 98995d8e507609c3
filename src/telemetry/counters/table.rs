//! Rows of counters by key: open addressing, linear probing, at most half full. One thread writes, any may read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counter, zeroed};

/// The key of what did not fit.
pub const OTHER: u64 = u64::MAX;

/// What stands in a place that was never taken, and so ends a search.
const FREE: u64 = 0;

/// What stands in a place whose row was taken out: a search goes on, a new row may go there.
const LEFT: u64 = u64::MAX;

/// Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4): the multiplier is 2^64 over the golden ratio.
fn home(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// Rows of counters, all of one length, by a key below 2^63.
#[derive(Debug)]
pub struct Table {
    /// A key is stored as itself plus one.
    keys: Box<[AtomicU64]>,
    rows: Box<[Counter]>,
    stride: usize,
    used: Counter,
    max: usize,
}

impl Table {
    /// Room for `max` rows of `stride` counters. Memory is taken as rows appear.
    pub(super) fn new(max: usize, stride: usize) -> Table {
        let slots = (max.max(1) * 2).next_power_of_two();
        Table {
            keys: zeroed(slots),
            // One more row, for what does not fit.
            rows: zeroed((slots + 1) * stride),
            stride,
            used: Counter::default(),
            max,
        }
    }

    /// The row of `key`, made if there is none yet; `None` when the table is full. For the owning worker only.
    pub(super) fn row(&self, key: u64) -> Option<&[Counter]> {
        self.place(key).map(|slot| self.at(slot))
    }

    /// The place of the row of `key`, as [`Table::row`].
    pub(super) fn place(&self, key: u64) -> Option<usize> {
        let mask = self.keys.len() - 1;
        let first = home(key) & mask;
        // The usual case.
        if self.keys[first].load(Ordering::Relaxed) == key + 1 {
            return Some(first);
        }
        let mut vacant = None;
        for step in 0..=mask {
            let slot = (first + step) & mask;
            match self.keys[slot].load(Ordering::Relaxed) {
                taken if taken == key + 1 => return Some(slot),
                FREE => {
                    vacant = vacant.or(Some(slot));
                    break;
                }
                LEFT => vacant = vacant.or(Some(slot)),
                _ => {}
            }
        }
        let slot = vacant.filter(|_| self.used.get() < self.max as u64)?;
        self.used.add(1);
        self.keys[slot].store(key + 1, Ordering::Release);
        Some(slot)
    }

    /// The row of `key`, if there is one.
    pub(super) fn find(&self, key: u64) -> Option<&[Counter]> {
        let mask = self.keys.len() - 1;
        let first = home(key) & mask;
        for step in 0..=mask {
            let slot = (first + step) & mask;
            match self.keys[slot].load(Ordering::Acquire) {
                FREE => return None,
                taken if taken == key + 1 => return Some(self.at(slot)),
                _ => {}
            }
        }
        None
    }

    /// Where more than three quarters of the room are taken: takes out the rows whose keys are not to be kept. For the owning
    /// worker only; a reader may see a row that is just being taken out at zero.
    pub(super) fn relieve(&self, keep: impl Fn(u64) -> bool) {
        if self.used.get() <= self.max as u64 * 3 / 4 {
            return;
        }
        let mask = self.keys.len() - 1;
        let mut is_before_free = self.keys[0].load(Ordering::Relaxed) == FREE;
        // Backwards, so that of those that are followed by a place never taken none has to be searched past.
        for slot in (0..=mask).rev() {
            let key = self.keys[slot].load(Ordering::Relaxed);
            if key != FREE && key != LEFT && !keep(key - 1) {
                self.keys[slot].store(LEFT, Ordering::Relaxed);
                self.at(slot).iter().for_each(|counter| counter.set(0));
                self.used.set(self.used.get() - 1);
            }
            if is_before_free && self.keys[slot].load(Ordering::Relaxed) == LEFT {
                self.keys[slot].store(FREE, Ordering::Relaxed);
            }
            is_before_free = self.keys[slot].load(Ordering::Relaxed) == FREE;
        }
    }

    /// The row at a place that [`Table::place`] has named.
    pub(super) fn at(&self, slot: usize) -> &[Counter] {
        &self.rows[slot * self.stride..][..self.stride]
    }

    /// The place for what did not fit.
    pub(super) fn other(&self) -> usize {
        self.keys.len()
    }

    /// How many places there are, the one for what did not fit among them.
    pub(super) fn places(&self) -> usize {
        self.keys.len() + 1
    }

    /// Every row that was used, with its key; [`OTHER`] for what did not fit, if anything did not.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &[Counter])> {
        self.rows_with_places().map(|(key, _, row)| (key, row))
    }

    /// The same with the place of each.
    pub(super) fn rows_with_places(&self) -> impl Iterator<Item = (u64, usize, &[Counter])> {
        let named = self.keys.iter().enumerate().filter_map(|(slot, key)| match key.load(Ordering::Acquire) {
            FREE | LEFT => None,
            key => Some((key - 1, slot, self.at(slot))),
        });
        let other = (OTHER, self.other(), self.at(self.other()));
        named.chain(Some(other).filter(|(_, _, row)| row.iter().any(|counter| counter.get() > 0)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn contents(table: &Table) -> BTreeMap<u64, u64> {
        table.rows().map(|(key, row)| (key, row[0].get())).collect()
    }

    #[test]
    fn rows_are_taken_out_only_for_want_of_room() {
        let table = Table::new(8, 2);
        for key in 0..6 {
            table.row(key).expect("room")[0].add(key + 1);
        }
        table.relieve(|key| key >= 5);
        assert_eq!(contents(&table).len(), 6, "three quarters are not too many");
        table.row(6).expect("room")[0].add(7);
        table.relieve(|key| key >= 5);
        assert_eq!(contents(&table), BTreeMap::from([(5, 6), (6, 7)]));
        for key in 10..16 {
            assert_eq!(table.row(key).expect("room again")[0].get(), 0, "a place starts over");
        }
        assert!(table.row(16).is_none());
        assert!(table.find(4).is_none() && table.find(5).is_some());
    }

    #[test]
    fn rows_that_come_and_go_for_ever_leave_nothing_behind() {
        let table = Table::new(100, 1);
        for round in 0..1_000u64 {
            for key in round * 90..(round + 1) * 90 {
                assert_eq!(table.row(key).map(|row| row[0].add(key)), Some(()), "{key}");
            }
            let kept = round * 90 + 80;
            table.relieve(|key| key >= kept);
            assert_eq!(contents(&table), (kept..(round + 1) * 90).map(|key| (key, key)).collect());
            table.relieve(|_| true);
        }
        // Searches for what is not there end.
        assert!(table.find(u64::MAX - 7).is_none());
    }
}
