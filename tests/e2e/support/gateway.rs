//! The real binary, started by a test and ended with it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, Response};
use super::{DEADLINE, until};

/// Lines that a process writes, as they come.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<Value>>, Condvar)>);

impl Lines {
    fn follow(&self, source: impl Read + Send + 'static) {
        let lines = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                lines.0.0.lock().expect("no panic").push(value);
                lines.0.1.notify_all();
            }
        });
    }

    /// The first line that `wanted` accepts, waited for.
    pub fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.within(DEADLINE, wanted)
    }

    /// The same, with less patience.
    pub fn within(&self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + patience;
        let mut lines = self.0.0.lock().expect("no panic");
        loop {
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no such line in {lines:#?}");
            lines = self.0.1.wait_timeout(lines, left).expect("no panic").0;
        }
    }

    /// A line that `wanted` accepts behind the first `seen` ones, waited for.
    pub fn wait_for_after(&self, seen: usize, wanted: impl Fn(&Value) -> bool) {
        super::until("the line comes", || self.all().iter().skip(seen).any(&wanted));
    }

    pub fn all(&self) -> Vec<Value> {
        self.0.0.lock().expect("no panic").clone()
    }
}

/// A running gateway.
pub struct Gateway {
    process: Child,
    config: PathBuf,
    server: String,
    /// Who serves since the last upgrade; not our child.
    successor: Mutex<Option<u32>>,
    pub address: SocketAddr,
    /// The access log.
    pub log: Lines,
    /// The gateway's own events.
    pub events: Lines,
}

/// `tables` with `auth = "none"` for each service that says nothing about it: most tests are about something else.
fn open_to_all(tables: &str) -> String {
    let mut open = String::new();
    let mut lines = tables.lines().peekable();
    while let Some(line) = lines.next() {
        open.push_str(line);
        open.push('\n');
        let is_service = line.strip_prefix("[services.").is_some_and(|name| !name.contains('.'));
        let own = lines.clone().take_while(|line| !line.starts_with('['));
        if is_service && !own.into_iter().any(|line| line.starts_with("auth")) {
            open.push_str("auth = \"none\"\n");
        }
    }
    open
}

/// A whole configuration: on loopback, one worker unless `server` says otherwise.
fn configuration(server: &str, tables: &str) -> String {
    let mut toml = String::from("[server]\nhost = \"127.0.0.1\"\nport = 0\n");
    if !server.contains("workers") {
        toml.push_str("workers = 1\n");
    }
    writeln!(toml, "{server}\n{}", open_to_all(tables)).expect("strings take everything");
    // Tests ask and fail as often as they like, unless that is what they are about.
    if !tables.contains("rate_limit") {
        toml.push_str("[rate_limit]\nenabled = false\n");
    }
    if !tables.contains("circuit_breaker") {
        toml.push_str("[circuit_breaker]\nenabled = false\n");
    }
    // Backends see the test's own connections alone, unless checks are what it is about.
    if !tables.contains("health") {
        toml.push_str("[health]\nenabled = false\n");
    }
    toml
}

impl Gateway {
    /// A gateway with one worker and these tables beside `[server]`.
    pub fn start(tables: &str) -> Gateway {
        Gateway::start_with("", tables)
    }

    /// The same, with further lines in `[server]`.
    pub fn start_with(server: &str, tables: &str) -> Gateway {
        Gateway::start_command(Command::new(env!("CARGO_BIN_EXE_ringway")), server, tables)
    }

    /// The same, by a command that ends up running the binary.
    pub fn start_command(mut command: Command, server: &str, tables: &str) -> Gateway {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringway-e2e-{}-{}.toml", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, configuration(server, tables)).expect("a writable folder for temporary files");
        let mut process = command
            .args(["run", "--config"])
            .arg(&path)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (log, events) = (Lines::default(), Lines::default());
        log.follow(process.stdout.take().expect("piped"));
        events.follow(process.stderr.take().expect("piped"));
        let listening = events.wait_for(|event| event["message"] == "listening");
        let address = listening["address"].as_str().expect("a string").parse().expect("an address");
        let gateway = Gateway {
            process,
            config: path,
            server: server.to_owned(),
            successor: Mutex::default(),
            address,
            log,
            events,
        };
        until("the gateway is ready", || gateway.get("/readyz").status == 200);
        gateway
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// See [`Client::connect_small`].
    pub fn connect_small(&self) -> Client {
        Client::connect_small(self.address)
    }

    /// One request on a connection of its own.
    pub fn send(&self, request: impl AsRef<[u8]>) -> Response {
        let mut client = self.connect();
        client.send(request);
        client.response()
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"))
    }

    /// Writes a configuration with these tables, in the place of the old one.
    pub fn write_config(&self, tables: &str) {
        let next = self.config.with_extension("next");
        std::fs::write(&next, configuration(&self.server, tables)).expect("a writable folder");
        std::fs::rename(next, &self.config).expect("the same folder");
    }

    /// The same, and makes the gateway serve it.
    pub fn reload(&self, tables: &str) {
        let applied = || self.metric("api_gateway_config_reload_total{result=\"applied\"}");
        let before = applied();
        self.write_config(tables);
        self.signal("HUP");
        until("the configuration is reloaded", || applied() > before);
    }

    /// Where its configuration is.
    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The process that answers now: after an upgrade, the next one.
    pub fn serving_pid(&self) -> u32 {
        let health: Value = serde_json::from_str(&self.get("/health").text()).expect("JSON");
        health["pid"].as_u64().expect("a number") as u32
    }

    /// Asks the process that answers now for an upgrade, and waits until it is done or refused.
    pub fn upgrade(&self) -> Result<u32, Value> {
        let seen = self.events.all().len();
        let old = *self.successor.lock().expect("no panic").get_or_insert(self.pid());
        signal(old, "QUIT");
        let is_news =
            |event: &Value| event["message"].as_str().is_some_and(|message| message.starts_with("the next process"));
        self.events.wait_for_after(seen, is_news);
        let news = self.events.all().split_off(seen).into_iter().find(is_news).expect("it was just there");
        match news["pid"].as_u64() {
            Some(pid) => {
                *self.successor.lock().expect("no panic") = Some(pid as u32);
                Ok(pid as u32)
            }
            None => Err(news),
        }
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < end, "the gateway does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the process lives").count()
    }

    /// The value of a sample in `/metrics`, 0 when it is not there.
    pub fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(sample));
        line.and_then(|line| line.split_whitespace().nth(1)).map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// The access-log line of the request with this id.
    pub fn logged(&self, request_id: &str) -> Value {
        self.log.wait_for(|line| line["request_id"] == request_id)
    }

    /// The same, which must come soon.
    pub fn logged_within(&self, patience: Duration, request_id: &str) -> Value {
        self.log.within(patience, |line| line["request_id"] == request_id)
    }
}

/// Signals a process of the test's own.
pub fn signal(pid: u32, name: &str) {
    // The shell's own `kill`: a command of that name is not everywhere.
    let status = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &pid.to_string()]).status();
    assert!(status.expect("kill is there").success());
}

/// Whether a process is there, and no zombie.
pub fn is_alive(pid: u32) -> bool {
    let status = match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => status,
        Err(error) if [libc::ENOENT, libc::ESRCH].map(Some).contains(&error.raw_os_error()) => return false,
        Err(error) => panic!("whether {pid} is alive cannot be told: {error}"),
    };
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// The binary with so many descriptors at first, and so many that it may allow itself; for [`Gateway::start_command`].
pub fn with_descriptors(soft: u32, hard: u32) -> Command {
    let mut command = Command::new("/bin/sh");
    let script = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_ringway")]);
    command
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(successor) = self.successor.lock().expect("no panic").filter(|&pid| pid != self.process.id()) {
            signal(successor, "KILL");
        }
        // Ended already, in tests of the end.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.config);
        if thread::panicking() {
            // The panic may well have come while they were looked at.
            let events = self.events.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("the gateway said:");
            events.iter().for_each(|event| eprintln!("  {event}"));
        }
    }
}
