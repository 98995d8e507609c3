//! What became of the configurations that were read while the gateway ran. Written by the control thread, read by scrapes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The counts.
#[derive(Debug, Default)]
pub struct Reloads {
    applied: AtomicU64,
    invalid: AtomicU64,
    has_failed: AtomicBool,
}

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// It is served.
    Applied,
    /// It has errors; the one before it is served on.
    Invalid,
}

impl ReloadResult {
    /// All of them.
    pub const ALL: [ReloadResult; 2] = [ReloadResult::Applied, ReloadResult::Invalid];

    /// The `result` label.
    pub fn as_str(self) -> &'static str {
        match self {
            ReloadResult::Applied => "applied",
            ReloadResult::Invalid => "invalid",
        }
    }
}

impl Reloads {
    /// Counts one more.
    pub fn count(&self, result: ReloadResult) {
        self.counter(result).fetch_add(1, Ordering::Relaxed);
        self.has_failed.store(result == ReloadResult::Invalid, Ordering::Relaxed);
    }

    /// How many ended so.
    pub fn get(&self, result: ReloadResult) -> u64 {
        self.counter(result).load(Ordering::Relaxed)
    }

    /// Whether the last one was invalid: then what is served is not what the file says.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    fn counter(&self, result: ReloadResult) -> &AtomicU64 {
        match result {
            ReloadResult::Applied => &self.applied,
            ReloadResult::Invalid => &self.invalid,
        }
    }
}
