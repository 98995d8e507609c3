//! Signals, and the drain that they ask for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::snapshot::{Phase, Seam};

/// How long the workers may take to end once everything is cut.
const HANGING: Duration = Duration::from_secs(10);

/// How a drain goes.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// `server.drain_delay`: from the unready mark to the closing of the listeners.
    pub delay: Duration,
    /// `server.drain_timeout`: what requests in flight have from then on.
    pub timeout: Duration,
}

/// The signals that are listened to.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Catches the signals from now on. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Drains at the first SIGTERM or SIGINT, and ends the process at the second. SIGHUP is passed on to `reload`.
    pub async fn obey(mut self, seam: Arc<Seam>, drain: Drain, reload: mpsc::Sender<()>) {
        let name = self.stop(&reload).await;
        tracing::info!(signal = name, timeout_seconds = drain.timeout.as_secs_f64(), "draining");
        tokio::select! {
            () = run(&seam, drain) => {}
            name = self.stop(&reload) => {
                tracing::warn!(signal = name, "a second signal ends the process at once");
                std::process::exit(0);
            }
        }
        // The workers are ending. One that does not, or a second signal, is not waited for.
        tokio::select! {
            () = tokio::time::sleep(HANGING) => {
                tracing::error!("a worker does not end; the process does");
                std::process::exit(1);
            }
            _ = self.stop(&reload) => std::process::exit(0),
        }
    }

    /// The next signal that asks for an end.
    async fn stop(&mut self, reload: &mpsc::Sender<()>) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                // A full channel says that a reload is asked for already.
                _ = self.hang_up.recv() => { let _ = reload.try_send(()); }
            }
        }
    }
}

/// Readiness first, so that load balancers move on; then the listeners; then, when time is over, whatever is left.
async fn run(seam: &Seam, drain: Drain) {
    seam.advance(Phase::Unready);
    tokio::time::sleep(drain.delay).await;
    seam.advance(Phase::Draining);
    tokio::time::sleep(drain.timeout).await;
    tracing::warn!("the drain's time is over; what is still in flight is cut");
    seam.advance(Phase::Stopping);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_has_its_phases_in_order() {
        let seam = crate::control::build::seam_without_services(1, 1);
        let drain = Drain { delay: Duration::from_secs(5), timeout: Duration::from_secs(30) };
        let running = tokio::spawn({
            let seam = Arc::clone(&seam);
            async move { run(&seam, drain).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(seam.phase(), Phase::Unready);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(seam.phase(), Phase::Draining);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(seam.phase(), Phase::Stopping);
        running.await.expect("no panic");
    }
}
