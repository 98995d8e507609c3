//! The data plane: a thin IO shell around the pure modules. In the order of a request's way:
//!
//! - [`runtime`]: a worker's thread, its core, its ring.
//! - [`accept`]: the listener, and how it closes without losing anybody.
//! - [`connection`]: one client, request after request.
//! - [`lane`]: where a request's future lives while it runs, and whatever else does one job after another.
//! - [`pipeline`]: the stages of a request on one screen.
//! - [`transaction`]: one request's record; its end counts and logs it, whatever the end was.
//! - [`guard`]: the policies: who may pass, and how often.
//! - [`limiter`]: rate limits, on the orders that [`ledger`] carries to Redis.
//! - [`upstream`]: the exchange with an endpoint; [`reply`]: its answer; [`body`], [`download`]: the bodies both ways;
//!   [`splice`]: long ones without a copy; [`batch`]: requests that go out together; [`tunnel`]: after an upgrade.
//! - [`answer`]: what the gateway says itself; [`failure`]: what can go wrong and what it is answered with.
//! - [`worker`]: what all connections of a core share; [`loaded`], [`pool`], [`buffers`], [`watch`], [`socket`], [`ahead`], [`multishot`],
//!   [`provided`]: its parts.
//! - [`attempt`]: which endpoint, and whether another one; [`usher`]: turns on epoll.
//! - [`descriptors`]: how many connections there can be.

pub mod accept;
pub mod ahead;
pub mod answer;
pub mod attempt;
pub mod batch;
pub mod body;
pub mod buffers;
pub mod connection;
pub mod descriptors;
pub mod download;
pub mod failure;
pub mod guard;
pub mod lane;
pub mod ledger;
pub mod limiter;
pub mod loaded;
pub mod multishot;
pub mod pipeline;
pub mod pool;
pub mod provided;
pub mod reply;
pub mod runtime;
pub mod socket;
pub mod splice;
mod trace;
pub mod transaction;
pub mod tunnel;
pub mod upstream;
pub mod usher;
pub mod watch;
pub mod worker;
