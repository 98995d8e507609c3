//! Long bodies from socket to socket without a copy: through a pipe, by splice(2), which hands on the pages that the bytes came in.
//!
//! The system call, not io_uring's operation, which the kernel always leaves to threads of its own. It must never wait, and
//! `SPLICE_F_NONBLOCK` alone does not see to that, since it is about the pipe:
//!
//! - What is to be read from a socket is waited for (`tcp_splice_read` in the kernel's net/ipv4/tcp.c). So this is done only when the
//!   driver has just said that there is something, bytes or the end; and nobody else reads from the socket.
//! - Room for all that is to be sent is waited for, unless the socket's file is `O_NONBLOCK` (`splice_to_socket` in fs/splice.c,
//!   `sock_sendpage` in net/socket.c before Linux 6.5). On a ring it is not, because nothing would be waited for there either. So it is
//!   for the length of the call: the ring looks at that when it is given an operation, and is given none meanwhile.
//!
//! A pipe that still holds bytes when its exchange ends is closed, so that nobody else gets them.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::{self, Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::socket::Tcp;
use super::watch::Patience;

/// A body of which fewer bytes are to come is not worth a pipe.
pub const SPLICED_MIN: u64 = 128 * 1024;

/// A body that brings fewer bytes at a time is better copied.
pub const SLOW_BYTES: usize = 16 * 1024;

/// How much a pipe holds, in whole pages. The less it is, the more often both sides are woken: with 64 KiB, what a pipe has by
/// default, that costs more than to copy. A user without privileges may have 64 MiB of pipes (pipe(7), pipe-user-pages-soft).
const PIPE_BYTES: usize = 512 * 1024;

/// So many bodies of a worker may have a pipe: 32 MiB, as long as their clients are slower than their upstreams.
const PIPES_MAX: usize = 64;

/// The pipes of a worker.
#[derive(Debug)]
pub struct Pipes {
    /// Whether sockets' files are not `O_NONBLOCK`.
    are_sockets_blocking: bool,
    open: Cell<usize>,
    free: RefCell<Vec<Rc<Ends>>>,
    /// Whether the kernel had none when it was asked last, which is dear.
    are_refused: Cell<bool>,
}

/// A pipe for one body's time.
#[derive(Debug)]
pub struct Pipe {
    ends: Rc<Ends>,
    held: usize,
    pipes: Rc<Pipes>,
}

/// The peer takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// Closed when dropped.
#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipes {
    /// For sockets that wait, as on a ring, or that do not.
    pub fn new(are_sockets_blocking: bool) -> Rc<Pipes> {
        Rc::new(Pipes {
            are_sockets_blocking,
            open: Cell::new(0),
            free: RefCell::default(),
            are_refused: Cell::new(false),
        })
    }

    /// An empty pipe; `None` when all are taken, or the kernel has none, or only small ones.
    pub fn take(self: &Rc<Pipes>) -> Option<Pipe> {
        let free = self.free.borrow_mut().pop();
        let ends = match free {
            Some(ends) => ends,
            None if self.open.get() < PIPES_MAX && !self.are_refused.get() => {
                let opened = Ends::open();
                self.are_refused.set(opened.is_none());
                self.open.set(self.open.get() + usize::from(opened.is_some()));
                Rc::new(opened?)
            }
            None => return None,
        };
        Some(Pipe { ends, held: 0, pipes: Rc::clone(self) })
    }

    /// To be called now and then: what the kernel did not have, it may have now.
    pub fn ask_again(&self) {
        self.are_refused.set(false);
    }

    /// Closes those that nobody uses: their descriptors are wanted.
    pub fn shed(&self) {
        let free = self.free.take();
        self.open.set(self.open.get() - free.len());
    }
}

impl Ends {
    fn open() -> Option<Ends> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        fcntl_setpipe_size(&writer, PIPE_BYTES).ok()?;
        Some(Ends { reader, writer })
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
    /// Takes in what has come on the TCP socket `from`, which must be readable: at most `most` bytes, and what there is room for. 0 is the
    /// end of the stream, or bytes that only a read gets past (tcp(7), urgent data).
    pub fn fill(&mut self, from: BorrowedFd<'_>, most: u64) -> io::Result<usize> {
        let most = usize::try_from(most).map_or(PIPE_BYTES, |most| most.min(PIPE_BYTES));
        let filled = splice(from, None, &self.ends.writer, None, most, SpliceFlags::NONBLOCK)?;
        self.held += filled;
        Ok(filled)
    }

    /// Sends all that it holds.
    pub async fn empty(&mut self, to: &Tcp, patience: Patience<'_>) -> Result<(), Broken> {
        patience.renew();
        while self.held > 0 {
            match self.send(to.as_fd()) {
                Ok(1..) => patience.renew(),
                Err(Errno::AGAIN) if to.writable().await.is_ok() => {}
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        patience.done();
        if self.held > 0 { Err(Broken) } else { Ok(()) }
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
        let pipes = Pipes::new(false);
        let mut lent: Vec<_> = std::iter::from_fn(|| pipes.take()).take(2 * PIPES_MAX).collect();
        // Fewer where others of the user have many.
        assert!((1..=PIPES_MAX).contains(&lent.len()));
        assert_eq!(pipes.open.get(), lent.len());
        lent.pop();
        assert!(pipes.take().is_some());
        drop(lent);
        assert_eq!(pipes.free.borrow().len(), pipes.open.get());
        pipes.shed();
        assert_eq!((pipes.free.borrow().len(), pipes.open.get()), (0, 0));
    }

    #[test]
    fn a_pipe_that_holds_bytes_is_not_used_again() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("a listener");
        let (receiver, _) = listener.accept().expect("a connection");
        sender.write_all(b"seven..").expect("open");
        let pipes = Pipes::new(false);
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.fill(receiver.as_fd(), 5), Ok(5));
        drop(pipe);
        assert_eq!((pipes.free.borrow().len(), pipes.open.get()), (0, 0));
        // All but that is still there.
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.fill(receiver.as_fd(), u64::MAX), Ok(2));
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
        let pipes = Pipes::new(true);
        let mut pipe = pipes.take().expect("a pipe");
        // Nobody reads what goes back to the sender.
        let end = loop {
            sender.write_all(&piece).expect("it is read");
            let filled = pipe.fill(receiver.as_fd(), u64::MAX);
            assert!(filled.is_ok_and(|filled| filled > 0));
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
