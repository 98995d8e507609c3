//! Policies, pure: one verdict each. Who a client is, and what is written down about its request.

pub mod access_log;
pub mod auth;
