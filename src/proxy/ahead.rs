//! Reading ahead: an idle upstream connection has the read of its next answer under way.
//!
//! So nobody has to ask the kernel whether the connection is still good before it is used: it is, as long as that read has not
//! ended. The system call for each request that this spares costs more than all of a request's policies.
//!
//! The read has to outlive the request that begins it and serve the one that ends it, and a boxed future for each would be an
//! allocation for each. So an upstream connection has one future for as long as it lives, which reads what it is told to.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::socket::Reader;

/// What a read ends with: its result, and the buffer that was lent to it.
pub type Read = (io::Result<usize>, Vec<u8>);

/// The receiving direction of an upstream connection. A read that is under way goes on while nobody waits for it, and whoever
/// reads next gets what it brings.
pub struct Ahead {
    future: Pin<Box<dyn Future<Output = Infallible>>>,
    desk: Rc<Desk>,
    is_reading: bool,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("is_reading", &self.is_reading).finish_non_exhaustive()
    }
}

/// Where buffers are handed in, each with how many bytes to read at most, and come back filled.
#[derive(Default)]
struct Desk {
    order: Cell<Option<(Vec<u8>, usize)>>,
    done: Cell<Option<Read>>,
}

impl Ahead {
    /// Reads from `reader` from now on; nothing is under way yet.
    pub fn new(reader: Reader) -> Ahead {
        let desk = Rc::<Desk>::default();
        Ahead { future: Box::pin(work(reader, Rc::clone(&desk))), desk, is_reading: false }
    }

    /// Begins to read into `buf`, `most` bytes at most; nothing may be under way.
    pub fn begin(&mut self, buf: Vec<u8>, most: usize) {
        assert!(!self.is_reading, "one read at a time, or what they bring comes in no order");
        self.desk.order.set(Some((buf, most)));
        self.is_reading = true;
    }

    /// Whether a read is under way, or has ended without anybody taking what it brought.
    pub fn is_reading(&self) -> bool {
        self.is_reading
    }

    /// Whether the read that is under way has not ended yet, as far as the driver has told.
    pub fn is_pending(&mut self) -> bool {
        let Poll::Pending = self.future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let done = self.desk.done.take();
        let is_pending = done.is_none();
        self.desk.done.set(done);
        is_pending
    }

    /// What the read that is under way brings.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Read> {
        let Poll::Pending = self.future.as_mut().poll(cx);
        let Some(done) = self.desk.done.take() else { return Poll::Pending };
        self.is_reading = false;
        Poll::Ready(done)
    }
}

async fn work(mut reader: Reader, desk: Rc<Desk>) -> Infallible {
    loop {
        // Whoever hands an order in polls right after: no waker is needed.
        let (buf, most) = poll_fn(|_| desk.order.take().map_or(Poll::Pending, Poll::Ready)).await;
        desk.done.set(Some(reader.read_some(buf, most).await));
    }
}
