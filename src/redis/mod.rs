//! Shared state beyond one worker: who owns the counts of the rate limits, memory or Redis.

pub mod ledger;
pub mod script;
