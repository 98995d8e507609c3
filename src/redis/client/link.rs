//! The connection's task: connect, keep going until something is wrong, start over.
//!
//! Reading, writing, the deadline and the interruption run side by side in this one task; whichever ends first ends the
//! connection. A read that is dropped then loses bytes, which is well, since nobody could be given them.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::mem::{replace, take};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use monoio::net::{TcpStream, UnixStream};

use super::backoff;
use super::handshake;
use super::{Reason, Shared, State};
use crate::proxy::socket::{Reader, Socket, Writer};
use crate::proxy::watch::{Millis, Patience, Registry, Side};
use crate::redis::resp::{Decoder, Reply};
use crate::snapshot::Address;

/// The most that is read at once, in bytes.
const READ_SIZE: usize = 16 * 1024;

/// Between writes a buffer of commands keeps at most this capacity, in bytes.
const OUT_KEPT: usize = 256 * 1024;

/// Turns of the loop, a millisecond each, in which replies that lie in the kernel may still be read after a deadline: as many
/// as bring [`PENDING_MAX`](super::PENDING_MAX) short ones, [`READ_SIZE`] a turn.
const GRACE_TURNS: usize = 8;

/// A connection to Redis.
pub(super) struct Link {
    pub(super) socket: Socket,
    pub(super) decoder: Decoder,
    buf: Vec<u8>,
    /// Of this socket alone: ends it for good, whatever still waits on it.
    registry: Rc<Registry>,
    /// Stands still: nobody sweeps the registry, the calls' own deadlines do.
    pub(super) clock: Cell<Millis>,
}

/// The task itself; ends when the client is dropped.
pub(super) async fn keep_up(shared: Rc<Shared>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut failures = 0;
    while !shared.stopped.get() {
        let epoch = shared.epoch.get();
        let reason = connect_and_serve(&shared, epoch).await;
        if reason == Reason::Protocol {
            shared.stats.protocol_errors.add(1);
        }
        shared.go_down(reason);
        if shared.proven.replace(false) {
            failures = 0;
        }
        let pause = backoff::pause(failures, random.u64(..));
        failures += 1;
        or_interrupted(&shared, epoch, monoio::time::sleep(pause)).await;
    }
    shared.go_down(Reason::Stopped);
}

/// One connection, from its beginning to its end; why it ended.
async fn connect_and_serve(shared: &Shared, epoch: u64) -> Reason {
    let attempt = async {
        let mut link = Link::connect(shared).await?;
        match handshake::shake(&mut link, shared).await {
            Ok(()) => Ok(link),
            Err(reason) => {
                link.end();
                Err(reason)
            }
        }
    };
    let attempt = monoio::time::timeout(shared.settings.connect_timeout, attempt);
    // Rare and large, so kept out of the task's own future.
    let connected = or_interrupted(shared, epoch, Box::pin(attempt)).await;
    let mut link = match connected {
        Some(Ok(Ok(link))) => link,
        failed => {
            shared.stats.connect_failures.add(1);
            return match failed {
                None => Reason::AddressChanged,
                Some(Ok(Err(reason))) => reason,
                _ => Reason::ConnectTimeout,
            };
        }
    };
    shared.stats.connects.add(1);
    shared.set_state(State::Up);
    let reason = or_interrupted(shared, epoch, link.serve(shared)).await;
    link.end();
    reason.unwrap_or(Reason::AddressChanged)
}

impl Link {
    async fn connect(shared: &Shared) -> Result<Link, Reason> {
        let address = shared.address.borrow().clone();
        let registry = Rc::default();
        let socket = open(address, &registry).await.map_err(|_| Reason::Unreachable)?;
        Ok(Link {
            socket,
            decoder: Decoder::default(),
            buf: Vec::with_capacity(READ_SIZE),
            registry,
            clock: Cell::new(0),
        })
    }

    /// The next reply, for the handshake.
    pub(super) async fn next_reply(&mut self) -> Result<Reply, Reason> {
        loop {
            if let Some(reply) = self.decoder.next_reply().map_err(|_| Reason::Protocol)? {
                return Ok(reply);
            }
            fill(&mut self.socket.reader, &mut self.buf).await?;
            self.decoder.push(&self.buf);
        }
    }

    /// Takes calls until something is wrong.
    async fn serve(&mut self, shared: &Shared) -> Reason {
        let Socket { reader, writer, watch, .. } = &mut self.socket;
        let mut receiving = pin!(receive(shared, reader, &mut self.decoder, &mut self.buf));
        let mut sending = pin!(send(shared, writer, Patience::new(watch, &self.clock, Duration::ZERO)));
        let mut expiry = pin!(expire(shared));
        poll_fn(|cx| {
            // Replies first: what has come in time counts, however late it is looked at.
            if let Poll::Ready(Err(reason)) = receiving.as_mut().poll(cx) {
                return Poll::Ready(reason);
            }
            if let Poll::Ready(reason) = sending.as_mut().poll(cx) {
                return Poll::Ready(reason);
            }
            expiry.as_mut().poll(cx)
        })
        .await
    }

    /// Ends the connection at once, in both directions.
    fn end(self) {
        self.registry.stop();
    }
}

async fn open(address: Address, registry: &Rc<Registry>) -> io::Result<Socket> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect_addr(address).await?;
            stream.set_nodelay(true)?;
            Ok(Socket::tcp(stream, registry, Side::Upstream))
        }
        Address::Unix(path) => Ok(Socket::unix(UnixStream::connect(path).await?, registry, Side::Upstream)),
    }
}

/// Reads into `buf` what there is, at least a byte.
async fn fill(reader: &mut Reader, buf: &mut Vec<u8>) -> Result<(), Reason> {
    buf.clear();
    let (result, filled) = reader.read(take(buf)).await;
    *buf = filled;
    match result {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(Reason::Closed),
    }
}

/// Hands replies out.
async fn receive(
    shared: &Shared,
    reader: &mut Reader,
    decoder: &mut Decoder,
    buf: &mut Vec<u8>,
) -> Result<std::convert::Infallible, Reason> {
    loop {
        fill(reader, buf).await?;
        shared.stats.bytes_in.add(buf.len() as u64);
        decoder.push(buf);
        while let Some(reply) = decoder.next_reply().map_err(|_| Reason::Protocol)? {
            shared.answer(reply)?;
        }
    }
}

/// Sends what is called for, all that there is at once.
async fn send(shared: &Shared, writer: &mut Writer, patience: Patience<'_>) -> Reason {
    let mut spare = Vec::new();
    loop {
        poll_fn(|cx| shared.ready_when(cx, !shared.out.borrow().is_empty())).await;
        let commands = replace(&mut *shared.out.borrow_mut(), spare);
        shared.pending.borrow_mut().sent();
        shared.stats.writes.add(1);
        shared.stats.bytes_out.add(commands.len() as u64);
        let (result, mut sent) = writer.write_all(commands, patience).await;
        if result.is_err() {
            return Reason::Closed;
        }
        sent.clear();
        sent.shrink_to(OUT_KEPT);
        spare = sent;
    }
}

/// Ends when a call is over its deadline. The timer is never set later than the earliest deadline, but goes off about once
/// per timeout under load rather than once per call: deadlines that have been met by then are not looked at.
async fn expire(shared: &Shared) -> Reason {
    loop {
        poll_fn(|cx| shared.ready_when(cx, shared.pending.borrow().len() > 0)).await;
        let Some(deadline) = shared.pending.borrow().deadline() else { continue };
        monoio::time::sleep_until(deadline.into()).await;
        if is_over(shared).await {
            return Reason::Timeout;
        }
    }
}

/// Whether a deadline has passed without its reply. A worker that was held up itself finds replies waiting that came in
/// time: as long as each turn of its loop brings some, the next is given a chance.
async fn is_over(shared: &Shared) -> bool {
    for _ in 0..GRACE_TURNS {
        let has_passed = shared.pending.borrow().deadline().is_some_and(|deadline| deadline <= Instant::now());
        if !has_passed {
            return false;
        }
        let before = shared.stats.replies.get();
        monoio::time::sleep(Duration::from_millis(1)).await;
        if shared.stats.replies.get() == before {
            return true;
        }
    }
    true
}

/// What `work` comes to; `None` when the client was dropped or its address was changed since `epoch`.
async fn or_interrupted<T>(shared: &Shared, epoch: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if shared.ready_when(cx, shared.epoch.get() != epoch).is_ready() {
            return Poll::Ready(None);
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

impl Shared {
    fn ready_when(&self, cx: &Context<'_>, condition: bool) -> Poll<()> {
        if condition {
            return Poll::Ready(());
        }
        self.wait(cx);
        Poll::Pending
    }
}
