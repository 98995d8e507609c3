//! The composition root: the one place that knows both planes.
//!
//! configuration → snapshot → listeners → workers → control thread → signals → drain

mod listeners;
mod workers;

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use ringway::control::config::{Config, Driver, Level, Workers};
use ringway::control::handover::{self, Handover};
use ringway::control::publisher::Ingredients;
use ringway::control::registry::book::Book;
use ringway::control::registry::instance::Registered;
use ringway::control::reload::Origin;
use ringway::control::resolve::{self, Resolved};
use ringway::control::{admin, build, notify, registry, thread as control};
use ringway::policy::auth::KeySet;
use ringway::proxy::accept::Sharing;
use ringway::proxy::limiter::SharedLimits;
use ringway::proxy::worker::{Parts, RedisParts};
use ringway::proxy::{accept, descriptors, runtime};
use ringway::redis;
use ringway::snapshot::{Address, Seam};
use ringway::telemetry::counters::{Counters, Shape};
use ringway::telemetry::exposition::{Exposition, Progress};
use ringway::telemetry::labels::Labels;
use ringway::telemetry::reloads::Reloads;
use ringway::telemetry::spans::{self, LostSpans, SpanReceiver, SpanSender};
use ringway::telemetry::{events, log};
use tracing::level_filters::LevelFilter;

use listeners::Listeners;
use workers::Crew;

/// Access-log bytes that may wait in each worker for the log writer: about 2,000 lines.
const LOG_RING_BYTES: usize = 1024 * 1024;

/// How long a stalled standard output may hold up the exit.
const LOG_FLUSH_MAX: Duration = Duration::from_secs(2);

/// Serves until a signal or a failure ends it. `origin` is where the configuration comes from, to be read again when it
/// changes; `ready` is called once the address is bound and every worker runs.
pub fn run(config: &Config, origin: Option<Origin>, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let events = Arc::new(events::init(level(config.level), io::stderr().is_terminal())?);
    let workers = worker_count(config.server.workers);
    let descriptors = descriptors::raise_limit();
    let connections_max = connections_max(config.server.max_connections_per_worker, descriptors, workers)?;
    let driver = driver(config.server.driver);
    let mut inherited = handover::inherit().context("cannot take the listening sockets over")?;
    let given = inherited.as_mut().and_then(|inherited| inherited.management.take());
    let wanted = SocketAddr::new(config.server.host, config.server.port);
    let Listeners { shares, sockets, is_shared, are_inherited, deaf, predecessor } =
        listeners::open(inherited, wanted, workers, config.server.backlog)?;
    let address = sockets.first().context("there is no worker")?.local_addr()?;
    let admin_listener = config.admin.listen.map(|address| listeners::open_admin(address, given)).transpose()?;
    let admin_socket = admin_listener.as_ref().map(TcpListener::try_clone).transpose()?;

    let labels = Arc::new(Labels::new());
    let shape = Shape {
        enabled: config.metrics.enabled,
        buckets: config.metrics.buckets.clone(),
        max_series: config.metrics.max_series,
    };
    let counters: Vec<_> = (0..workers).map(|_| Arc::new(Counters::new(&shape))).collect();
    let (management, management_address) = admin::bind().context("cannot open the management socket")?;
    let (resolved, registered) = look_up(config)?;
    let authenticator = build::authenticator(config, KeySet::default(), 1);
    let first = build::snapshot(
        config,
        &resolved,
        &registered.registered(),
        &authenticator,
        &labels,
        management_address.clone(),
        1,
    );
    let seam = Arc::new(Seam::new(first, workers));

    let (log_senders, log_writer) = log::start(workers, LOG_RING_BYTES, io::stdout())?;
    let (span_senders, span_receivers) = span_rings(if config.tracing.enabled { workers } else { 0 });
    let sharing = match is_shared {
        false => Sharing::Nobody,
        true if sockets.len() < workers => Sharing::Workers,
        true => Sharing::Outside,
    };
    let limits = SharedLimits::new(config.memory_keys);
    let redis = redis_parts(config, &resolved);
    let mut token_key = [0; 16];
    getrandom::fill(&mut token_key).context("the system has no randomness")?;
    let mut spans = span_senders.into_iter();
    let parts = log_senders.into_iter().zip(&counters).enumerate().map(|(index, (log, counters))| Parts {
        index,
        workers,
        seam: Arc::clone(&seam),
        counters: Arc::clone(counters),
        log,
        sharing,
        connections_max,
        pipes_max: descriptors::pipes_per_worker(descriptors, workers),
        limits: limits.clone(),
        redis: redis.clone(),
        token_key,
        spans: spans.next(),
    });
    let crew = Crew::start(parts.zip(shares), driver, config.server.pin)?;
    tracing::info!(
        %address,
        workers,
        driver = crew.infos[0].driver,
        ring_flags = crew.infos[0].flags,
        configuration = %config.origin,
        services = config.services.len(),
        "listening"
    );
    // Only now that hardly anything can fail: whoever is queued on a socket that closes again is reset.
    for socket in &deaf {
        accept::listen(socket, config.server.backlog)?;
    }

    let reloads = Arc::new(Reloads::default());
    let lost_spans = Arc::new(LostSpans::default());
    let control = control::start(control::Parts {
        seam: Arc::clone(&seam),
        driver: crew.infos[0].driver,
        exposition: Exposition::new(
            counters.clone(),
            crew.infos.clone(),
            &shape,
            Arc::clone(&labels),
            Progress { seam: Arc::clone(&seam), reloads: Arc::clone(&reloads), lost_spans: Arc::clone(&lost_spans) },
        ),
        counters,
        management,
        admin_listener,
        ingredients: Ingredients {
            config: config.clone(),
            resolved,
            registered: registered.registered(),
            fetched_keys: KeySet::default(),
            authenticator,
            labels,
            seam: Arc::clone(&seam),
            management_address,
            health: HashMap::new(),
        },
        registered,
        origin,
        handover: Handover::new(sockets, admin_socket, is_shared),
        reloads,
        events,
        spans: span_receivers,
        lost_spans,
    })?;
    crew.adopt_first(&seam)?;
    seam.start();
    if let Some(predecessor) = predecessor
        && predecessor.say_serving(are_inherited).is_err()
    {
        tracing::warn!("the process that handed its sockets over is gone");
    }
    notify::ready();
    ready(address);

    let result = crew.join(&seam);
    tracing::info!("stopped");
    control.stop();
    log_writer.finish(LOG_FLUSH_MAX);
    result
}

fn level(configured: Level) -> LevelFilter {
    match configured {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    }
}

/// What the configuration's names stand for, and those of the instances that Redis knows; and who these are.
fn look_up(config: &Config) -> anyhow::Result<(Resolved, Book)> {
    let resolved = control::block_on(resolve::resolve(config, &Resolved::default()))?;
    let registered = control::block_on(registry::known(config, &resolved))?;
    let plan = resolve::Plan::of(config, &registered.registered());
    let has_more_names = plan != resolve::Plan::of(config, &Registered::default());
    let resolved = if has_more_names { control::block_on(resolve::resolve_plan(plan, &resolved))? } else { resolved };
    for failure in resolved.failures() {
        tracing::warn!(%failure, "a backend's name does not resolve; its service answers 503 until it does");
    }
    Ok((resolved, registered))
}

/// A way for the records of traced requests, for each of so many workers.
fn span_rings(workers: usize) -> (Vec<SpanSender>, Vec<SpanReceiver>) {
    (0..workers).map(|_| spans::channel()).unzip()
}

fn driver(configured: Driver) -> runtime::Driver {
    match configured {
        Driver::Auto => runtime::Driver::Auto,
        Driver::IoUring => runtime::Driver::IoUring,
        Driver::Epoll => runtime::Driver::Epoll,
    }
}

/// What a worker needs to reach Redis, where there is one. One whose name does not resolve yet is looked for where nobody
/// is; its address comes with a later snapshot.
fn redis_parts(config: &Config, resolved: &Resolved) -> Option<RedisParts> {
    let server = config.redis.server.as_ref()?;
    let nowhere = Address::Tcp((Ipv4Addr::LOCALHOST, 0).into());
    let address = build::redis_address(config, resolved).unwrap_or(nowhere);
    let settings = redis::client::Settings {
        username: server.username.as_str().into(),
        password: server.password.clone(),
        database: server.database,
        timeout: config.redis.timeout,
        ..redis::client::Settings::new(address)
    };
    let prefix = config.redis.prefix.as_str().into();
    Some(RedisParts { settings, prefix, on_error: config.redis.on_error, gateway: fastrand::u128(..) })
}

/// `auto` is as many as cores that the process may use, by affinity and by CPU quota.
fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Count(count) => count,
        Workers::Auto => {
            let by_affinity = core_affinity::get_core_ids().map_or(usize::MAX, |cores| cores.len());
            let by_quota = thread::available_parallelism().map_or(1, usize::from);
            by_affinity.min(by_quota).max(1)
        }
    }
}

/// How many clients each worker takes: what is `configured`, or what a limit of so many `descriptors` allows.
///
/// # Errors
/// It does not even allow the workers themselves.
fn connections_max(configured: u32, descriptors: u64, workers: usize) -> anyhow::Result<u32> {
    let least = descriptors::least(workers);
    anyhow::ensure!(
        descriptors >= least,
        "the limit on open files is {descriptors}, and with {workers} workers (server.workers) it must be {least} or more; \
         raise it (LimitNOFILE in systemd, ulimit -n)"
    );
    let possible = descriptors::clients_per_worker(descriptors, workers);
    if possible < configured {
        tracing::warn!(
            descriptors,
            configured,
            possible,
            "the limit on open files allows fewer client connections a worker than server.max_connections_per_worker; \
             raise it (LimitNOFILE in systemd, ulimit -n)"
        );
    }
    Ok(possible.min(configured))
}
