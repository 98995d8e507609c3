//! A real redis-server of a test's own, on a free port of loopback, that keeps nothing on disk.
#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use port::free_port;

#[path = "port.rs"]
pub mod port;

/// How long anything of a test may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A redis-server; ended when dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    args: Vec<String>,
    /// Where it listens.
    pub port: u16,
    /// What it asks for, if anything.
    password: Option<String>,
    folder: PathBuf,
}

impl RedisServer {
    /// A server with further `args`, such as `["--maxmemory", "2mb"]`, that answers already.
    pub fn start(args: &[&str]) -> RedisServer {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("ringway-redis-{}-{number}", std::process::id()));
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let password = args.windows(2).find(|pair| pair[0] == "--requirepass").map(|pair| pair[1].clone());
        // Somebody may take the port between its choice and its use; another one is chosen then.
        for _ in 0..10 {
            std::fs::create_dir_all(&folder).expect("a folder");
            let port = free_port();
            let child = spawn(port, &folder, &args);
            let mut server =
                RedisServer { child, args: args.clone(), port, password: password.clone(), folder: folder.clone() };
            if server.is_ready() {
                return server;
            }
        }
        panic!("redis-server does not start with {args:?}");
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `redis://` and its address, first database.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Where it listens as well.
    pub fn unix_path(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        // It may have ended by itself; waiting tells.
        let _ = self.child.kill();
        self.child.wait().expect("waited for");
    }

    /// Ends it, and starts it anew on the same port, empty.
    pub fn restart(&mut self) {
        self.kill();
        let start = Instant::now();
        loop {
            self.child = spawn(self.port, &self.folder, &self.args);
            if self.is_ready() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "redis-server does not come back");
        }
    }

    /// Stops it where it is: it takes connections and commands, and answers none until [`resume`](Self::resume).
    pub fn stall(&self) {
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.child.id());
        let start = Instant::now();
        while !std::fs::read_to_string(&stat).expect("it runs").contains(") T ") {
            assert!(start.elapsed() < PATIENCE, "redis-server does not stop");
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        // The shell's own `kill`: a command of that name is not everywhere.
        let status = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &pid]).status();
        assert!(status.expect("a shell").success());
    }

    /// A connection of the test's own, authenticated.
    pub fn connect(&self) -> RedisConnection {
        let mut connection = RedisConnection::open(self.address()).expect("redis-server listens");
        if let Some(password) = &self.password {
            assert_eq!(connection.command(&["AUTH", password]), "+OK");
        }
        connection
    }

    /// A command's reply, as [`RedisConnection::command`] has it.
    pub fn command(&self, parts: &[&str]) -> String {
        self.connect().command(parts)
    }

    fn is_ready(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.child.try_wait().expect("waited for").is_some() {
                return false;
            }
            // Ours has the port once it listens on its own Unix socket as well: before, another server may answer there. One that
            // still loads answers with an error.
            if UnixStream::connect(self.unix_path()).is_ok()
                && let Ok(mut connection) = RedisConnection::open(self.address())
                && connection.command(&["PING"]).starts_with(['+', '-'])
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A plain, blocking connection for a test's own commands.
#[derive(Debug)]
pub struct RedisConnection {
    stream: BufReader<TcpStream>,
}

impl RedisConnection {
    fn open(address: SocketAddr) -> std::io::Result<RedisConnection> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(RedisConnection { stream: BufReader::new(stream) })
    }

    /// Sends a command without waiting for its reply.
    pub fn send(&mut self, parts: &[&str]) {
        let mut out = format!("*{}\r\n", parts.len());
        for part in parts {
            out.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.stream.get_mut().write_all(out.as_bytes()).expect("sent");
    }

    /// The next reply: `+OK`, `:1`, `-ERR …`, a bulk string's content, `(nil)`, an array's elements joined by spaces; empty
    /// when the server closed.
    pub fn reply(&mut self) -> String {
        let mut line = String::new();
        if self.stream.read_line(&mut line).is_err() {
            return String::new();
        }
        let line = line.trim_end();
        let length = || line[1..].parse::<i64>().expect("a length");
        match line.as_bytes().first() {
            Some(b'$') if length() >= 0 => {
                let mut text = vec![0; length() as usize + 2];
                self.stream.read_exact(&mut text).expect("a bulk string");
                text.truncate(text.len() - 2);
                String::from_utf8_lossy(&text).into_owned()
            }
            Some(b'*') if length() >= 0 => (0..length()).map(|_| self.reply()).collect::<Vec<_>>().join(" "),
            Some(b'$' | b'*') => "(nil)".to_owned(),
            _ => line.to_owned(),
        }
    }

    /// Sends a command and waits for its reply.
    pub fn command(&mut self, parts: &[&str]) -> String {
        self.send(parts);
        self.reply()
    }
}

fn spawn(port: u16, folder: &std::path::Path, args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--enable-debug-command", "yes", "--daemonize", "no"])
        .arg("--dir")
        .arg(folder)
        .arg("--unixsocket")
        .arg(folder.join("redis.sock"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("redis-server, the Debian package")
}
