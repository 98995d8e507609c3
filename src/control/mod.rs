//! The control plane: one thread, one tokio runtime, everything that is not a request.

pub mod config;
