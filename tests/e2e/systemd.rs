//! Started, told and watched as systemd does it.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::gateway::is_alive;
use crate::support::{Client, DEADLINE, Gateway, until};

/// Starts the rest of its command line with a listening socket at descriptor 3, as sd_listen_fds(3) has it.
const ACTIVATE: &str = r#"
import os, sys
source = int(sys.argv[1])
os.dup2(source, 3)
os.set_inheritable(3, True)
os.environ["LISTEN_FDS"] = "1"
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"#;

/// Runs a command line of ours with further variables: the support clears the environment.
fn with(variables: &[(&str, &str)], prefix: &str) -> Command {
    // Of the watchdog's variables one names the process; `exec` keeps its id.
    let variables: String = variables.iter().map(|(name, value)| format!("export {name}=\"{value}\"; ")).collect();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{variables} exec {prefix} \"$0\" \"$@\""), env!("CARGO_BIN_EXE_ringway")]);
    command
}

/// Where a service manager listens.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new() -> Manager {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringway-notify-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let socket = UnixDatagram::bind(&path).expect("a writable folder");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Manager { socket, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("text")
    }

    /// The next message, watchdog pings aside.
    fn next(&self) -> String {
        loop {
            let message = self.any();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// Reads away what has come already.
    fn forget(&self) {
        self.socket.set_nonblocking(true).expect("a socket");
        while self.socket.recv(&mut [0; 4_096]).is_ok() {}
        self.socket.set_nonblocking(false).expect("a socket");
    }

    fn any(&self) -> String {
        let mut buf = [0; 4_096];
        let length = self.socket.recv(&mut buf).expect("a message");
        String::from_utf8(buf[..length].to_vec()).expect("text").trim_end().to_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn who_was_queued_before_the_start_is_answered() {
    for workers in [1, 2] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut early = Client::from(TcpStream::connect(address).expect("the queue has room"));
        early.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        let descriptor = rustix_descriptor(&listener);
        let mut gateway = Gateway::start_command(
            with(&[], &format!("python3 -c '{ACTIVATE}' {descriptor}")),
            &format!("workers = {workers}"),
            "",
        );
        assert_eq!(gateway.address, address, "the socket's own, whatever the configuration says");
        assert_eq!(early.response().status, 200);
        // It is systemd's socket: after the end it is as it was.
        gateway.signal("TERM");
        let status = gateway.wait_exit();
        assert!(status.success(), "{status}");
        TcpStream::connect_timeout(&address, DEADLINE).expect("the queue has room");
    }
}

/// Whether calls on a socket block holds for all who have it, and systemd makes them block for each process that it starts with it.
#[test]
fn what_others_make_of_the_socket_holds_no_worker_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let activate = format!("python3 -c '{ACTIVATE}' {}", rustix_descriptor(&listener));
    for driver in ["io_uring", "epoll"] {
        let server = format!("workers = 1\ndriver = \"{driver}\"");
        let mut gateway = Gateway::start_command(with(&[], &activate), &server, "");
        listener.set_nonblocking(false).expect("a socket");
        for _ in 0..2 {
            let mut client = gateway.connect();
            client.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status, 200, "{driver}");
        }
        gateway.signal("TERM");
        assert!(gateway.wait_exit().success());
    }
}

/// The listener's descriptor, inheritable under another number.
fn rustix_descriptor(listener: &TcpListener) -> i32 {
    use std::os::fd::{AsRawFd, IntoRawFd};
    // A duplicate that survives the exec: the standard library makes all others close.
    let duplicate = rustix::io::dup(listener).expect("a descriptor");
    assert_ne!(duplicate.as_raw_fd(), 3);
    duplicate.into_raw_fd()
}

#[test]
fn the_service_manager_hears_of_every_step() {
    let manager = Manager::new();
    let mut gateway = Gateway::start_command(with(&[("NOTIFY_SOCKET", manager.path())], ""), "", "");
    assert_eq!(manager.next(), "READY=1");
    gateway.reload("");
    let reloading = manager.next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(manager.next(), "READY=1");
    let next = gateway.upgrade().expect("the next process serves");
    // The two processes speak for themselves, in any order.
    let mut both = [manager.next(), manager.next()];
    both.sort();
    assert_eq!(both, [format!("MAINPID={next}"), "READY=1".to_owned()]);
    until("the old process is gone", || !is_alive(gateway.pid()));
    crate::support::gateway::signal(next, "TERM");
    assert_eq!(manager.next(), "STOPPING=1");
    assert!(gateway.wait_exit().success());
}

#[test]
fn a_worker_that_hangs_starves_the_watchdog() {
    let manager = Manager::new();
    let variables = [("NOTIFY_SOCKET", manager.path()), ("WATCHDOG_USEC", "400000"), ("WATCHDOG_PID", "$$")];
    let gateway = Gateway::start_command(with(&variables, ""), "workers = 2", "");
    for _ in 0..3 {
        while manager.any() != "WATCHDOG=1" {}
    }
    // One thread of it is held, as a hanging worker is.
    let worker = worker_thread(gateway.pid());
    let held = Command::new("python3").args(["-c", HOLD, &worker.to_string(), "3"]).spawn();
    let mut held = held.expect("python3 is there");
    gateway.events.wait_for(|event| event["message"] == "a worker hangs; the watchdog is not fed");
    assert!(held.wait().expect("a child").success());
    let begun = Instant::now();
    while manager.any() != "WATCHDOG=1" {}
    assert!(begun.elapsed() < Duration::from_secs(10), "it is fed again");
    // The next process feeds it in its turn.
    gateway.upgrade().expect("the next process serves");
    until("the old process is gone", || !is_alive(gateway.pid()));
    manager.forget();
    while manager.any() != "WATCHDOG=1" {}
}

/// Stops one thread for so many seconds (ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT).
const HOLD: &str = r#"
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
thread = int(sys.argv[1])
assert libc.ptrace(SEIZE, thread, None, None) == 0, ctypes.get_errno()
assert libc.ptrace(INTERRUPT, thread, None, None) == 0
libc.waitpid(thread, None, 0x40000000)
time.sleep(float(sys.argv[2]))
assert libc.ptrace(DETACH, thread, None, None) == 0
"#;

/// The thread of the first worker.
fn worker_thread(pid: u32) -> u32 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    tasks
        .map(|task| task.expect("an entry").path())
        .find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "ringway-0"))
        .and_then(|task| task.file_name()?.to_str()?.parse().ok())
        .expect("a worker")
}
