//! Where a request goes, pure: handed the time and the randomness that a decision needs.

pub mod balance;
pub mod host;
pub mod path;
pub mod route;
pub mod standing;
pub mod table;
pub mod window;
