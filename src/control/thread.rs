//! The control thread: started once the workers run, stopped once they have ended.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::admin::{self, Management};
use super::config::Config;
use super::discovery::Discovery;
use super::resolve::Resolved;
use super::signals;
use crate::snapshot::{Address, Seam};
use crate::telemetry::exposition::Exposition;
use crate::telemetry::labels::Labels;

/// What the control plane is made of.
#[derive(Debug)]
pub struct Parts {
    /// What the workers read.
    pub seam: Arc<Seam>,
    /// The names of routes and endpoints.
    pub labels: Arc<Labels>,
    /// What `/metrics` shows.
    pub exposition: Exposition,
    /// The socket that the workers forward management requests to.
    pub management: Management,
    /// Its address, for every snapshot.
    pub management_address: Address,
    /// The configuration that is served.
    pub config: Config,
    /// The addresses that the first snapshot was built with.
    pub resolved: Resolved,
}

/// The running control plane.
#[derive(Debug)]
pub struct ControlThread {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// Starts the control thread.
///
/// # Errors
/// No thread, no runtime, or no signal handler can be had.
pub fn start(parts: Parts) -> io::Result<ControlThread> {
    let runtime = runtime()?;
    let (stop, stopped) = oneshot::channel();
    // Before any client is told that the gateway is ready: a signal that comes early must not kill it unseen.
    let signals = {
        let _entered = runtime.enter();
        signals::Signals::listen()?
    };
    let thread = std::thread::Builder::new().name("ringway-control".into()).spawn(move || {
        runtime.block_on(async {
            let Parts { seam, labels, exposition, management, management_address, config, resolved } = parts;
            let drain = signals::Drain { delay: config.server.drain_delay, timeout: config.server.drain_timeout };
            tokio::spawn(signals.obey(Arc::clone(&seam), drain));
            tokio::spawn(admin::serve(management, exposition));
            tokio::spawn(Discovery { config, resolved, labels, seam, management_address }.keep_resolving());
            // An error says that the other end is gone, which means the same.
            let _ = stopped.await;
        });
    })?;
    Ok(ControlThread { thread, stop })
}

impl ControlThread {
    /// Ends the control plane's tasks and waits for them.
    pub fn stop(self) {
        // The thread may have ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Runs `future` to its end on a runtime of its own, for what must be known before the control thread starts.
///
/// # Errors
/// No runtime can be had.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(runtime()?.block_on(future))
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
