//! Redis, as far as the gateway uses it: one pipelined connection a worker.
//!
//! - [`resp`]: commands to bytes and bytes to replies, pure.
//! - [`client`]: the connection, its deadlines, and its way back after a failure.

pub mod client;
pub mod resp;
