//! Word to systemd about the process, where systemd asked for it (`Type=notify`, sd_notify(3)); nothing elsewhere.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::snapshot::{Phase, Seam};
use crate::telemetry::counters::Counters;

/// Every worker serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// A drain begins.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Another process is the service from now on.
pub fn main_process(id: u32) {
    notify(&[NotifyState::MainPid(id)]);
}

/// Feeds the watchdog, where there is one, for as long as every worker is alive: one that hangs is a reason to restart.
///
/// In a drain workers end one by one, which is as it should be; after a hand-over the watchdog is the next process's.
pub async fn keep_alive(counters: Vec<Arc<Counters>>, seam: Arc<Seam>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut seen: Vec<u64> = vec![0; counters.len()];
    loop {
        // Half of the time, as sd_watchdog_enabled(3) advises.
        tokio::time::sleep((limit / 2).max(Duration::from_millis(1))).await;
        if seam.is_handed_over() {
            return;
        }
        if seam.phase() >= Phase::Draining {
            notify(&[NotifyState::Watchdog]);
            continue;
        }
        let beats: Vec<u64> = counters.iter().map(|block| block.heartbeats.get()).collect();
        match beats.iter().zip(&seen).position(|(now, before)| now == before) {
            None => notify(&[NotifyState::Watchdog]),
            Some(worker) => tracing::error!(worker, "a worker hangs; the watchdog is not fed"),
        }
        seen = beats;
    }
}

/// A systemd that does not listen is no reason to do anything else.
fn notify(words: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(words);
}
