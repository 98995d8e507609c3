//! What workers and gateways share: who owns the counts of the rate limits, memory or Redis, and the way to Redis.
//!
//! - [`ledger`]: the counts in memory.
//! - [`script`]: the counts in Redis, as text.
//! - [`resp`]: commands to bytes and bytes to replies, pure.
//! - [`client`]: the connection, its deadlines, and its way back after a failure.

pub mod client;
pub mod ledger;
pub mod resp;
pub mod script;
