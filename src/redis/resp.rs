//! RESP2, the Redis serialization protocol: commands to bytes, bytes to replies. Pure.
//!
//! - [`command`]: commands into a reused buffer; scripts with their pre-rendered prefix.
//! - [`decoder`]: replies out of a stream that arrives in any pieces, within bounds.
//! - [`reply`]: what a reply says, read in place.
//! - [`refusal`]: what kind of error an error reply is.
//!
//! Rendering and reading allocate nothing in steady state. RESP3 is not spoken: a peer that sends its types is malformed.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

pub mod command;
pub mod decoder;
pub mod refusal;
pub mod reply;

pub use command::{Arg, Script};
pub use decoder::{Decoder, Malformed};
pub use refusal::Refusal;
pub use reply::{Reply, Value};

#[cfg(test)]
mod tests;
