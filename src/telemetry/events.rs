//! The gateway's own events, on standard error: start, stop, what changed, what failed. Rare, and never about one request.
//!
//! Whoever does not read them holds nothing up: they are written by a thread of their own, and lost beyond what that keeps.
//! An event that comes again and again is written [`BURST`] times in [`PERIOD`]; how many were left out is said afterwards.

mod outlet;
mod throttle;

use std::backtrace::Backtrace;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use self::outlet::Outlet;
use self::throttle::Throttle;

/// How often one event may come in a [`PERIOD`].
pub const BURST: u32 = 60;

/// After this an event may come as often again.
pub const PERIOD: Duration = Duration::from_secs(10);

/// How long a reader who takes nothing may hold up the end of the process.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// The events' way out.
#[derive(Debug)]
pub struct Events {
    outlet: Outlet,
    throttle: Arc<Throttle>,
}

/// Starts to write events of at least `level`: JSON lines, or text where a person reads them.
///
/// # Errors
/// The thread that writes them cannot be started, or there is no standard error.
pub fn init(level: LevelFilter, for_eyes: bool) -> io::Result<Events> {
    // A descriptor of its own: who is stuck in writing does not hold the lock of `io::stderr`, which a panic takes.
    let outlet = Outlet::to(File::from(io::stderr().as_fd().try_clone_to_owned()?))?;
    let throttle = Arc::new(Throttle::default());
    let writer = outlet.clone();
    let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_target(false);
    let only = Throttled(Arc::clone(&throttle));
    let lines = if for_eyes { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    // A second gateway in one process, as in tests, keeps the first one's.
    if tracing_subscriber::registry().with(lines.with_filter(only).with_filter(level)).try_init().is_ok() {
        tell_of_panics();
    }
    Ok(Events { outlet, throttle })
}

/// Has panics told of as events: written to standard error itself, a reader who is stuck would stop the worker that caught one.
/// The main thread's end the process, and are written as ever.
fn tell_of_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        if thread.name() == Some("main") {
            return usual(panic);
        }
        let backtrace = Backtrace::force_capture();
        tracing::error!(thread = thread.name(), %panic, %backtrace, "a panic: a bug of the gateway, please report it");
    }));
}

impl Events {
    /// How many events were left out since the last call, since they came too often.
    pub fn take_left_out(&self) -> u64 {
        self.throttle.take_refused()
    }

    /// How many were lost since the last call, since nobody read them.
    pub fn take_lost(&self) -> u64 {
        self.outlet.take_lost()
    }

    /// Waits, for a second at most, until what is on its way is written: before the process ends.
    pub fn finish(&self) {
        self.outlet.flush(FINISH_MAX);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Lets events through as often as they may come.
struct Throttled(Arc<Throttle>);

impl<S: Subscriber> Filter<S> for Throttled {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.0.admit(event.metadata().callsite(), Instant::now())
    }
}
