//! The listener of a worker: takes clients in, pauses when it has enough, and closes without losing anybody.
//!
//! The driver says when somebody waits; whoever does is then accepted by a system call each, which for several clients costs less
//! than an operation each. Between two calls nobody is half accepted, so that it can end at any moment.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{FutureExt, future};
use monoio::net::{TcpListener, TcpStream};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockFilter, Socket as RawSocket, Type};

use super::connection::{self, Client, Counted};
use super::descriptors;
use super::socket::Socket;
use super::watch::{Millis, Side, TICK};
use super::worker::Worker;
use crate::snapshot::Phase;

/// A worker that has all the clients it may have, or no descriptor for another one, looks again after so long.
const PAUSE: Duration = Duration::from_millis(20);

/// How often it is asked whether the process has started.
const SOON: Duration = Duration::from_millis(2);

/// So many clients are accepted on a listener in a row; then those who have been are served.
const ACCEPTS_MAX: usize = 32;

/// A worker that is full ends so many connections in each pause that have been idle for so long, so that clients which
/// merely keep connections open do not lock others out, health checks among them.
const END_IDLE_MAX: usize = 16;
const IDLE_MIN: Millis = 1_000;

/// A listener that takes no new clients stays open until its queue has been empty for so many ticks, so that handshakes
/// which have begun can finish.
const QUIET_TICKS: u32 = 2;

/// Binds a listener for each of `count` workers to `address`; port 0 is chosen once for all.
///
/// They share the port by SO_REUSEPORT, which any process of the same user could join unseen: so the first bind is made
/// without it, and fails where somebody else is there already.
///
/// # Errors
/// The address is in use, is not this host's, or needs a privilege.
pub fn bind(address: SocketAddr, count: usize, backlog: u32) -> io::Result<Vec<StdListener>> {
    let probe = open(address, false)?;
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    let bind = || {
        let socket = bind_another(address)?;
        listen(&socket, backlog)?;
        Ok(socket)
    };
    (0..count).map(|_| bind()).collect()
}

/// One more socket beside those that share `address` already; it is still to [`listen`].
///
/// # Errors
/// They do not share it, or no descriptor can be had.
pub fn bind_another(address: SocketAddr) -> io::Result<StdListener> {
    open(address, true).map(StdListener::from)
}

/// Has the kernel queue connections on the socket, `backlog` at most.
///
/// # Errors
/// It is no socket that was bound.
pub fn listen(socket: &StdListener, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<RawSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.ip().is_unspecified() && address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit both, which spares a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Who goes on listening on a socket besides the worker that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    Nobody,
    /// Another process, as systemd does.
    Outside,
    /// Another process, and other workers of this one.
    Workers,
}

/// The accept loop and what ends it.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    sharing: Sharing,
    accepts_max: usize,
    /// What accepted sockets are to be like.
    flags: SocketFlags,
}

impl Acceptor {
    /// Takes over a bound listener.
    ///
    /// # Errors
    /// The driver does not take the descriptor.
    pub fn new(listener: StdListener, sharing: Sharing, is_epoll: bool) -> io::Result<Acceptor> {
        listener.set_nonblocking(true)?;
        Ok(Acceptor {
            listener: TcpListener::from_std(listener)?,
            sharing,
            // Of workers that wait on one socket, the first that wakes would take all the clients.
            accepts_max: if sharing == Sharing::Workers { 1 } else { ACCEPTS_MAX },
            // io_uring waits in the kernel, on a blocking socket; epoll must not block.
            flags: if is_epoll { SocketFlags::CLOEXEC | SocketFlags::NONBLOCK } else { SocketFlags::CLOEXEC },
        })
    }

    /// Accepts clients until the drain has emptied the queue; then the listener is closed.
    pub async fn run(self, worker: &Rc<Worker>) {
        // Until all that can fail has gone well: a process that ends right away again must not have taken anybody in.
        while !worker.seam.is_started() && worker.seam.phase() == Phase::Serving {
            monoio::time::sleep(SOON).await;
        }
        future::select(pin!(self.accept_all(worker)), pin!(self.emptied_by_drain(worker))).await;
        // Whoever has come since: the close resets them.
        while !self.is_left_to_others(worker) && !worker.is_full() && self.accept(worker).is_ok() {}
    }

    async fn accept_all(&self, worker: &Rc<Worker>) {
        let mut turns = 0;
        loop {
            while worker.is_full() {
                worker.registry.end_idlest(worker.now(), IDLE_MIN, END_IDLE_MAX);
                monoio::time::sleep(PAUSE).await;
            }
            // monoio panics where the ring takes no operation.
            let told = AssertUnwindSafe(self.listener.readable(false)).catch_unwind().await;
            let Ok(Ok(())) = told else {
                self.failed(worker, Errno::NOMEM).await;
                continue;
            };
            if self.sharing != Sharing::Nobody {
                // Whoever else has the socket may have made of it what it likes; a call that blocks would hold the whole worker.
                let _ = rustix::io::ioctl_fionbio(self.descriptor(), true);
            }
            for _ in 0..self.accepts_max {
                if worker.is_full() {
                    break;
                }
                match self.accept(worker) {
                    Ok(()) => worker.share(&mut turns).await,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => {
                        self.failed(worker, error).await;
                        break;
                    }
                }
            }
        }
    }

    /// Accepts a client, if one waits; `EAGAIN` if not.
    fn accept(&self, worker: &Rc<Worker>) -> rustix::io::Result<()> {
        let (stream, peer) = rustix::net::acceptfrom_with(self.descriptor(), self.flags)?;
        let stream = TcpStream::from_std(StdStream::from(stream));
        let stream = stream.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))?;
        worker.counters.connections_accepted.add(1);
        let socket = Socket::tcp(stream, &worker.registry, Side::Client);
        // Counted here, not when the task first runs: the next accept depends on it.
        let counted = Counted::new(worker);
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        let client = Box::new(Client { socket, peer: peer.map(|peer| peer.ip().to_canonical()) });
        monoio::spawn(connection::serve(counted, client));
        Ok(())
    }

    /// Out of descriptors or memory, or the client was gone before it was accepted. The queue holds the others meanwhile.
    async fn failed(&self, worker: &Worker, error: Errno) {
        if descriptors::are_short(&error.into()) {
            // The kernel wants a descriptor before it looks whether anybody waits.
            if self.queue_is_empty() {
                return;
            }
            worker.run_short();
        }
        worker.counters.accept_errors.add(1);
        monoio::time::sleep(PAUSE).await;
    }

    /// Waits for the drain, and until nobody is left in the queue: first it takes no new connection attempts, whose senders try
    /// again and find another gateway or a refusal; it may be closed once everybody who is in the queue has been accepted.
    ///
    /// Closing a listener right away would reset those in its queue, whose requests may be on their way. A socket that
    /// another process listens on too is merely left to it, queue and all.
    async fn emptied_by_drain(&self, worker: &Worker) {
        while worker.seam.phase() < Phase::Draining {
            monoio::time::sleep(TICK).await;
        }
        if self.is_left_to_others(worker) {
            return;
        }
        // Without the filter a few may slip into the queue between the last accept and the close.
        let _ = refuse_new(self.descriptor());
        let mut quiet = 0;
        while quiet < QUIET_TICKS {
            monoio::time::sleep(TICK).await;
            quiet = if self.queue_is_empty() { quiet + 1 } else { 0 };
        }
    }

    fn is_left_to_others(&self, worker: &Worker) -> bool {
        self.sharing != Sharing::Nobody || worker.seam.is_handed_over()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        super::socket::borrow(self.listener.as_raw_fd())
    }

    fn queue_is_empty(&self) -> bool {
        let mut poll = [PollFd::from_borrowed_fd(self.descriptor(), PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&at_once)), Ok(0))
    }
}

/// Makes the kernel drop every segment to the listener that opens a connection (SYN without ACK): the queue is left alone,
/// and handshakes that have begun may finish.
fn refuse_new(listener: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS_OFFSET: u32 = 13;
    const SYN_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    // Classic BPF over the TCP header: A = flags; A &= SYN|ACK; if A == SYN drop else pass.
    let instruction = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    let filter = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_OFFSET),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN_ACK),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    socket2::SockRef::from(&listener).attach_filter(&filter)
}
