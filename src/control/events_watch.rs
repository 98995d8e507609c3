//! Says in the log that something was left out of it.

use std::sync::Arc;

use crate::telemetry::events::{Events, PERIOD};

/// Looks now and then, for as long as the process runs.
pub async fn keep_watching(events: Arc<Events>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let count = events.take_left_out();
        if count > 0 {
            tracing::warn!(count, "events that came again and again were left out of the log");
        }
        let count = events.take_lost();
        if count > 0 {
            tracing::warn!(count, "events were lost, since whoever reads standard error is too slow");
        }
    }
}
