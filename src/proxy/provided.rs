//! Buffers that the kernel chooses from: a ring of io_uring's provided buffers (io_uring_register_buf_ring(3), since Linux 5.19).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use monoio::foreign;

/// The number of a buffer.
pub type BufferId = u16;

/// How much goes into one: a whole request, mostly, and an answer of up to 8 KB with its head. An odd number of cache lines, so that not all begin
/// in one set of the first-level cache.
pub const BUFFER_BYTES: usize = 8256;

/// The most buffers of a worker, 16 MiB: enough for a message from each of as many connections in one turn. A power of two, as the ring wants it.
pub const BUFFERS_MAX: u16 = 2048;

/// So many there are to begin with, and so many more when few are left: the fewer there are, the more of them are in a cache.
const BUFFERS_STEP: u16 = 32;
const FEW: u16 = 8;

/// A worker's.
#[derive(Debug)]
pub struct Provided {
    memory: NonNull<u8>,
    ring: &'static Ring,
    tail: u16,
    /// How many there are, and how many of these the kernel has.
    count: u16,
    free: u16,
    notes: Box<[Note]>,
}

/// What is known of a buffer that the kernel does not have.
#[derive(Debug, Clone, Copy, Default)]
struct Note {
    filled: u16,
    next: BufferId,
}

/// What the kernel reads, in whole pages: as `io_uring_buf_ring`.
#[derive(Debug)]
#[repr(C, align(4096))]
struct Ring([Entry; BUFFERS_MAX as usize]);

/// As `io_uring_buf`. The ring's tail is that of its first entry.
#[derive(Debug, Default)]
#[repr(C)]
struct Entry {
    address: AtomicU64,
    length: AtomicU32,
    buffer: AtomicU16,
    tail: AtomicU16,
}

impl Provided {
    /// Registers a ring, as `group`, with the runtime that this is called in. Its memory is never freed, since the kernel may write to it
    /// until it has closed the runtime's ring, and nobody tells when that is.
    ///
    /// # Errors
    /// The runtime has no ring, or the kernel does not know of such buffers.
    #[allow(unsafe_code)]
    pub fn register(group: u16) -> io::Result<Provided> {
        let ring: &'static Ring = Box::leak(Box::new(Ring(std::array::from_fn(|_| Entry::default()))));
        // SAFETY: the memory is the ring's for good.
        unsafe { foreign::register_buf_ring(std::ptr::from_ref(ring) as u64, BUFFERS_MAX, group)? };
        // Zeros, which take no memory before they are written to.
        let memory = vec![0; usize::from(BUFFERS_MAX) * BUFFER_BYTES].leak();
        let notes = vec![Note::default(); usize::from(BUFFERS_MAX)].into_boxed_slice();
        let mut provided = Provided { memory: NonNull::from(memory).cast(), ring, tail: 0, count: 0, free: 0, notes };
        provided.add();
        Ok(provided)
    }

    /// Whether the kernel has any.
    pub fn has_any(&self) -> bool {
        self.free > 0
    }

    /// The kernel has given up `buffer`, with so many bytes in it.
    pub fn took(&mut self, buffer: BufferId, filled: usize) {
        assert!(buffer < self.count && filled <= BUFFER_BYTES, "the kernel fills what it was given");
        self.notes[usize::from(buffer)].filled = filled as u16;
        self.free -= 1;
        if self.free < FEW && self.count < BUFFERS_MAX {
            self.add();
        }
    }

    /// What stands in `buffer`, which the kernel has given up.
    #[allow(unsafe_code)]
    pub fn filled(&self, buffer: BufferId) -> &[u8] {
        let filled = self.notes[usize::from(buffer)].filled.into();
        // SAFETY: `took` has seen that the buffer is one of ours, and no longer than this. The kernel writes to none that it was not given
        // again, which takes `self`.
        unsafe { std::slice::from_raw_parts(self.memory.add(usize::from(buffer) * BUFFER_BYTES).as_ptr(), filled) }
    }

    /// `next` comes after `buffer`; the kernel has neither.
    pub fn link(&mut self, buffer: BufferId, next: BufferId) {
        self.notes[usize::from(buffer)].next = next;
    }

    /// What comes after `buffer`, if anything does.
    pub fn next(&self, buffer: BufferId) -> BufferId {
        self.notes[usize::from(buffer)].next
    }

    /// The kernel may have `buffer` again, which it has given up.
    pub fn give(&mut self, buffer: BufferId) {
        let offset = usize::from(buffer) * BUFFER_BYTES;
        let entry = &self.ring.0[usize::from(self.tail & (BUFFERS_MAX - 1))];
        entry.address.store(self.memory.as_ptr() as u64 + offset as u64, Ordering::Relaxed);
        entry.length.store(BUFFER_BYTES as u32, Ordering::Relaxed);
        entry.buffer.store(buffer, Ordering::Relaxed);
        self.notes[usize::from(buffer)].filled = 0;
        self.free += 1;
        self.tail = self.tail.wrapping_add(1);
        // The kernel reads an entry once the tail is behind it.
        self.ring.0[0].tail.store(self.tail, Ordering::Release);
    }

    /// More of them, of which there are not all yet.
    fn add(&mut self) {
        let first = self.count;
        self.count += BUFFERS_STEP;
        (first..self.count).for_each(|buffer| self.give(buffer));
    }
}

#[cfg(test)]
impl Provided {
    /// That the kernel has all that there are.
    pub fn assert_all_free(&self) {
        assert_eq!(self.free, self.count);
    }
}
