//! Says in the log when rate limits have to do without Redis, and when they have it back: once each.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::counters::Counters;

/// How often the workers' word is read.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Watches the workers' counters, for as long as the process runs.
pub async fn keep_watching(counters: Vec<Arc<Counters>>) {
    let mut was_degraded = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let workers = counters.iter().filter(|block| block.redis_degraded.get() > 0).count();
        match (was_degraded, workers > 0) {
            (false, true) => tracing::warn!(
                workers,
                "Redis does not answer; rate limits are decided as redis.on_error says until it does"
            ),
            (true, false) => tracing::info!("Redis answers again; rate limits are global again"),
            _ => {}
        }
        was_degraded = workers > 0;
    }
}
