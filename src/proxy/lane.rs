//! Where a request's future lives while it runs, and whatever else does one job after another.
//!
//! The future of a request takes a few kilobytes, that of a connection which waits for one a few hundred bytes, and most
//! connections wait. So the former is kept apart: a [`Lane`] is a boxed future that serves one request after another, for
//! whichever connection borrows it, in a [`Scratch`] of its own. Nothing is allocated for a request, and an idle connection has
//! no lane. Reads [ahead](super::ahead) have lanes, too, which read.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

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

/// A future that does one job after another, by default one that serves requests.
pub struct Lane<J = Job, D = Done> {
    future: Pin<Box<dyn Future<Output = Infallible>>>,
    desk: Rc<Desk<J, D>>,
}

impl<J, D> std::fmt::Debug for Lane<J, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

/// Where jobs are handed in and results are picked up.
pub struct Desk<J, D> {
    job: Cell<Option<J>>,
    done: Cell<Option<D>>,
}

impl<J, D> Desk<J, D> {
    /// The next job.
    pub fn job(&self) -> impl Future<Output = J> {
        // Whoever hands a job in polls the lane right after: no waker is needed.
        poll_fn(|_| self.job.take().map_or(Poll::Pending, Poll::Ready))
    }

    /// It is done.
    pub fn done(&self, done: D) {
        self.done.set(Some(done));
    }
}

impl<J, D> Lane<J, D> {
    /// A lane that waits for its first job, which `work` takes from the desk.
    pub fn new<F: Future<Output = Infallible> + 'static>(work: impl FnOnce(Rc<Desk<J, D>>) -> F) -> Lane<J, D> {
        let desk = Rc::new(Desk { job: Cell::new(None), done: Cell::new(None) });
        Lane { future: Box::pin(work(Rc::clone(&desk))), desk }
    }

    /// Hands a job in; the one before is done. The lane is to be polled next.
    pub fn begin(&mut self, job: J) {
        self.desk.job.set(Some(job));
    }

    /// Goes on with the job.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<D> {
        let Poll::Pending = self.future.as_mut().poll(cx);
        self.desk.done.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// Does `job`. When the future is dropped half-way, the lane must be dropped too: the job in it is over.
    pub fn serve(&mut self, job: J) -> impl Future<Output = D> {
        self.begin(job);
        poll_fn(|cx| self.poll(cx))
    }
}

impl Default for Lane {
    fn default() -> Lane {
        Lane::new(work)
    }
}

async fn work(desk: Rc<Desk<Job, Done>>) -> Infallible {
    let mut scratch = Scratch::default();
    loop {
        let mut job = desk.job().await;
        let next = pipeline::serve(&mut job, &mut scratch).await;
        desk.done(Done { client: job.client, buf: job.buf, next });
    }
}
