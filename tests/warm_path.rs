//! Invariant 6: a warm keep-alive request allocates nothing on its worker.
//!
//! A worker runs in this process with a counting allocator; a plain client and a plain backend run on other threads, whose
//! allocations are not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use ringway::control::config::Config;
use ringway::control::registry::instance::Registered;
use ringway::control::resolve::Resolved;
use ringway::control::{admin, build};
use ringway::policy::auth::mint::{self, Mint};
use ringway::policy::auth::{self, Algorithm, KeySet};
use ringway::proxy::accept::Sharing;
use ringway::proxy::limiter::SharedLimits;
use ringway::proxy::worker::Parts;
use ringway::proxy::{accept, runtime};
use ringway::snapshot::{Phase, Seam};
use ringway::telemetry::counters::{Counters, Shape};
use ringway::telemetry::labels::Labels;
use ringway::telemetry::{log, spans};

/// Counts the allocations of the threads that ask for it.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers every request on every connection with the same bytes. Requests are counted by their empty lines.
fn backend(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            thread::spawn(move || {
                let mut buf = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buf) {
                    assert!(buf[..read].ends_with(b"\r\n\r\n") || buf[..read].ends_with(b"hello"));
                    if stream.write_all(answer).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn ask(client: &mut TcpStream, request: &[u8], answer_end: &[u8]) {
    client.write_all(request).expect("sent");
    let mut answer = Vec::new();
    let mut buf = [0; 4096];
    while !answer.ends_with(answer_end) {
        let read = client.read(&mut buf).expect("an answer in time");
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buf[..read]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&answer));
}

/// No policy at all.
const OPEN: &str = "auth = \"none\"\nrate_limit = { enabled = false }\n";

/// Every policy: a token, two limits whose windows do not move on during the test, CORS.
const GUARDED: &str = "auth = \"required\"\nrate_limit = { requests = 100000000, window = \"1h\" }\n\
    rate_limits = [{ requests = 150000, window = \"24h\", name = \"daily\" }]\n\
    cors = { enabled = true, allow_origins = [\"https://a.example\"] }\n";

/// What `GUARDED` verifies tokens with.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Allocations that the worker makes for 1,000 warm requests.
fn allocations(driver: runtime::Driver, policy: &str, request: &[u8], answer: &'static [u8], answer_end: &[u8]) -> u64 {
    let toml = format!("[services.a]\nprefix = \"/a\"\nendpoints = [\"http://{}\"]\n{policy}", backend(answer));
    let secret = [("JWT_SECRET_KEY".to_owned(), SECRET.to_owned())];
    let config = Config::from_toml(&toml, "test", &secret, &[]).expect("valid");
    let (_management, management_address) = admin::bind().expect("a socket");
    let authenticator = build::authenticator(&config, KeySet::default(), 1);
    let first = build::snapshot(
        &config,
        &Resolved::default(),
        &Registered::default(),
        &authenticator,
        &Labels::new(),
        management_address,
        1,
    );
    let seam = Arc::new(Seam::new(first, 1));
    seam.start();
    let listener = accept::bind((Ipv4Addr::LOCALHOST, 0).into(), 1, 16).expect("a port").pop().expect("one");
    let address = listener.local_addr().expect("an address");
    let shape = Shape { enabled: true, buckets: config.metrics.buckets, max_series: 1000 };
    let (mut logs, log_writer) = log::start(1, 1 << 20, std::io::sink()).expect("a thread");
    // Nobody empties it: what finds no room is dropped.
    let (spans, _receiver) = spans::channel();
    let parts = Parts {
        sharing: Sharing::Nobody,
        index: 0,
        workers: 1,
        seam: Arc::clone(&seam),
        counters: Arc::new(Counters::new(&shape)),
        log: logs.pop().expect("one"),
        connections_max: 10,
        pipes_max: 1,
        limits: SharedLimits::new(100),
        redis: None,
        token_key: [0; 16],
        spans: Some(spans),
    };
    let worker = thread::spawn(move || runtime::run(parts, vec![listener], None, driver, |_| COUNTED.set(true)));

    let mut client = TcpStream::connect(address).expect("a worker");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    for _ in 0..200 {
        ask(&mut client, request, answer_end);
    }
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..1_000 {
        ask(&mut client, request, answer_end);
    }
    let made = ALLOCATIONS.load(Ordering::SeqCst) - before;
    drop(client);
    seam.advance(Phase::Draining);
    worker.join().expect("no panic").expect("a clean end");
    log_writer.finish(Duration::from_secs(1));
    made
}

/// One test, since the count is the process's.
#[test]
fn a_warm_request_allocates_nothing() {
    const GET: &[u8] = b"GET /a/b?c=d HTTP/1.1\r\nHost: a\r\nUser-Agent: test\r\n\r\n";
    const GET_ODD: &[u8] = b"GET /x/../a/%62 HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n";
    const POST: &[u8] = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    const COUNTED_BODY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nworld";
    const CHUNKED_BODY: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nworld\r\n0\r\n\r\n";
    auth::install();
    let mint = Mint { subject: "alice", scopes: &[], lifetime: 600, issuer: None, audience: None };
    let now = UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let token = mint::mint(&mint, SECRET.as_bytes(), Algorithm::HS256, now).expect("32 bytes");
    let guarded =
        format!("GET /a HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\nAuthorization: Bearer {token}\r\n\r\n");
    for driver in [runtime::Driver::Auto, runtime::Driver::Epoll] {
        for (request, answer, end) in [
            (GET, COUNTED_BODY, &b"world"[..]),
            (GET_ODD, COUNTED_BODY, b"world"),
            (POST, COUNTED_BODY, b"world"),
            (GET, CHUNKED_BODY, b"0\r\n\r\n"),
            (HEALTH, COUNTED_BODY, b"}\n"),
        ] {
            let made = allocations(driver, OPEN, request, answer, end);
            assert_eq!(made, 0, "{driver:?} {:?}", String::from_utf8_lossy(request));
        }
        let made = allocations(driver, GUARDED, guarded.as_bytes(), COUNTED_BODY, b"world");
        assert_eq!(made, 0, "{driver:?}, with every policy");
        // It leads a batch that nobody joins.
        let pipelining = format!("pipelining = 8\n{OPEN}");
        let made = allocations(driver, &pipelining, GET, COUNTED_BODY, b"world");
        assert_eq!(made, 0, "{driver:?}, with pipelining");
        let traced = format!("{OPEN}[tracing]\nenabled = true\nsample = 1.0\n");
        let made = allocations(driver, &traced, GET, COUNTED_BODY, b"world");
        assert_eq!(made, 0, "{driver:?}, traced");
    }
}
