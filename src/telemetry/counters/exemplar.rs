//! A request that a histogram's bucket can be told by: the trace that it belongs to.
//!
//! One worker writes, any thread reads, under a sequence lock (Boehm, "Can seqlocks get along with programming language
//! memory models?", MSPC 2012): what was read while it was being written is not used.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use zerocopy::FromZeros;

/// A trace id in hexadecimal, as `traceparent` has it.
pub type TraceId = [u8; 32];

/// How long one stays before another takes its place, in milliseconds: writing one costs more than counting.
const STAYS: u64 = 1_000;

/// The latest request of a bucket, about.
#[derive(Debug, Default, FromZeros)]
pub(super) struct Slot {
    /// Odd while it is being written; 0 before the first time.
    version: AtomicU64,
    trace: [AtomicU64; 4],
    nanos: AtomicU64,
    unix_ms: AtomicU64,
}

/// What a bucket can be told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar {
    /// The trace.
    pub trace: TraceId,
    /// How long the request took, in nanoseconds.
    pub nanos: u64,
    /// When it ended, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

impl Slot {
    /// Takes `exemplar`, unless one is there that is hardly older. For the owning worker only.
    pub(super) fn offer(&self, exemplar: &Exemplar) {
        if self.unix_ms.load(Ordering::Relaxed) + STAYS > exemplar.unix_ms {
            return;
        }
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, bytes) in self.trace.iter().zip(exemplar.trace.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        self.nanos.store(exemplar.nanos, Ordering::Relaxed);
        self.unix_ms.store(exemplar.unix_ms, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    /// What was taken last; `None` before that, and while it changes.
    pub(super) fn get(&self) -> Option<Exemplar> {
        let version = self.version.load(Ordering::Acquire);
        if version == 0 || version % 2 == 1 {
            return None;
        }
        let mut trace = TraceId::default();
        for (word, bytes) in self.trace.iter().zip(trace.as_chunks_mut::<8>().0) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let exemplar = Exemplar {
            trace,
            nanos: self.nanos.load(Ordering::Relaxed),
            unix_ms: self.unix_ms.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (self.version.load(Ordering::Relaxed) == version).then_some(exemplar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exemplar(digit: u8, unix_ms: u64) -> Exemplar {
        Exemplar { trace: [b'0' + digit; 32], nanos: u64::from(digit), unix_ms }
    }

    #[test]
    fn one_stays_for_a_while() {
        let slot = Slot::default();
        assert_eq!(slot.get(), None);
        for (offered, expected) in [
            (exemplar(1, 5_000), exemplar(1, 5_000)),
            (exemplar(2, 5_999), exemplar(1, 5_000)),
            (exemplar(3, 6_000), exemplar(3, 6_000)),
        ] {
            slot.offer(&offered);
            assert_eq!(slot.get(), Some(expected));
        }
    }

    #[test]
    fn half_a_one_is_never_seen() {
        let slot = Slot::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for turn in 1..200_000u64 {
                    slot.offer(&exemplar((turn % 10) as u8, turn * STAYS));
                }
            });
            let mut seen = 0;
            while !writer.is_finished() || seen == 0 {
                if let Some(Exemplar { trace, nanos, unix_ms }) = slot.get() {
                    seen += 1;
                    let digit = (unix_ms / STAYS % 10) as u8;
                    assert_eq!((trace, nanos), ([b'0' + digit; 32], u64::from(digit)));
                }
            }
        });
    }
}
