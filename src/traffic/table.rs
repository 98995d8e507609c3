//! A table of bounded size under keys that are hashes already, walked a few entries at a time to find what can go.
//!
//! It allocates while it grows and never after. It does not decide what may be evicted: its owner looks at the entries
//! that the hand passes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::window::LimitKey;

/// A map from [`LimitKey`] with a maximum size.
#[derive(Debug)]
pub struct Table<V> {
    index: HashMap<LimitKey, u32, BuildHasherDefault<Folded>>,
    entries: Vec<(LimitKey, V)>,
    size_max: usize,
    hand: usize,
}

impl<V> Table<V> {
    /// An empty table for at most `size_max` entries, itself at most 2³¹.
    pub fn new(size_max: usize) -> Table<V> {
        Table { index: HashMap::default(), entries: Vec::new(), size_max: size_max.min(1 << 31), hand: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether an insertion would be refused.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.size_max
    }

    /// The entry under `key`.
    pub fn get_mut(&mut self, key: LimitKey) -> Option<&mut V> {
        let at = self.find(key)?;
        Some(self.at_mut(at))
    }

    /// Where the entry under `key` is, until one is removed.
    pub fn find(&self, key: LimitKey) -> Option<usize> {
        self.index.get(&key).map(|&at| at as usize)
    }

    /// The entry at a place that `find` or `insert` returned.
    pub fn at_mut(&mut self, at: usize) -> &mut V {
        &mut self.entries[at].1
    }

    /// Puts `value` under `key`, which must be free, and says where. `None` when the table is full.
    pub fn insert(&mut self, key: LimitKey, value: V) -> Option<usize> {
        if self.is_full() {
            return None;
        }
        let at = self.entries.len();
        let previous = self.index.insert(key, at as u32);
        debug_assert!(previous.is_none(), "a key is inserted once");
        self.entries.push((key, value));
        Some(at)
    }

    /// Moves the hand over the next `count` entries, round and round, and removes those of which `goes` says so. Returns
    /// how many went.
    pub fn walk(&mut self, count: usize, mut goes: impl FnMut(LimitKey, &mut V) -> bool) -> usize {
        let mut gone = 0;
        for _ in 0..count.min(self.entries.len()) {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let (key, value) = &mut self.entries[self.hand];
            if goes(*key, value) {
                self.remove_at(self.hand);
                gone += 1;
            } else {
                self.hand += 1;
            }
        }
        gone
    }

    /// The last entry takes the place of the one removed.
    fn remove_at(&mut self, at: usize) {
        let (key, _) = self.entries.swap_remove(at);
        self.index.remove(&key);
        if let Some((moved, _)) = self.entries.get(at) {
            self.index.insert(*moved, at as u32);
        }
    }
}

/// Hashes a key that is evenly spread, and that no client can choose, by folding it.
#[derive(Debug, Default)]
pub struct Folded(u64);

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = (key ^ (key >> 64)) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_a_map_through_insertions_and_evictions() {
        let mut table = Table::new(50);
        let mut model = BTreeMap::new();
        let mut random = fastrand::Rng::with_seed(7);
        for step in 0..20_000u64 {
            let key = LimitKey(random.u128(..100));
            assert_eq!(table.get_mut(key).copied(), model.get(&key).copied());
            if !model.contains_key(&key) {
                assert_eq!(table.insert(key, step).is_some(), model.len() < 50);
                if model.len() < 50 {
                    model.insert(key, step);
                }
            }
            if random.u8(..4) == 0 {
                table.walk(3, |key, value| {
                    assert_eq!(model[&key], *value);
                    value.is_multiple_of(3) && model.remove(&key).is_some()
                });
            }
            assert_eq!(table.len(), model.len());
        }
    }

    #[test]
    fn the_hand_passes_everything_once_a_round() {
        let mut table = Table::new(10);
        for key in 0..10 {
            table.insert(LimitKey(key), ());
        }
        let mut seen = Vec::new();
        for _ in 0..5 {
            table.walk(2, |key, ()| {
                seen.push(key.0);
                false
            });
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert_eq!(table.walk(100, |_, ()| true), 10);
        assert!(table.is_empty());
    }
}
