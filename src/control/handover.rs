//! The listening sockets: taken over from whoever had them before, and handed to the next process.
//!
//! A listening socket that is closed resets everybody in its queue. So an upgrade closes none: the next process is given the
//! very same sockets, begins to accept, and says so; only then does this one stop to. At no moment does nobody listen, and
//! nobody who waits in a queue is lost. When the next process does not come up, nothing has changed.
//!
//! The sockets go over a Unix socket that the next process finds as its standard input, as ancillary data (`SCM_RIGHTS`,
//! unix(7)); the same socket then carries its word that it serves. systemd's way (`LISTEN_FDS`, sd_listen_fds(3)) is
//! understood as well. Those sockets are systemd's own too: they are never filtered, and outlive this process.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::slice;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Tells the next process that its standard input is the socket.
pub const VARIABLE: &str = "RINGWAY_HANDOVER";

/// How long the next process may take until it serves.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long the sockets may take to come.
const SOCKETS_WITHIN: Duration = Duration::from_secs(5);

/// Sockets in one message; the kernel takes 253.
const BATCH: usize = 64;

/// Words of the hand-over, a byte each.
const OWN: u8 = b'o';
const SHARED: u8 = b's';
const MANAGEMENT: u8 = b'm';
const END: u8 = b'.';
const SERVING: u8 = b'!';
const SERVING_APART: u8 = b'/';

/// Sockets that were opened by somebody else.
#[derive(Debug)]
pub struct Inherited {
    /// The sockets, at least one.
    pub sockets: Vec<TcpListener>,
    /// Where management requests come in by themselves (`admin.listen`).
    pub management: Option<TcpListener>,
    /// Whether somebody else goes on holding them, as systemd does.
    pub is_shared: bool,
    /// Who waits to be told that this process serves.
    pub predecessor: Option<Predecessor>,
}

/// The process that handed its sockets over.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Tells it that this process serves, so that it can go; `with_its_sockets` or with others.
    ///
    /// # Errors
    /// It is gone already.
    pub fn say_serving(mut self, with_its_sockets: bool) -> io::Result<()> {
        self.0.write_all(&[if with_its_sockets { SERVING } else { SERVING_APART }])
    }
}

/// Closes what came along by accident, in a process that was started by a hand-over. To be called before anything else.
///
/// Versions that accepted by monoio's operation passed connections on to whatever process they started, since it accepts without
/// `SOCK_CLOEXEC`: a client of the old process would not see it close while the next one holds the connection too.
#[allow(unsafe_code)]
pub fn close_strays() {
    const FIRST: libc::c_uint = 3;
    if std::env::var_os(VARIABLE).is_some() {
        // SAFETY: the process has just begun and has opened nothing: behind standard input, output and error there are only
        // descriptors that nobody in it knows of. Should the kernel not know the call, they stay open.
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    }
}

/// The sockets that this process was started with; `None` when it is to open its own.
///
/// # Errors
/// Sockets were announced and did not come, or are none that clients connect to.
pub fn inherit() -> io::Result<Option<Inherited>> {
    if std::env::var_os(VARIABLE).is_some() {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        return receive(stream).map(Some);
    }
    let mut given = ListenFd::from_env();
    let sockets = (0..given.len()).map(|index| given.take_tcp_listener(index)).collect::<io::Result<Vec<_>>>()?;
    let sockets: Vec<TcpListener> = sockets.into_iter().flatten().collect();
    Ok((!sockets.is_empty()).then_some(Inherited { sockets, management: None, is_shared: true, predecessor: None }))
}

fn receive(stream: UnixStream) -> io::Result<Inherited> {
    stream.set_read_timeout(Some(SOCKETS_WITHIN))?;
    let mut sockets = Vec::new();
    let mut management = None;
    let mut is_shared = false;
    loop {
        let mut word = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut word)];
        let received = rustix::net::recvmsg(&stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let mut given = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                given.extend(descriptors.map(TcpListener::from));
            }
        }
        match (received.bytes, word) {
            (1, [OWN]) => sockets.append(&mut given),
            (1, [SHARED]) => {
                sockets.append(&mut given);
                is_shared = true;
            }
            (1, [MANAGEMENT]) => management = given.pop(),
            (1, [END]) if !sockets.is_empty() => break,
            _ => return Err(io::Error::other("the process that was to hand over its sockets broke off")),
        }
    }
    Ok(Inherited { sockets, management, is_shared, predecessor: Some(Predecessor(stream)) })
}

impl Inherited {
    /// Whether these are sockets at `address`. Those of a service manager are taken wherever they are.
    pub fn fits(&self, address: SocketAddr) -> bool {
        self.is_shared || self.sockets.iter().all(|socket| is_at(socket, address))
    }
}

/// Whether `socket` listens at `address`, whose port 0 is any.
pub fn is_at(socket: &TcpListener, address: SocketAddr) -> bool {
    socket.local_addr().is_ok_and(|own| own.ip() == address.ip() && [0, own.port()].contains(&address.port()))
}

/// What the next process has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Successor {
    /// Its process id.
    pub pid: u32,
    /// Whether it accepts from the sockets that it was given, or from others beside them.
    pub has_sockets: bool,
}

/// Each worker's listeners. Every one of `sockets` is somebody's, or connections would wait in it for ever; a worker that
/// none is left for gets one that `open` makes, or else shares another's.
///
/// # Errors
/// A descriptor cannot be had.
pub fn share_out(
    sockets: &[TcpListener],
    workers: usize,
    mut open: impl FnMut() -> io::Result<Option<TcpListener>>,
) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (index, socket) in sockets.iter().enumerate() {
        shares[index % workers].push(socket.try_clone()?);
    }
    for index in sockets.len()..workers {
        let socket = match open()? {
            Some(socket) => socket,
            None => sockets[index % sockets.len()].try_clone()?,
        };
        shares[index].push(socket);
    }
    Ok(shares)
}

/// What the next process is started with and given.
#[derive(Debug)]
pub struct Handover {
    program: OsString,
    arguments: Vec<OsString>,
    sockets: Vec<TcpListener>,
    management: Option<TcpListener>,
    is_shared: bool,
}

impl Handover {
    /// Keeps `sockets`, and the one of `management`, for the next process, which is started as this one was: a binary that
    /// was replaced meanwhile is the one that runs then.
    pub fn new(sockets: Vec<TcpListener>, management: Option<TcpListener>, is_shared: bool) -> Handover {
        let mut arguments = std::env::args_os();
        let program = arguments.next().unwrap_or_else(|| "ringway".into());
        Handover { program, arguments: arguments.collect(), sockets, management, is_shared }
    }

    /// Where the sockets listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.sockets.first()?.local_addr().ok()
    }

    /// Starts the next process, gives it the sockets, and waits until it serves. When the future is
    /// dropped before that, the next process is ended.
    ///
    /// # Errors
    /// What went wrong. The next process has been ended; this one may go on as if nothing had happened.
    pub async fn run(&self) -> Result<Successor, String> {
        if std::process::id() == 1 {
            return Err(
                "this is process 1, whose end would end the container; start another container instead".to_owned()
            );
        }
        let (own, other) = UnixStream::pair().map_err(|error| format!("no socket can be had: {error}"))?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env(VARIABLE, "stdin")
            // It names this process (sd_watchdog_enabled(3)), and the next one is to feed the watchdog.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(other)))
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", self.program.display()))?;
        let pid = child.id().unwrap_or_default();
        // One that has ended already takes nothing; its status says more than the error.
        let sent = self.send(&own);
        let mut word = [0];
        let answer = async {
            sent?;
            own.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(own)?.read(&mut word).await
        };
        match timeout(READY_WITHIN, answer).await {
            Ok(Ok(1)) if [SERVING, SERVING_APART].contains(&word[0]) => {
                // It lives on: this handle would end it.
                std::mem::forget(child);
                Ok(Successor { pid, has_sockets: word == [SERVING] })
            }
            Err(_) => Err(format!("it did not serve within {} s", READY_WITHIN.as_secs())),
            Ok(_) => Err(match timeout(SOCKETS_WITHIN, child.wait()).await {
                Ok(Ok(status)) => format!("it ended: {status}; its own events say why"),
                Ok(Err(_)) | Err(_) => "it broke off".to_owned(),
            }),
        }
    }

    fn send(&self, to: &UnixStream) -> io::Result<()> {
        let word = if self.is_shared { SHARED } else { OWN };
        let batches = self.sockets.chunks(BATCH).map(|batch| (word, batch));
        let management = self.management.iter().map(|socket| (MANAGEMENT, slice::from_ref(socket)));
        for (word, batch) in batches.chain(management) {
            let descriptors: Vec<BorrowedFd<'_>> = batch.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            rustix::net::sendmsg(to, &[IoSlice::new(&[word])], &mut ancillary, SendFlags::NOSIGNAL)?;
        }
        (&mut &*to).write_all(&[END])
    }

    /// Gives the sockets up: they close with the workers' own.
    pub fn close(&mut self) {
        self.sockets.clear();
        self.management = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sockets(count: usize) -> Vec<TcpListener> {
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect()
    }

    fn ports(sockets: &[TcpListener]) -> Vec<u16> {
        sockets.iter().map(|socket| socket.local_addr().expect("an address").port()).collect()
    }

    #[test]
    fn sockets_cross_and_the_word_comes_back() {
        for (count, is_shared) in [(1, false), (3, true), (150, false)] {
            let management = sockets(count % 2).pop();
            let (own, other) = UnixStream::pair().expect("a pair");
            let handover = Handover::new(sockets(count), management, is_shared);
            handover.send(&own).expect("sent");
            let inherited = receive(other).expect("received");
            assert_eq!((ports(&inherited.sockets), inherited.is_shared), (ports(&handover.sockets), is_shared));
            assert_eq!(ports(inherited.management.as_slice()), ports(handover.management.as_slice()));
            inherited.predecessor.expect("there is one").say_serving(true).expect("it is there");
            let mut word = [0];
            (&own).read_exact(&mut word).expect("the word comes");
            assert_eq!(word, [SERVING]);
        }
    }

    #[test]
    fn who_breaks_off_is_an_error() {
        for words in [&b""[..], b".", b"x", b"o", b"m"] {
            let (mut own, other) = UnixStream::pair().expect("a pair");
            own.write_all(words).expect("sent");
            drop(own);
            assert!(receive(other).is_err(), "{words:?}");
        }
    }

    #[test]
    fn every_socket_has_a_worker_and_every_worker_a_socket() {
        for (given, workers) in [(1, 1), (2, 2), (4, 2), (5, 2), (2, 4), (1, 3)] {
            let own = sockets(given);
            for may_open in [true, false] {
                let open = || Ok(may_open.then(|| sockets(1).remove(0)));
                let shares = share_out(&own, workers, open).expect("descriptors");
                assert!(shares.len() == workers && shares.iter().all(|share| !share.is_empty()), "{given} {workers}");
                let taken: Vec<u16> = shares.iter().flat_map(|share| ports(share)).collect();
                assert!(ports(&own).iter().all(|port| taken.contains(port)), "{given} {workers}");
            }
        }
    }

    #[test]
    fn sockets_fit_where_they_listen() {
        let own = sockets(1);
        let port = ports(&own)[0];
        let (other, _) = UnixStream::pair().expect("a pair");
        let inherited =
            Inherited { sockets: own, management: None, is_shared: false, predecessor: Some(Predecessor(other)) };
        let fits = |address: &str| inherited.fits(address.parse().expect("an address"));
        assert!(fits(&format!("127.0.0.1:{port}")) && fits("127.0.0.1:0"));
        assert!(!fits(&format!("0.0.0.0:{port}")) && !fits(&format!("127.0.0.1:{}", port ^ 1)));
    }
}
