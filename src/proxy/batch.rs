//! Requests that go out together: HTTP/1.1 pipelining (RFC 9112, section 9.3.2), for services that allow it.
//!
//! Most of what a small request costs is the kernel's work for each send and each receive. So GET requests for one endpoint that
//! become ready in the same turn of a worker go out on one idle connection in one piece, and their answers are read off it one
//! after the other. The first of them leads: it has the connection, lets everybody else who is ready join, and sends. Nobody joins a
//! batch that is on its way.
//!
//! A request whose turn has not come within 100 ms, or a tick more, goes alone, on a connection of its own, as if it had never joined;
//! and so do all whose turn is still to come when anything is wrong with the connection. That sends them a second time, so only GET
//! may join; and the endpoint is asked one request at a time for a while, so that it does not happen again and again.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::ahead::Ahead;
use super::buffers::Place;
use super::multishot::Inbox;
use super::pool::EndpointState;
use super::socket::{Filled, Socket, Tcp};
use super::watch::{Millis, TICK, Watch};
use crate::snapshot::PIPELINING_MAX;

/// How long requests that went out together wait for their turns; a tick later they go.
const PATIENCE: Millis = 100;

// A client that leaves has its upstream's connection shut, which here is others' too: not before nobody waits for it any more.
const _: () = assert!(PATIENCE <= 2 * TICK.as_millis() as Millis);

/// The most bytes that go out together: as many as a TCP socket has room for from the start by default (tcp(7), tcp_wmem).
const BYTES_MAX: usize = 16 * 1024;

/// Batches that are over and kept for reuse.
const FREE_MAX: usize = 256;

/// The batches of a worker.
#[derive(Debug, Default)]
pub struct Batches {
    under_way: RefCell<Vec<Rc<Batch>>>,
    free: RefCell<Vec<Rc<Batch>>>,
    /// Those that let others join.
    leaders: RefCell<Vec<Waker>>,
    starter: RefCell<Option<Waker>>,
}

/// Requests that go out together.
#[derive(Default)]
pub struct Batch {
    stage: Cell<Stage>,
    endpoint: RefCell<Option<Rc<EndpointState>>>,
    /// Their heads, in order, until they are sent.
    requests: RefCell<Vec<u8>>,
    /// How many requests joined.
    seats: Cell<usize>,
    /// How many of them are not over.
    taken: Cell<usize>,
    /// Whose answer comes next.
    turn: Cell<usize>,
    /// When it was closed.
    since: Cell<Millis>,
    socket: RefCell<Option<Socket>>,
    /// What has been read of the answers from that one on.
    read: Cell<Vec<u8>>,
    waiting: RefCell<[Option<Waker>; PIPELINING_MAX]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Requests join.
    #[default]
    Open,
    /// Nobody joins any more, and what they ask is sent.
    Closed,
    /// Answers are read, in turns.
    UnderWay,
    /// Whose turn it is goes on; nobody comes after it.
    Dissolved,
}

/// One request's place in a batch. Dropped before its turn has come and gone, it dissolves the batch.
#[derive(Debug)]
pub struct Seat {
    batches: Rc<Batches>,
    batch: Rc<Batch>,
    number: usize,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("stage", &self.stage).field("seats", &self.seats).finish_non_exhaustive()
    }
}

impl Batches {
    /// Opens a batch of up to `most` requests to `endpoint`, the first of which stands in `requests`, and lets all who are
    /// ready join. Returns the first one's seat, unless it is alone, and `requests` with all of theirs.
    pub async fn lead(
        self: &Rc<Batches>,
        endpoint: &Rc<EndpointState>,
        requests: Vec<u8>,
        most: usize,
        now: Millis,
    ) -> (Option<Seat>, Vec<u8>) {
        let batch = self.free.borrow_mut().pop().unwrap_or_default();
        *batch.endpoint.borrow_mut() = Some(Rc::clone(endpoint));
        *batch.requests.borrow_mut() = requests;
        let seat = self.seat(&batch);
        let open = Opened::new(&batch, endpoint, most);
        let mut has_waited = false;
        poll_fn(|cx| {
            if has_waited {
                return Poll::Ready(());
            }
            has_waited = true;
            self.leaders.borrow_mut().push(cx.waker().clone());
            if let Some(starter) = self.starter.borrow_mut().take() {
                starter.wake();
            }
            Poll::Pending
        })
        .await;
        drop(open);
        let requests = batch.requests.take();
        if batch.seats.get() == 1 {
            return (None, requests);
        }
        batch.stage.set(Stage::Closed);
        batch.since.set(now);
        self.under_way.borrow_mut().push(Rc::clone(&batch));
        (Some(seat), requests)
    }

    /// Lets leaders go on when all who are ready have had their turn: a task of its own, since one that wakes itself runs again
    /// before all others (monoio's scheduler puts it in front).
    pub fn start(self: Rc<Batches>) -> impl Future<Output = Infallible> {
        poll_fn(move |cx| {
            *self.starter.borrow_mut() = Some(cx.waker().clone());
            self.leaders.borrow_mut().drain(..).for_each(Waker::wake);
            Poll::Pending
        })
    }

    /// Joins the open batch for `endpoint`, where there is one with room for `request`; the `most`th seat of a batch is the last
    /// that it takes.
    pub fn join(self: &Rc<Batches>, endpoint: &EndpointState, request: &[u8], most: usize) -> Option<Seat> {
        let mut open = endpoint.open_batch.borrow_mut();
        let (batch, leaders_most) = open.as_ref()?;
        let mut requests = batch.requests.borrow_mut();
        let room = BYTES_MAX.min(requests.capacity()).saturating_sub(requests.len());
        if room < request.len() || batch.seats.get() >= most {
            return None;
        }
        requests.extend_from_slice(request);
        let seat = self.seat(batch);
        let is_full = batch.seats.get() == *leaders_most;
        drop(requests);
        if is_full {
            *open = None;
        }
        Some(seat)
    }

    fn seat(self: &Rc<Batches>, batch: &Rc<Batch>) -> Seat {
        let number = batch.seats.get();
        batch.seats.set(number + 1);
        batch.taken.set(batch.taken.get() + 1);
        Seat { batches: Rc::clone(self), batch: Rc::clone(batch), number }
    }

    /// Lets those go alone who have waited too long.
    pub fn sweep(&self, now: Millis) {
        for batch in self.under_way.borrow().iter() {
            let is_waited_for = batch.stage.get() != Stage::Dissolved && batch.turn.get() + 1 < batch.seats.get();
            if is_waited_for && batch.since.get() + PATIENCE <= now {
                batch.dissolve();
                if let Some(endpoint) = &*batch.endpoint.borrow() {
                    endpoint.leave_alone(now);
                }
            }
        }
    }

    /// Everybody has left `batch`.
    fn retire(&self, batch: &Rc<Batch>) {
        if batch.seats.get() > 1 {
            self.under_way.borrow_mut().retain(|other| !Rc::ptr_eq(other, batch));
        }
        batch.clear();
        let mut free = self.free.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(Rc::clone(batch));
        }
    }
}

/// A batch that can be joined, for as long as this lives.
struct Opened<'a> {
    batch: &'a Rc<Batch>,
    endpoint: &'a EndpointState,
}

impl<'a> Opened<'a> {
    fn new(batch: &'a Rc<Batch>, endpoint: &'a EndpointState, most: usize) -> Opened<'a> {
        *endpoint.open_batch.borrow_mut() = Some((Rc::clone(batch), most.min(PIPELINING_MAX)));
        Opened { batch, endpoint }
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        // One that became full has made room for another.
        let mut open = self.endpoint.open_batch.borrow_mut();
        if open.as_ref().is_some_and(|(batch, _)| Rc::ptr_eq(batch, self.batch)) {
            *open = None;
        }
    }
}

impl Batch {
    fn dissolve(&self) {
        self.stage.set(Stage::Dissolved);
        self.waiting.borrow_mut().iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }

    fn clear(&self) {
        self.stage.set(Stage::Open);
        self.seats.set(0);
        self.turn.set(0);
        self.endpoint.take();
        self.requests.take();
        self.socket.take();
        self.read.take();
        self.waiting.borrow_mut().fill_with(|| None);
    }
}

impl Seat {
    /// The requests of all are out on `socket`; the leader's answer is read first.
    pub fn depart(&self, socket: Socket) {
        let batch = &self.batch;
        *batch.socket.borrow_mut() = Some(socket);
        // Unless that took so long that nobody has waited.
        if batch.stage.get() == Stage::Closed {
            batch.stage.set(Stage::UnderWay);
        }
    }

    /// Waits until the answer is next. What has been read of it, and of those behind it; or `None`: the request has to go
    /// alone.
    pub fn turn(&self) -> impl Future<Output = Option<Vec<u8>>> {
        poll_fn(|cx| {
            let batch = &self.batch;
            match batch.stage.get() {
                Stage::Dissolved => Poll::Ready(None),
                Stage::UnderWay if batch.turn.get() == self.number => Poll::Ready(Some(batch.read.take())),
                _ => {
                    batch.waiting.borrow_mut()[self.number] = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    /// The deadlines of the connection.
    pub fn watch(&self) -> Option<Rc<Watch>> {
        self.batch.socket.borrow().as_ref().map(|socket| Rc::clone(socket.watch.shared()))
    }

    /// The answer is complete, and its connection goes on to the next seat; `read` came behind it.
    pub fn hand_on(&self, read: Vec<u8>) {
        let batch = &self.batch;
        batch.read.set(read);
        batch.turn.set(self.number + 1);
        if let Some(next) = batch.waiting.borrow_mut()[self.number + 1].take() {
            next.wake();
        }
    }

    /// The connection does not go on: those who wait go alone.
    pub fn dissolve(&self) {
        self.batch.dissolve();
    }

    /// The connection, if no other answers are to come on it.
    pub fn arrive(&self) -> Option<Socket> {
        if self.is_last() { self.batch.socket.take() } else { None }
    }

    fn is_last(&self) -> bool {
        self.batch.stage.get() == Stage::UnderWay && self.number + 1 == self.batch.seats.get()
    }

    fn has_followers(&self) -> bool {
        let batch = &self.batch;
        batch.stage.get() == Stage::UnderWay && batch.turn.get() == self.number && self.number + 1 < batch.seats.get()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let batch = &self.batch;
        if self.number >= batch.turn.get() {
            batch.dissolve();
        }
        if self.number == batch.turn.get() {
            batch.socket.take();
        }
        batch.taken.set(batch.taken.get() - 1);
        if batch.taken.get() == 0 {
            self.batches.retire(batch);
        }
    }
}

/// What an answer is read from: a connection of the request's own, or its batch's.
#[derive(Debug)]
pub enum Source<'a> {
    /// Its own.
    Own(&'a mut Ahead),
    /// Its batch's, in which it is its turn.
    Shared(&'a Seat),
}

impl Source<'_> {
    /// What the read brings that has begun; or else, at most `most` bytes into what `lend` gives.
    pub fn read(&mut self, lend: impl FnOnce() -> Vec<u8>, most: usize) -> impl Future<Output = Filled> {
        let mut lend = Some(lend);
        poll_fn(move |cx| match self {
            Source::Own(ahead) => ahead.poll_read(&mut lend, most, cx),
            Source::Shared(seat) => match &mut *seat.batch.socket.borrow_mut() {
                Some(socket) => socket.reader.ahead().poll_read(&mut lend, most, cx),
                None => Poll::Ready((Err(io::ErrorKind::NotConnected.into()), Vec::new())),
            },
        })
    }

    /// The connection, where it is TCP.
    pub fn tcp(&self) -> Option<Tcp> {
        match self {
            Source::Own(ahead) => ahead.tcp(),
            Source::Shared(seat) => seat.batch.socket.borrow_mut().as_mut()?.reader.ahead().tcp(),
        }
    }

    /// The request's seat, where others wait for this answer to be over.
    pub fn followed(&self) -> Option<&Seat> {
        match self {
            Source::Shared(seat) if seat.has_followers() => Some(seat),
            _ => None,
        }
    }

    /// Whether the connection is idle after this answer.
    pub fn is_idle_next(&self) -> bool {
        match self {
            Source::Own(_) => true,
            Source::Shared(seat) => seat.is_last(),
        }
    }

    /// What the driver receives by itself of the connection, if there still is one.
    pub fn with_inbox<T>(&mut self, f: impl FnOnce(&mut Inbox) -> T) -> Option<T> {
        match self {
            Source::Own(ahead) => Some(f(ahead.inbox())),
            Source::Shared(seat) => {
                seat.batch.socket.borrow_mut().as_mut().map(|socket| f(socket.reader.ahead().inbox()))
            }
        }
    }

    /// Begins to read what comes after this answer.
    pub fn read_ahead(&mut self, buf: Vec<u8>, place: Place) {
        match self {
            Source::Own(ahead) => ahead.begin(buf, place),
            Source::Shared(seat) => {
                if let Some(socket) = &mut *seat.batch.socket.borrow_mut() {
                    socket.reader.ahead().begin(buf, place);
                }
            }
        }
    }
}
