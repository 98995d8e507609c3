//! Long bodies from socket to socket without a copy: through a pipe, by splice(2), which hands on the pages that the bytes came in.
//!
//! The system call, not io_uring's operation, which the kernel always leaves to threads of its own. It must never wait, and
//! `SPLICE_F_NONBLOCK` alone does not see to that, since it is about the pipe:
//!
//! - What is to be read from a socket is waited for (`tcp_splice_read` in the kernel's net/ipv4/tcp.c). So this is done only when the
//!   driver has just said that there is something, bytes or the end; and nobody else reads from the socket.
//! - Room for all that is to be sent is waited for, unless the socket's file is `O_NONBLOCK` (`splice_to_socket` in fs/splice.c,
//!   `sock_sendpage` in net/socket.c before Linux 6.5). Sockets on a ring are not, since some of its operations fail on one that is
//!   rather than wait. So it is for the length of the call: no operation begins meanwhile, and those under way do not look at that.
//!
//! A peer that is gone would end the process with SIGPIPE, which Rust's runtime has turned off.
//!
//! A pipe that still holds bytes when its exchange ends is closed, so that nobody else gets them.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::{self, Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::socket::Tcp;
use super::watch::{Millis, Patience, TICK};

/// A body of which fewer bytes are to come is not worth a pipe.
const SPLICED_MIN: u64 = 128 * 1024;

/// A body that brings fewer bytes at a time is better copied.
pub const SLOW_BYTES: usize = 16 * 1024;

/// How much a pipe holds, in whole pages. The less it is, the more often both sides are woken: with 64 KiB, what a pipe has by
/// default, that costs more than to copy. A user without privileges may have 64 MiB of pipes (pipe(7), pipe-user-pages-soft).
const PIPE_BYTES: usize = 512 * 1024;

/// So many bodies of a worker may have a pipe: 32 MiB of data, as long as who takes them is slower than who sends them.
pub const PIPES_MAX: usize = 64;

/// How long a pipe is kept that nobody needs: this, up to twice.
const KEPT: Millis = 30_000;

/// The pipes of a worker.
#[derive(Debug)]
pub struct Pipes {
    /// Whether sockets' files are not `O_NONBLOCK`.
    are_sockets_blocking: bool,
    most: usize,
    open: Cell<usize>,
    free: RefCell<Vec<Rc<Ends>>>,
    /// When those that nobody had needed were closed last, and how many of the free ones nobody has needed since.
    closed: Cell<Millis>,
    spare: Cell<usize>,
    refused: Cell<Refused>,
}

/// Whether the kernel has refused what is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    No,
    /// There was no pipe, and to ask again for each body would be dear.
    ForNow,
    /// It does not do this at all, or a sandbox does not let it.
    ForGood,
}

/// A pipe with bytes of one body.
#[derive(Debug)]
pub struct Pipe {
    ends: Rc<Ends>,
    held: usize,
    pipes: Rc<Pipes>,
}

/// Closed when dropped.
#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipes {
    /// At most `most`, for sockets that wait, as on a ring, or that do not.
    pub fn new(most: usize, are_sockets_blocking: bool) -> Rc<Pipes> {
        Rc::new(Pipes {
            are_sockets_blocking,
            most,
            open: Cell::new(0),
            free: RefCell::default(),
            closed: Cell::new(0),
            spare: Cell::new(0),
            refused: Cell::new(Refused::No),
        })
    }

    /// Whether a body of which `left` bytes are to come, if that is known, is worth a pipe, and there is likely to be one.
    pub fn are_for(&self, left: Option<u64>) -> bool {
        left.is_some_and(|left| left >= SPLICED_MIN)
            && self.refused.get() != Refused::ForGood
            && (!self.free.borrow().is_empty() || self.may_open())
    }

    /// Waits until something comes on `from`, from which nobody else may read, and takes it into a pipe: at most `most` bytes, and what
    /// there is room for. Nobody has a pipe while he waits for his sender.
    ///
    /// `None` when there is no pipe, at the end of the stream, after an error, and where bytes are that only a read gets past (tcp(7),
    /// urgent data): a read finds out which.
    pub async fn receive(self: &Rc<Pipes>, from: &Tcp, most: u64) -> Option<Pipe> {
        from.readable().await.ok()?;
        let mut pipe = self.take()?;
        (pipe.fill(from.as_fd(), most) > 0).then_some(pipe)
    }

    /// An empty pipe; `None` when all are taken, or the kernel has none, or only small ones.
    fn take(self: &Rc<Pipes>) -> Option<Pipe> {
        if self.refused.get() == Refused::ForGood {
            return None;
        }
        let ends = self.reuse().or_else(|| self.open())?;
        Some(Pipe { ends, held: 0, pipes: Rc::clone(self) })
    }

    fn reuse(&self) -> Option<Rc<Ends>> {
        let mut free = self.free.borrow_mut();
        let ends = free.pop();
        self.spare.set(self.spare.get().min(free.len()));
        ends
    }

    fn may_open(&self) -> bool {
        self.open.get() < self.most && self.refused.get() == Refused::No
    }

    fn open(&self) -> Option<Rc<Ends>> {
        if !self.may_open() {
            return None;
        }
        let Ok(ends) = Ends::open() else {
            self.refused.set(Refused::ForNow);
            return None;
        };
        self.open.set(self.open.get() + 1);
        Some(Rc::new(ends))
    }

    /// To be called now and then. Closes those that nobody has needed for a while; and what the kernel did not have, it may have now.
    pub fn tidy(&self, now: Millis) {
        if self.refused.get() == Refused::ForNow {
            self.refused.set(Refused::No);
        }
        if now >= self.closed.get() + KEPT {
            self.closed.set(now);
            self.close(self.spare.get());
            self.spare.set(self.free.borrow().len());
        }
    }

    /// Closes those that nobody uses: their descriptors are wanted.
    pub fn shed(&self) {
        self.close(usize::MAX);
        self.spare.set(0);
    }

    /// Closes so many of the free ones, or all.
    fn close(&self, count: usize) {
        let mut free = self.free.borrow_mut();
        let count = count.min(free.len());
        free.drain(..count);
        self.open.set(self.open.get() - count);
    }
}

impl Ends {
    fn open() -> io::Result<Ends> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&writer, PIPE_BYTES)?;
        Ok(Ends { reader, writer })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.held == 0 {
            self.pipes.free.borrow_mut().push(Rc::clone(&self.ends));
        } else {
            self.pipes.open.set(self.pipes.open.get() - 1);
        }
    }
}

impl Pipe {
    /// How many bytes it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in what has come on a TCP socket that is readable; how much that is.
    fn fill(&mut self, from: BorrowedFd<'_>, most: u64) -> usize {
        let most = usize::try_from(most).map_or(PIPE_BYTES, |most| most.min(PIPE_BYTES));
        let filled = splice(from, None, &self.ends.writer, None, most, SpliceFlags::NONBLOCK);
        // None of these is ever a connection's own error, which its peer could bring about.
        if let Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) = filled {
            self.pipes.refused.set(Refused::ForGood);
        }
        let filled = filled.unwrap_or(0);
        self.held += filled;
        filled
    }

    /// Sends all that it holds; whether the peer took it.
    pub async fn empty(&mut self, to: &Tcp, patience: Patience<'_>) -> bool {
        let mut is_stalled = false;
        patience.renew();
        while self.held > 0 {
            match self.send(to.as_fd()) {
                Ok(1..) => {
                    is_stalled = false;
                    patience.renew();
                }
                // Should the kernel have no memory for a socket that has room, nobody tells when it has.
                Err(Errno::AGAIN) if is_stalled => {
                    is_stalled = false;
                    monoio::time::sleep(TICK).await;
                }
                Err(Errno::AGAIN) if to.writable().await.is_ok() => is_stalled = true,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        patience.done();
        self.held == 0
    }

    /// Sends what the socket has room for. Never more is asked for than there is, or the kernel would wait for the rest before it
    /// sends the last segment.
    fn send(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let are_blocking = self.pipes.are_sockets_blocking;
        if are_blocking {
            ioctl_fionbio(to, true)?;
        }
        let sent = splice(&self.ends.reader, None, to, None, self.held, SpliceFlags::NONBLOCK);
        if are_blocking {
            ioctl_fionbio(to, false)?;
        }
        self.held -= sent?;
        sent
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn pipes_are_bounded_and_come_back() {
        let pipes = Pipes::new(3, false);
        let count = || (pipes.open.get(), pipes.free.borrow().len());
        let mut lent: Vec<_> = std::iter::from_fn(|| pipes.take()).take(4).collect();
        assert_eq!((lent.len(), count()), (3, (3, 0)));
        lent.pop();
        assert_eq!(count(), (3, 1));
        lent.push(pipes.take().expect("the one that came back"));
        // What is in use is counted, whatever becomes of the free ones.
        lent.pop();
        pipes.shed();
        assert_eq!(count(), (2, 0));
        drop(lent);
        assert_eq!(count(), (2, 2));
        pipes.shed();
        assert_eq!(count(), (0, 0));
    }

    #[test]
    fn pipes_that_nobody_needs_are_closed() {
        let pipes = Pipes::new(10, false);
        let use_up_to = |count| drop(std::iter::from_fn(|| pipes.take()).take(count).collect::<Vec<_>>());
        let now = Cell::new(0);
        let tidied = || {
            pipes.tidy(now.get() + KEPT - 1);
            now.set(now.get() + KEPT);
            pipes.tidy(now.get());
            assert_eq!(pipes.open.get(), pipes.free.borrow().len());
            pipes.open.get()
        };
        use_up_to(5);
        assert_eq!(tidied(), 5);
        use_up_to(2);
        assert_eq!(tidied(), 2);
        use_up_to(2);
        assert_eq!(tidied(), 2);
        use_up_to(1);
        pipes.shed();
        assert_eq!(tidied(), 0);
        use_up_to(1);
        assert_eq!([tidied(), tidied(), tidied()], [1, 0, 0]);
    }

    #[test]
    fn what_the_kernel_refuses_is_not_asked_for_each_time() {
        let pipes = Pipes::new(1, false);
        pipes.refused.set(Refused::ForNow);
        assert!(pipes.take().is_none());
        pipes.tidy(0);
        let mut pipe = pipes.take().expect("a pipe");
        // Which no kernel moves anything from.
        let folder = std::fs::File::open("/").expect("a folder");
        assert_eq!(pipe.fill(folder.as_fd(), 1), 0);
        drop(pipe);
        pipes.tidy(0);
        assert!(pipes.take().is_none());
    }

    #[test]
    fn a_pipe_that_holds_bytes_is_not_used_again() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("a listener");
        let (receiver, _) = listener.accept().expect("a connection");
        sender.write_all(b"seven..").expect("open");
        let pipes = Pipes::new(1, false);
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.fill(receiver.as_fd(), 5), 5);
        drop(pipe);
        assert_eq!((pipes.free.borrow().len(), pipes.open.get()), (0, 0));
        // All but that is still there.
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.fill(receiver.as_fd(), u64::MAX), 2);
        assert_eq!(pipe.send(sender.as_fd()), Ok(2));
        drop(pipe);
        assert_eq!((pipes.free.borrow().len(), pipes.open.get()), (1, 1));
    }

    #[test]
    fn a_socket_without_room_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("a listener");
        let (receiver, _) = listener.accept().expect("a connection");
        let piece = [0; 64 * 1024];
        let pipes = Pipes::new(1, true);
        let mut pipe = pipes.take().expect("a pipe");
        // Nobody reads what goes back to the sender.
        let end = loop {
            sender.write_all(&piece).expect("it is read");
            assert!(pipe.fill(receiver.as_fd(), u64::MAX) > 0);
            while pipe.held > 0 {
                if pipe.send(receiver.as_fd()).is_err() {
                    break;
                }
            }
            if pipe.held > 0 {
                break pipe.send(receiver.as_fd());
            }
        };
        assert_eq!(end, Err(Errno::AGAIN));
        let flags = rustix::fs::fcntl_getfl(&receiver).expect("a socket");
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "the mark is gone again");
    }
}
