//! ringway: an API gateway, one pinned io_uring worker a core.
//!
//! The map, in the order of a request's journey:
//!
//! - [`proxy`]: the data plane's thin IO shell. Accepts, reads, forwards, answers; every await of a request is there.
//! - [`http`]: bytes to messages and back, pure.
//! - [`policy`]: what is written down about a request, pure.
//! - [`traffic`]: where a request goes, pure: path, host, route, balance, breaker, retry, outliers.
//! - [`redis`]: who owns the counts of the rate limits, and the one pipelined connection a worker to Redis.
//! - [`telemetry`]: a worker's counters, their exposition, the way of a log line out of a worker.
//! - [`snapshot`]: the seam between the planes: what the control plane publishes and every worker reads.
//! - [`control`]: the control plane, one tokio thread: configuration and its reload, names, instances,
//!   health checks, upgrades, management endpoints.
//! - [`demo`]: sample backends, for a first look and for tests.
//!
//! Invariants, each kept by a test:
//!
//! 1. Every accepted request reaches `finish` exactly once: counted, timed and logged.
//! 2. Whatever is taken (pooled connection, buffer, in-flight count) is given back: on error, timeout and cancellation too.
//! 3. A connection returns to a pool only after a full, clean exchange with no byte left over.
//! 4. A request is never sent twice unless it is idempotent, or provably was not delivered, and nothing of the answer has
//!    been passed on.
//! 5. Bytes from the network never panic; a panic in one connection never ends another.
//! 6. A warm keep-alive request allocates nothing, takes no lock and writes no cache line that another worker writes.
//! 7. Everything has a maximum.
//! 8. Bodies stream both ways with backpressure; none is held whole in memory but a small one that may have to be sent again.
//!
//! Layering: `http`, `policy`, `traffic` and `redis::resp` hold no `async`, clock, randomness or IO. `proxy` never names
//! `control`, `control` never names `proxy`; the binary alone knows both.

pub mod control;
pub mod demo;
pub mod http;
pub mod policy;
pub mod proxy;
pub mod redis;
pub mod snapshot;
pub mod telemetry;
pub mod traffic;
