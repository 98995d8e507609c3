//! What a client counts, in plain cells: its worker exports them.

use std::cell::Cell;

use super::CallError;
use crate::redis::resp::Refusal;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }

    pub(super) fn add(&self, more: u64) {
        self.0.set(self.0.get().wrapping_add(more));
    }
}

/// A client's counters, from its start on.
#[derive(Debug, Default)]
pub struct Stats {
    /// Calls made, failed ones included; a script's second try is one more.
    pub calls: Counter,
    /// Replies received, error replies included. Those to the handshake are not counted.
    pub replies: Counter,
    /// Writes: calls by writes is how well they are pipelined.
    pub writes: Counter,
    /// Bytes of commands sent.
    pub bytes_out: Counter,
    /// Bytes of replies received.
    pub bytes_in: Counter,
    /// Calls that failed because there was no connection, or it ended.
    pub down: Counter,
    /// Calls that failed because they, or one before them, had no reply in time.
    pub timeouts: Counter,
    /// Calls that failed because too many were pending.
    pub overloaded: Counter,
    /// Calls that were dropped before their reply was taken.
    pub abandoned: Counter,
    /// Scripts that Redis had forgotten and that were sent again.
    pub scripts_resent: Counter,
    /// Connections that could be used.
    pub connects: Counter,
    /// Attempts to connect that came to nothing.
    pub connect_failures: Counter,
    /// Connections given up since what came on them made no sense.
    pub protocol_errors: Counter,
    refused: [Counter; Refusal::COUNT],
}

impl Stats {
    /// Calls without a good answer. Those whose script Redis had forgotten are among them, though they are made again.
    pub fn errors(&self) -> u64 {
        let refused: u64 = self.refused.iter().map(Counter::get).sum();
        self.down.get() + self.timeouts.get() + self.overloaded.get() + refused
    }

    /// Calls answered with this kind of error.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize].get()
    }

    pub(super) fn count_error(&self, error: CallError) {
        let counter = match error {
            CallError::Down => &self.down,
            CallError::Timeout => &self.timeouts,
            CallError::Overloaded => &self.overloaded,
            CallError::Refused(refusal) => &self.refused[refusal as usize],
        };
        counter.add(1);
    }
}
