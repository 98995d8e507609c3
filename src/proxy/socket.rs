//! A stream socket, TCP or Unix, whose two directions are used apart; and the few questions asked of a bare descriptor.
//!
//! Reads and writes own their buffer while the kernel has it (monoio's rent model): it comes back with the result. A future
//! that is dropped takes its buffer along, and whatever it would have read is lost; so is the connection, then. An upstream's
//! reads go on without whoever began them, see [`super::ahead`].

use std::cell::UnsafeCell;
use std::future::{self, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Poll;

use futures_util::FutureExt;
use monoio::buf::{IoBuf, IoBufMut, SliceMut};
use monoio::io::{
    AsyncReadRent, AsyncWriteRent, CancelHandle, CancelableAsyncReadRent, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{TcpStream, UnixStream};

use super::ahead::Ahead;
use super::multishot::{Inbox, Look, Outbox};
use super::watch::{Patience, Registry, Side, Watched};

/// A connected stream.
#[derive(Debug)]
pub struct Socket {
    /// Deadlines; declared first, so that it goes before the descriptor does.
    pub watch: Watched,
    /// What the peer sends.
    pub reader: Reader,
    /// What the peer gets.
    pub writer: Writer,
    fd: RawFd,
}

/// What a read ends with: its result, and the buffer that was lent to it.
pub type Filled = (io::Result<usize>, Vec<u8>);

/// The receiving direction.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Reader {
    Client(Half, Inbox),
    Upstream(Ahead),
}

/// A stream's receiving half.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Half {
    Tcp(OwnedReadHalf<TcpStream>),
    Unix(OwnedReadHalf<UnixStream>),
}

/// The sending direction.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Writer {
    Tcp(OwnedWriteHalf<TcpStream>, Outbox),
    Unix(OwnedWriteHalf<UnixStream>),
}

impl Socket {
    /// A TCP stream.
    pub fn tcp(stream: TcpStream, registry: &Rc<Registry>, side: Side) -> Socket {
        let fd = stream.as_raw_fd();
        let (reader, writer) = stream.into_split();
        Socket::new(fd, Half::Tcp(reader), Writer::Tcp(writer, Outbox::NONE), registry, side)
    }

    /// A Unix stream.
    pub fn unix(stream: UnixStream, registry: &Rc<Registry>, side: Side) -> Socket {
        let fd = stream.as_raw_fd();
        let (reader, writer) = stream.into_split();
        Socket::new(fd, Half::Unix(reader), Writer::Unix(writer), registry, side)
    }

    fn new(fd: RawFd, half: Half, mut writer: Writer, registry: &Rc<Registry>, side: Side) -> Socket {
        let reader = match side {
            Side::Client => Reader::Client(half, Inbox::NONE),
            Side::Upstream => {
                let ahead = Ahead::new(half, fd);
                if let Writer::Tcp(_, outbox) = &mut writer {
                    *outbox = ahead.outbox();
                }
                Reader::Upstream(ahead)
            }
        };
        Socket { watch: Watched::new(registry, fd, side), reader, writer, fd }
    }

    /// From now on the receives of a client that has been served stay armed, and its answers may be [posted](Writer::post), where the
    /// driver can do that.
    pub fn stay_armed(&mut self) {
        if let (Reader::Client(Half::Tcp(_), inbox), Writer::Tcp(_, outbox)) = (&mut self.reader, &mut self.writer) {
            if !inbox.is_open() {
                *inbox = Inbox::open(self.fd);
                *outbox = inbox.outbox();
            }
            inbox.arm();
        }
    }

    /// Whether an idle connection is still good: open, and nothing to be read from it. One that reads ahead knows without a
    /// system call, as of the last time that the driver was asked.
    pub fn is_quiet(&mut self) -> bool {
        if let Reader::Upstream(ahead) = &mut self.reader
            && let Some(is_quiet) = ahead.is_quiet()
        {
            return is_quiet;
        }
        let mut byte = [0u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(borrow(self.fd), &mut byte, flags), Err(rustix::io::Errno::AGAIN))
    }

    /// Closes it, once nothing is being sent on it any more, and nobody reads. (A receive that stays armed ends with the driver's
    /// next turn, and only then is the peer told.) A drop costs more: it shuts the socket down first, and on io_uring it closes
    /// it by an operation that monoio then cancels, since nobody waits for its end.
    #[allow(unsafe_code)]
    pub fn close(self) {
        let Socket { watch, reader, writer, fd: _ } = self;
        drop(watch);
        let fd = match (reader, writer) {
            (Reader::Client(Half::Tcp(reader), _), Writer::Tcp(writer, _)) => {
                reader.reunite(writer).map(TcpStream::into_raw_fd).ok()
            }
            _ => None,
        };
        // SAFETY: monoio has just given it up, and nobody else closes it.
        drop(fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    }

    /// Whether something has come that nobody has read. A close might then reset the connection.
    pub fn has_unread(&self) -> bool {
        matches!(&self.reader, Reader::Client(_, inbox) if inbox.has_unread())
            || !matches!(rustix::io::ioctl_fionread(borrow(self.fd)), Ok(0))
    }

    /// Whether the peer has still to take in something that was sent.
    pub fn has_undelivered(&self) -> bool {
        unacknowledged(self.fd).is_some_and(|bytes| bytes > 0)
    }

    /// Appends to `buf` what has come already, without waiting; whether it was anything.
    pub fn read_ready(&mut self, buf: &mut Vec<u8>) -> bool {
        if let Reader::Client(_, inbox) = &mut self.reader
            && inbox.holds()
        {
            return matches!(inbox.take(buf, usize::MAX), Some(Ok(1..)));
        }
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let room = rustix::buffer::spare_capacity(buf);
        let is_something = matches!(rustix::net::recv(borrow(self.fd), room, flags), Ok((read, _)) if read > 0);
        if is_something && let Reader::Client(_, inbox) = &mut self.reader {
            inbox.goes_on();
        }
        is_something
    }

    /// Whether the peer has certainly not seen any of the last `sent` bytes, so that sending them again elsewhere cannot do
    /// anything twice. To be asked once a read has found the orderly end of the stream.
    ///
    /// The peer's FIN acknowledges all that it had received by then; so when none of the bytes is acknowledged, they came
    /// to a side that had closed already. The reset that answers them shows that it had closed for good. A reset alone
    /// proves nothing: it can overtake the acknowledgement of bytes that were read (RFC 9293, section 3.5.2).
    pub fn undelivered(&self, sent: usize) -> bool {
        let Writer::Tcp(..) = self.writer else { return false };
        let is_reset = socket2::SockRef::from(&borrow(self.fd)).take_error().is_ok_and(|error| error.is_some());
        is_reset && unacknowledged(self.fd) == Some(sent)
    }
}

impl Reader {
    /// Appends what comes to `buf`, up to its capacity, which must have room; 0 is the end of the stream.
    pub fn read(&mut self, buf: Vec<u8>) -> impl Future<Output = Filled> {
        let room = buf.capacity() - buf.len();
        self.read_some(buf, room)
    }

    /// The same, at most `most` bytes.
    pub fn read_some(&mut self, buf: Vec<u8>, most: usize) -> impl Future<Output = Filled> {
        match self {
            Reader::Client(half, inbox) => async move {
                let mut buf = buf;
                match poll_fn(|cx| inbox.poll_read(&mut buf, most, cx)).await {
                    Some(result) => (result, buf),
                    None => half.read(buf, most).await,
                }
            }
            .left_future(),
            Reader::Upstream(ahead) => ahead.read(buf, most).right_future(),
        }
    }

    /// Waits until there is something to be read, where that takes no buffer; how it is to be [read](Reader::read_found).
    pub fn look(&mut self) -> impl Future<Output = Look> {
        poll_fn(|cx| match self {
            Reader::Client(_, inbox) => inbox.poll_look(cx),
            Reader::Upstream(_) => Poll::Ready(Look::Unknown),
        })
    }

    /// As [`Reader::read`], after [`Reader::look`] has found `found`. A connection that waits for its next request holds these two futures, and
    /// they take less than that one.
    pub fn read_found(&mut self, found: Look, mut buf: Vec<u8>) -> impl Future<Output = Filled> {
        let room = buf.capacity() - buf.len();
        match (self, found) {
            (Reader::Client(_, inbox), Look::Something) => {
                let result = inbox.take(&mut buf, room).unwrap_or(Ok(0));
                future::ready((result, buf)).left_future().left_future()
            }
            (Reader::Client(half, _), Look::Unknown) => half.read(buf, room).right_future().left_future(),
            (Reader::Upstream(ahead), _) => ahead.read(buf, room).right_future(),
        }
    }

    /// Receives do not stay armed any more, so that whoever reads gets what comes directly. No read may have begun.
    pub async fn disarm(&mut self) {
        let inbox = match self {
            Reader::Client(_, inbox) => inbox,
            Reader::Upstream(ahead) => ahead.inbox(),
        };
        poll_fn(|cx| inbox.poll_disarm(cx)).await;
    }

    /// The same as [`Reader::read_some`], but it can be cancelled without losing a byte: it then ends with an error, unless
    /// something had come before.
    pub async fn read_some_cancelable(&mut self, buf: Vec<u8>, most: usize, handle: CancelHandle) -> Filled {
        match self {
            Reader::Client(half, inbox) => {
                let mut buf = buf;
                match poll_fn(|cx| inbox.poll_read(&mut buf, most, cx)).await {
                    Some(result) => (result, buf),
                    None => half.read_cancelable(buf, most, handle).await,
                }
            }
            // Uploads alone are cancelled, and those come from clients.
            Reader::Upstream(ahead) => ahead.read(buf, most).await,
        }
    }

    /// The connection, where it is TCP and all that has come of it was read: for who reads from it otherwise, while no read has begun.
    pub fn tcp(&self) -> Option<Tcp> {
        match self {
            Reader::Client(_, inbox) if inbox.holds() => None,
            Reader::Client(half, _) => half.tcp(),
            Reader::Upstream(ahead) => ahead.tcp(),
        }
    }

    /// An upstream's.
    pub fn ahead(&mut self) -> &mut Ahead {
        match self {
            Reader::Client(..) => unreachable!("a client is read when it is its turn"),
            Reader::Upstream(ahead) => ahead,
        }
    }

    /// A connection that was idle serves a request.
    pub fn in_use(&mut self) {
        if let Reader::Upstream(ahead) = self {
            ahead.in_use();
        }
    }
}

impl Half {
    /// The whole of it, where it is TCP.
    pub fn tcp(&self) -> Option<Tcp> {
        match self {
            Half::Tcp(half) => Some(Tcp(Rc::clone(&half.0))),
            Half::Unix(_) => None,
        }
    }

    /// See [`Reader::read_some`].
    pub fn read(&mut self, buf: Vec<u8>, most: usize) -> impl Future<Output = Filled> {
        let room = room(buf, most);
        // Put together rather than awaited: an async function holds what it is given twice, and every waiting connection
        // holds one of these.
        let read = match self {
            Half::Tcp(half) => half.read(room).left_future(),
            Half::Unix(half) => half.read(room).right_future(),
        };
        read.map(filled)
    }

    async fn read_cancelable(&mut self, buf: Vec<u8>, most: usize, handle: CancelHandle) -> Filled {
        let room = room(buf, most);
        filled(match self {
            Half::Tcp(half) => half.cancelable_read(room, handle).await,
            Half::Unix(half) => half.cancelable_read(room, handle).await,
        })
    }
}

/// A TCP stream both of whose halves are in use, for what the driver does not do: monoio's halves read and write, and wait for nothing else.
#[derive(Debug, Clone)]
pub struct Tcp(Rc<UnsafeCell<TcpStream>>);

impl Tcp {
    /// Waits until there is something to read, be it the end.
    pub async fn readable(&self) -> io::Result<()> {
        self.stream().readable(false).await
    }

    /// Waits until something can be sent, or nothing any more.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream().writable(false).await
    }

    #[allow(unsafe_code)]
    fn stream(&self) -> &TcpStream {
        // SAFETY: it lives as long as this. It stays on its thread, and nobody but monoio's halves gets to it besides. They take such a
        // reference for each operation, which takes a share of the descriptor along and changes nothing of the stream.
        unsafe { &*self.0.get() }
    }
}

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(self.stream().as_raw_fd())
    }
}

/// The room in `buf` for `most` bytes more.
fn room(buf: Vec<u8>, most: usize) -> SliceMut<Vec<u8>> {
    let start = buf.len();
    let end = buf.capacity().min(start.saturating_add(most));
    debug_assert!(start < end, "a read needs room");
    buf.slice_mut(start..end)
}

fn filled((result, slice): (io::Result<usize>, SliceMut<Vec<u8>>)) -> Filled {
    (result, slice.into_inner())
}

impl Writer {
    /// The whole of it, where it is TCP.
    pub fn tcp(&self) -> Option<Tcp> {
        match self {
            Writer::Tcp(half, _) => Some(Tcp(Rc::clone(&half.0))),
            Writer::Unix(_) => None,
        }
    }

    /// Sends `bytes`, all of them, without anybody's waiting for it, where that is soon done and the driver can do it; if not, they are still
    /// to be written. Whether it went well, the next read or write finds out.
    pub fn post(&mut self, bytes: &[u8]) -> bool {
        self.outbox().is_some_and(|outbox| outbox.post(bytes))
    }

    /// How many bytes of something that was [posted](Writer::post) were sent, where not all of them could be.
    pub fn cut(&self) -> Option<usize> {
        self.outbox()?.cut()
    }

    /// Whether all that was [posted](Writer::post) is sent, or cannot be.
    pub fn is_settled(&self) -> bool {
        self.outbox().is_none_or(Outbox::is_settled)
    }

    /// Waits until what was [posted](Writer::post) is sent.
    ///
    /// # Errors
    /// It cannot be.
    pub async fn settle(&mut self, patience: Patience<'_>) -> Result<(), WriteError> {
        let Some(outbox) = self.outbox() else { return Ok(()) };
        if !outbox.is_settled() {
            patience.renew();
            outbox.settle().await;
            patience.done();
        }
        outbox.cut().map_or(Ok(()), |written| Err(WriteError { written }))
    }

    fn outbox(&self) -> Option<Outbox> {
        match self {
            Writer::Tcp(_, outbox) if outbox.is_open() => Some(*outbox),
            Writer::Tcp(..) | Writer::Unix(_) => None,
        }
    }

    /// Sends `buf[from..to]`, all of it.
    pub fn write(
        &mut self,
        mut buf: Vec<u8>,
        mut from: usize,
        to: usize,
        patience: Patience<'_>,
    ) -> impl Future<Output = (Result<(), WriteError>, Vec<u8>)> {
        let start = from;
        // A block, since an async function holds what it is given twice.
        async move {
            if let Err(error) = self.settle(patience).await {
                return (Err(error), buf);
            }
            while from < to {
                patience.renew();
                let slice = buf.slice(from..to);
                let (result, slice) = match self {
                    Writer::Tcp(half, _) => half.write(slice).await,
                    Writer::Unix(half) => half.write(slice).await,
                };
                buf = slice.into_inner();
                match result {
                    Ok(written) if written > 0 => from += written,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(_) | Err(_) => break,
                }
            }
            patience.done();
            (if from < to { Err(WriteError { written: from - start }) } else { Ok(()) }, buf)
        }
    }

    /// Sends all of `buf`.
    pub fn write_all(
        &mut self,
        buf: Vec<u8>,
        patience: Patience<'_>,
    ) -> impl Future<Output = (Result<(), WriteError>, Vec<u8>)> {
        let to = buf.len();
        self.write(buf, 0, to, patience)
    }

    /// Tells the peer that no more will come. Nothing may have been [posted](Writer::post) that is not sent yet.
    pub async fn finish(&mut self) {
        // A peer that is gone already has been told.
        let _ = match self {
            Writer::Tcp(half, _) => half.shutdown().await,
            Writer::Unix(half) => half.shutdown().await,
        };
    }
}

/// The peer takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteError {
    /// How many bytes the kernel had taken before.
    pub written: usize,
}

/// Which direction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shut {
    Read,
    Both,
}

/// Ends a direction of the socket `fd`; whoever waits on it is woken. A socket that is not connected any more is left alone.
pub fn shut(fd: RawFd, how: Shut) {
    let how = match how {
        Shut::Read => rustix::net::Shutdown::Read,
        Shut::Both => rustix::net::Shutdown::Both,
    };
    // ENOTCONN says that the peer was faster.
    let _ = rustix::net::shutdown(borrow(fd).as_fd(), how);
}

/// Resets the connection of the socket `fd` at once: what the peer has not got yet is lost, and it learns so. A close would
/// not do, since a half that is dropped says goodbye first.
pub fn reset(fd: RawFd) {
    // A connection that is over already needs none.
    let _ = rustix::net::connect_unspec(borrow(fd));
}

/// Lends a descriptor that is known to be open: its [`Watched`] is still registered.
#[allow(unsafe_code)]
pub fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    assert!(fd >= 0, "a watch that was dropped has no descriptor");
    // SAFETY: every descriptor that gets here belongs to a `Socket`, its `Tcp` or a listener that is alive: `Watched::drop`, which
    // runs before the socket's halves are dropped, takes it out of the registry and sets the watch's copy to -1. Workers
    // do not share sockets, so nobody closes it meanwhile.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// How many bytes of what was written the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ).
#[allow(unsafe_code)]
pub fn unacknowledged(fd: RawFd) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &mut bytes) };
    (result == 0).then(|| usize::try_from(bytes).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream as Peer};
    use std::time::Duration;

    use super::*;

    const REQUEST: &[u8] = b"seven..";

    /// What the upstream side does, before the request is sent and after; whether that proves that nothing was delivered.
    fn check(before: impl Fn(&mut Option<Peer>), after: impl Fn(&mut Option<Peer>), expected: bool) {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().expect("epoll");
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let stream = TcpStream::connect_addr(listener.local_addr().expect("bound")).await.expect("a listener");
            let mut socket = Socket::tcp(stream, &Rc::default(), Side::Upstream);
            let mut peer = Some(listener.accept().expect("a connection").0);
            before(&mut peer);
            let now = std::cell::Cell::new(0);
            let patience = Patience::new(&socket.watch, &now, Duration::MAX);
            let (written, _) = socket.writer.write_all(REQUEST.to_vec(), patience).await;
            assert_eq!(written, Ok(()));
            after(&mut peer);
            let (read, _) = socket.reader.read(Vec::with_capacity(16)).await;
            let at_end = matches!(read, Ok(0));
            let proved = at_end && socket.undelivered(REQUEST.len());
            assert_eq!(proved, expected);
        });
    }

    fn take(peer: &mut Option<Peer>) {
        let mut buf = [0; REQUEST.len()];
        peer.as_mut().expect("open").read_exact(&mut buf).expect("the request");
    }

    fn reset(peer: &mut Option<Peer>) {
        let peer = peer.take().expect("open");
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
    }

    #[test]
    fn only_a_request_that_came_to_a_closed_side_is_undelivered() {
        let close = |peer: &mut Option<Peer>| drop(peer.take());
        let half_close =
            |peer: &mut Option<Peer>| peer.as_ref().expect("open").shutdown(Shutdown::Write).expect("open");
        let nothing = |_: &mut Option<Peer>| {};
        check(close, nothing, true);
        // Read, and then closed in any way.
        check(
            nothing,
            |peer| {
                take(peer);
                close(peer);
            },
            false,
        );
        check(
            nothing,
            |peer| {
                take(peer);
                reset(peer);
            },
            false,
        );
        check(half_close, take, false);
        // Received and not read: the kernel resets.
        check(nothing, close, false);
        // Half-closed, the other half still open.
        check(half_close, nothing, false);
        let answered = |peer: &mut Option<Peer>| peer.as_mut().expect("open").write_all(b"x").expect("open");
        check(answered, nothing, false);
    }
}
