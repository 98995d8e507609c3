//! The command line. What it starts is put together in [`gateway`].

mod gateway;

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use ringway::control::config::{self, Config, Source};
use ringway::control::handover;
use ringway::control::reload::{self, Origin};
use ringway::demo;
use ringway::policy::auth;
use ringway::policy::auth::keys::KeyKind;
use ringway::policy::auth::mint::{self, Mint};

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
                Ok((config, looks)) => report(gateway::run(&config, Some(Origin { source, looks }), |_| {})),
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
    gateway::run(&config, None, |address| print!("{}", demo::welcome(address, &backends, &credentials)))
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
