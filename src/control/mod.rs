//! The control plane: one thread, one tokio runtime, everything that is not a request.
//!
//! - [`config`]: bytes to a validated configuration; [`resolve`]: its names to addresses; [`build`]: both to a snapshot.
//! - [`handover`]: the listening sockets, from the process before and to the next one; [`notify`]: word to systemd.
//! - [`thread`]: the thread itself; [`signals`], [`reload`], [`admin`], [`dns`], [`health`], [`issuer`], [`registry`] and
//!   [`ledger_watch`], [`endpoint_watch`] are its tasks, and
//!   [`publisher`] is where what they find out becomes a snapshot. [`dashboard`] shows it all.

pub mod admin;
pub mod build;
pub mod config;
pub mod dashboard;
pub mod dns;
pub mod docs;
pub mod endpoint_watch;
pub mod events_watch;
pub mod handover;
pub mod health;
pub mod issuer;
pub mod jwks;
pub mod ledger_watch;
pub mod notify;
pub mod publisher;
pub mod registry;
pub mod reload;
pub mod resolve;
pub mod signals;
pub mod thread;
pub mod traces;
