//! What is known about the traffic: counters that a worker alone writes, their exposition, and the way of a log line out.

pub mod counters;
pub mod events;
pub mod exposition;
pub mod labels;
pub mod log;
pub mod reloads;
pub mod spans;
