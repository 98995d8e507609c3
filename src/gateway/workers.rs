//! The workers' threads: how they start, and what their ends mean.

use std::io;
use std::net::TcpListener;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use ringway::proxy::runtime::{self, Driver};
use ringway::proxy::worker::Parts;
use ringway::snapshot::{Phase, Seam};
use ringway::telemetry::exposition::WorkerInfo;

/// Every worker, at work.
pub struct Crew {
    /// What they run on, in their order.
    pub infos: Vec<WorkerInfo>,
    ended: Receiver<io::Result<()>>,
}

impl Crew {
    /// Starts a thread for each of `workers`, with its listeners; each on a core of its own, as far as there are so many, when
    /// `pinned`. Returns when all of them run.
    ///
    /// # Errors
    /// One of them does not.
    pub fn start(
        workers: impl Iterator<Item = (Parts, Vec<TcpListener>)>,
        driver: Driver,
        pinned: bool,
    ) -> anyhow::Result<Crew> {
        let (started_tx, started) = mpsc::channel();
        let (ended_tx, ended) = mpsc::channel();
        let cores = if pinned { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
        let mut count = 0;
        for (parts, listeners) in workers {
            let worker = parts.index;
            let core = (!cores.is_empty()).then(|| cores[worker % cores.len()]);
            let (started, ended) = (started_tx.clone(), ended_tx.clone());
            thread::Builder::new().name(format!("ringway-{worker}")).spawn(move || {
                // The closure goes, and the sender with it, when the worker runs or has failed.
                let result = panic::catch_unwind(AssertUnwindSafe(move || {
                    runtime::run(parts, listeners, core, driver, move |running| {
                        // The receiver is gone when another worker failed to start.
                        let _ = started.send(WorkerInfo { worker, driver: running.driver, flags: running.flags });
                    })
                }));
                let panicked = || Err(io::Error::other("a worker panicked outside of its connections"));
                let _ = ended.send(result.unwrap_or_else(|_| panicked()));
            })?;
            count += 1;
        }
        drop((started_tx, ended_tx));
        let mut infos = Vec::with_capacity(count);
        for _ in 0..count {
            match started.recv() {
                Ok(info) => infos.push(info),
                Err(_) => {
                    return Err(ended.recv()?.err().map_or_else(|| anyhow!("a worker did not start"), Into::into));
                }
            }
        }
        infos.sort_by_key(|info| info.worker);
        Ok(Crew { infos, ended })
    }

    /// Waits until every worker has the first snapshot, or the process is to end.
    ///
    /// # Errors
    /// One of them failed.
    pub fn adopt_first(&self, seam: &Seam) -> anyhow::Result<()> {
        while !seam.all_adopted() && seam.phase() == Phase::Serving {
            if let Ok(Err(error)) = self.ended.recv_timeout(Duration::from_millis(1)) {
                return Err(failed(error));
            }
        }
        Ok(())
    }

    /// Waits for the end of all of them. One that fails takes the others along, since one worker less is not what was asked for:
    /// the process goes, and whoever watches it starts it anew.
    ///
    /// # Errors
    /// Why one of them failed.
    pub fn join(self, seam: &Seam) -> anyhow::Result<()> {
        let mut result = Ok(());
        for ended in self.ended {
            if let Err(error) = ended {
                result = Err(failed(error));
                seam.advance(Phase::Draining);
            }
        }
        result
    }
}

fn failed(error: io::Error) -> anyhow::Error {
    anyhow::Error::from(error).context("a worker failed")
}
