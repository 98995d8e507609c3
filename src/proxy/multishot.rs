//! Receives that stay armed, and sends that nobody waits for: what io_uring can do beyond one operation for each message.
//!
//! A receive of its own for each message is tried, finds nothing, and arms a poll. A multishot receive (io_uring_prep_recv_multishot(3),
//! since Linux 6.0) arms it once: whatever comes goes into a buffer of the worker's that the kernel chooses, until somebody reads it.
//! So a connection that waits holds no buffer, and a message costs one completion and a copy. That is worth it for messages of a few
//! kilobytes; where longer ones come, the receive is [disarmed](Inbox::poll_disarm).
//!
//! Short messages are sent from a copy, whose end wakes nobody. A peer that does not take them in is noticed when the next is to be sent, or
//! when the connection ends. One is under way at a time: the next waits for its end, so that whoever always has another request gives up its
//! turn all the same.
//!
//! What peers send ahead is bounded by [`tend`]. When a worker has no buffer left, since many peers send ahead what nobody reads yet,
//! connections read without one, as they do where the kernel knows nothing of all this.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::RawFd;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, types};
use monoio::foreign;

use self::station::{NONE, POSTED_MAX, Plan, Slot, Stage, Station};
use super::provided::Provided;
use super::socket::{self, Shut};

mod station;

/// The group that the provided buffers are registered as; there is no other.
const GROUP: u16 = 0;

/// In a token: it is a send's. The rest is its key, or a receive's slot.
const SEND: u64 = 1 << 32;

thread_local! {
    /// A thread's, while it runs a ring that can do this.
    static STATION: RefCell<Option<Box<Station>>> = const { RefCell::new(None) };
}

/// Takes part for as long as it lives.
#[derive(Debug)]
pub struct Installed(());

/// Has receives stay armed on this thread from now on, where the kernel can do that; to be called within its runtime.
pub fn install() -> Option<Installed> {
    foreign::handle(completed).ok()?;
    let station = Station::new(Provided::register(GROUP).ok()?);
    STATION.set(Some(Box::new(station)));
    Some(Installed(()))
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What is under way goes on until the kernel has closed the ring, which is later: the memory that it points to is left to it.
        if let Some(station) = STATION.take() {
            Box::leak(station);
        }
    }
}

/// Disarms connections whose peers send more than is read. It sleeps until there is one.
pub fn tend() -> impl Future<Output = Infallible> {
    poll_fn(|cx| {
        let _before = with(|station| station.tender.replace(cx.waker().clone()));
        while let Some(Some(key)) = with(Station::next_greedy) {
            cancel(key);
        }
        Poll::Pending
    })
}

/// The receiving side of a connection.
#[derive(Debug)]
pub struct Inbox {
    slot: u32,
    /// Whether a receive is to be armed for the next read.
    is_wanted: bool,
    /// Whether what came last was long: what comes next may be, too.
    was_long: bool,
}

/// The sending side of a connection, which uses it no longer than its [`Inbox`] lives.
#[derive(Debug, Clone, Copy)]
pub struct Outbox(u32);

/// What there is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Bytes, or the end.
    Something,
    /// That is for another way to read to find out.
    Unknown,
}

impl Inbox {
    /// Of a connection whose receives do not stay armed.
    pub const NONE: Inbox = Inbox { slot: NONE, is_wanted: false, was_long: false };

    /// Of the connection `fd`, whose receives do so once they [may](Inbox::arm); or [`Inbox::NONE`].
    pub fn open(fd: RawFd) -> Inbox {
        let slot = with(|station| station.open(fd)).unwrap_or(NONE);
        Inbox { slot, is_wanted: false, was_long: false }
    }

    /// The other side.
    pub fn outbox(&self) -> Outbox {
        Outbox(self.slot)
    }

    /// Whether it is a connection's whose receives may stay armed.
    pub fn is_open(&self) -> bool {
        self.slot != NONE
    }

    /// Something short has come: from the next read on, receives stay armed, unless what came before that was long.
    pub fn arm(&mut self) {
        self.is_wanted = !std::mem::take(&mut self.was_long);
    }

    /// Arms the receive now, if there may be one: whether there is one, or something has come already.
    pub fn begin(&mut self) -> bool {
        self.poll_look(&mut Context::from_waker(Waker::noop())) != Poll::Ready(Look::Unknown)
    }

    /// Something long comes: ends the receive that is armed, and arms none until it is [wanted](Inbox::arm) again. What has come can still be
    /// read.
    pub fn poll_disarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (self.is_wanted, self.was_long) = (false, true);
        if slot(self.slot, Slot::begin_to_end) == Some(true) {
            cancel(self.slot);
        }
        let is_over = slot(self.slot, |slot| match slot.stage() {
            Stage::Disarmed => Ok(()),
            Stage::Armed | Stage::Ending => Err(slot.await_reading(cx.waker())),
        });
        if let Some(Err(_before)) = is_over { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Whether something may be here, now or later, that is to be read before anything else reads from the socket.
    pub fn holds(&self) -> bool {
        slot(self.slot, |slot| slot.holds()).unwrap_or(false)
    }

    /// Whether something has come that nobody has read.
    pub fn has_unread(&self) -> bool {
        slot(self.slot, |slot| slot.has_unread()).unwrap_or(false)
    }

    /// Whether nothing has come, not even the end, as of the last time that the driver was asked; `None` where that is not known here.
    pub fn is_quiet(&self) -> Option<bool> {
        slot(self.slot, |slot| slot.is_quiet())?
    }

    /// Looks whether there is something to be read; who polls is woken when there is.
    pub fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<Look> {
        let key = self.slot;
        if key == NONE {
            return Poll::Ready(Look::Unknown);
        }
        match with(|station| station.look(key, self.is_wanted, cx.waker())).unwrap_or(Plan::ReadOtherwise) {
            Plan::Take => Poll::Ready(Look::Something),
            Plan::ReadOtherwise => Poll::Ready(Look::Unknown),
            Plan::Wait(_before) => Poll::Pending,
            Plan::Arm { fd, limit } => {
                if foreign::receive(fd, GROUP, limit, key.into()).is_err() {
                    return Poll::Ready(Look::Unknown);
                }
                let _before = slot(key, |slot| slot.armed(limit, cx.waker()));
                Poll::Pending
            }
        }
    }

    /// Appends what has come to `buf`, at most `most` bytes and what there is room for, and waits for it if nothing has: how much that is, 0 at
    /// the end of the stream; `None` when it is to be read in another way.
    pub fn poll_read(
        &mut self,
        buf: &mut Vec<u8>,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<usize>>> {
        self.poll_look(cx).map(|look| match look {
            Look::Something => self.take(buf, most),
            Look::Unknown => None,
        })
    }

    /// Something was read in another way after the stream had ended in order, as it has for who shuts it down: it may go on.
    pub fn goes_on(&mut self) {
        slot(self.slot, Slot::goes_on);
    }

    /// As [`Inbox::poll_read`], without waiting; `None` if nothing has come.
    pub fn take(&mut self, buf: &mut Vec<u8>, most: usize) -> Option<io::Result<usize>> {
        with(|station| station.take(self.slot, buf, most))?
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // The wakers are dropped here, too.
        if let Some((true, _wakers)) = with(|station| station.abandon(self.slot)) {
            cancel(self.slot);
        }
    }
}

impl Outbox {
    /// Of a connection that posts nothing.
    pub const NONE: Outbox = Outbox(NONE);

    /// Whether it is a connection's that may post.
    pub fn is_open(self) -> bool {
        self.0 != NONE
    }

    /// Sends `bytes`, all of them, from a copy, without anybody's waiting for it; whether they will be. They will not where they are many, while
    /// something else is being sent that was posted, after something could not be sent, and where the kernel may not be able to.
    #[allow(unsafe_code)]
    pub fn post(self, bytes: &[u8]) -> bool {
        if bytes.len() > POSTED_MAX {
            return false;
        }
        let Some(Some((fd, place, key))) = with(|station| station.begin_send(self.0, bytes)) else { return false };
        // Until all of it is sent.
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(types::Fd(fd), place, bytes.len() as u32).flags(flags).build();
        // SAFETY: the copy stays where it is until the station learns that the send is over.
        let is_begun = unsafe { foreign::push(send, SEND | u64::from(key)) }.is_ok();
        if !is_begun {
            with(|station| station.sent(key, bytes.len() as i32));
        }
        is_begun
    }

    /// Whether nothing is being sent that was posted.
    pub fn is_settled(self) -> bool {
        slot(self.0, |slot| slot.sending == NONE).unwrap_or(true)
    }

    /// Waits until nothing is being sent that was posted.
    pub fn settle(self) -> impl Future<Output = ()> {
        poll_fn(move |cx| {
            if self.is_settled() {
                return Poll::Ready(());
            }
            let _before = slot(self.0, |slot| slot.sender.replace(cx.waker().clone()));
            Poll::Pending
        })
    }

    /// How many bytes of something that was posted were sent, where not all of them could be.
    pub fn cut(self) -> Option<usize> {
        slot(self.0, |slot| slot.cut)?
    }
}

/// The driver's word on an operation.
fn completed(token: u64, result: i32, flags: u32) {
    let woken = with(|station| match token & SEND {
        0 => station.received(token as u32, result, flags),
        _ => [station.sent(token as u32, result), None],
    });
    woken.into_iter().flatten().flatten().for_each(Waker::wake);
}

/// Cancels a receive, whose connection is still open. Where that cannot be, the connection ends, and the receive with it.
fn cancel(key: u32) {
    if foreign::cancel(key.into()).is_err()
        && let Some(fd) = slot(key, |slot| slot.fd())
    {
        socket::shut(fd, Shut::Both);
    }
}

fn slot<T>(key: u32, f: impl FnOnce(&mut Slot) -> T) -> Option<T> {
    if key == NONE {
        return None;
    }
    with(|station| station.slot(key).map(f))?
}

/// Nothing that `f` does may begin an operation, nor drop or wake what may be a task's last waker: either may lead here again.
fn with<T>(f: impl FnOnce(&mut Station) -> T) -> Option<T> {
    STATION.with_borrow_mut(|station| station.as_deref_mut().map(f))
}

#[cfg(test)]
mod tests;
