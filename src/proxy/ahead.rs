//! Reading ahead: an idle upstream connection has the read of its next answer under way.
//!
//! So nobody has to ask the kernel whether the connection is still good before it is used: it was, when the driver was asked last,
//! if that read has not ended. It goes to the kernel together with the last piece of an answer that is written to the client,
//! before the connection is idle, so the driver has been asked since.
//!
//! The read has to outlive the request that begins it and serve the one that ends it, and a boxed future for each would be an
//! allocation for each. So an upstream connection has a [`Lane`] for as long as it lives, which reads what it is told to.

use std::convert::Infallible;
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use super::buffers::Place;
use super::lane::{Desk, Lane};
use super::multishot::{Inbox, Look, Outbox};
use super::socket::{Filled, Half, Tcp};

/// The receiving direction of an upstream connection. A read that has begun goes on while nobody waits for it.
pub struct Ahead {
    lane: Lane<Order, Filled>,
    inbox: Inbox,
    tcp: Option<Tcp>,
    state: State,
    /// Held by a read that no request waits for yet.
    place: Option<Place>,
}

#[derive(Debug)]
enum State {
    Quiet,
    Reading,
    /// It ended, and nobody has taken what it brought.
    Ended(Filled),
}

/// A buffer, and how many bytes to read into it at most.
type Order = (Vec<u8>, usize);

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Ahead {
    /// Reads from `half`, which is a half of `fd`, from now on; no read has begun yet.
    pub fn new(half: Half, fd: RawFd) -> Ahead {
        let tcp = half.tcp();
        let inbox = if tcp.is_some() { Inbox::open(fd) } else { Inbox::NONE };
        Ahead { lane: Lane::new(|desk| work(half, desk)), inbox, tcp, state: State::Quiet, place: None }
    }

    /// The connection, where it is TCP and all that has come of it was read: for who reads from it otherwise, while no read has begun.
    pub fn tcp(&self) -> Option<Tcp> {
        if self.inbox.holds() { None } else { self.tcp.clone() }
    }

    /// The other side of what the driver receives by itself.
    pub fn outbox(&self) -> Outbox {
        self.inbox.outbox()
    }

    /// What the driver receives by itself.
    pub fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// Whether nothing has come since the last that was read, as of the last time that the driver was asked; `None` where nobody reads.
    pub fn is_quiet(&mut self) -> Option<bool> {
        if self.has_begun() { Some(self.is_pending()) } else { self.inbox.is_quiet() }
    }

    /// Begins to read into `buf`, for whoever comes to [`Ahead::poll_read`]. No other read may have begun.
    pub fn begin(&mut self, buf: Vec<u8>, place: Place) {
        let most = buf.capacity() - buf.len();
        self.order(buf, most);
        self.place = Some(place);
        self.advance(&mut Context::from_waker(Waker::noop()));
    }

    /// Whether a read has begun whose end nobody has had.
    fn has_begun(&self) -> bool {
        !matches!(self.state, State::Quiet)
    }

    /// Whether the read that has begun has not ended, as of the last time that the driver was asked.
    fn is_pending(&mut self) -> bool {
        self.advance(&mut Context::from_waker(Waker::noop()));
        matches!(self.state, State::Reading)
    }

    /// The connection is idle no longer: from here on it is a request that reads.
    pub fn in_use(&mut self) {
        drop(self.place.take());
    }

    /// Reads at most `most` bytes into `buf`. No other read may have begun.
    pub fn read(&mut self, buf: Vec<u8>, most: usize) -> impl Future<Output = Filled> {
        let mut lend = Some(move || buf);
        poll_fn(move |cx| self.poll_read(&mut lend, most, cx))
    }

    /// What the read brings that has begun; or else, at most `most` bytes into what `lend` gives, once there is something to be read, or a
    /// buffer is needed to find out.
    pub fn poll_read(
        &mut self,
        lend: &mut Option<impl FnOnce() -> Vec<u8>>,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Filled> {
        if !self.has_begun() {
            let look = ready!(self.inbox.poll_look(cx));
            if let Some(lend) = lend.take() {
                let mut buf = lend();
                if look == Look::Something
                    && let Some(result) = self.inbox.take(&mut buf, most)
                {
                    return Poll::Ready((result, buf));
                }
                self.order(buf, most);
            }
        }
        self.poll(cx)
    }

    fn order(&mut self, buf: Vec<u8>, most: usize) {
        assert!(!self.has_begun(), "of two reads at a time nobody knows which brings what");
        self.lane.begin((buf, most));
        self.state = State::Reading;
    }

    fn advance(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(filled) = self.lane.poll(cx) {
            self.state = State::Ended(filled);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Filled> {
        self.advance(cx);
        match std::mem::replace(&mut self.state, State::Quiet) {
            State::Ended(filled) => Poll::Ready(filled),
            state => {
                self.state = state;
                Poll::Pending
            }
        }
    }
}

async fn work(mut half: Half, desk: Rc<Desk<Order, Filled>>) -> Infallible {
    loop {
        let (buf, most) = desk.job().await;
        desk.done(half.read(buf, most).await);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream as Peer};
    use std::time::Duration;

    use monoio::net::TcpStream;
    use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

    use super::super::buffers::Buffers;
    use super::super::socket::{Reader, Socket};
    use super::super::watch::Side;
    use super::*;

    /// Runs `check` with a connection and its other end, on each driver.
    fn on_both(check: impl AsyncFn(Socket, Peer)) {
        let main = async || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let stream = TcpStream::connect_addr(listener.local_addr().expect("bound")).await.expect("a listener");
            let peer = listener.accept().expect("a connection").0;
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
            check(Socket::tcp(stream, &Rc::default(), Side::Upstream), peer).await;
        };
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll").block_on(main());
        RuntimeBuilder::<IoUringDriver>::new().enable_timer().build().expect("io_uring").block_on(main());
    }

    /// Lets the driver be asked.
    async fn turn() {
        monoio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn until_not_quiet(socket: &mut Socket) {
        for _ in 0..10_000 {
            if !socket.is_quiet() {
                return;
            }
            turn().await;
        }
        panic!("what came was not noticed");
    }

    fn begin(socket: &mut Socket, buffers: &Buffers) {
        let (buf, place) = buffers.ahead().expect("a place");
        socket.reader.ahead().begin(buf, place);
    }

    async fn end(reader: &mut Reader) -> Vec<u8> {
        let mut lend = Some(|| panic!("a read has begun"));
        let (result, buf) = poll_fn(|cx| reader.ahead().poll_read(&mut lend, usize::MAX, cx)).await;
        assert_eq!(result.expect("open"), buf.len());
        buf
    }

    #[test]
    fn what_comes_is_noticed_and_kept() {
        on_both(async |mut socket, mut peer| {
            let buffers = Buffers::new(1);
            begin(&mut socket, &buffers);
            turn().await;
            assert!(socket.is_quiet());
            peer.write_all(b"one").expect("open");
            until_not_quiet(&mut socket).await;
            assert_eq!(end(&mut socket.reader).await, b"one");

            // Whoever waits is woken, though somebody else began.
            begin(&mut socket, &buffers);
            turn().await;
            let says = std::thread::spawn(move || peer.write_all(b"two").map(|()| peer));
            assert_eq!(end(&mut socket.reader).await, b"two");
            let mut peer = says.join().expect("no panic").expect("open");

            // The usual way to read goes on.
            peer.write_all(b"three").expect("open");
            let (result, buf) = socket.reader.read_some(Vec::with_capacity(16), 3).await;
            assert_eq!((result.expect("open"), &buf[..]), (3, &b"thr"[..]));
            let (result, buf) = socket.reader.read(buf).await;
            assert_eq!((result.expect("open"), &buf[..]), (2, &b"three"[..]));
        });
    }

    #[test]
    fn what_comes_is_waited_for_and_left_there() {
        on_both(async |mut socket, mut peer| {
            let tcp = socket.reader.ahead().tcp().expect("TCP");
            tcp.writable().await.expect("open");
            for word in [b"one", b"two"] {
                let mut readable = std::pin::pin!(tcp.readable());
                for _ in 0..10 {
                    let early = readable.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    assert!(early.is_pending(), "nothing has come");
                    turn().await;
                }
                peer.write_all(word).expect("open");
                readable.await.expect("open");
                assert!(!socket.is_quiet());
                let (result, buf) = socket.reader.read(Vec::with_capacity(16)).await;
                assert_eq!((result.expect("open"), &buf[..]), (3, &word[..]));
            }
            drop(peer);
            tcp.readable().await.expect("an end");
            let (result, _) = socket.reader.read(Vec::with_capacity(16)).await;
            assert_eq!(result.expect("an orderly end"), 0);
        });
    }

    #[test]
    fn a_close_is_noticed() {
        on_both(async |mut socket, peer| {
            begin(&mut socket, &Buffers::new(1));
            drop(peer);
            until_not_quiet(&mut socket).await;
            assert_eq!(end(&mut socket.reader).await, b"");
        });
    }

    #[test]
    fn a_connection_that_reads_can_be_closed() {
        on_both(async |mut socket, mut peer| {
            begin(&mut socket, &Buffers::new(1));
            turn().await;
            drop(socket);
            turn().await;
            assert_eq!(peer.read(&mut [0]).expect("an orderly end"), 0);
        });
    }
}
