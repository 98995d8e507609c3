//! The books of [`multishot`](super): who waits for what, what has come, and what is being sent. Begins no operation and wakes nobody: it says
//! what is to be done. It does one thing itself: a connection on which something could not be sent, it shuts down.

use std::io;
use std::os::fd::RawFd;
use std::task::Waker;

use io_uring::cqueue;
use slab::Slab;

use super::super::provided::{BufferId, Provided};
use super::super::socket::{self, Shut};

/// So many buffers of a connection may wait to be read; a few dozen more come until its receive has ended.
pub const UNREAD_MAX: u16 = 4;

/// A receive ends once it has brought so many bytes, or the rest of a buffer more, where the kernel can do that (Linux 6.17), so that of a
/// long body that is sent to it not much comes here. The next read begins another. It is no limit on buffers, which may be filled in part.
pub const LIMIT: u32 = 64 * 1024;

/// What is longer is not posted.
pub const POSTED_MAX: usize = 8192;

/// So many buffers for what is posted are kept for reuse, 8 MiB: as many as there may be connections that send in one turn.
const SPARE_MAX: usize = 1024;

/// No slot, no send.
pub const NONE: u32 = u32::MAX;

/// What the operations of a ring's connections are known by.
#[derive(Debug)]
pub struct Station {
    pub(super) slots: Slab<Slot>,
    pub(super) sends: Slab<Sending>,
    pub(super) buffers: Provided,
    spare: Vec<Vec<u8>>,
    /// Slots that have more to be read than they may.
    greedy: Vec<u32>,
    /// Who sees to those.
    pub(super) tender: Option<Waker>,
    /// How much a receive may bring before it ends, in bytes; 0 where the kernel knows of no such limit.
    pub(super) limit: u32,
    /// Whether any receive has brought anything, and whether the kernel does not know what it is.
    pub(super) is_proven: bool,
    pub(super) is_refused: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Slot {
    fd: RawFd,
    /// What has come and was not read, and how much of the first buffer was.
    pub(super) unread: Queue,
    offset: u16,
    stage: Stage,
    /// Whether the last receive was begun with a limit.
    is_limited: bool,
    /// Whether the last receive found no buffer.
    is_starved: bool,
    is_greedy: bool,
    /// Whether nobody has the connection any more: it is forgotten when its operations are over.
    is_orphan: bool,
    /// How the stream ended: 0 in order, or an error of the kernel's.
    end: Option<i32>,
    /// The send under way.
    pub(super) sending: u32,
    /// How much of something that was posted was sent, where not all of it could be.
    pub(super) cut: Option<usize>,
    pub(super) reader: Option<Waker>,
    pub(super) sender: Option<Waker>,
}

/// What a connection's receive does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There is none.
    Disarmed,
    /// Whatever comes is received.
    Armed,
    /// It was cancelled, and is not over.
    Ending,
}

/// Buffers in order, oldest first, linked by their numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queue {
    first: BufferId,
    last: BufferId,
    pub(super) count: u16,
}

/// What is being sent, for the connection in that slot.
#[derive(Debug)]
pub struct Sending {
    buf: Vec<u8>,
    slot: u32,
}

/// What a reader does next.
#[derive(Debug)]
pub enum Plan {
    /// It takes what has come.
    Take,
    /// It waits; with the waker that it takes the place of.
    Wait(Option<Waker>),
    /// It begins a receive, and waits.
    Arm {
        /// From where.
        fd: RawFd,
        /// Its limit.
        limit: u32,
    },
    /// It reads in another way.
    ReadOtherwise,
}

impl Station {
    /// One without connections.
    pub fn new(buffers: Provided) -> Station {
        Station {
            slots: Slab::new(),
            sends: Slab::new(),
            buffers,
            spare: Vec::new(),
            greedy: Vec::new(),
            tender: None,
            limit: LIMIT,
            is_proven: false,
            is_refused: false,
        }
    }

    /// A slot for the connection `fd`.
    pub fn open(&mut self, fd: RawFd) -> u32 {
        self.slots.insert(Slot {
            fd,
            unread: Queue::default(),
            offset: 0,
            stage: Stage::Disarmed,
            is_limited: false,
            is_starved: false,
            is_greedy: false,
            is_orphan: false,
            end: None,
            sending: NONE,
            cut: None,
            reader: None,
            sender: None,
        }) as u32
    }

    /// A connection.
    pub fn slot(&mut self, key: u32) -> Option<&mut Slot> {
        self.slots.get_mut(key as usize)
    }

    /// What is to be done for a read, by whoever `waker` wakes; `is_wanted` says whether a receive may be begun.
    pub fn look(&mut self, key: u32, is_wanted: bool, waker: &Waker) -> Plan {
        let may_arm = is_wanted && self.buffers.has_any() && !self.is_refused;
        let Some(slot) = self.slots.get_mut(key as usize) else { return Plan::ReadOtherwise };
        if slot.unread.count > 0 || slot.end.is_some() {
            return Plan::Take;
        }
        if slot.stage != Stage::Disarmed {
            return Plan::Wait(slot.await_reading(waker));
        }
        let is_starved = std::mem::take(&mut slot.is_starved);
        match may_arm && !is_starved {
            true => Plan::Arm { fd: slot.fd, limit: self.limit },
            false => Plan::ReadOtherwise,
        }
    }

    /// What has come, appended to `buf`, at most `most` bytes and what there is room for: how much that is, 0 at the end of the stream.
    /// `None` if nothing has.
    pub fn take(&mut self, key: u32, buf: &mut Vec<u8>, most: usize) -> Option<io::Result<usize>> {
        let slot = self.slots.get_mut(key as usize)?;
        let before = buf.len();
        let most = most.min(buf.capacity() - before);
        while let Some(first) = slot.unread.first() {
            let came = &self.buffers.filled(first)[usize::from(slot.offset)..];
            let left = most - (buf.len() - before);
            if left < came.len() {
                buf.extend_from_slice(&came[..left]);
                slot.offset += left as u16;
                break;
            }
            buf.extend_from_slice(came);
            slot.offset = 0;
            slot.unread.pop(&mut self.buffers);
        }
        match (buf.len() - before, slot.end) {
            (taken @ 1.., _) => Some(Ok(taken)),
            (_, Some(0)) => Some(Ok(0)),
            (_, Some(error)) => Some(Err(io::Error::from_raw_os_error(error))),
            (_, None) => None,
        }
    }

    /// A receive has brought something, or it is over; whom that wakes.
    pub fn received(&mut self, key: u32, result: i32, flags: u32) -> [Option<Waker>; 2] {
        let Some(slot) = self.slots.get_mut(key as usize) else { return [None, None] };
        if !cqueue::more(flags) {
            slot.stage = Stage::Disarmed;
        }
        if let Some(buffer) = cqueue::buffer_select(flags) {
            self.buffers.took(buffer, usize::try_from(result).unwrap_or(0));
            if result > 0 && !slot.is_orphan {
                slot.unread.push(buffer, &mut self.buffers);
            } else {
                self.buffers.give(buffer);
            }
        }
        match result {
            1.. => self.is_proven = true,
            0 => slot.end = Some(0),
            _ if result == -libc::ENOBUFS => slot.is_starved = true,
            _ if result == -libc::ECANCELED => {}
            // What the kernel says to what it does not know: the limit, or all of it. Several may have been begun before it has.
            _ if result == -libc::EINVAL && !self.is_proven && slot.is_limited => self.limit = 0,
            _ if result == -libc::EINVAL && !self.is_proven => self.is_refused = true,
            error => slot.end = Some(-error),
        }
        let reader = slot.reader.take();
        let mut tender = None;
        if slot.unread.count > UNREAD_MAX && slot.stage == Stage::Armed && !slot.is_greedy {
            slot.is_greedy = true;
            self.greedy.push(key);
            tender = self.tender.take();
        }
        self.forget_orphan(key);
        [reader, tender]
    }

    /// A connection whose peer still sends more than is read, and whose receive is to be cancelled.
    pub fn next_greedy(&mut self) -> Option<u32> {
        while let Some(key) = self.greedy.pop() {
            // Another connection may be there meanwhile.
            if let Some(slot) = self.slot(key) {
                slot.is_greedy = false;
                if slot.unread.count > UNREAD_MAX && slot.begin_to_end() {
                    return Some(key);
                }
            }
        }
        None
    }

    /// Takes a copy of what a connection is to send: where from, the copy's place, and the send's key. `None` while another send is under way,
    /// after one that failed, and until it is certain that the kernel is one that sends all of it (Linux 6.0, as receives that stay armed).
    pub fn begin_send(&mut self, owner: u32, bytes: &[u8]) -> Option<(RawFd, *const u8, u32)> {
        let slot = self.slots.get_mut(owner as usize)?;
        if slot.sending != NONE || slot.cut.is_some() || !self.is_proven {
            return None;
        }
        let mut buf = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(POSTED_MAX));
        buf.extend_from_slice(bytes);
        let place = buf.as_ptr();
        slot.sending = self.sends.insert(Sending { buf, slot: owner }) as u32;
        Some((slot.fd, place, slot.sending))
    }

    /// A send is over, or was not begun; whom that wakes.
    pub fn sent(&mut self, key: u32, result: i32) -> Option<Waker> {
        let Sending { mut buf, slot: owner } = self.sends.try_remove(key as usize)?;
        let sent = usize::try_from(result).unwrap_or(0);
        let is_whole = sent == buf.len();
        buf.clear();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(buf);
        }
        let slot = self.slots.get_mut(owner as usize)?;
        slot.sending = NONE;
        if !is_whole && !slot.is_orphan {
            slot.cut = Some(sent);
            // Whoever reads from it learns so, too.
            socket::shut(slot.fd, Shut::Both);
        }
        let sender = slot.sender.take();
        self.forget_orphan(owner);
        sender
    }

    /// Nobody has the connection any more: whether its receive is to be cancelled, and the wakers of who had it.
    pub fn abandon(&mut self, key: u32) -> (bool, [Option<Waker>; 2]) {
        let Some(slot) = self.slots.get_mut(key as usize) else { return (false, [None, None]) };
        let wakers = [slot.reader.take(), slot.sender.take()];
        slot.is_orphan = true;
        while slot.unread.first().is_some() {
            slot.unread.pop(&mut self.buffers);
        }
        let is_armed = slot.begin_to_end();
        self.forget_orphan(key);
        (is_armed, wakers)
    }

    fn forget_orphan(&mut self, key: u32) {
        let is_over = |slot: &Slot| slot.is_orphan && slot.stage == Stage::Disarmed && slot.sending == NONE;
        if self.slots.get(key as usize).is_some_and(is_over) {
            self.slots.remove(key as usize);
        }
    }
}

impl Slot {
    /// A receive with that limit has begun, by whoever `waker` wakes; the waker that it takes the place of.
    pub fn armed(&mut self, limit: u32, waker: &Waker) -> Option<Waker> {
        self.stage = Stage::Armed;
        self.is_limited = limit > 0;
        self.await_reading(waker)
    }

    /// The connection.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// What its receive does.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Something has been read since the stream ended in order, which was not its peer's doing.
    pub fn goes_on(&mut self) {
        if self.end == Some(0) {
            self.end = None;
        }
    }

    /// Whether the receive is now to be cancelled.
    pub fn begin_to_end(&mut self) -> bool {
        let is_armed = self.stage == Stage::Armed;
        if is_armed {
            self.stage = Stage::Ending;
        }
        is_armed
    }

    /// Has `waker` be woken by what comes; the one that it takes the place of.
    pub fn await_reading(&mut self, waker: &Waker) -> Option<Waker> {
        match &self.reader {
            Some(known) if known.will_wake(waker) => None,
            _ => self.reader.replace(waker.clone()),
        }
    }

    /// Whether something has come that nobody has read.
    pub fn has_unread(&self) -> bool {
        self.unread.count > 0
    }

    /// Whether something may be here, now or later, that is to be read before anything else reads from the socket.
    pub fn holds(&self) -> bool {
        self.has_unread() || self.stage != Stage::Disarmed
    }

    /// Whether nothing has come, not even the end; `None` where nobody looks.
    pub fn is_quiet(&self) -> Option<bool> {
        match self.stage {
            _ if self.has_unread() || self.end.is_some() => Some(false),
            Stage::Armed => Some(true),
            Stage::Disarmed | Stage::Ending => None,
        }
    }
}

impl Queue {
    fn first(&self) -> Option<BufferId> {
        (self.count > 0).then_some(self.first)
    }

    fn push(&mut self, buffer: BufferId, buffers: &mut Provided) {
        if self.count == 0 {
            self.first = buffer;
        } else {
            buffers.link(self.last, buffer);
        }
        self.last = buffer;
        self.count += 1;
    }

    /// Gives the first one back.
    fn pop(&mut self, buffers: &mut Provided) {
        let first = self.first;
        self.first = buffers.next(first);
        self.count -= 1;
        buffers.give(first);
    }
}
