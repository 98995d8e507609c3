//! One client: request after request on one connection, in order (RFC 9112, section 9.3).

use std::net::IpAddr;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::failure::HEAD_TIMEOUT;
use super::lane::Job;
use super::socket::Socket;
use super::watch::Millis;
use super::worker::Worker;
use crate::http::headers::HeadScan;
use crate::http::problem::Problem;
use crate::http::request;
use crate::telemetry::counters::Deadline;

/// How long a connection that the gateway ends may go on sending what nobody reads, so that the answer is not lost to a
/// reset (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// How often that time begins anew, while the client is still to take in what was sent.
const LINGER_ROUNDS_MAX: u32 = 30;

/// How many bytes of that are read.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    /// Its socket.
    pub socket: Socket,
    /// Its address.
    pub peer: Option<IpAddr>,
}

/// What follows a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next one.
    KeepAlive,
    /// The end, once the client has had the chance to read the answer.
    Linger,
    /// The end, for which nobody has to wait: the request was the last, and nothing is being read or sent any more.
    Last,
    /// The end.
    Close,
}

/// Serves a client until either side ends the connection. A panic on the way is caught and counted: it ends this
/// connection and no other.
pub async fn serve(counted: Counted, client: Box<Client>) {
    let worker = &counted.0;
    // Everything that the connection shares with others is in cells that a panic leaves whole: borrows end as the stack
    // unwinds, and no borrow is held while code that may panic changes two things that belong together.
    if AssertUnwindSafe(run(worker, client)).catch_unwind().await.is_err() {
        worker.counters.panics.add(1);
    }
}

/// One open connection in the worker's count.
#[derive(Debug)]
pub struct Counted(Rc<Worker>);

impl Counted {
    /// Counts it in, until the drop.
    pub fn new(worker: &Rc<Worker>) -> Counted {
        worker.count_connection(1);
        Counted(Rc::clone(worker))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count_connection(-1);
    }
}

// What a connection holds while it waits is this future: so nothing but a read is awaited on the way to a head, and what is
// decided in between is in [`Arrival`].
async fn run(worker: &Rc<Worker>, mut client: Box<Client>) {
    let mut buf = Vec::new();
    let mut turns = 0;
    loop {
        let mut arrival = Arrival::new(worker);
        let head = loop {
            if let Some(head) = arrival.look(worker, &client, &mut buf) {
                break Some(head);
            }
            let found = client.socket.reader.look().await;
            if buf.capacity() == 0 {
                buf = worker.buffers.idle();
            }
            let (result, filled) = client.socket.reader.read_found(found, std::mem::take(&mut buf)).await;
            buf = filled;
            if !arrival.came(worker, &mut client, &mut buf, matches!(result, Ok(read) if read > 0)) {
                break arrival.given_up(&client, &buf);
            }
        };
        let Some(head) = head else { break };
        let mut lane = worker.lane();
        let done = lane.serve(Job { worker: Rc::clone(worker), client, buf, head }).await;
        worker.give_lane(lane);
        (client, buf) = (done.client, done.buf);
        match done.next {
            Next::KeepAlive => {
                client.socket.stay_armed();
                worker.share(&mut turns).await;
            }
            Next::Last => {
                worker.buffers.give(buf);
                return client.socket.close();
            }
            Next::Close => break,
            Next::Linger => {
                // Rare and large, so kept out of the connection's own future.
                Box::pin(linger(worker, &mut client, &mut buf)).await;
                break;
            }
        }
    }
    worker.buffers.give(buf);
    if !client.socket.writer.is_settled() {
        // Rare, so kept out of the connection's own future.
        Box::pin(settle(worker, &mut client)).await;
    }
}

/// The last answer is sent before the connection ends.
async fn settle(worker: &Worker, client: &mut Client) {
    client.socket.watch.read_done();
    let patience = worker.patience(&client.socket.watch, worker.loaded().snapshot.timeouts.idle_body);
    // Whoever takes no more is not told anything, either.
    let _ = client.socket.writer.settle(patience).await;
}

/// A head on its way. What an earlier read brought along is looked at first.
struct Arrival {
    /// Where it begins in the buffer: a stray empty line is no request yet (RFC 9112, section 2.2).
    skip: usize,
    scan: HeadScan,
    /// Until when there must be something of it.
    idle_until: Millis,
    /// Until when it must be whole, once there is something of it.
    deadline: Option<Millis>,
    /// Whether the read under way waits for its first byte.
    is_idle: bool,
}

impl Arrival {
    fn new(worker: &Worker) -> Arrival {
        let idle_until = worker.after(worker.loaded().snapshot.timeouts.keepalive_idle);
        Arrival { skip: 0, scan: HeadScan::default(), idle_until, deadline: None, is_idle: false }
    }

    /// The place in `buf` that begins with the head and holds it whole, or why it is refused; `None` when more has to be read, for
    /// which `buf` then has room.
    fn look(&mut self, worker: &Worker, client: &Client, buf: &mut Vec<u8>) -> Option<Result<Range<usize>, Problem>> {
        let watch = &client.socket.watch;
        // Empty lines may come in pieces.
        if !self.scan.has_first_line(self.skip) {
            self.skip = request::leading_empty_lines(buf);
            self.scan = HeadScan::from(self.skip);
        }
        self.is_idle = self.skip == buf.len();
        if self.is_idle {
            worker.buffers.give(std::mem::take(buf));
            watch.idle(worker.now());
            watch.read_until(self.idle_until, Deadline::KeepaliveIdle);
            return None;
        }
        let loaded = worker.loaded();
        let snapshot = &loaded.snapshot;
        let deadline = *self.deadline.get_or_insert_with(|| worker.after(snapshot.timeouts.header_read));
        let head = match request::holds_head(buf, self.skip, &mut self.scan, &snapshot.limits) {
            Ok(None) => {
                make_room(worker, buf);
                watch.read_until(deadline, Deadline::HeaderRead);
                return None;
            }
            Ok(Some(end)) => Ok(self.skip..end),
            Err(error) => Err(error.problem()),
        };
        watch.read_done();
        Some(head)
    }

    /// A read into `buf` is over; whether it brought anything.
    fn came(&mut self, worker: &Worker, client: &mut Client, buf: &mut Vec<u8>, is_something: bool) -> bool {
        worker.set_now(Instant::now());
        if !self.is_idle {
            return is_something;
        }
        worker.buffers.idle_over(buf);
        client.socket.watch.busy();
        if is_something && buf.len() == buf.capacity() && worker.buffers.is_small(buf) {
            // The rest is most likely there: a body that is would otherwise go on behind its head, by itself.
            make_room(worker, buf);
            client.socket.read_ready(buf);
        }
        // It was found idle and ended; a request may have come since.
        is_something || client.socket.watch.ended_idle() && client.socket.read_ready(buf)
    }

    /// No more comes; what is to be said to that.
    fn given_up(&self, client: &Client, buf: &[u8]) -> Option<Result<Range<usize>, Problem>> {
        (client.socket.watch.read_expired() && self.skip < buf.len()).then_some(Err(HEAD_TIMEOUT))
    }
}

/// Gives a head that does not fit into a small buffer a large one. Heads are refused before they fill that.
fn make_room(worker: &Worker, buf: &mut Vec<u8>) {
    if buf.len() == buf.capacity() {
        let mut larger = worker.buffers.head();
        larger.extend_from_slice(buf);
        if larger.len() == larger.capacity() {
            larger.reserve(larger.len());
        }
        worker.buffers.give(std::mem::replace(buf, larger));
    }
}

/// Says that no more will come, and reads on for a moment: a socket that is closed with unread bytes resets the
/// connection, and the reset can overtake the answer.
async fn linger(worker: &Worker, client: &mut Client, buf: &mut Vec<u8>) {
    settle(worker, client).await;
    client.socket.writer.finish().await;
    let mut discarded = 0;
    let mut rounds = 0;
    while discarded < LINGER_BYTES_MAX && !worker.is_stopping() {
        buf.clear();
        if buf.capacity() == 0 {
            *buf = worker.buffers.head();
        }
        // A read that is given up takes its buffer and what it reads along: neither is needed.
        let read = monoio::time::timeout(LINGER, client.socket.reader.read(std::mem::take(buf))).await;
        match read {
            Ok((Ok(read), filled)) if read > 0 => {
                *buf = filled;
                discarded += read;
            }
            Ok(_) => break,
            // What a slow reader has not taken in yet would be lost to the reset as well.
            Err(_) if rounds < LINGER_ROUNDS_MAX && client.socket.has_undelivered() => rounds += 1,
            Err(_) => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_return<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of_return(serve);
        assert!(size <= 400, "the future of a connection takes {size} bytes");
    }
}
