//! Policies, pure: one verdict each. Which pages may ask, who a client is, how often it may come, and what is written down about its request.

pub mod access_log;
pub mod auth;
pub mod cors;
pub mod rate_limit;
