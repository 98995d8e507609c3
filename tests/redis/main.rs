//! The Redis client against real servers, and against a few that are not: one module a topic.

mod handshake;
mod hostile;
mod outages;
mod pipelining;
#[path = "../support/redis.rs"]
mod server;
mod support;
