//! Policies, pure: one verdict each.

pub mod access_log;
