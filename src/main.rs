//! The command line and the composition root: the one place that knows both planes.
//!
//! configuration → snapshot → listeners → workers → control thread → signals → drain

use std::collections::HashMap;
use std::io::{self, IsTerminal, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use ringway::control::config::{self, Config, Driver, Level, Source, Workers};
use ringway::control::handover::{self, Handover, Inherited, Predecessor};
use ringway::control::publisher::Ingredients;
use ringway::control::registry::instance::Registered;
use ringway::control::reload::{self, Origin};
use ringway::control::{admin, build, notify, registry, resolve, thread as control};
use ringway::demo;
use ringway::policy::auth::keys::KeyKind;
use ringway::policy::auth::mint::{self, Mint};
use ringway::policy::auth::{self, KeySet};
use ringway::proxy::limiter::SharedLimits;
use ringway::proxy::worker::{Parts, RedisParts};
use ringway::proxy::{accept, descriptors, runtime};
use ringway::redis;
use ringway::snapshot::{Address, Phase, Seam};
use ringway::telemetry::counters::{Counters, Shape};
use ringway::telemetry::exposition::{Exposition, Progress, WorkerInfo};
use ringway::telemetry::labels::Labels;
use ringway::telemetry::reloads::Reloads;
use ringway::telemetry::spans::{self, LostSpans, SpanReceiver, SpanSender};
use ringway::telemetry::{events, log};
use tracing::level_filters::LevelFilter;

/// Connections that the kernel queues for the management endpoints' own listener.
const ADMIN_BACKLOG: u32 = 128;

/// Access-log bytes that may wait in each worker for the log writer: about 2,000 lines.
const LOG_RING_BYTES: usize = 1024 * 1024;

/// How long a stalled standard output may hold up the exit.
const LOG_FLUSH_MAX: Duration = Duration::from_secs(2);

/// Exit codes of the contract.
const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = "ringway", version = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("BUILD_COMMIT"), ")"))]
#[command(about = "A thread-per-core API gateway on io_uring", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
    /// Validate the configuration and exit, like `ringway check`
    #[arg(short = 't', long = "test")]
    test: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the default)
    Run(RunArgs),
    /// Validate the configuration: exit 0 and a summary, or 2 and every error
    #[command(alias = "validate")]
    Check(RunArgs),
    /// Serve sample auth, sms and llm backends through the gateway, and print curl lines to try
    Demo {
        /// The port to listen on
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Make a token for development, signed with the configured secret
    Token {
        /// Whose token it is
        #[arg(long, value_name = "SUBJECT")]
        sub: String,
        /// How long it is good for: 30s, 15m, 1h …
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        exp: String,
        /// What it allows, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "SCOPES")]
        scope: Vec<String>,
        /// The configuration file [default: ./config.toml, and the built-in defaults when there is none]
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Read an API key on standard input, print the hash that goes into the configuration
    HashKey,
    /// Ask a running gateway how it is: exit 0 when it answers healthy
    Health {
        /// What to ask [default: /health at the address that ./config.toml and the environment name]
        #[arg(long)]
        url: Option<String>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration file [default: ./config.toml, and the built-in defaults when there is none]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// The address to listen on, over the configuration's
    #[arg(long)]
    host: Option<String>,
    /// The port to listen on, over the configuration's
    #[arg(long)]
    port: Option<u16>,
}

impl RunArgs {
    fn source(&self) -> Source {
        let mut overrides = Vec::new();
        overrides.extend(self.host.iter().map(|host| ("server.host".to_owned(), host.clone())));
        overrides.extend(self.port.iter().map(|port| ("server.port".to_owned(), port.to_string())));
        Source { path: self.config.clone(), environment: config::environment(), overrides }
    }
}

fn main() -> ExitCode {
    handover::close_strays();
    auth::install();
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(if cli.test { Command::Check(cli.run) } else { Command::Run(cli.run) });
    match command {
        Command::Check(args) => check(&args.source()),
        Command::Health { url } => health(&url.unwrap_or_else(own_health_url)),
        Command::Run(args) => {
            let source = args.source();
            match reload::load(&source) {
                Ok((config, looks)) => report(run(&config, Some(Origin { source, looks }), |_| {})),
                Err(errors) => refuse(&errors),
            }
        }
        Command::Demo { port } => report(run_demo(port)),
        Command::Token { sub, exp, scope, config } => {
            let source = Source { path: config, environment: config::environment(), overrides: Vec::new() };
            match config::load(&source) {
                Ok(config) => print(token(&config, &sub, &exp, &scope)),
                Err(errors) => refuse(&errors),
            }
        }
        Command::HashKey => print(hash_key()),
    }
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringway: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Prints what was asked for; what stands in the way is bad usage.
fn print(result: anyhow::Result<String>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ringway: {error:#}");
            ExitCode::from(BAD_USAGE)
        }
    }
}

/// `ringway token`.
fn token(config: &Config, subject: &str, lifetime: &str, scopes: &[String]) -> anyhow::Result<String> {
    let auth = &config.auth;
    let secret =
        auth.secret.as_ref().context("there is no secret to sign with; set JWT_SECRET_KEY (auth.jwt.secret)")?;
    let hmac = auth.algorithms.iter().find(|algorithm| KeyKind::Secret.algorithms().contains(algorithm));
    let algorithm = *hmac.context("auth.jwt.algorithms names none of HS256, HS384 and HS512")?;
    let lifetime = config::parse_duration(lifetime).filter(|lifetime| lifetime.as_secs() > 0);
    let mint = Mint {
        subject,
        scopes,
        lifetime: lifetime.context("--exp must be a duration of at least a second, such as 30s, 15m or 1h")?.as_secs(),
        issuer: auth.rules.issuers.first().map(String::as_str),
        audience: auth.rules.audiences.first().map(String::as_str),
    };
    if let Err(error) =
        auth::Identity::new(auth::AuthMethod::Jwt, subject, scopes.iter().map(String::as_str), None, None)
    {
        return Err(error.into());
    }
    Ok(mint::mint(&mint, secret.expose().as_bytes(), algorithm, unix_seconds())?)
}

/// `ringway hash-key`.
fn hash_key() -> anyhow::Result<String> {
    let mut key = String::new();
    io::stdin().lock().take(4_096).read_to_string(&mut key).context("standard input is no text")?;
    Ok(auth::api_key::hash_key(key.trim_end_matches(['\r', '\n']).as_bytes())?)
}

fn unix_seconds() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

fn refuse(errors: &config::ConfigErrors) -> ExitCode {
    eprintln!("{errors}");
    ExitCode::from(BAD_USAGE)
}

fn check(source: &Source) -> ExitCode {
    match config::load(source) {
        Ok(config) => {
            println!("{}", config.summary());
            ExitCode::SUCCESS
        }
        Err(errors) => refuse(&errors),
    }
}

/// Starts the sample backends and a gateway in front of them.
fn run_demo(port: u16) -> anyhow::Result<()> {
    let backends = demo::start().context("the sample backends did not start")?;
    let mut random = [0; 56];
    getrandom::fill(&mut random).context("the system has no randomness")?;
    let credentials = demo::Credentials::new(random, unix_seconds());
    let toml = demo::config(&backends, &credentials, port);
    let config =
        Config::from_toml(&toml, "the demo's configuration", &[], &[]).map_err(|errors| anyhow!("{errors}"))?;
    run(&config, None, |address| print!("{}", demo::welcome(address, &backends, &credentials)))
}

/// Serves until a signal or a failure ends it. `origin` is where the configuration comes from, to be read again when it
/// changes; `ready` is called once the address is bound and every worker runs.
fn run(config: &Config, origin: Option<Origin>, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let events = Arc::new(events::init(
        match config.level {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
        },
        io::stderr().is_terminal(),
    )?);
    let workers = worker_count(config.server.workers);
    let connections_max = connections_max(config.server.max_connections_per_worker, workers);
    let address = SocketAddr::new(config.server.host, config.server.port);
    let driver = driver(config.server.driver);
    let is_epoll = runtime::is_epoll(driver);
    let mut inherited = handover::inherit().context("cannot take the listening sockets over")?;
    let given = inherited.as_mut().and_then(|inherited| inherited.management.take());
    let Listeners { shares, sockets, is_shared, are_inherited, deaf, predecessor } =
        listeners(inherited, address, is_epoll, workers, config.server.backlog)?;
    let address = sockets.first().context("there is no worker")?.local_addr()?;
    let admin_listener = match config.admin.listen {
        Some(address) => Some(admin_listener(address, given)?),
        None => None,
    };
    let admin_socket = admin_listener.as_ref().map(TcpListener::try_clone).transpose()?;

    let labels = Arc::new(Labels::new());
    let shape = Shape {
        enabled: config.metrics.enabled,
        buckets: config.metrics.buckets.clone(),
        max_series: config.metrics.max_series,
    };
    let counters: Vec<_> = (0..workers).map(|_| Arc::new(Counters::new(&shape))).collect();
    let (management, management_address) = admin::bind().context("cannot open the management socket")?;
    let resolved = control::block_on(resolve::resolve(config, &resolve::Resolved::default()))?;
    let registered = control::block_on(registry::known(config, &resolved))?;
    let plan = resolve::Plan::of(config, &registered.registered());
    let has_more_names = plan != resolve::Plan::of(config, &Registered::default());
    let resolved = if has_more_names { control::block_on(resolve::resolve_plan(plan, &resolved))? } else { resolved };
    for failure in resolved.failures() {
        tracing::warn!(%failure, "a backend's name does not resolve; its service answers 503 until it does");
    }
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
    let (senders, log_writer) = log::start(workers, LOG_RING_BYTES, io::stdout())?;

    let limits = SharedLimits::new(config.memory_keys);
    let redis = redis_parts(config, &resolved);
    let mut token_key = [0; 16];
    getrandom::fill(&mut token_key).context("the system has no randomness")?;
    let (span_senders, span_receivers) = span_rings(if config.tracing.enabled { workers } else { 0 });
    let mut span_senders = span_senders.into_iter();
    let (started_tx, started) = mpsc::channel();
    let (ended_tx, ended) = mpsc::channel();
    let cores = if config.server.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
    for ((index, listeners), log) in shares.into_iter().enumerate().zip(senders) {
        let parts = Parts {
            index,
            workers,
            seam: Arc::clone(&seam),
            counters: Arc::clone(&counters[index]),
            log,
            listens_on_shared: is_shared,
            connections_max,
            limits: limits.clone(),
            redis: redis.clone(),
            token_key,
            spans: span_senders.next(),
        };
        let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
        let (started, ended) = (started_tx.clone(), ended_tx.clone());
        thread::Builder::new().name(format!("ringway-{index}")).spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime::run(parts, listeners, core, driver, |running| {
                    // The receiver is gone when another worker failed to start.
                    let _ = started.send((index, running));
                })
            }));
            let result =
                result.unwrap_or_else(|_| Err(io::Error::other("a worker panicked outside of its connections")));
            let _ = ended.send(result);
        })?;
    }
    drop((started_tx, ended_tx));

    let mut infos: Vec<WorkerInfo> = Vec::with_capacity(workers);
    for _ in 0..workers {
        match started.recv() {
            Ok((worker, running)) => infos.push(WorkerInfo { worker, driver: running.driver, flags: running.flags }),
            Err(_) => return Err(ended.recv()?.err().map_or_else(|| anyhow!("a worker did not start"), Into::into)),
        }
    }
    infos.sort_by_key(|info| info.worker);
    tracing::info!(
        %address,
        workers,
        driver = infos[0].driver,
        ring_flags = infos[0].flags,
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
        driver: infos[0].driver,
        exposition: Exposition::new(
            counters.clone(),
            infos,
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
    while !seam.all_adopted() && seam.phase() == Phase::Serving {
        // A worker that fails instead is heard of below.
        if let Ok(Err(error)) = ended.recv_timeout(Duration::from_millis(1)) {
            return Err(anyhow::Error::from(error).context("a worker failed"));
        }
    }
    seam.start();
    if let Some(predecessor) = predecessor
        && predecessor.say_serving(are_inherited).is_err()
    {
        tracing::warn!("the process that handed its sockets over is gone");
    }
    notify::ready();
    ready(address);

    let mut result = Ok(());
    for _ in 0..workers {
        if let Err(error) = ended.recv().unwrap_or(Ok(())) {
            // One worker less is not what was asked for: the process goes, and whoever watches it starts it anew.
            result = Err(anyhow::Error::from(error).context("a worker failed"));
            seam.advance(Phase::Draining);
        }
    }
    tracing::info!("stopped");
    control.stop();
    log_writer.finish(LOG_FLUSH_MAX);
    result
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

/// Where clients come in.
struct Listeners {
    /// Each worker's own.
    shares: Vec<Vec<TcpListener>>,
    /// Every socket once.
    sockets: Vec<TcpListener>,
    is_shared: bool,
    /// Whether they were given to this process.
    are_inherited: bool,
    /// Those that are still to listen.
    deaf: Vec<TcpListener>,
    predecessor: Option<Predecessor>,
}

/// The sockets that this process was given, where they fit, or else its own.
fn listeners(
    inherited: Option<Inherited>,
    address: SocketAddr,
    is_epoll: bool,
    workers: usize,
    backlog: u32,
) -> anyhow::Result<Listeners> {
    let (fitting, predecessor) = match inherited {
        Some(inherited) if inherited.fits(address, is_epoll) => (Some(inherited), None),
        Some(Inherited { predecessor, .. }) => {
            tracing::warn!(%address, "the address or the driver is another one: the sockets of the process before are not used");
            (None, predecessor)
        }
        None => (None, None),
    };
    let Some(Inherited { mut sockets, is_shared, predecessor: own, .. }) = fitting else {
        // Beside the process before, which still listens, the address may well be in use.
        let bound = match predecessor {
            Some(_) => (0..workers).map(|_| accept::bind_another(address)).collect(),
            None => accept::bind(address, workers, backlog),
        };
        let sockets: Vec<TcpListener> = bound.with_context(|| {
            format!("cannot listen on {address}; free the address or set server.host and server.port (HOST, PORT)")
        })?;
        let shares = handover::share_out(&sockets, workers, || Ok(None))?;
        let deaf = if predecessor.is_some() { clones(&sockets)? } else { Vec::new() };
        return Ok(Listeners { shares, sockets, is_shared: false, are_inherited: false, deaf, predecessor });
    };
    let at = sockets.first().context("there is no socket")?.local_addr()?;
    let mut opened = Vec::new();
    let shares = handover::share_out(&sockets, workers, || {
        if is_shared {
            return Ok(None);
        }
        let socket = accept::bind_another(at)?;
        opened.push(socket.try_clone()?);
        Ok(Some(socket))
    })?;
    let deaf = clones(&opened)?;
    sockets.append(&mut opened);
    Ok(Listeners { shares, sockets, is_shared, are_inherited: true, deaf, predecessor: own })
}

/// Where management requests come in by themselves: the socket of the process before, where it fits.
fn admin_listener(address: SocketAddr, given: Option<TcpListener>) -> anyhow::Result<TcpListener> {
    let bound = match given {
        Some(socket) if handover::is_at(&socket, address) => Ok(socket),
        // It may be open to the same port still, at another of its addresses.
        Some(_) => {
            accept::bind_another(address).and_then(|socket| accept::listen(&socket, ADMIN_BACKLOG).map(|()| socket))
        }
        None => accept::bind(address, 1, ADMIN_BACKLOG)
            .and_then(|mut sockets| sockets.pop().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))),
    };
    let listener =
        bound.with_context(|| format!("cannot listen on {address}; free the address or set admin.listen"))?;
    tracing::info!(address = %listener.local_addr()?, "the management endpoints listen here");
    Ok(listener)
}

fn clones(sockets: &[TcpListener]) -> io::Result<Vec<TcpListener>> {
    sockets.iter().map(TcpListener::try_clone).collect()
}

/// What a worker needs to reach Redis, where there is one. One whose name does not resolve yet is looked for where nobody
/// is; its address comes with a later snapshot.
fn redis_parts(config: &Config, resolved: &resolve::Resolved) -> Option<RedisParts> {
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

/// How many clients each worker takes: what is `configured`, or what the descriptor limit allows.
fn connections_max(configured: u32, workers: usize) -> u32 {
    let descriptors = descriptors::raise_limit();
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
    possible.min(configured)
}

/// Where a gateway with this working directory and environment answers `/health`.
fn own_health_url() -> String {
    let source = Source { environment: config::environment(), ..Source::default() };
    let server = config::load_server(&source);
    let host = match server.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    format!("http://{}/health", SocketAddr::new(host, server.port))
}

/// `ringway health`.
fn health(url: &str) -> ExitCode {
    match ask(url) {
        Ok(body) => {
            println!("{}", body.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ringway: not healthy: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn ask(url: &str) -> anyhow::Result<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
    let mut answer = agent.get(url).call().with_context(|| format!("GET {url}"))?;
    Ok(answer.body_mut().read_to_string()?)
}
