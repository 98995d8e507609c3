//! Who stands behind the tokens that a worker has verified lately, so that a signature is checked once per token rather
//! than once per request.
//!
//! - **What is found is what was verified.** An entry is found by a 128-bit keyed hash of the whole token, under a random
//!   key that never leaves the process. Clients cannot compute it, so they cannot look for collisions: one more guess has
//!   a chance of 2⁻¹²⁸ per entry, below that of guessing a signature. Tokens themselves are not kept.
//! - **It forgets in time.** An entry ends when its token does, and all of them when keys, rules or API keys change
//!   ([`super::Authenticator::version`]).
//! - **It is bounded**: four places per set, a fixed number of sets. Within a set the place that was not used since the
//!   last eviction goes first. Neither a hit nor a miss allocates here; a miss costs the one allocation of its identity.
//! - **Refusals are not kept.** They would let a flood of bad tokens push out the good ones, and a token that is refused
//!   may become good a moment later (`nbf`, a key fetched anew). What a flood costs is bounded by the limit on its IP.
//!
//! API keys need no hash of the token: their table finds an index, and only the shared [`Identity`] is kept here, one per
//! key. It cannot come from the snapshot, since its reference count would be a cache line that all workers write.

mod siphash;

use std::rc::Rc;

use super::identity::Identity;

/// How many tokens a worker remembers unless told otherwise: about 2 MB when all are taken.
pub const CAPACITY: usize = 4_096;

/// The most that it can be told to remember.
pub const CAPACITY_MAX: usize = 1 << 20;

const WAYS: usize = 4;

/// A worker's verified credentials.
pub struct Cache {
    key: [u64; 2],
    version: u64,
    sets: Box<[[Slot; WAYS]]>,
    owners: Vec<Option<Rc<Identity>>>,
}

/// Without the key of the hash, which is a secret.
impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("version", &self.version).field("len", &self.len()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Slot {
    tag: u128,
    identity: Option<Rc<Identity>>,
    recent: bool,
}

/// A token's place in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag(u128);

impl Cache {
    /// A cache for `capacity` tokens, rounded up to a power of two between 4 and [`CAPACITY_MAX`]. `key` is random, the
    /// process's own and secret.
    pub fn new(capacity: usize, key: [u8; 16]) -> Cache {
        let sets = capacity.clamp(WAYS, CAPACITY_MAX).next_power_of_two() / WAYS;
        let key = u128::from_le_bytes(key);
        Cache {
            key: [key as u64, (key >> 64) as u64],
            version: 0,
            sets: (0..sets).map(|_| Default::default()).collect(),
            owners: Vec::new(),
        }
    }

    /// How many tokens are remembered, ended ones that nobody has asked for since among them.
    pub fn len(&self) -> usize {
        self.sets.iter().flatten().filter(|slot| slot.identity.is_some()).count()
    }

    /// Whether no token is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything when `version` is not the one that it was learnt under.
    pub(super) fn enter(&mut self, version: u64) {
        if self.version != version {
            self.version = version;
            self.sets.iter_mut().flatten().for_each(|slot| *slot = Slot::default());
            self.owners.clear();
        }
    }

    pub(super) fn tag(&self, token: &[u8]) -> Tag {
        Tag(siphash::hash(self.key, token))
    }

    /// Who stands behind the token; `None` too when its time is over at `now`, in Unix seconds.
    pub(super) fn get(&mut self, Tag(tag): Tag, now: u64) -> Option<Rc<Identity>> {
        let slot = self.set(tag).iter_mut().find(|slot| slot.tag == tag && slot.identity.is_some())?;
        let identity = slot.identity.as_ref()?;
        if identity.is_over(now) {
            *slot = Slot::default();
            return None;
        }
        let identity = Rc::clone(identity);
        slot.recent = true;
        Some(identity)
    }

    /// Remembers who stands behind a token that [`Cache::get`] did not find.
    pub(super) fn insert(&mut self, Tag(tag): Tag, identity: Rc<Identity>, now: u64) {
        let set = self.set(tag);
        let is_free = |slot: &Slot| slot.identity.as_ref().is_none_or(|identity| identity.is_over(now));
        let free = set.iter().position(is_free).or_else(|| set.iter().position(|slot| !slot.recent));
        let place = free.unwrap_or_else(|| {
            // All were used since the last eviction: each starts over, and one has to go.
            set.iter_mut().for_each(|slot| slot.recent = false);
            (tag >> 64) as usize % WAYS
        });
        set[place] = Slot { tag, identity: Some(identity), recent: false };
    }

    /// The identity of the API key with this index, made by `make` when it is asked for first.
    pub(super) fn owner(&mut self, index: usize, make: impl FnOnce() -> Identity) -> Rc<Identity> {
        if self.owners.len() <= index {
            self.owners.resize(index + 1, None);
        }
        Rc::clone(self.owners[index].get_or_insert_with(|| Rc::new(make())))
    }

    fn set(&mut self, tag: u128) -> &mut [Slot; WAYS] {
        let mask = self.sets.len() - 1;
        &mut self.sets[tag as usize & mask]
    }
}
