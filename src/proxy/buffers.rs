//! A worker's buffers: borrowed for an exchange, given back after it.
//!
//! A buffer that a dropped operation takes along is not lost, only freed; the pool makes another one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What an idle connection reads into once [`IDLE_FULL_MAX`] others already wait with a whole buffer.
const SMALL_BYTES: usize = 512;

/// The same once [`IDLE_SMALL_MAX`] others wait with a small one: enough to learn that something came.
const TINY_BYTES: usize = 64;

/// A buffer for the body of a message that does not fit in one read: 64 KiB of it with a chunk's head and tail. No head's
/// buffer has this size.
const LARGE_BYTES: usize = 64 * 1024 + CHUNK_FRAME_BYTES;
const CHUNK_FRAME_BYTES: usize = 32;

/// The same for one that comes faster than that: each read wakes its sender and each write its receiver, which costs more than
/// to move the bytes.
const HUGE_BYTES: usize = 256 * 1024 + CHUNK_FRAME_BYTES;

/// So many bodies of a worker may have a huge buffer, which are 16 MiB at most; the others have a large one.
const HUGE_MAX: usize = 64;

/// So many connections may wait for their next request with a whole buffer, which spares them a second read for a head
/// over [`SMALL_BYTES`]. The others wait with less, so that an idle connection costs little.
const IDLE_FULL_MAX: usize = 96;

/// So many may wait with a small buffer: half a mebibyte.
const IDLE_SMALL_MAX: usize = 1024;

/// Free buffers for heads, and smaller ones, kept for reuse.
const FREE_MAX: usize = 1024;

/// Free large buffers kept for reuse: 4 MiB.
const LARGE_FREE_MAX: usize = 64;

/// So many idle upstream connections of a worker may read ahead, 4 MiB of buffers; the others are asked whether they are good
/// before they are used. Well below the entries of a ring, since all of these reads may have to be cancelled at once.
const AHEAD_MAX: usize = 256;

/// The free buffers of a worker.
#[derive(Debug)]
pub struct Buffers {
    head_bytes: usize,
    tiny: RefCell<Vec<Vec<u8>>>,
    small: RefCell<Vec<Vec<u8>>>,
    head: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
    huge: RefCell<Vec<Vec<u8>>>,
    idle_full: Cell<usize>,
    idle_small: Cell<usize>,
    ahead: Rc<Cell<usize>>,
    bodies: Rc<Cell<usize>>,
}

/// One of the places of those that read ahead, or of bodies with a huge buffer; free again when it is dropped.
#[derive(Debug)]
pub struct Place(Rc<Cell<usize>>);

impl Place {
    /// One of `most`, of which so many are `taken`.
    fn take(taken: &Rc<Cell<usize>>, most: usize) -> Option<Place> {
        (taken.get() < most).then(|| {
            taken.set(taken.get() + 1);
            Place(Rc::clone(taken))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Buffers {
    /// Buffers for heads of up to `head_bytes`.
    pub fn new(head_bytes: usize) -> Buffers {
        Buffers {
            head_bytes: head_bytes.max(16 * 1024),
            tiny: RefCell::default(),
            small: RefCell::default(),
            head: RefCell::default(),
            large: RefCell::default(),
            huge: RefCell::default(),
            idle_full: Cell::new(0),
            idle_small: Cell::new(0),
            ahead: Rc::default(),
            bodies: Rc::default(),
        }
    }

    /// A buffer to wait for a request with; give it back with [`Buffers::idle_over`] in between.
    pub fn idle(&self) -> Vec<u8> {
        if self.idle_full.get() < IDLE_FULL_MAX {
            self.idle_full.set(self.idle_full.get() + 1);
            return self.head();
        }
        if self.idle_small.get() < IDLE_SMALL_MAX {
            self.idle_small.set(self.idle_small.get() + 1);
            return self.small();
        }
        take(&self.tiny, TINY_BYTES)
    }

    /// The wait that `buf` was borrowed for with [`Buffers::idle`] is over.
    pub fn idle_over(&self, buf: &Vec<u8>) {
        let waiting = match buf.capacity() {
            SMALL_BYTES => &self.idle_small,
            capacity if capacity >= self.head_bytes => &self.idle_full,
            _ => return,
        };
        waiting.set(waiting.get().saturating_sub(1));
    }

    /// Whether `buf`, which came from [`Buffers::idle`], is less than a whole one.
    pub fn is_small(&self, buf: &Vec<u8>) -> bool {
        buf.capacity() < self.head_bytes
    }

    /// A buffer for what may never come.
    pub fn small(&self) -> Vec<u8> {
        take(&self.small, SMALL_BYTES)
    }

    /// An empty buffer for the next read, after `buf` was read into: the next larger where that was full, a small one where
    /// little came.
    pub fn fitting(&self, mut buf: Vec<u8>) -> Vec<u8> {
        let next = match (buf.len(), buf.capacity()) {
            (read, capacity) if read == capacity && capacity < self.head_bytes => self.head(),
            (read, capacity) if read == capacity && capacity < LARGE_BYTES => self.large(),
            (read, capacity) if read <= SMALL_BYTES && capacity > SMALL_BYTES => self.small(),
            _ => {
                buf.clear();
                return buf;
            }
        };
        self.give(buf);
        next
    }

    /// A buffer that holds a whole head.
    pub fn head(&self) -> Vec<u8> {
        take(&self.head, self.head_bytes)
    }

    /// A buffer to read ahead into, with a place for it; `None` when all are taken.
    pub fn ahead(&self) -> Option<(Vec<u8>, Place)> {
        Place::take(&self.ahead, AHEAD_MAX).map(|place| (self.head(), place))
    }

    /// A buffer for a long body.
    pub fn large(&self) -> Vec<u8> {
        take(&self.large, LARGE_BYTES)
    }

    /// A buffer for a body of which `left` bytes are to come, if that is known, and that comes fast: a huge one, and its place, unless it
    /// is short or there are none left.
    pub fn fast(&self, left: Option<u64>, place: &mut Option<Place>) -> Vec<u8> {
        if left.is_none_or(|left| left > LARGE_BYTES as u64) {
            *place = Place::take(&self.bodies, HUGE_MAX);
        }
        if place.is_some() { take(&self.huge, HUGE_BYTES) } else { self.large() }
    }

    /// A buffer for the rest of a body in place of the large or huge `buf`, into which `read` bytes were read at last: a huge one
    /// where they filled a large one, a large one where they were few. `left` and `place` as in [`Buffers::fast`].
    pub fn for_rest(&self, buf: Vec<u8>, read: usize, left: Option<u64>, place: &mut Option<Place>) -> Vec<u8> {
        let next = match place {
            None if read + CHUNK_FRAME_BYTES >= LARGE_BYTES => self.fast(left, place),
            Some(_) if read < LARGE_BYTES / 4 => {
                *place = None;
                self.large()
            }
            _ => return buf,
        };
        self.give(buf);
        next
    }

    /// Takes a buffer back.
    pub fn give(&self, mut buf: Vec<u8>) {
        buf.clear();
        let (shelf, most) = match buf.capacity() {
            TINY_BYTES => (&self.tiny, FREE_MAX),
            SMALL_BYTES => (&self.small, FREE_MAX),
            LARGE_BYTES => (&self.large, LARGE_FREE_MAX),
            HUGE_BYTES => (&self.huge, HUGE_MAX),
            capacity if capacity == self.head_bytes => (&self.head, FREE_MAX),
            // One that was taken by an operation, or grew.
            _ => return,
        };
        let mut shelf = shelf.borrow_mut();
        if shelf.len() < most {
            shelf.push(buf);
        }
    }
}

fn take(shelf: &RefCell<Vec<Vec<u8>>>, bytes: usize) -> Vec<u8> {
    shelf.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_read_ahead_are_bounded_and_come_back() {
        let buffers = Buffers::new(1);
        let mut lent: Vec<_> = std::iter::from_fn(|| buffers.ahead()).take(2 * AHEAD_MAX).collect();
        assert_eq!(lent.len(), AHEAD_MAX);
        lent.pop();
        assert!(buffers.ahead().is_some());
        drop(lent);
        assert_eq!(std::iter::from_fn(|| buffers.ahead().map(|_| ())).take(AHEAD_MAX + 1).count(), AHEAD_MAX + 1);
    }

    #[test]
    fn bodies_that_come_fast_have_huge_buffers_as_far_as_there_are() {
        let buffers = Buffers::new(1);
        let full = LARGE_BYTES - CHUNK_FRAME_BYTES;
        let next = |buf: Vec<u8>, read: usize, place: &mut Option<Place>| {
            let buf = buffers.for_rest(buf, read, None, place);
            assert_eq!(buf.capacity() == HUGE_BYTES, place.is_some());
            buf
        };
        let mut place = None;
        let buf = next(buffers.large(), full - 1, &mut place);
        assert_eq!(buf.capacity(), LARGE_BYTES);
        let buf = next(buf, full, &mut place);
        assert_eq!(buf.capacity(), HUGE_BYTES);
        let buf = next(buf, full, &mut place);
        let buf = next(buf, LARGE_BYTES / 4, &mut place);
        assert_eq!(buf.capacity(), HUGE_BYTES);
        let buf = next(buf, LARGE_BYTES / 4 - 1, &mut place);
        assert_eq!(buf.capacity(), LARGE_BYTES);
        let buf = buffers.for_rest(buf, full, Some(LARGE_BYTES as u64), &mut place);
        assert!(buf.capacity() == LARGE_BYTES && place.is_none(), "what is left finds room");
        buffers.give(buf);

        let fast = || {
            let mut place = None;
            (buffers.fast(None, &mut place), place)
        };
        let bodies: Vec<_> = (0..HUGE_MAX + 10).map(|_| fast()).collect();
        assert_eq!(bodies.iter().filter(|(buf, _)| buf.capacity() == HUGE_BYTES).count(), HUGE_MAX);
        // Of one that ends, another takes the place, and the buffer.
        bodies.into_iter().for_each(|(buf, _)| buffers.give(buf));
        assert_eq!(buffers.huge.borrow().len(), HUGE_MAX);
        assert_eq!(fast().0.capacity(), HUGE_BYTES);
        assert_eq!(buffers.huge.borrow().len(), HUGE_MAX - 1);
    }
}
