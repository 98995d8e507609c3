//! Policies, pure: one verdict each. What is written down about a request, and how often one may come.

pub mod access_log;
pub mod rate_limit;
