//! What the kernel knows of connections, and a listener that makes it answer no attempt to connect.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use socket2::{Domain, Socket, Type};

/// A connection as proc_pid_net(5) shows it.
struct Row {
    local_port: u16,
    remote_port: u16,
    is_being_opened: bool,
    /// Written, and not acknowledged.
    unacknowledged: u64,
    /// Received, and not read.
    unread: u64,
}

/// The connections that have `port` at either end. The table is long while tests run, so no other row is read.
fn with_port(port: u16) -> Vec<Row> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal");
    let of = |address: &str| hex(address.split_once(':').expect("a port").1) as u16;
    let row = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (unacknowledged, unread) = fields[4].split_once(':').expect("two numbers");
        Row {
            local_port: of(fields[1]),
            remote_port: of(fields[2]),
            is_being_opened: fields[3] == "02",
            unacknowledged: hex(unacknowledged),
            unread: hex(unread),
        }
    };
    let table = std::fs::read_to_string("/proc/net/tcp").expect("proc is mounted");
    let port = format!(":{port:04X} ");
    table.lines().skip(1).filter(|line| line.contains(&port)).map(row).collect()
}

/// How many bytes the kernel holds that were written to `address` and are not read there yet.
pub fn held_for(address: SocketAddr) -> u64 {
    let held = |row: &Row| match address.port() {
        port if port == row.remote_port => row.unacknowledged,
        port if port == row.local_port => row.unread,
        _ => 0,
    };
    with_port(address.port()).iter().map(held).sum()
}

/// How many bytes of what a `client` sent to its server have come there and are not read.
pub fn unread_of(client: &TcpStream) -> u64 {
    let server = client.peer_addr().expect("connected").port();
    // Its port alone may be that of somebody else's connection to another server, too.
    let client = client.local_addr().expect("bound").port();
    let is_servers_end = |row: &&Row| (row.local_port, row.remote_port) == (server, client);
    with_port(client).iter().filter(is_servers_end).map(|row| row.unread).sum()
}

/// A listener whose queue is full: the kernel drops whatever asks for another connection, as a host that is gone would.
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    pub fn open() -> BlackHole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
        listener.listen(0).expect("a listener");
        let address = listener.local_addr().expect("an address").as_socket().expect("IPv4");
        let mut queued = Vec::new();
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                Ok(stream) => queued.push(stream),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => panic!("the queue should fill up: {error}"),
            }
        }
        BlackHole { address, _listener: listener, _queued: queued }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether somebody is trying to connect.
    pub fn is_asked(&self) -> bool {
        let port = self.address.port();
        with_port(port).iter().any(|row| row.is_being_opened && row.remote_port == port)
    }
}

/// Lets this process hold as many descriptors as it may.
pub fn allow_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("up to the maximum");
}
