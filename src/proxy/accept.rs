//! The listener of a worker: takes clients in, pauses when it has enough, and closes without losing anybody.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use monoio::io::Canceller;
use monoio::net::{TcpListener, TcpStream};
use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, SockFilter, Socket as RawSocket, Type};

use super::connection::{self, Client, Counted};
use super::descriptors;
use super::socket::Socket;
use super::watch::{Millis, Side, TICK};
use super::worker::Worker;
use crate::snapshot::Phase;

/// A worker that has all the clients it may have, or no descriptor for another one, looks again after so long.
const PAUSE: Duration = Duration::from_millis(20);

/// How often it is asked whether the process has started, or whether accepts that were cancelled are over.
const SOON: Duration = Duration::from_millis(2);

/// On io_uring an accept takes a turn of the loop, in which everybody who has been accepted is served: so many clients are
/// accepted in each, on all of a worker's listeners, or those who come together would wait long for the last of them. On epoll
/// one follows the other.
pub const ACCEPTS_MAX: usize = 32;

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

/// The accept loop and what ends it.
#[allow(missing_debug_implementations)]
pub struct Acceptor {
    listener: TcpListener,
    /// Whether somebody else goes on listening on the same socket, as systemd does.
    is_shared: bool,
    canceller: RefCell<Option<Canceller>>,
    /// Accepts under way.
    accepting: Cell<u32>,
    /// Accepts that were cancelled.
    cancelled: Cell<u32>,
    /// Tasks that accept beside the loop.
    helpers: Cell<usize>,
    helpers_max: usize,
}

impl Acceptor {
    /// Takes over a bound listener, on which there may be `accepts_max` accepts under way.
    ///
    /// # Errors
    /// The driver does not take the descriptor.
    pub fn new(listener: StdListener, accepts_max: usize, is_shared: bool, is_epoll: bool) -> io::Result<Acceptor> {
        // io_uring waits in the kernel, on a blocking socket; epoll must not block.
        listener.set_nonblocking(is_epoll)?;
        Ok(Acceptor {
            listener: TcpListener::from_std(listener)?,
            is_shared,
            canceller: RefCell::new(Some(Canceller::new())),
            accepting: Cell::new(0),
            cancelled: Cell::new(0),
            helpers: Cell::new(0),
            helpers_max: accepts_max - 1,
        })
    }

    /// Accepts clients until the drain has emptied the queue.
    pub async fn run(self: &Rc<Self>, worker: &Rc<Worker>) {
        // Until all that can fail has gone well: a process that ends right away again must not have taken anybody in.
        while !worker.seam.is_started() && worker.seam.phase() == Phase::Serving {
            monoio::time::sleep(SOON).await;
        }
        let count_error = || {
            worker.counters.accept_errors.add(1);
            true
        };
        let mut turns = 0;
        loop {
            worker.share(&mut turns).await;
            while !self.has_room(worker) && self.canceller.borrow().is_some() {
                if worker.is_full() {
                    worker.registry.end_idlest(worker.now(), IDLE_MIN, END_IDLE_MAX);
                }
                monoio::time::sleep(PAUSE).await;
            }
            if !self.accept(worker, count_error).await {
                break;
            }
            self.call_help(worker);
        }
        while self.accepting.get() > 0 {
            monoio::time::sleep(SOON).await;
        }
        self.leave(worker).await;
    }

    /// Where there is a client there may be more of them.
    fn call_help(self: &Rc<Self>, worker: &Rc<Worker>) {
        if self.helpers.get() < self.helpers_max && self.has_room(worker) {
            self.helpers.set(self.helpers.get() + 1);
            let (acceptor, worker) = (Rc::clone(self), Rc::clone(worker));
            monoio::spawn(async move { acceptor.help(&worker).await });
        }
    }

    /// Accepts beside the loop for as long as there is room for more.
    async fn help(self: &Rc<Self>, worker: &Rc<Worker>) {
        // Whoever was woken for a client that is still in the queue has to see to it: nobody else is woken.
        while self.has_room(worker) && self.accept(worker, || !self.queue_is_empty()).await {
            self.call_help(worker);
        }
        self.helpers.set(self.helpers.get() - 1);
    }

    /// Whether one client more may be accepted. Each listener may accept one until the worker is full, or those that wait for clients
    /// at another would starve it: so with several of them there may be [`ACCEPTS_MAX`] clients more.
    fn has_room(&self, worker: &Worker) -> bool {
        let coming = if self.accepting.get() == 0 { 0 } else { worker.accepting.get() };
        worker.connections().saturating_add(coming) < worker.connections_max
    }

    /// Accepts a client. After an error it is tried again if `failed` says so. Whether there was a client.
    async fn accept(&self, worker: &Rc<Worker>, failed: impl Fn() -> bool) -> bool {
        let count = |change| {
            self.accepting.set(self.accepting.get().wrapping_add_signed(change));
            worker.accepting.set(worker.accepting.get().wrapping_add_signed(change));
        };
        count(1);
        let accepted = loop {
            let Some(handle) = self.canceller.borrow().as_ref().map(Canceller::handle) else { break None };
            match self.listener.cancelable_accept(handle).await {
                Ok(accepted) => break Some(accepted),
                Err(_) if self.canceller.borrow().is_none() => break None,
                Err(error) => {
                    // Out of descriptors or memory, or the client was gone before it was accepted. The queue holds the
                    // others meanwhile.
                    if descriptors::are_short(&error) && !self.queue_is_empty() {
                        worker.run_short();
                    }
                    monoio::time::sleep(PAUSE).await;
                    if !failed() {
                        break None;
                    }
                }
            }
        };
        count(-1);
        let Some((stream, peer)) = accepted else { return false };
        welcome(worker, stream, peer);
        true
    }

    /// Accepts whom the kernel may have woken this process for just when it stopped to accept: of several that wait on one
    /// socket it wakes one alone, and the others would hear of the connection with the next one only.
    async fn leave(&self, worker: &Rc<Worker>) {
        for _ in 0..self.cancelled.get() {
            if !self.is_left_to_others(worker) || self.queue_is_empty() {
                return;
            }
            let canceller = Canceller::new();
            let mut accepting = pin!(self.listener.cancelable_accept(canceller.handle()));
            let accepted = match monoio::time::timeout(TICK, accepting.as_mut()).await {
                Ok(accepted) => accepted,
                Err(_) => {
                    // Somebody else has it. A cancelled accept may have a connection still.
                    canceller.cancel();
                    accepting.await
                }
            };
            if let Ok((stream, peer)) = accepted {
                welcome(worker, stream, peer);
            }
        }
    }

    fn is_left_to_others(&self, worker: &Worker) -> bool {
        self.is_shared || worker.seam.is_handed_over()
    }

    /// Waits for the drain, then closes the listener: first it takes no new connection attempts, whose senders try again
    /// and find another gateway or a refusal; then, once everybody who is in the queue has been accepted, it goes.
    ///
    /// Closing a listener right away would reset those in its queue, whose requests may be on their way. A socket that
    /// another process listens on too is merely left to it, queue and all.
    pub async fn close_on_drain(&self, worker: &Rc<Worker>) {
        while worker.seam.phase() < Phase::Draining {
            monoio::time::sleep(TICK).await;
        }
        if !self.is_left_to_others(worker) {
            // Without the filter a few may slip into the queue between the last accept and the close.
            let _ = refuse_new(&self.listener);
            let mut quiet = 0;
            while quiet < QUIET_TICKS {
                monoio::time::sleep(TICK).await;
                quiet = if self.queue_is_empty() { quiet + 1 } else { 0 };
            }
        }
        if let Some(canceller) = self.canceller.borrow_mut().take() {
            self.cancelled.set(self.accepting.get());
            canceller.cancel();
        }
    }
}

impl Acceptor {
    fn queue_is_empty(&self) -> bool {
        let fd = super::socket::borrow(self.listener.as_raw_fd());
        let mut poll = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&at_once)), Ok(0))
    }
}

/// Begins to serve a client.
fn welcome(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    worker.counters.connections_accepted.add(1);
    let socket = Socket::tcp(stream, &worker.registry, Side::Client);
    // Counted here, not when the task first runs: the next accept depends on it.
    let counted = Counted::new(worker);
    let client = Box::new(Client { socket, peer: Some(peer.ip().to_canonical()) });
    monoio::spawn(connection::serve(counted, client));
}

/// Makes the kernel drop every segment to the listener that opens a connection (SYN without ACK): the queue is left alone,
/// and handshakes that have begun may finish.
fn refuse_new(listener: &TcpListener) -> io::Result<()> {
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
    let fd = super::socket::borrow(listener.as_raw_fd());
    socket2::SockRef::from(&fd).attach_filter(&filter)
}
