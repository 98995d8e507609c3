//! The gateway does the same on io_uring and on epoll, and finds out which one it may use.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Backend, Gate, Gateway, PatternCheck, pattern, service, until};

/// Starts the rest of its command line in a process that may not use io_uring, as Docker's default profile has it.
const WITHOUT_IO_URING: &str = r#"
import ctypes, os, struct, sys

LOAD_SYSCALL, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7fff0000, 0x00050000 | 1  # EPERM
IO_URING = (425, 426, 427)  # setup, enter, register: the same on every architecture


def instruction(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value)


program = instruction(LOAD_SYSCALL, 0, 0, 0)
for index, number in enumerate(IO_URING):
    program += instruction(JUMP_IF_EQUAL, len(IO_URING) - index, 0, number)
program += instruction(RETURN, 0, 0, ALLOW) + instruction(RETURN, 0, 0, REFUSE)

filter = ctypes.create_string_buffer(program)
prog = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(filter)))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prog, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;

fn without_io_uring() -> Command {
    // The gateway's environment is empty, so that the interpreter is named by its path.
    let path = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().expect("python3");
    let mut command = Command::new(String::from_utf8_lossy(&path.stdout).trim());
    command.args(["-c", WITHOUT_IO_URING, env!("CARGO_BIN_EXE_ringway")]);
    command
}

fn health(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.get("/health").text()).expect("JSON")
}

/// A bit of everything that moves bytes.
fn check_core(gateway: &Gateway, driver: &str) {
    let health = health(gateway);
    assert_eq!((&health["status"], &health["driver"]), (&"healthy".into(), &driver.into()), "{health}");
    let mut client = gateway.connect();
    for index in 0..20 {
        client.send(format!("POST /api/{index} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"));
        assert_eq!(client.response().text(), format!("POST /{index} HTTP/1.1\nhello"));
    }
    // A larger body than any buffer, both ways.
    let body = pattern(0, 1_000_000);
    client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    let answer = client.response();
    let mut check = PatternCheck::default();
    check.take(&answer.body["PUT / HTTP/1.1\n".len()..]);
    assert_eq!(check.length(), body.len() as u64);
    // Deadlines, and refusals.
    client.send("GET /api HTTP/1.1\nHost: a\n\n");
    assert_eq!(client.response().status, 400);
    let mut slow = gateway.connect();
    slow.send("GET /api HTTP/1.1\r\n");
    assert_eq!(slow.response().status, 408);
    assert_eq!(gateway.get("/metrics").status, 200);
}

fn check_tunnel_and_events(gateway: &Gateway, seen: &Gate) {
    let mut client = gateway.connect();
    client.send("GET /live HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    for index in 0..5 {
        assert_eq!(client.chunk().expect("an event"), format!("data: {index}\n\n").as_bytes());
        seen.open();
    }
    client.chunk().expect("the end");
    let mut client = gateway.connect();
    client.send("GET /live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client.finish();
    assert_eq!(client.rest(), b"hello");
}

fn check_all(server: &str, command: Command, driver: &str) {
    let echo = Backend::echo();
    let seen = Gate::default();
    let live = Backend::start({
        let seen = seen.clone();
        move |connection| {
            let request = connection.request()?;
            if request.header("upgrade").is_some() {
                connection
                    .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
                let heard = connection.rest();
                return connection.send(heard);
            }
            connection.send("HTTP/1.1 200 OK\r\n\r\n")?;
            for index in 0..5 {
                connection.send(format!("data: {index}\n\n"))?;
                seen.pass();
            }
            Ok(())
        }
    });
    let tables = "[timeouts]\nheader_read = \"300ms\"\n".to_owned()
        + &service("api", &[echo.url()], "")
        + &service("live", &[live.url()], "");
    let mut gateway = Gateway::start_command(command, server, &tables);
    check_core(&gateway, driver);
    check_tunnel_and_events(&gateway, &seen);
    let listening = gateway.events.wait_for(|event| event["message"] == "listening");
    assert_eq!(listening["driver"], driver, "the log tells which driver runs: {listening}");
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

fn ringway() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringway"))
}

#[test]
fn epoll_serves() {
    check_all("driver = \"epoll\"", ringway(), "epoll");
}

#[test]
fn auto_serves_on_the_best_there_is() {
    // Where io_uring is forbidden, as in many containers, epoll is the best.
    let backend = Backend::echo();
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let driver = health(&gateway)["driver"].as_str().expect("a driver").to_owned();
    drop(gateway);
    check_all("", ringway(), &driver);
}

#[test]
fn auto_falls_back_to_epoll_where_io_uring_is_forbidden() {
    check_all("workers = 2", without_io_uring(), "epoll");
}

#[test]
fn io_uring_alone_does_not_start_where_it_is_forbidden() {
    let path = std::env::temp_dir().join(format!("ringway-e2e-forbidden-{}.toml", std::process::id()));
    std::fs::write(&path, "[server]\nhost = \"127.0.0.1\"\nport = 0\ndriver = \"io_uring\"\n").expect("a file");
    let output = without_io_uring().args(["run", "--config"]).arg(&path).output().expect("the binary runs");
    std::fs::remove_file(path).expect("the file is there");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("io_uring") && said.contains("server.driver"), "{said}");
}

#[test]
fn every_worker_has_its_own_listener() {
    let backend = Backend::echo();
    let gateway = Gateway::start_with("workers = 3", &service("a", &[backend.url()], ""));
    let seen = |worker: usize| {
        (0..200).any(|_| gateway.get("/health").text().contains(&format!("\"worker\":{worker},\"workers\":3")))
    };
    assert!((0..3).all(seen));
}

/// On epoll an operation that is ready does not give up its turn by itself.
#[test]
fn a_busy_client_leaves_others_their_turn() {
    for driver in ["io_uring", "epoll"] {
        let gateway = Gateway::start_with(&format!("driver = \"{driver}\""), "");
        let done = Arc::new(AtomicBool::new(false));
        let mut flooding = gateway.connect();
        let mut sender = flooding.sender();
        let flood = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2_000);
        let (writes, reads) = (Arc::clone(&done), Arc::clone(&done));
        let writer = thread::spawn(move || while !writes.load(Ordering::Relaxed) && sender.try_send(&flood).is_ok() {});
        let reader = thread::spawn(move || while !reads.load(Ordering::Relaxed) && flooding.take(1 << 16).is_ok() {});
        let counted = "api_gateway_requests_total{method=\"GET\",endpoint=\"/health\",status=\"200\"}";
        until("the flood runs", || gateway.metric(counted) > 10_000.0);
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(gateway.get("/livez").status, 200);
            assert!(begun.elapsed() < Duration::from_secs(1), "{driver}: {:?}", begun.elapsed());
        }
        done.store(true, Ordering::Relaxed);
        // Whoever is blocked is so until the gateway is gone.
        drop(gateway);
        writer.join().expect("no panic");
        reader.join().expect("no panic");
    }
}
