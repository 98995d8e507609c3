//! The gateway's own events, on standard error: start, stop, what changed, what failed. Rare, and never about one request.

use std::io;

use tracing::level_filters::LevelFilter;

/// Starts to write events of at least `level`: JSON lines, or text where a person reads them.
pub fn init(level: LevelFilter, for_eyes: bool) {
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_target(false);
    // A second gateway in one process, as in tests, keeps the first one's.
    let _ = if for_eyes { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}
