//! The work that the benches do, prepared: for time (criterion) and for instructions (gungraun) it is the same, with the same
//! inputs. Times are handed in and nothing is drawn at random, so that it takes the same way through the code at every run.

#![allow(dead_code, reason = "each bench is a program of its own, and uses a part")]

pub mod auth;
pub mod decisions;
pub mod exchange;
pub mod heads;
pub mod records;

use std::hint::black_box;
use std::time::Instant;

use ringway::proxy::limiter::Moment;

/// The time of all that is done, in Unix seconds.
pub const NOW: u64 = 1_700_000_000;

/// `X-Request-Id`.
pub const REQUEST_ID: &[u8] = b"0123456789abcdef0123456789abcdef";

/// `traceparent`, recorded.
pub const TRACEPARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// How often work is done before it is measured: until tables and buffers have their size, and leases theirs.
const WARM_UPS: usize = 100;

/// Something that is done once with each call, as a warm worker does it.
pub type Work = Box<dyn FnMut()>;

/// Makes work of `once`, whose result is thrown away, and warms it up.
fn work<T>(mut once: impl FnMut() -> T + 'static) -> Work {
    let mut work: Work = Box::new(move || drop(black_box(once())));
    (0..WARM_UPS).for_each(|_| work());
    work
}

/// [`NOW`] on both clocks.
pub fn moment() -> Moment {
    Moment { instant: Instant::now(), unix_us: NOW * 1_000_000 }
}
