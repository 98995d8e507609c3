//! A worker's thread: its core, its ring, its life from start to drain.

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder, time::TimeDriver};

use super::accept::Acceptor;
use super::multishot;
use super::usher::Usher;
use super::watch::{Registry, TICK};
use super::worker::{Parts, Worker};
use crate::snapshot::Phase;

/// `server.driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// io_uring where the kernel allows it, epoll elsewhere.
    #[default]
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

/// Submission queue entries of a ring.
const RING_ENTRIES: u32 = 1024;

/// Completion queue entries of a ring, 16 bytes each: as many as may be ready in one turn of thousands of busy connections.
/// The kernel allocates a place for each one more.
const COMPLETION_ENTRIES: u32 = 8192;

/// Requests that are cut off when the drain's time is over get so many ticks to say so, and then as many to finish their
/// books.
const CUT_TICKS: u32 = 10;

/// How long the first client waits for the first connection to Redis, at most.
const REDIS_CONNECT_MAX: Duration = Duration::from_secs(1);

/// What `/health` and the metrics call the driver.
pub const IO_URING: &str = "io_uring";

/// A name for a set of ring flags, and what sets them.
type Rung = (&'static str, fn(&mut io_uring::Builder));

/// The flag sets that are tried, best first. The default flags cost a third more per request: completions then interrupt the
/// worker rather than wait for it. `COOP_TASKRUN` has been there since Linux 5.19.
///
/// `DEFER_TASKRUN` costs as much and is unfair under load: at each wait the kernel, since Linux 6.13, runs 20 of the receives that have
/// become ready (IO_LOCAL_TW_DEFAULT_MAX in io_uring.c), while all that find their bytes at once overtake those.
const LADDER: [Rung; 3] = [
    ("coop_taskrun", |ring| {
        ring.setup_coop_taskrun().setup_cqsize(COMPLETION_ENTRIES);
    }),
    // Older kernels want the queue in one piece of memory, which there may not be.
    ("coop_taskrun", |ring| {
        ring.setup_coop_taskrun();
    }),
    ("none", |_| {}),
];

/// What a worker's tasks run on.
enum AnyRuntime {
    IoUring(Runtime<TimeDriver<IoUringDriver>>),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

/// What a worker runs on, once it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// `io_uring` or `epoll`.
    pub driver: &'static str,
    /// The ring's flags; `-` for epoll.
    pub flags: &'static str,
}

/// Runs a worker on the calling thread, with one listener or more, until its drain is over. `started` is told what it runs on before the first client
/// is accepted.
///
/// # Errors
/// No driver that `driver` allows can be had, or the listener cannot be used with it.
pub fn run(
    parts: Parts,
    listeners: Vec<TcpListener>,
    core: Option<core_affinity::CoreId>,
    driver: Driver,
    started: impl FnOnce(Running),
) -> io::Result<()> {
    if let Some(core) = core {
        // A core that was taken away since it was listed: the scheduler places the worker, then.
        core_affinity::set_for_current(core);
    }
    let (runtime, running) = build(driver)?;
    started(running);
    let main = serve(parts, listeners, running);
    match runtime {
        AnyRuntime::IoUring(mut runtime) => runtime.block_on(main),
        AnyRuntime::Epoll(mut runtime) => runtime.block_on(main),
    }
}

/// Climbs down the ladder until something holds.
fn build(driver: Driver) -> io::Result<(AnyRuntime, Running)> {
    let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
    if driver != Driver::Epoll {
        for (flags, apply) in LADDER {
            let mut ring = io_uring::IoUring::builder();
            apply(&mut ring);
            let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES).uring_builder(ring);
            match builder.enable_timer().build() {
                Ok(runtime) => return Ok((AnyRuntime::IoUring(runtime), Running { driver: IO_URING, flags })),
                Err(error) => refusal = error,
            }
        }
    }
    if driver == Driver::IoUring {
        let text = format!("io_uring is not available here ({refusal}); set server.driver to \"auto\" or \"epoll\"");
        return Err(io::Error::new(refusal.kind(), text));
    }
    let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    Ok((AnyRuntime::Epoll(runtime), Running { driver: "epoll", flags: "-" }))
}

async fn serve(parts: Parts, listeners: Vec<TcpListener>, running: Running) -> io::Result<()> {
    let sharing = parts.sharing;
    let gateway = parts.redis.as_ref().map(|redis| redis.gateway);
    let worker = Rc::new(Worker::new(parts, running.driver, running.flags));
    if let Some(gateway) = gateway {
        // Before the first client: limits that this process would count alone meanwhile are not global.
        worker.limiter.connected(REDIS_CONNECT_MAX).await;
        if worker.index == 0 {
            let worker = Rc::clone(&worker);
            monoio::spawn(async move {
                if let Some(redis) = worker.limiter.redis() {
                    redis.beat(gateway, worker.limiter.gateways()).await;
                }
            });
        }
    }
    monoio::spawn(Rc::clone(&worker.batches).start());
    let _receives = multishot::install();
    monoio::spawn(multishot::tend());
    let is_epoll = running.driver != IO_URING;
    if is_epoll {
        let (usher, ushering) = Usher::new()?;
        monoio::spawn(ushering);
        worker.take_turns(usher);
    }
    let listening = Rc::new(Cell::new(listeners.len()));
    for listener in listeners {
        let acceptor = Acceptor::new(listener, sharing, is_epoll)?;
        let (worker, listening) = (Rc::clone(&worker), Rc::clone(&listening));
        monoio::spawn(async move {
            acceptor.run(&worker).await;
            listening.set(listening.get() - 1);
        });
    }
    // The heartbeat, until the drain is over: nobody left, or no time left.
    while worker.seam.phase() < Phase::Stopping {
        monoio::time::sleep(TICK).await;
        worker.tick();
        if listening.get() == 0 && worker.connections() == 0 {
            return Ok(());
        }
    }
    for end in [Registry::stop, Registry::reset_all] {
        end(&worker.registry);
        for _ in 0..CUT_TICKS {
            if worker.connections() == 0 {
                return Ok(());
            }
            monoio::time::sleep(TICK).await;
            worker.tick();
        }
    }
    Ok(())
}
