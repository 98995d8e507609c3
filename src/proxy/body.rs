//! Bodies on their way: what is read is passed on before more is read, so a slow receiver slows the sender down and no
//! message is ever held whole.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::mem::take;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use monoio::io::{CancelHandle, Canceller};

use super::attempt::Progress;
use super::batch::{Seat, Source};
use super::connection::Client;
use super::failure::Failure;
use super::reply::{self, Ended};
use super::socket::{Reader, Socket, Tcp, Writer};
use super::splice::{Pipe, SLOW_BYTES, SPLICED_MIN};
use super::transaction::Transaction;
use super::watch::{Millis, Watch, Watched};
use super::worker::Worker;
use crate::http::body::{CHUNK_OPEN_BYTES, Decoder, Framing, open_chunk};
use crate::telemetry::counters::Deadline;

/// Room that the end of a chunk and the last chunk need behind the data.
const CHUNK_CLOSE_BYTES: usize = 7;

/// What the two directions of an exchange tell each other.
#[derive(Debug)]
pub struct Shared {
    /// The request's body has gone out completely.
    pub upload_done: Cell<bool>,
    /// When that was, where the answer had not come yet and the body did not come with the head.
    pub uploaded_at: Cell<Option<Instant>>,
    /// The final head of the answer has come.
    pub head_seen: Cell<bool>,
    /// Something of the body has been read that did not come with the head.
    pub body_touched: Cell<bool>,
    /// The client waits for the upstream's word to send its body, and neither has spoken.
    pub awaits_continue: Cell<bool>,
}

impl Shared {
    /// For an exchange whose request is `upload_done` already or not, and with `Expect: 100-continue` or without.
    pub fn new(upload_done: bool, expects_continue: bool) -> Shared {
        Shared {
            upload_done: Cell::new(upload_done),
            uploaded_at: Cell::new(None),
            head_seen: Cell::new(false),
            body_touched: Cell::new(false),
            awaits_continue: Cell::new(expects_continue),
        }
    }

    /// How far the request came whose exchange failed after its head was `sent`, or was not.
    pub fn progress(&self, sent: Result<(), Failure>) -> Progress {
        match sent {
            Err(Failure::UpstreamClosed { silent: true, .. }) => Progress::NotSent,
            _ if self.body_touched.get() => Progress::Gone,
            _ => Progress::AtHand,
        }
    }

    /// Whether the whole request is at hand, and nothing is read from its client.
    pub fn is_at_hand(&self) -> bool {
        self.upload_done.get() && !self.body_touched.get()
    }
}

/// The request's body, from client to upstream.
#[allow(missing_debug_implementations)]
pub struct Upload<'a> {
    /// The worker.
    pub worker: &'a Worker,
    /// The client.
    pub from: &'a mut Reader,
    /// The client's deadlines.
    pub from_watch: &'a Watched,
    /// The upstream.
    pub to: &'a mut Writer,
    /// The upstream's deadlines.
    pub to_watch: &'a Watched,
    /// How the body is delimited, on both sides.
    pub framing: Framing,
    /// Where in the body the client is.
    pub decoder: &'a mut Decoder,
    /// `limits.body_bytes`; 0 means no limit.
    pub body_max: u64,
    /// Body bytes so far.
    pub received: &'a Cell<u64>,
    /// Takes what belongs to the next request.
    pub leftover: &'a mut Vec<u8>,
    /// Tells the other direction.
    pub shared: &'a Shared,
    /// Cancels the first read, which takes it.
    pub first_read: Option<CancelHandle>,
    /// `timeouts.idle_body`.
    pub idle_body: Duration,
    /// `timeouts.response_header`.
    pub response_header: Duration,
    /// When an upstream has to speak that is waited for before the body, and by which rule.
    pub leave_due: Option<(Millis, Deadline)>,
}

impl Upload<'_> {
    /// Passes the body on to its end. An upstream that takes no more is no failure of the upload: its answer may be there.
    pub async fn run(mut self) -> Result<(), Failure> {
        let mut buf = self.worker.buffers.large();
        let mut place = None;
        let mut turns = 0;
        while !self.decoder.is_done() {
            self.worker.share(&mut turns).await;
            let (done, read) = self.piece(buf).await?;
            buf = self.worker.buffers.for_rest(done, read, self.decoder.remaining(), &mut place);
        }
        self.worker.buffers.give(buf);
        self.shared.upload_done.set(true);
        if !self.shared.head_seen.get() {
            self.shared.uploaded_at.set(Some(Instant::now()));
            self.to_watch.read_until(self.worker.after(self.response_header), Deadline::ResponseHeader);
        }
        Ok(())
    }

    /// One read, one write; returns how much was read, too.
    async fn piece(&mut self, mut buf: Vec<u8>) -> Result<(Vec<u8>, usize), Failure> {
        buf.clear();
        buf.resize(CHUNK_OPEN_BYTES, 0);
        // Never beyond the end of a counted body; and of a chunked one so little that what follows it finds room.
        let room = buf.capacity() - CHUNK_OPEN_BYTES - CHUNK_CLOSE_BYTES;
        let most = match self.decoder.remaining() {
            Some(remaining) => room.min(usize::try_from(remaining).unwrap_or(room)),
            None => room.min(8 * 1024),
        };
        self.set_deadline();
        let (result, mut buf) = match self.first_read.take() {
            Some(handle) => self.from.read_some_cancelable(buf, most, handle).await,
            None => self.from.read_some(buf, most).await,
        };
        self.from_watch.read_done();
        let read = match result {
            Ok(read) if read > 0 => read,
            _ => return Err(self.from_watch.ending(Failure::ClientGone)),
        };
        self.shared.body_touched.set(true);
        if self.shared.awaits_continue.replace(false) && !self.shared.head_seen.get() {
            self.to_watch.read_done();
        }
        let decoded = self.decoder.decode(&mut buf[CHUNK_OPEN_BYTES..]).map_err(Failure::ClientBody)?;
        self.leftover.extend_from_slice(&buf[CHUNK_OPEN_BYTES + decoded.consumed..]);
        self.received.set(self.received.get() + decoded.data as u64);
        if self.body_max > 0 && self.received.get() > self.body_max {
            return Err(Failure::BodyTooLarge);
        }
        buf.truncate(CHUNK_OPEN_BYTES + decoded.data);
        let start = close_piece(self.framing, self.decoder, true, &mut buf);
        let end = buf.len();
        let patience = self.worker.patience(self.to_watch, self.idle_body);
        let (result, buf) = self.to.write(buf, start, end, patience).await;
        match result {
            Ok(()) => Ok((buf, read)),
            Err(_) if self.to_watch.expired() || self.to_watch.stopped() => {
                Err(self.to_watch.ending(Failure::UpstreamTimeout))
            }
            Err(_) => {
                if !self.shared.head_seen.get() {
                    self.to_watch.read_until(self.worker.after(self.response_header), Deadline::ResponseHeader);
                }
                std::future::pending().await
            }
        }
    }

    /// Whose turn it is: the client's, unless it waits for the upstream's 100, or the answer's head has come already.
    fn set_deadline(&self) {
        if self.shared.head_seen.get() {
            self.from_watch.read_done();
        } else if let Some((due, deadline)) = self.leave_due
            && self.shared.awaits_continue.get()
        {
            self.to_watch.read_until(due, deadline);
        } else {
            self.from_watch.read_until(self.worker.after(self.idle_body), Deadline::IdleBody);
        }
    }
}

/// Reads the rest of a counted body, `length` bytes, to where the request stands in the scratch's `out`.
pub async fn gather(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    decoder: &mut Decoder,
    length: usize,
) -> Result<(), Failure> {
    let idle_body = tx.timeouts().idle_body;
    let Socket { reader, watch, .. } = &mut client.socket;
    tx.scratch.out.reserve(length);
    let mut left = length;
    while left > 0 {
        watch.read_until(tx.worker.after(idle_body), Deadline::IdleBody);
        let from = tx.scratch.out.len();
        let (result, out) = reader.read_some(take(&mut tx.scratch.out), left).await;
        tx.scratch.out = out;
        watch.read_done();
        match result {
            Ok(read) if read > 0 => left -= read,
            _ => return Err(watch.ending(Failure::ClientGone)),
        }
        let decoded = decoder.decode(&mut tx.scratch.out[from..]).map_err(Failure::ClientBody)?;
        tx.bytes_in += decoded.data as u64;
    }
    Ok(())
}

/// The answer's body, from upstream to client.
#[derive(Debug)]
pub struct Download<'a, 's> {
    /// The request's record; the client's head stands in its scratch's `out`.
    pub tx: &'a mut Transaction<'s>,
    /// The upstream.
    pub from: Source<'a>,
    /// The upstream's deadlines.
    pub from_watch: &'a Watch,
    /// The client.
    pub to: &'a mut Writer,
    /// The client's deadlines.
    pub to_watch: &'a Watched,
    /// How the body goes to the client.
    pub framing: Framing,
    /// Where in the body the upstream is.
    pub decoder: Decoder,
    /// Whether the client takes trailers.
    pub with_trailers: bool,
    /// Whether the upstream's connection lives on after the answer.
    pub upstream_persistent: bool,
    /// See [`ResponseHead::bodiless`](crate::http::response::ResponseHead::bodiless).
    pub bodiless: bool,
    /// Whether it shows where the next answer begins, and that the upstream knows of such: one with a body, of HTTP/1.1.
    pub pipelines: bool,
}

impl Download<'_, '_> {
    /// Sends the head, and with it what of the body came with the upstream's head, which ends at `at` in `inbound`; then
    /// passes on the rest.
    ///
    /// With the last piece goes the read of the connection's next answer, see [`super::ahead`].
    pub async fn run(&mut self, inbound: &mut Vec<u8>, at: usize) -> Result<Ended, Failure> {
        let decoded = self.decoder.decode(&mut inbound[at..]).map_err(Failure::UpstreamBody)?;
        let mut left_over = at + decoded.consumed < inbound.len();
        let first = &inbound[at..at + decoded.data];
        self.decoder.push_piece(self.framing, first, self.with_trailers, &mut self.tx.scratch.out);
        self.tx.bytes_out += decoded.data as u64;
        self.tx.answer_begun = true;
        if let Some(seat) = self.hands_on() {
            inbound.drain(..at + decoded.consumed);
            seat.hand_on(take(inbound));
            left_over = false;
        } else {
            self.read_ahead(left_over);
        }
        reply::pass(self.tx, self.to, self.to_watch).await?;

        let idle_body = self.tx.timeouts().idle_body;
        let mut buf = take(inbound);
        let (mut read, mut room) = (buf.len(), buf.capacity());
        let mut place = None;
        let mut turns = 0;
        while !self.decoder.is_done() {
            let worker = Rc::clone(&self.tx.worker);
            worker.share(&mut turns).await;
            // A sender that fills the buffer has much to say.
            let left = self.decoder.remaining();
            if read == room
                && let Some((pipe, to)) = self.pipe(left)
            {
                if place.take().is_some() {
                    worker.buffers.give(std::mem::replace(&mut buf, worker.buffers.large()));
                }
                // Rare and large, so kept out of the connection's own future.
                Box::pin(self.splice(pipe, to)).await?;
                // Where it goes on, a large buffer has to be filled before it comes back here.
                if !self.decoder.is_done() && self.tx.scratch.inbound.capacity() == 0 {
                    self.tx.scratch.inbound = std::mem::replace(&mut buf, worker.buffers.large());
                }
                read = 0;
                continue;
            }
            if self.tx.scratch.inbound.capacity() > 0 {
                buf = worker.buffers.for_rest(buf, read, left, &mut place);
            } else if read == room {
                self.tx.scratch.inbound = std::mem::replace(&mut buf, worker.buffers.fast(left, &mut place));
            }
            buf.clear();
            buf.resize(CHUNK_OPEN_BYTES, 0);
            room = buf.capacity() - CHUNK_OPEN_BYTES - CHUNK_CLOSE_BYTES;
            self.from_watch.read_until(self.tx.worker.after(idle_body), Deadline::IdleBody);
            self.to_watch.keep_waiting(self.tx.worker.now());
            let (result, filled) = self.from.read(|| buf, room).await;
            self.from_watch.read_done();
            self.to_watch.stop_waiting();
            buf = filled;
            read = match result {
                Ok(read) if read > 0 => read,
                Ok(_) if self.decoder.ends_at_close() && !self.was_ended() => {
                    self.decoder = Decoder::new(Framing::None);
                    self.upstream_persistent = false;
                    0
                }
                _ => return Err(self.from_watch.ending(Failure::UpstreamCut)),
            };
            let decoded = self.decoder.decode(&mut buf[CHUNK_OPEN_BYTES..]).map_err(Failure::UpstreamBody)?;
            let behind = &buf[CHUNK_OPEN_BYTES + decoded.consumed..];
            if let Some(seat) = self.hands_on() {
                let mut rest = if behind.is_empty() { Vec::new() } else { self.tx.worker.buffers.head() };
                rest.extend_from_slice(behind);
                seat.hand_on(rest);
            } else {
                left_over |= !behind.is_empty();
            }
            buf.truncate(CHUNK_OPEN_BYTES + decoded.data);
            self.tx.bytes_out += decoded.data as u64;
            let start = close_piece(self.framing, &self.decoder, self.with_trailers, &mut buf);
            let end = buf.len();
            self.read_ahead(left_over);
            let patience = self.tx.worker.patience(self.to_watch, idle_body);
            let (result, written) = self.to.write(buf, start, end, patience).await;
            buf = written;
            result.map_err(|_| self.to_watch.ending(Failure::ClientGone))?;
        }
        if self.tx.scratch.inbound.capacity() == 0 {
            self.tx.scratch.inbound = buf;
        } else {
            self.tx.worker.buffers.give(buf);
        }
        Ok(Ended::Complete { reusable: self.upstream_persistent && !left_over })
    }

    /// A pipe for a body of which `left` bytes are to come, if that is known: where it is long, goes from TCP to TCP as it is, and
    /// there is one.
    fn pipe(&self, left: Option<u64>) -> Option<(Pipe, Tcp)> {
        if left.is_none_or(|left| left < SPLICED_MIN) || self.from.tcp().is_none() {
            return None;
        }
        let to = self.to.tcp()?;
        Some((self.tx.worker.pipes.take()?, to))
    }

    /// Passes the body on through `pipe`, to its end; or as long as it comes fast, or nothing is wrong with the upstream: what that is,
    /// the next read finds.
    async fn splice(&mut self, mut pipe: Pipe, to: Tcp) -> Result<(), Failure> {
        let worker = Rc::clone(&self.tx.worker);
        let idle_body = self.tx.timeouts().idle_body;
        let mut turns = 0;
        let mut is_fast = true;
        while is_fast && let Some(left @ 1..) = self.decoder.remaining() {
            worker.share(&mut turns).await;
            let filled = self.fill(&mut pipe, left, idle_body).await;
            if filled == 0 {
                break;
            }
            is_fast = filled >= SLOW_BYTES;
            self.decoder.skip(filled as u64);
            self.tx.bytes_out += filled as u64;
            if let Some(seat) = self.hands_on() {
                seat.hand_on(Vec::new());
            }
            self.read_ahead(false);
            if !pipe.empty(&to, worker.patience(self.to_watch, idle_body)).await {
                return Err(self.to_watch.ending(Failure::ClientGone));
            }
        }
        Ok(())
    }

    /// Waits for the upstream, and takes what has come into `pipe`, at most `left` bytes; 0 as for [`Pipe::fill`].
    async fn fill(&mut self, pipe: &mut Pipe, left: u64, idle_body: Duration) -> usize {
        // Not for longer than this: others may have the connection, or nobody, while the client takes the last of it in.
        let Some(from) = self.from.tcp() else { return 0 };
        self.from_watch.read_until(self.tx.worker.after(idle_body), Deadline::IdleBody);
        self.to_watch.keep_waiting(self.tx.worker.now());
        let readable = from.readable().await;
        self.from_watch.read_done();
        self.to_watch.stop_waiting();
        if readable.is_ok() { pipe.fill(from.as_fd(), left) } else { 0 }
    }

    /// The request's seat in its batch, when the answer has just become complete and the next one's turn comes. Where the connection
    /// does not go on, the others learn so as early as that is known.
    fn hands_on(&self) -> Option<&Seat> {
        let seat = self.from.followed()?;
        if self.upstream_persistent && self.pipelines && !self.was_ended() {
            return self.decoder.is_done().then_some(seat);
        }
        seat.dissolve();
        if !self.pipelines
            && let Some((_, state)) = self.tx.endpoint_state()
        {
            state.leave_alone(self.tx.worker.now());
        }
        None
    }

    /// Begins to read the connection's next answer, if it will have one and all of this one is there. Backends send bodies that
    /// may not be there, after HEAD or with 304: such a connection is looked at before its next use instead.
    fn read_ahead(&mut self, left_over: bool) {
        if self.decoder.is_done()
            && !self.bodiless
            && self.upstream_persistent
            && !left_over
            && self.from.is_idle_next()
            && let Some((buf, place)) = self.tx.worker.buffers.ahead()
        {
            self.from.read_ahead(buf, place);
        }
    }

    /// Whether the end of the upstream's stream is the gateway's own doing.
    fn was_ended(&self) -> bool {
        self.from_watch.expired() || self.from_watch.stopped() || self.to_watch.peer_gone()
    }
}

/// Frames the data behind the first [`CHUNK_OPEN_BYTES`] of `buf`; returns where what is to be sent begins.
fn close_piece(framing: Framing, decoder: &Decoder, with_trailers: bool, buf: &mut Vec<u8>) -> usize {
    if framing != Framing::Chunked {
        return CHUNK_OPEN_BYTES;
    }
    let data = buf.len() - CHUNK_OPEN_BYTES;
    let mut start = CHUNK_OPEN_BYTES;
    if data > 0 {
        if let Some(room) = buf.first_chunk_mut() {
            start = open_chunk(data, room);
        }
        buf.extend_from_slice(b"\r\n");
    }
    if decoder.is_done() {
        decoder.push_last_chunk(with_trailers, buf);
    }
    start
}

/// Runs both directions until the answer is complete, or the client's side fails. An upload that is done is not waited for,
/// and one that is not is dropped with the answer's end: the upstream did not want the rest.
///
/// When the exchange fails before anything of the body was read, the read that is under way is cancelled with `first_read` and
/// waited for, so that a second attempt finds the body whole.
pub async fn run_both(
    upload: impl Future<Output = Result<(), Failure>>,
    answer: impl Future<Output = Result<Ended, Failure>>,
    shared: &Shared,
    first_read: Canceller,
) -> Result<Ended, Failure> {
    let mut upload = pin!(upload.fuse());
    let mut answer = pin!(answer);
    let mut first_read = Some(first_read);
    let mut gone = None;
    poll_fn(|cx| {
        // What is gone already takes nothing of the body; once that is on its way, its end is known before the answer is looked at.
        let answer_first = !shared.body_touched.get();
        if !answer_first && let Poll::Ready(Err(failure)) = upload.as_mut().poll(cx) {
            return Poll::Ready(Err(failure));
        }
        let answered = match gone {
            Some(failure) => Poll::Ready(Err(failure)),
            None => answer.as_mut().poll(cx),
        };
        if let Poll::Ready(Err(failure)) = answered
            && !shared.head_seen.get()
            && !shared.body_touched.get()
            && let Some(read) = first_read.take()
        {
            read.cancel();
            gone = Some(failure);
        }
        if answer_first
            && let Poll::Ready(Err(failure)) = upload.as_mut().poll(cx)
            && answered.is_pending()
        {
            return Poll::Ready(Err(failure));
        }
        let is_reading = gone.is_some() && !upload.is_terminated() && !shared.body_touched.get();
        if is_reading { Poll::Pending } else { answered }
    })
    .await
}
