//! Policies, pure: one verdict each. So far, what is written down about a request.

pub mod access_log;
