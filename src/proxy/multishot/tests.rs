use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream as Peer};
use std::os::fd::AsRawFd;
use std::time::Duration;

use monoio::net::TcpStream;
use monoio::{IoUringDriver, RuntimeBuilder};

use super::super::provided::{BUFFER_BYTES, BUFFERS_MAX};
use super::super::socket::{self, Reader, Socket, Writer};
use super::super::watch::{Patience, Side};
use super::station::{LIMIT, UNREAD_MAX};
use super::*;

/// Runs `check` on a ring whose receives stay armed; afterwards nothing may be left of it.
fn on_ring(check: impl AsyncFn(Listener)) {
    RuntimeBuilder::<IoUringDriver>::new().enable_timer().build().expect("io_uring").block_on(async {
        let _installed = install().expect("provided buffers");
        monoio::spawn(tend());
        check(Listener(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"))).await;
        until("all is over", || with(|station| station.slots.is_empty() && station.sends.is_empty())).await;
        with(|station| station.buffers.assert_all_free());
    });
}

struct Listener(TcpListener);

impl Listener {
    /// A client that has been served, and its other end.
    async fn client(&self) -> (Socket, Peer) {
        let (mut socket, peer) = self.connect(Side::Client).await;
        socket.stay_armed();
        (socket, peer)
    }

    /// Has a receive bring something, before which nothing is posted.
    async fn prove(&self) {
        let (mut socket, mut peer) = self.client().await;
        assert!(!socket.writer.post(b"early"));
        begin_to_read(&mut socket).await;
        peer.write_all(b"one").expect("open");
        assert_eq!(read(&mut socket, 16).await, b"one");
    }

    async fn connect(&self, side: Side) -> (Socket, Peer) {
        let stream = TcpStream::connect_addr(self.0.local_addr().expect("bound")).await.expect("a listener");
        // Little goes out that nobody takes in.
        socket2::SockRef::from(&socket::borrow(stream.as_raw_fd())).set_send_buffer_size(8192).expect("an option");
        let peer = self.0.accept().expect("a connection").0;
        peer.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
        (Socket::tcp(stream, &std::rc::Rc::default(), side), peer)
    }
}

/// Lets the driver be asked until `is_so`.
async fn until(what: &str, mut is_so: impl FnMut() -> Option<bool>) {
    for _ in 0..10_000 {
        if is_so() == Some(true) {
            return;
        }
        monoio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}: it never was so");
}

fn key(socket: &Socket) -> u32 {
    let Reader::Client(_, inbox) = &socket.reader else { panic!("a client's") };
    inbox.slot
}

fn socket_fd(socket: &Socket) -> RawFd {
    slot(key(socket), |slot| slot.fd()).expect("open")
}

fn stage(socket: &Socket) -> Option<Stage> {
    slot(key(socket), |slot| slot.stage())
}

fn unread(socket: &Socket) -> u16 {
    slot(key(socket), |slot| slot.unread.count).expect("open")
}

/// Polls a read once, so that it begins.
async fn begin_to_read(socket: &mut Socket) {
    let mut look = std::pin::pin!(socket.reader.look());
    let found = poll_fn(|cx| Poll::Ready(look.as_mut().poll(cx))).await;
    assert!(found.is_pending(), "nothing has come");
}

async fn read(socket: &mut Socket, room: usize) -> Vec<u8> {
    let (result, buf) = socket.reader.read(Vec::with_capacity(room)).await;
    assert_eq!(result.expect("open"), buf.len());
    buf
}

/// Bytes of which no two neighbouring buffers hold the same.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251) as u8 ^ at as u8).collect()
}

/// Has `peer` send `bytes` meanwhile.
fn send(mut peer: Peer, bytes: Vec<u8>) -> std::thread::JoinHandle<Peer> {
    std::thread::spawn(move || {
        peer.write_all(&bytes).expect("it is read");
        peer
    })
}

async fn read_all(socket: &mut Socket, length: usize, room: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let piece = read(socket, room).await;
        assert!(!piece.is_empty(), "the end, after {} bytes", all.len());
        all.extend_from_slice(&piece);
    }
    all
}

async fn with_patience<T>(socket: &mut Socket, f: impl AsyncFn(&mut Writer, Patience<'_>) -> T) -> T {
    let now = std::cell::Cell::new(0);
    let Socket { watch, writer, .. } = socket;
    f(writer, Patience::new(watch, &now, Duration::from_secs(10))).await
}

#[test]
fn what_comes_is_read_in_order() {
    on_ring(async |listener| {
        for room in [100, BUFFER_BYTES, 10 * BUFFER_BYTES + 1] {
            let (mut socket, peer) = listener.client().await;
            let bytes = pattern(1024 * 1024);
            let sent = send(peer, bytes.clone());
            assert!(read_all(&mut socket, bytes.len(), room).await == bytes, "{room}");
            drop(sent.join().expect("no panic"));
            assert_eq!(read(&mut socket, 16).await, b"");
            assert_eq!(read(&mut socket, 16).await, b"", "the end stays the end");
        }
    });
}

#[test]
fn a_receive_serves_message_after_message() {
    on_ring(async |listener| {
        let (mut socket, mut peer) = listener.client().await;
        for number in 0..200 {
            let bytes = pattern(number + 1);
            begin_to_read(&mut socket).await;
            peer.write_all(&bytes).expect("open");
            assert_eq!(read_all(&mut socket, bytes.len(), 2048).await, bytes);
            assert_eq!((stage(&socket), unread(&socket)), (Some(Stage::Armed), 0));
        }
    });
}

#[test]
fn who_sends_ahead_is_not_received_from_any_more() {
    on_ring(async |listener| {
        // As on a kernel that knows of no limit.
        with(|station| station.limit = 0);
        let (mut socket, peer) = listener.client().await;
        begin_to_read(&mut socket).await;
        let bytes = pattern(8 * 1024 * 1024);
        let sent = send(peer, bytes.clone());
        until("it is disarmed", || stage(&socket).map(|stage| stage == Stage::Disarmed)).await;
        let held = unread(&socket);
        assert!((UNREAD_MAX..BUFFERS_MAX / 4).contains(&held), "{held}");
        monoio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(unread(&socket), held, "nothing comes here any more");
        assert!(read_all(&mut socket, bytes.len(), 64 * 1024).await == bytes);
        drop(sent.join().expect("no panic"));
    });
}

#[test]
fn a_receive_brings_no_more_than_it_may() {
    on_ring(async |listener| {
        let (mut socket, peer) = listener.client().await;
        let bytes = pattern(8 * 1024 * 1024);
        let sent = send(peer, bytes.clone());
        // All of that comes at once.
        monoio::time::sleep(Duration::from_millis(20)).await;
        begin_to_read(&mut socket).await;
        until("it is over", || stage(&socket).map(|stage| stage == Stage::Disarmed)).await;
        let Reader::Client(_, inbox) = &mut socket.reader else { panic!("a client's") };
        let mut all = Vec::with_capacity(bytes.len());
        let first = inbox.take(&mut all, usize::MAX).expect("something").expect("open");
        if with(|station| station.limit > 0) == Some(true) {
            assert!((1..=LIMIT as usize + BUFFER_BYTES).contains(&first), "{first}");
        }
        all.extend_from_slice(&read_all(&mut socket, bytes.len() - first, 64 * 1024).await);
        assert!(all == bytes);
        drop(sent.join().expect("no panic"));
    });
}

#[test]
fn after_disarming_nothing_is_lost_and_others_may_read() {
    on_ring(async |listener| {
        let (mut socket, mut peer) = listener.client().await;
        begin_to_read(&mut socket).await;
        assert!(socket.reader.tcp().is_none(), "it is received from");
        peer.write_all(b"one").expect("open");
        until("it came", || Some(unread(&socket) > 0)).await;
        socket.reader.disarm().await;
        assert_eq!(stage(&socket), Some(Stage::Disarmed));
        peer.write_all(b"two").expect("open");
        assert!(socket.reader.tcp().is_none(), "something is to be read first");
        assert!(socket.has_unread());
        assert_eq!(read(&mut socket, 16).await, b"one");
        assert!(socket.reader.tcp().is_some());
        assert_eq!(read(&mut socket, 16).await, b"two");
        assert_eq!(stage(&socket), Some(Stage::Disarmed), "until it is wanted again");
        socket.stay_armed();
        peer.write_all(b"three").expect("open");
        assert_eq!(read(&mut socket, 16).await, b"three");
        assert_eq!(stage(&socket), Some(Stage::Disarmed), "what came after something long may have been long");
        socket.stay_armed();
        begin_to_read(&mut socket).await;
        peer.write_all(b"four").expect("open");
        assert_eq!(read(&mut socket, 2).await, b"fo");
        let mut rest = Vec::with_capacity(16);
        assert!(socket.read_ready(&mut rest));
        assert_eq!(rest, b"ur");
        assert!(!socket.read_ready(&mut rest), "there is no more");
    });
}

#[test]
fn what_comes_after_the_gateway_has_ended_the_stream_is_read() {
    on_ring(async |listener| {
        let (mut socket, mut peer) = listener.client().await;
        begin_to_read(&mut socket).await;
        socket::shut(socket_fd(&socket), Shut::Read);
        assert_eq!(read(&mut socket, 16).await, b"");
        peer.write_all(b"one").expect("open");
        let mut late = Vec::with_capacity(16);
        until("it came", || Some(socket.read_ready(&mut late))).await;
        assert_eq!(late, b"one");
        peer.write_all(b"two").expect("open");
        until("it came", || Some(socket.has_unread())).await;
        assert_eq!(read(&mut socket, 16).await, b"two");
    });
}

#[test]
fn a_reset_is_told() {
    on_ring(async |listener| {
        let (mut socket, peer) = listener.client().await;
        begin_to_read(&mut socket).await;
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(peer);
        for _ in 0..2 {
            let (result, _) = socket.reader.read(Vec::with_capacity(16)).await;
            assert_eq!(result.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn without_a_buffer_it_is_read_all_the_same() {
    on_ring(async |listener| {
        let bytes = pattern(512 * 1024);
        let mut greedy = Vec::new();
        while with(|station| station.buffers.has_any()) == Some(true) {
            assert!(greedy.len() < usize::from(BUFFERS_MAX), "all are taken at some time");
            let (mut socket, peer) = listener.client().await;
            begin_to_read(&mut socket).await;
            let sent = send(peer, bytes.clone());
            until("it is disarmed", || stage(&socket).map(|stage| stage == Stage::Disarmed)).await;
            greedy.push((socket, sent));
        }
        let (mut socket, mut peer) = listener.client().await;
        for word in [b"one", b"two"] {
            peer.write_all(word).expect("open");
            assert_eq!(read(&mut socket, 16).await, word);
            assert_eq!(stage(&socket), Some(Stage::Disarmed));
        }
        for (mut socket, sent) in greedy {
            assert!(read_all(&mut socket, bytes.len(), 64 * 1024).await == bytes);
            sent.join().expect("no panic");
        }
        begin_to_read(&mut socket).await;
        assert_eq!(stage(&socket), Some(Stage::Armed));
    });
}

#[test]
fn a_connection_that_waits_can_be_dropped() {
    on_ring(async |listener| {
        let (mut socket, mut peer) = listener.client().await;
        begin_to_read(&mut socket).await;
        monoio::time::sleep(Duration::from_millis(1)).await;
        drop(socket);
        monoio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(peer.read(&mut [0]).expect("an orderly end"), 0);
        // And so when something has come that nobody has read.
        let (mut socket, mut peer) = listener.client().await;
        begin_to_read(&mut socket).await;
        peer.write_all(b"one").expect("open");
        until("it came", || Some(unread(&socket) > 0)).await;
        drop(socket);
    });
}

#[test]
fn what_is_posted_is_sent_in_order() {
    on_ring(async |listener| {
        listener.prove().await;
        let (mut socket, mut peer) = listener.client().await;
        assert!(!socket.writer.post(&[0; POSTED_MAX + 1]), "that is too much");
        let long = pattern(POSTED_MAX);
        assert!(socket.writer.post(&long));
        assert!(!socket.writer.is_settled() && !socket.writer.post(b"x"), "one after the other");
        let written = with_patience(&mut socket, async |writer, patience| {
            writer.write_all(b"behind it".to_vec(), patience).await.0
        });
        assert_eq!(written.await, Ok(()));
        assert!(socket.writer.is_settled());
        let mut all = vec![0; POSTED_MAX + 9];
        peer.read_exact(&mut all).expect("all of it");
        assert!(all[..POSTED_MAX] == long && &all[POSTED_MAX..] == b"behind it");
        assert_eq!(socket.writer.cut(), None);
    });
}

#[test]
fn what_cannot_be_sent_ends_the_connection() {
    on_ring(async |listener| {
        listener.prove().await;
        let (mut socket, peer) = listener.client().await;
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(peer);
        assert!(socket.writer.post(b"to nobody"));
        let settled = with_patience(&mut socket, async |writer, patience| writer.settle(patience).await);
        assert_eq!(settled.await.map_err(|error| error.written), Err(0));
        assert_eq!(socket.writer.cut(), Some(0));
        assert!(!socket.writer.post(b"again"));
        assert!(!matches!(socket.reader.read(Vec::with_capacity(16)).await.0, Ok(1..)));
    });
}

#[test]
fn what_a_peer_does_not_take_is_sent_once_it_does() {
    on_ring(async |listener| {
        listener.prove().await;
        let (mut socket, mut peer) = listener.client().await;
        let piece = pattern(POSTED_MAX);
        let mut count = 0;
        // Until the kernel has no room for the last one.
        let mut waited = 0;
        while waited < 30 {
            if socket.writer.is_settled() {
                assert!(socket.writer.post(&piece));
                (count, waited) = (count + 1, 0);
            }
            monoio::time::sleep(Duration::from_millis(1)).await;
            waited += 1;
        }
        let read = std::thread::spawn(move || {
            let mut all = vec![0; count * POSTED_MAX];
            peer.read_exact(&mut all).expect("all of it");
            all
        });
        let settled = with_patience(&mut socket, async |writer, patience| writer.settle(patience).await);
        assert_eq!(settled.await, Ok(()));
        assert!(read.join().expect("no panic").chunks(POSTED_MAX).all(|chunk| chunk == piece));
    });
}

#[test]
fn an_upstream_stays_armed_between_its_answers() {
    on_ring(async |listener| {
        let (mut socket, mut peer) = listener.connect(Side::Upstream).await;
        let key = socket.reader.ahead().inbox().slot;
        let stage = || slot(key, |slot| slot.stage());
        peer.write_all(b"first").expect("open");
        assert_eq!(read(&mut socket, 16).await, b"first");
        assert_eq!(stage(), Some(Stage::Disarmed), "what comes first may be long");
        socket.reader.ahead().inbox().arm();
        assert!(socket.reader.ahead().inbox().begin());
        assert!(socket.reader.tcp().is_none(), "it is received from");
        monoio::time::sleep(Duration::from_millis(1)).await;
        assert!(socket.is_quiet());
        for word in [b"one", b"two"] {
            peer.write_all(word).expect("open");
            until("it came", || Some(!socket.is_quiet())).await;
            assert_eq!(read(&mut socket, 16).await, word);
            assert!(socket.is_quiet());
            assert_eq!(stage(), Some(Stage::Armed));
        }
        drop(peer);
        until("it has ended", || Some(!socket.is_quiet())).await;
        assert_eq!(read(&mut socket, 16).await, b"");
    });
}

#[test]
fn a_kernel_that_does_not_know_it_is_not_asked_again() {
    on_ring(async |listener| {
        let (mut socket, mut peer) = listener.client().await;
        let (mut other, _other_peer) = listener.client().await;
        let refusal = || with(|station| (station.limit, station.is_refused));
        // Both with a limit, and then without one. The receives that the kernel took all the same end.
        for expected in [(0, false), (0, true)] {
            begin_to_read(&mut socket).await;
            begin_to_read(&mut other).await;
            for socket in [&socket, &other] {
                completed(key(socket).into(), -libc::EINVAL, 0);
                assert_eq!(refusal(), Some(expected));
                cancel(key(socket));
            }
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
        for word in [b"one", b"two"] {
            peer.write_all(word).expect("open");
            assert_eq!(read(&mut socket, 16).await, word);
            assert_eq!(stage(&socket), Some(Stage::Disarmed));
        }
    });
}
