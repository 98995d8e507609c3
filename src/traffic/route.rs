//! Longest prefix wins.

/// Finds the service for a host and a path.
#[derive(Debug)]
pub struct RouteTable {}
