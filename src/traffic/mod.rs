//! Where a request goes, pure: handed the time and the randomness that a decision needs.

pub mod balance;
pub mod breaker;
pub mod host;
pub mod outlier;
pub mod path;
pub mod retry;
pub mod route;
pub mod standing;
pub mod table;
pub mod window;
