//! The control plane: one thread, one tokio runtime, everything that is not a request.
//!
//! - [`config`]: bytes to a validated configuration; [`resolve`]: its names to addresses; [`build`]: both to a snapshot.
//! - [`thread`]: the thread itself; [`signals`], [`admin`] and [`discovery`] are its tasks.

pub mod admin;
pub mod build;
pub mod config;
pub mod discovery;
pub mod resolve;
pub mod signals;
pub mod thread;
