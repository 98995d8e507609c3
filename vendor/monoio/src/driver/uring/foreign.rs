//! Operations of the ring that the runtime's user puts together and keeps the books of: those
//! that end more than once, and those that take a buffer which the kernel chooses.

use std::{io, os::fd::RawFd};

use io_uring::{opcode, squeue, types};

use super::{Inner, UringInner, CURRENT};

/// What tells such operations from the runtime's own.
pub(super) const MARK: u64 = 1 << 62;

/// Takes the token of an operation, its result and its flags. It runs while completions are looked
/// through, and so must begin no operation; it may wake tasks.
pub type Handler = fn(token: u64, result: i32, flags: u32);

/// Has `handler` be told from now on. It is the ring's of the runtime that this is called in.
///
/// # Errors
/// The runtime has no ring, or this is called outside of one.
pub fn handle(handler: Handler) -> io::Result<()> {
    with_ring(|inner| {
        inner.foreign = Some(handler);
        Ok(())
    })
}

/// Puts `entry` into the submission queue, whose completions come with `token`, less than 2^62. It
/// goes to the kernel with the runtime's next submission.
///
/// # Errors
/// The queue is full and the kernel takes nothing from it; or as [`handle`].
///
/// # Safety
/// What the entry points to lives until the operation is over.
pub unsafe fn push(entry: squeue::Entry, token: u64) -> io::Result<()> {
    push_marked(entry.user_data(token | MARK))
}

/// Begins a receive from the socket `fd` that stays armed, into the provided buffers of `group`:
/// it completes with `token` for each buffer that is filled. With a `limit` in bytes, that is as
/// much as it receives before it ends (Linux 6.17); 0 is none.
///
/// # Errors
/// As [`push`].
pub fn receive(fd: RawFd, group: u16, limit: u32, token: u64) -> io::Result<()> {
    const OPTLEN_OFFSET: usize = 44;
    let mut entry = opcode::RecvMulti::new(types::Fd(fd), group).build();
    // SAFETY: an entry is the 64 bytes of `io_uring_sqe`, whose `optlen` io-uring 0.6 does not know;
    // and this one points to nothing.
    unsafe {
        let optlen = std::ptr::from_mut(&mut entry).byte_add(OPTLEN_OFFSET);
        optlen.cast::<u32>().write(limit);
        push(entry, token)
    }
}

/// Cancels the operation with `token`, of whose end the handler is told as of any other.
///
/// # Errors
/// As [`push`].
pub fn cancel(token: u64) -> io::Result<()> {
    let entry = opcode::AsyncCancel::new(token | MARK).build();
    // SAFETY: it points to nothing.
    unsafe { push_marked(entry.user_data(super::CANCEL_USERDATA)) }
}

/// Registers the ring of `entries` provided buffers at `address` as `group`.
///
/// # Errors
/// The kernel's, see io_uring_register_buf_ring(3); or as [`handle`].
///
/// # Safety
/// The memory is never used for anything else while the runtime lives.
pub unsafe fn register_buf_ring(address: u64, entries: u16, group: u16) -> io::Result<()> {
    with_ring(|inner| {
        inner
            .uring
            .submitter()
            .register_buf_ring(address, entries, group)
    })
}

unsafe fn push_marked(entry: squeue::Entry) -> io::Result<()> {
    with_ring(|inner| {
        if inner.uring.submission().is_full() {
            inner.submit()?;
        }
        let pushed = inner.uring.submission().push(&entry);
        pushed.map_err(|_| io::ErrorKind::WouldBlock.into())
    })
}

fn with_ring<T>(f: impl FnOnce(&mut UringInner) -> io::Result<T>) -> io::Result<T> {
    if !CURRENT.is_set() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    CURRENT.with(|inner| match inner {
        // SAFETY: as for the runtime's own operations, nobody else has it on this thread.
        Inner::Uring(inner) => f(unsafe { &mut *inner.get() }),
        #[cfg(feature = "legacy")]
        Inner::Legacy(_) => Err(io::ErrorKind::Unsupported.into()),
    })
}
