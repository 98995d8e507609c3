//! The gateway's own events, on standard error: start, stop, what changed, what failed. Rare, and never about one request.
//!
//! Whoever does not read them holds nothing up: they are written by a thread of their own, and lost beyond what that keeps.
//! An event that comes again and again is written [`BURST`] times in [`PERIOD`]; how many were left out is said afterwards.

mod throttle;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use self::throttle::Throttle;

/// How often one event may come in a [`PERIOD`].
pub const BURST: u32 = 60;

/// After this an event may come as often again.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Lines that wait for a slow reader.
const LINES_MAX: usize = 8_192;

/// The events' way out.
#[derive(Debug)]
pub struct Events {
    writer: Mutex<Option<WorkerGuard>>,
    throttle: Arc<Throttle>,
}

/// Starts to write events of at least `level`: JSON lines, or text where a person reads them.
pub fn init(level: LevelFilter, for_eyes: bool) -> Events {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_MAX)
        .thread_name("ringway-events")
        .finish(io::stderr());
    let throttle = Arc::new(Throttle::default());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let only = Throttled(Arc::clone(&throttle));
    let lines = if for_eyes { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    // A second gateway in one process, as in tests, keeps the first one's.
    let _ = tracing_subscriber::registry().with(lines.with_filter(only).with_filter(level)).try_init();
    Events { writer: Mutex::new(Some(guard)), throttle }
}

impl Events {
    /// How many events were left out since the last call.
    pub fn take_left_out(&self) -> u64 {
        self.throttle.take_refused()
    }

    /// Writes what is still on its way, for about a second at most, and no more afterwards: before the process ends.
    pub fn finish(&self) {
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
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
