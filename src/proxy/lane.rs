//! Where a request's future lives while it runs.
//!
//! The future of a request takes a few kilobytes, that of a connection which waits for one a few hundred bytes, and most
//! connections wait. So the former is kept apart: a [`Lane`] is a boxed future that serves one request after another, for
//! whichever connection borrows it, in a [`Scratch`] of its own. Nothing is allocated for a request, and an idle connection has
//! no lane.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use super::connection::{Client, Next};
use super::pipeline;
use super::transaction::Scratch;
use super::worker::Worker;
use crate::http::problem::Problem;

/// A request to serve, with all that it needs.
#[derive(Debug)]
pub struct Job {
    /// The worker.
    pub worker: Rc<Worker>,
    /// Whose request it is.
    pub client: Box<Client>,
    /// What was read.
    pub buf: Vec<u8>,
    /// The place in `buf` that begins with the head and holds it whole, or why it is refused.
    pub head: Result<Range<usize>, Problem>,
}

/// A served request: client and buffer come back.
#[derive(Debug)]
pub struct Done {
    /// Whose request it was.
    pub client: Box<Client>,
    /// What was read beyond the request.
    pub buf: Vec<u8>,
    /// What follows.
    pub next: Next,
}

/// A future that serves requests, one at a time.
pub struct Lane {
    future: Pin<Box<dyn Future<Output = Infallible>>>,
    desk: Rc<Desk>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

/// Where jobs are handed in and results are picked up.
#[derive(Default)]
struct Desk {
    job: Cell<Option<Job>>,
    done: Cell<Option<Done>>,
}

impl Lane {
    /// A lane that waits for its first request.
    pub fn new() -> Lane {
        let desk = Rc::new(Desk::default());
        let future = Box::pin(work(Rc::clone(&desk)));
        Lane { future, desk }
    }

    /// Serves `job`. When the future is dropped half-way, the lane must be dropped too: the request in it is over.
    pub fn serve(&mut self, job: Job) -> impl Future<Output = Done> {
        self.desk.job.set(Some(job));
        poll_fn(|cx| {
            let Poll::Pending = self.future.as_mut().poll(cx);
            self.desk.done.take().map_or(Poll::Pending, Poll::Ready)
        })
    }
}

impl Default for Lane {
    fn default() -> Lane {
        Lane::new()
    }
}

async fn work(desk: Rc<Desk>) -> Infallible {
    let mut scratch = Scratch::default();
    loop {
        // Whoever hands a job in polls the lane right after: no waker is needed.
        let mut job = poll_fn(|_| desk.job.take().map_or(Poll::Pending, Poll::Ready)).await;
        let next = pipeline::serve(&job.worker, &mut job.client, &mut job.buf, job.head, &mut scratch).await;
        desk.done.set(Some(Done { client: job.client, buf: job.buf, next }));
    }
}
