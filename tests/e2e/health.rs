//! Active health checks: who leaves balancing, when, and who comes back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::backend::Connection;
use crate::support::{Backend, Gateway, QUIET, free_port, service, until};

/// What a backend does with its checks, in place of a status.
const HANGS: u16 = 0;

/// A backend whose health the test decides.
struct Checked {
    backend: Backend,
    health: Arc<AtomicU16>,
    served: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
}

impl Checked {
    fn start(health: u16) -> Checked {
        Checked::start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"), health)
    }

    fn start_on(listener: TcpListener, health: u16) -> Checked {
        let health = Arc::new(AtomicU16::new(health));
        let [served, checks] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let script = script(&health, &served, &checks);
        Checked { backend: Backend::start_on(listener, script), health, served, checks }
    }

    fn set(&self, health: u16) {
        self.health.store(health, Ordering::SeqCst);
    }

    /// Requests that were none of the checks'.
    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    fn checks(&self) -> usize {
        self.checks.load(Ordering::SeqCst)
    }

    fn instance(&self) -> String {
        self.backend.address.to_string()
    }
}

fn script(
    health: &Arc<AtomicU16>,
    served: &Arc<AtomicUsize>,
    checks: &Arc<AtomicUsize>,
) -> impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static {
    let (health, served, checks) = (Arc::clone(health), Arc::clone(served), Arc::clone(checks));
    move |connection| {
        loop {
            let request = connection.request()?;
            if !request.line().starts_with("GET /healthz ") {
                served.fetch_add(1, Ordering::SeqCst);
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
                continue;
            }
            checks.fetch_add(1, Ordering::SeqCst);
            match health.load(Ordering::SeqCst) {
                HANGS => {
                    connection.rest();
                    return Ok(());
                }
                status => connection.send(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n"))?,
            }
        }
    }
}

/// `api` in front of the backends, checked every second.
fn checked(backends: &[&Checked], health: &str) -> String {
    let urls: Vec<String> = backends.iter().map(|checked| checked.backend.url()).collect();
    let lines = format!("health_path = \"/healthz\"\nhealth = {{ interval = \"1s\", timeout = \"500ms\", {health} }}");
    service("api", &urls, &lines)
}

const UNHEALTHY: &str = "endpoint is unhealthy";
const AGAIN: &str = "endpoint is healthy again";

fn event(gateway: &Gateway, message: &str, instance: &str) -> Value {
    gateway.events.wait_for(|event| event["message"] == message && event["instance"] == instance)
}

fn count(gateway: &Gateway, message: &str) -> usize {
    gateway.events.all().iter().filter(|event| event["message"] == message).count()
}

fn report(gateway: &Gateway, path: &str) -> (u16, Value) {
    let answer = gateway.get(path);
    (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
}

fn ask(gateway: &Gateway, times: usize) {
    let mut client = gateway.connect();
    for _ in 0..times {
        client.send("GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn one_that_fails_leaves_and_returns() {
    let (good, bad) = (Checked::start(200), Checked::start(200));
    let tables = checked(&[&good, &bad], "rise = 2, fall = 2, slow_start = 0");
    let gateway = Gateway::start(&tables);
    until("both are checked", || good.checks() > 0 && bad.checks() > 0);
    let check = bad.backend.requests().remove(0);
    assert_eq!(check.header("host"), Some(bad.instance().as_str()));
    assert_eq!(check.header("user-agent"), Some(concat!("ringway-health/", env!("CARGO_PKG_VERSION"))));
    ask(&gateway, 10);
    assert_eq!((good.served(), bad.served()), (5, 5));

    bad.set(500);
    let left = event(&gateway, UNHEALTHY, &bad.instance());
    assert_eq!((&left["service"], &left["reason"]), (&"api".into(), &"status 500".into()), "{left}");
    ask(&gateway, 10);
    assert_eq!((good.served(), bad.served()), (15, 5));

    let (status, body) = report(&gateway, "/api/v1/services/health");
    assert_eq!((status, &body["status"]), (200, &"healthy".into()), "one is left: {body}");
    let (status, own) = report(&gateway, "/api/v1/services/api/health");
    assert_eq!((status, &own), (200, &body["services"][0]));
    assert_eq!((&own["endpoints_healthy"], &own["endpoints_total"]), (&1.into(), &2.into()), "{own}");
    let one = &own["endpoints"][1];
    let expected: [(&str, Value); 4] = [
        ("instance", bad.instance().into()),
        ("status", "unhealthy".into()),
        ("last_result", "status 500".into()),
        ("consecutive_successes", 0.into()),
    ];
    for (field, value) in expected {
        assert_eq!(one[field], value, "{field} in {one}");
    }
    assert!(one["consecutive_failures"].as_u64() >= Some(2) && one["latency_ms"].as_f64() > Some(0.0), "{one}");
    assert!(one["last_check"].as_str().is_some_and(|at| at.ends_with('Z')), "{one}");

    let metric = |checked: &Checked| {
        gateway.metric(&format!("api_gateway_endpoint_healthy{{service=\"api\",instance=\"{}\"}}", checked.instance()))
    };
    assert_eq!((metric(&good), metric(&bad)), (1.0, 0.0));

    bad.set(204);
    event(&gateway, AGAIN, &bad.instance());
    ask(&gateway, 10);
    assert_eq!((good.served(), bad.served(), metric(&bad)), (20, 10, 1.0));
    assert_eq!((count(&gateway, UNHEALTHY), count(&gateway, AGAIN)), (1, 1), "each change is told once");
}

#[test]
fn one_that_hangs_leaves() {
    let (good, bad) = (Checked::start(200), Checked::start(200));
    let gateway = Gateway::start(&checked(&[&good, &bad], "fall = 1"));
    until("both are checked", || good.checks() > 0 && bad.checks() > 0);
    bad.set(HANGS);
    let left = event(&gateway, UNHEALTHY, &bad.instance());
    assert_eq!(left["reason"], "no answer within 500 ms", "{left}");
    ask(&gateway, 4);
    assert_eq!((good.served(), bad.served()), (4, 0));
}

/// An address where nobody listens, until the test does.
fn nobody() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

#[test]
fn one_that_never_answered_is_out_after_its_first_check() {
    let (good, address) = (Checked::start(200), nobody());
    let urls = [good.backend.url(), format!("http://{address}")];
    let gateway = Gateway::start(&service("api", &urls, "health = { interval = \"1s\", rise = 1, slow_start = 0 }"));
    let left = event(&gateway, UNHEALTHY, &address.to_string());
    assert_eq!(left["reason"], "cannot connect: connection refused", "{left}");
    assert_eq!(left["failures"], 1);
    ask(&gateway, 4);
    assert_eq!(good.checks(), 0, "without health_path a connection is enough");

    let late = Checked::start_on(TcpListener::bind(address).expect("it is still free"), 200);
    event(&gateway, AGAIN, &address.to_string());
    ask(&gateway, 4);
    assert_eq!((good.served(), late.served()), (6, 2));
}

#[test]
fn unix_sockets_are_checked() {
    let path = std::env::temp_dir().join(format!("ringway-e2e-health-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let is_well = Arc::new(AtomicBool::new(true));
    let well = Arc::clone(&is_well);
    Backend::unix(&path, move |connection| {
        let is_check = connection.request()?.line().starts_with("GET /healthz ");
        let status = if is_check && !well.load(Ordering::SeqCst) { 503 } else { 200 };
        connection.send(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
    });
    let instance = format!("unix:{}", path.display());
    let lines = "health_path = \"/healthz\"\nhealth = { interval = \"1s\", fall = 1, rise = 1, panic_threshold = 0 }";
    let gateway = Gateway::start(&service("api", std::slice::from_ref(&instance), lines));
    assert_eq!(gateway.get("/api/x").status, 200);
    is_well.store(false, Ordering::SeqCst);
    event(&gateway, UNHEALTHY, &instance);
    assert_eq!(gateway.get("/api/x").reason(), "no_healthy_endpoint");
    is_well.store(true, Ordering::SeqCst);
    event(&gateway, AGAIN, &instance);
    assert_eq!(gateway.get("/api/x").status, 200);
    std::fs::remove_file(path).expect("the socket is there");
}

#[test]
fn with_too_few_left_all_are_used() {
    let backends = [Checked::start(200), Checked::start(500), Checked::start(500)];
    let all: Vec<&Checked> = backends.iter().collect();
    let gateway = Gateway::start(&checked(&all, "rise = 1"));
    for checked in &backends[1..] {
        event(&gateway, UNHEALTHY, &checked.instance());
    }
    ask(&gateway, 30);
    assert_eq!(all.iter().map(|checked| checked.served()).collect::<Vec<_>>(), [10, 10, 10]);
    let (status, body) = report(&gateway, "/api/v1/services/api/health");
    assert_eq!((status, &body["panic"], &body["status"]), (200, &true.into(), &"healthy".into()), "{body}");
}

#[test]
fn without_a_threshold_nobody_is_left_to_ask() {
    let bad = Checked::start(500);
    let gateway = Gateway::start(&checked(&[&bad], "panic_threshold = 0"));
    event(&gateway, UNHEALTHY, &bad.instance());
    let answer = gateway.get("/api/x");
    assert_eq!((answer.status, answer.reason().as_str()), (503, "no_healthy_endpoint"));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(bad.served(), 0);
    let (status, body) = report(&gateway, "/api/v1/services/health");
    assert_eq!((status, &body["status"], &body["services"][0]["status"]), (503, &"unhealthy".into(), &body["status"]));
}

#[test]
fn a_check_that_fails_now_and_then_changes_nothing() {
    let (good, flapping) = (Checked::start(200), Checked::start(200));
    let gateway = Gateway::start(&checked(&[&good, &flapping], "rise = 1, fall = 2"));
    let generation = || report(&gateway, "/health").1["generation"].clone();
    until("it is checked", || flapping.checks() > 0);
    let before = generation();
    for _ in 0..2 {
        for status in [500, 200] {
            let seen = flapping.checks();
            flapping.set(status);
            until("it is checked again", || flapping.checks() > seen);
        }
    }
    ask(&gateway, 10);
    assert_eq!((good.served(), flapping.served()), (5, 5));
    assert_eq!((generation(), count(&gateway, UNHEALTHY)), (before, 0));
}

#[test]
fn one_that_returns_starts_slowly() {
    for algorithm in ["round_robin", "random"] {
        let (steady, back) = (Checked::start(200), Checked::start(500));
        let mut tables = checked(&[&steady, &back], "rise = 1, slow_start = \"4s\"");
        tables.push_str(&format!("load_balancing = \"{algorithm}\"\n"));
        let gateway = Gateway::start(&tables);
        event(&gateway, UNHEALTHY, &back.instance());
        back.set(200);
        event(&gateway, AGAIN, &back.instance());
        let returned = Instant::now();
        // The part of the requests that it gets while a second passes.
        let part = || {
            let (others, own, end) = (steady.served(), back.served(), Instant::now() + Duration::from_secs(1));
            while Instant::now() < end {
                ask(&gateway, 50);
            }
            let (others, own) = (steady.served() - others, back.served() - own);
            own as f64 / (own + others) as f64
        };
        // The share grows from 0.1 to 0.33 and on to 1, the part of the requests is share / (1 + share).
        let first = part();
        assert!((0.08..0.3).contains(&first), "{algorithm}: {first}");
        let second = part();
        assert!(first < second, "{algorithm}: {first}, {second}");
        thread::sleep(Duration::from_secs(4).saturating_sub(returned.elapsed()));
        let whole = part();
        assert!((0.4..0.6).contains(&whole), "{algorithm}: {whole}");
    }
}

/// A few clients, each on connection after connection, so that every worker has some of them.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<Vec<u16>>>,
}

impl Load {
    fn start(gateway: SocketAddr) -> Load {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = || {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let mut client = crate::support::Client::connect(gateway);
                    for _ in 0..20 {
                        client.send("GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
                        let status = client.response().status;
                        answered.fetch_add(1, Ordering::SeqCst);
                        failed.extend((status != 200).then_some(status));
                    }
                }
                failed
            })
        };
        let clients = (0..6).map(|_| client()).collect();
        Load { stop, answered, clients }
    }

    /// Waits until so many more requests have been answered.
    fn go_on(&self, requests: usize) {
        let target = self.answered.load(Ordering::SeqCst) + requests;
        until("the clients are served", || self.answered.load(Ordering::SeqCst) >= target);
    }

    /// The statuses other than 200.
    fn end(self) -> Vec<u16> {
        self.stop.store(true, Ordering::SeqCst);
        self.clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    }
}

/// The bound that README.md states: interval × 1.1 × fall + timeout, and the request that each worker is in the middle of.
#[test]
fn all_workers_agree_within_the_bound_and_no_request_is_lost() {
    let (good, bad) = (Checked::start(200), Checked::start(200));
    let tables = checked(&[&good, &bad], "fall = 2");
    let gateway = Gateway::start_with("workers = 4\npin = false", &tables);
    until("both are checked", || good.checks() > 0 && bad.checks() > 0);
    let load = Load::start(gateway.address);
    load.go_on(200);
    assert!(bad.served() > 0);

    bad.set(HANGS);
    let began = Instant::now();
    event(&gateway, UNHEALTHY, &bad.instance());
    // What was chosen before the change may still be on its way: each client gets one answer, and nothing more goes there.
    load.go_on(50);
    thread::sleep(QUIET);
    let (last, elapsed) = (bad.served(), began.elapsed());
    // 1.1 s × 2 + 0.5 s, what was just waited, and a second for a machine that is busy.
    let bound = Duration::from_millis(2_700) + QUIET + Duration::from_secs(1);
    assert!(elapsed < bound, "{elapsed:?}");
    load.go_on(2_000);
    assert_eq!(bad.served(), last, "a worker still sends requests there");

    let workers: std::collections::HashSet<String> =
        gateway.log.all().iter().map(|line| line["worker"].to_string()).collect();
    assert!(workers.len() > 1, "several workers have been asked: {workers:?}");
    assert_eq!(load.end(), [0u16; 0], "no request failed");
}

/// A server of its own process; well for as long as its file `healthz` is there.
struct Server {
    process: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl Server {
    fn start() -> Server {
        let folder = std::env::temp_dir().join(format!("ringway-e2e-health-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a writable folder for temporary files");
        for file in ["healthz", "x"] {
            std::fs::write(folder.join(file), "ok").expect("a writable folder");
        }
        let address = nobody();
        let process = Command::new("python3")
            .args(["-m", "http.server", "--protocol", "HTTP/1.1", "--bind", "127.0.0.1", "--directory"])
            .arg(&folder)
            .arg(address.port().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        until("the server listens", || TcpStream::connect(address).is_ok());
        Server { process, folder, address }
    }

    fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it has ended");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = (self.process.kill(), self.process.wait());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn once_it_is_out_it_may_be_killed() {
    let (good, mut server) = (Checked::start(200), Server::start());
    let urls = [good.backend.url(), format!("http://{}", server.address)];
    let lines = "health_path = \"/healthz\"\nhealth = { interval = \"1s\", fall = 1 }";
    let gateway = Gateway::start_with("workers = 2\npin = false", &service("api", &urls, lines));
    let load = Load::start(gateway.address);
    let instance = server.address.to_string();
    gateway.log.wait_for(|line| line["instance"] == *instance);
    std::fs::remove_file(server.folder.join("healthz")).expect("the file is there");
    let left = event(&gateway, UNHEALTHY, &instance);
    assert_eq!(left["reason"], "status 404", "{left}");
    // What was chosen before may still be under way.
    load.go_on(50);
    server.kill();
    load.go_on(2_000);
    assert_eq!(load.end(), [0u16; 0], "no request failed");
}

#[test]
fn services_that_are_not_there_and_that_are_not_checked() {
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let answer = gateway.get("/api/v1/services/nobody/health");
    assert_eq!((answer.status, answer.reason().as_str()), (404, "unknown_service"));
    let (status, body) = report(&gateway, "/api/v1/services/api/health");
    assert_eq!((status, &body["check"], &body["endpoints"][0]["status"]), (200, &"off".into(), &"unknown".into()));
    assert_eq!(gateway.send("POST /api/v1/services/health HTTP/1.1\r\nHost: a\r\n\r\n").status, 405);
    assert_eq!(backend.connections(), 0, "nobody has checked it");
}
