//! Signals, and the drain that they ask for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::handover::{Handover, Successor};
use super::notify;
use crate::snapshot::{Phase, Seam};
use crate::telemetry::events::Events;

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
    quit: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The end; the signal's name.
    Stop(&'static str),
    /// That another process takes over.
    HandOver,
    /// That the configuration is read again.
    Reload,
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
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Drains at the first SIGTERM or SIGINT, and ends the process at the second. At SIGQUIT the next process is started and
    /// given the listening sockets; once it serves, this one drains. SIGHUP is passed on to `reload`.
    pub async fn obey(
        mut self,
        seam: Arc<Seam>,
        drain: Drain,
        mut handover: Handover,
        reload: mpsc::Sender<()>,
        events: Arc<Events>,
    ) {
        let exit = |code| {
            events.finish();
            std::process::exit(code)
        };
        loop {
            match self.next().await {
                Order::Reload => ask(&reload),
                Order::HandOver => {
                    if let Some(successor) = self.hand_over(&handover, &reload).await {
                        if successor.has_sockets {
                            seam.hand_over();
                        }
                        break;
                    }
                }
                Order::Stop(signal) => {
                    tracing::info!(signal, timeout_seconds = drain.timeout.as_secs_f64(), "draining");
                    notify::stopping();
                    break;
                }
            }
        }
        // Where another process has taken over, nobody has asked this one for an end yet.
        let mut is_first = seam.is_handed_over();
        {
            let draining = run(&seam, drain, &mut handover);
            tokio::pin!(draining);
            loop {
                tokio::select! {
                    () = &mut draining => break,
                    signal = self.stop() => {
                        if !std::mem::take(&mut is_first) {
                            tracing::warn!(signal, "a second signal ends the process at once");
                            exit(0);
                        }
                        tracing::info!(signal, "this process drains already");
                    }
                }
            }
        }
        // The workers are ending. One that does not, or a second signal, is not waited for.
        tokio::select! {
            () = tokio::time::sleep(HANGING) => {
                tracing::error!("a worker does not end; the process does");
                exit(1)
            }
            _ = self.stop() => exit(0),
        }
    }

    /// The process that serves now, if another does. An end that is asked for meanwhile is this one's, and ends the other.
    async fn hand_over(&mut self, handover: &Handover, reload: &mpsc::Sender<()>) -> Option<Successor> {
        tracing::info!("SIGQUIT: the next process is started");
        let running = handover.run();
        tokio::pin!(running);
        loop {
            tokio::select! {
                result = &mut running => match result {
                    Ok(successor) => {
                        notify::main_process(successor.pid);
                        tracing::info!(pid = successor.pid, "the next process serves; this one drains");
                        return Some(successor);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the next process does not serve; this one goes on");
                        return None;
                    }
                },
                order = self.next() => match order {
                    Order::Reload => ask(reload),
                    Order::HandOver => tracing::warn!("SIGQUIT: the next process is being started already"),
                    Order::Stop(signal) => {
                        tracing::warn!(signal, "the next process is ended before it serves");
                        self.again(signal);
                        return None;
                    }
                },
            }
        }
    }

    /// Takes a signal that was read for one that is still to come.
    fn again(&self, name: &'static str) {
        let signal = if name == "SIGINT" { rustix::process::Signal::INT } else { rustix::process::Signal::TERM };
        // It is this very process.
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Order::Stop("SIGINT"),
            _ = self.hang_up.recv() => Order::Reload,
            _ = self.quit.recv() => Order::HandOver,
        }
    }

    /// The next signal that asks for an end.
    async fn stop(&mut self) -> &'static str {
        loop {
            if let Order::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}

/// A full channel says that a reload is asked for already.
fn ask(reload: &mpsc::Sender<()>) {
    let _ = reload.try_send(());
}

/// Readiness first, so that load balancers move on; then the listeners; then, when time is over, whatever is left. Where
/// another process has taken over, nobody has to move on.
async fn run(seam: &Seam, drain: Drain, handover: &mut Handover) {
    if !seam.is_handed_over() {
        seam.advance(Phase::Unready);
        tokio::time::sleep(drain.delay).await;
    }
    // Or the sockets would stay open behind the workers' backs, and nobody would accept.
    handover.close();
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
            async move { run(&seam, drain, &mut Handover::new(Vec::new(), None, false)).await }
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
