//! Which endpoint takes the next request.

/// `load_balancing` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Smooth weighted round robin (nginx's algorithm).
    #[default]
    RoundRobin,
    /// The fewest requests in flight per unit of weight on this worker; ties rotate.
    LeastConnections,
    /// Weighted draw.
    Random,
}
