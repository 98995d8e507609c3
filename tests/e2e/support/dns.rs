//! A real DNS server (NSD) of a test's own, on a free port of loopback, with the one zone `example.test`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{DEADLINE, free_port};

/// The TTL of every record, unless a line says otherwise, in seconds.
pub const TTL: u64 = 1;

/// What a zone begins with. The name server's own name lies elsewhere, so that it needs no address.
const HEAD: &str =
    "$ORIGIN example.test.\n@ 1 SOA ns.elsewhere.test. admin 1 1 1 1 1\n@ 1 NS ns.elsewhere.test.\n$TTL 1\n";

/// A server; ended when dropped.
pub struct DnsServer {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl DnsServer {
    /// A server of these lines of a zone file (RFC 1035, section 5), such as `app A 127.0.0.2`, that answers already.
    pub fn start(lines: &[&str]) -> DnsServer {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("ringway-dns-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        write_zone(&folder, lines);
        // Somebody may take the port between its choice and its use; another one is chosen then.
        for _ in 0..10 {
            let port = free_port();
            let mut server = DnsServer { child: spawn(port, &folder), port, folder: folder.clone() };
            if server.is_ready() {
                return server;
            }
        }
        panic!("nsd does not start");
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `[discovery]` that has names asked of this server alone.
    pub fn discovery(&self) -> String {
        format!("[discovery]\ndns_server = [\"{}\"]\n", self.address())
    }

    /// Serves these lines from now on. A line that is none makes every answer SERVFAIL.
    pub fn serve(&self, lines: &[&str]) {
        write_zone(&self.folder, lines);
        kill_process(self.pid(), Signal::HUP).expect("nsd runs");
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        // It answers from processes of its own, which would outlive it. They may have ended by themselves.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        self.child.wait().expect("waited for");
    }

    /// Starts it anew after [`kill`](Self::kill), on the same port, with these lines.
    pub fn restart(&mut self, lines: &[&str]) {
        write_zone(&self.folder, lines);
        let start = Instant::now();
        loop {
            self.child = spawn(self.port, &self.folder);
            if self.is_ready() {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "nsd does not come back");
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn is_ready(&mut self) -> bool {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        socket.connect(self.address()).expect("an address");
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if self.child.try_wait().expect("waited for").is_some() {
                return false;
            }
            match soa_answers(&socket) {
                Ok(true) => return true,
                Ok(false) => {}
                // Nobody listens yet: that is said at once, without the timeout.
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        false
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether the zone's SOA is answered without an error (RFC 1035, section 4.1).
fn soa_answers(socket: &UdpSocket) -> io::Result<bool> {
    socket.send(b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x07example\x04test\0\0\x06\0\x01")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(length > 12 && answer[..2] == [0, 7] && answer[3] & 0x0f == 0)
}

fn write_zone(folder: &Path, lines: &[&str]) {
    // At once: a server that starts or reloads must not read half of it.
    let whole = folder.join("zone.new");
    std::fs::write(&whole, format!("{HEAD}{}\n", lines.join("\n"))).expect("a file");
    std::fs::rename(whole, folder.join("zone")).expect("a file");
}

fn spawn(port: u16, folder: &Path) -> Child {
    let folder = folder.display();
    let config = format!(
        "server:\n  ip-address: 127.0.0.1@{port}\n  server-count: 1\n  username: \"\"\n  chroot: \"\"\n  \
         zonesdir: \"{folder}\"\n  database: \"\"\n  pidfile: \"\"\n  zonelistfile: \"{folder}/zone.list\"\n  \
         xfrdfile: \"\"\n  xfrdir: \"{folder}\"\nremote-control:\n  control-enable: no\n\
         zone:\n  name: example.test\n  zonefile: zone\n"
    );
    let path = format!("{folder}/nsd.conf");
    std::fs::write(&path, config).expect("a file");
    // The package's folder of daemons is not on every user's path.
    let nsd = if Path::new("/usr/sbin/nsd").exists() { "/usr/sbin/nsd" } else { "nsd" };
    let mut command = Command::new(nsd);
    command.args(["-d", "-c", &path]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0).spawn().expect("nsd, the Debian package")
}
