//! Bodies on their way, a request's here and its answer's in [`download`](super::download): what is read is passed on before
//! more is read, so a slow receiver slows the sender down and no message is ever held whole.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::mem::take;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use monoio::io::{CancelHandle, Canceller};

use super::attempt::Progress;
use super::connection::Client;
use super::failure::Failure;
use super::reply::Ended;
use super::socket::{Reader, Socket, Tcp, Writer};
use super::splice::SLOW_BYTES;
use super::transaction::Transaction;
use super::watch::{Millis, Watched};
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
        self.from.disarm().await;
        let mut buf = self.worker.buffers.large();
        let mut place = None;
        let mut turns = 0;
        while !self.decoder.is_done() {
            self.worker.share(&mut turns).await;
            let (done, read) = self.piece(buf).await?;
            // A sender that fills the buffer has much to say.
            if read == data_room(&done)
                && let Some((from, to)) = self.spliced()
            {
                place = None;
                self.worker.buffers.give(done);
                self.splice(&from, &to).await?;
                buf = self.worker.buffers.large();
            } else {
                buf = self.worker.buffers.for_rest(done, read, self.decoder.remaining(), &mut place);
            }
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
        let room = data_room(&buf);
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
        self.count(decoded.data)?;
        buf.truncate(CHUNK_OPEN_BYTES + decoded.data);
        let start = close_piece(self.framing, self.decoder, true, &mut buf);
        let end = buf.len();
        let patience = self.worker.patience(self.to_watch, self.idle_body);
        let (result, buf) = self.to.write(buf, start, end, patience).await;
        match result {
            Ok(()) => Ok((buf, read)),
            Err(_) => Err(self.turned_away().await),
        }
    }

    /// Between whom the rest of the body goes through pipes: where it is long, goes from TCP to TCP as it is, and there are pipes.
    fn spliced(&self) -> Option<(Tcp, Tcp)> {
        if !self.worker.pipes.are_for(self.decoder.remaining()) {
            return None;
        }
        Some((self.from.tcp()?, self.to.tcp()?))
    }

    /// Passes the body on through pipes, to its end; or as long as it comes fast, there are pipes, and nothing is wrong with the client:
    /// what that is, the next read finds.
    async fn splice(&mut self, from: &Tcp, to: &Tcp) -> Result<(), Failure> {
        let mut turns = 0;
        let mut is_fast = true;
        while is_fast && let Some(left @ 1..) = self.decoder.remaining() {
            self.worker.share(&mut turns).await;
            self.set_deadline();
            let received = self.worker.pipes.receive(from, left).await;
            self.from_watch.read_done();
            let Some(mut pipe) = received else { break };
            is_fast = pipe.held() >= SLOW_BYTES;
            self.decoder.skip(pipe.held() as u64);
            self.count(pipe.held())?;
            if !pipe.empty(to, self.worker.patience(self.to_watch, self.idle_body)).await {
                drop(pipe);
                return Err(self.turned_away().await);
            }
        }
        Ok(())
    }

    /// So many bytes more of the body have come.
    fn count(&self, bytes: usize) -> Result<(), Failure> {
        self.received.set(self.received.get() + bytes as u64);
        if self.body_max > 0 && self.received.get() > self.body_max {
            return Err(Failure::BodyTooLarge);
        }
        Ok(())
    }

    /// The upstream takes no more. Only that it was too slow is a failure of the upload; else this does not end, since the answer may be
    /// on its way.
    async fn turned_away(&self) -> Failure {
        if self.to_watch.expired() || self.to_watch.stopped() {
            return self.to_watch.ending(Failure::UpstreamTimeout);
        }
        if !self.shared.head_seen.get() {
            self.to_watch.read_until(self.worker.after(self.response_header), Deadline::ResponseHeader);
        }
        std::future::pending().await
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

/// How much of a body goes into `buf` at a time, with its frame around it.
pub(super) fn data_room(buf: &Vec<u8>) -> usize {
    buf.capacity() - CHUNK_OPEN_BYTES - CHUNK_CLOSE_BYTES
}

/// Frames the data behind the first [`CHUNK_OPEN_BYTES`] of `buf`; returns where what is to be sent begins.
pub(super) fn close_piece(framing: Framing, decoder: &Decoder, with_trailers: bool, buf: &mut Vec<u8>) -> usize {
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
