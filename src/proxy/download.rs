//! An answer's body on its way.

use std::future::poll_fn;
use std::mem::take;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::batch::Seat;
use super::body;
use super::failure::Failure;
use super::multishot::Inbox;
use super::reply::Reply;
use super::socket::Tcp;
use super::splice::{Pipe, SLOW_BYTES};
use crate::http::body::{CHUNK_OPEN_BYTES, Decoder, Framing};
use crate::telemetry::counters::Deadline;

/// Of a body of which no more is to come than this, receives stay armed.
const ARMED_MAX: u64 = 64 * 1024;

impl Reply<'_, '_> {
    /// What of the body came with the upstream's head, which ends at `at` in `inbound`, goes behind the client's. Whether something
    /// came behind the answer for which no other request waits.
    ///
    /// With the last piece goes the read of the connection's next answer, see [`super::ahead`].
    pub(super) fn begin_body(&mut self, inbound: &mut Vec<u8>, at: usize) -> Result<bool, Failure> {
        let decoded = self.decoder.decode(&mut inbound[at..]).map_err(Failure::UpstreamBody)?;
        let left_over = at + decoded.consumed < inbound.len();
        let first = &inbound[at..at + decoded.data];
        self.decoder.push_piece(self.framing, first, self.plan.accepts_trailers, &mut self.tx.scratch.out);
        self.tx.bytes_out += decoded.data as u64;
        self.tx.answer_begun = true;
        if self.decoder.is_done() {
            self.from.with_inbox(Inbox::arm);
        }
        if let Some(seat) = self.hands_on() {
            inbound.drain(..at + decoded.consumed);
            seat.hand_on(take(inbound));
            return Ok(false);
        }
        self.read_ahead(left_over);
        Ok(left_over)
    }

    /// Passes on the rest of the body, in the buffer `inbound` to begin with. Whether something came behind the answer for which no other
    /// request waits; `left_over` says whether it had before.
    pub(super) async fn rest(&mut self, inbound: &mut Vec<u8>, mut left_over: bool) -> Result<bool, Failure> {
        let idle_body = self.tx.timeouts().idle_body;
        if self.decoder.remaining().is_none_or(|left| left > ARMED_MAX) {
            self.disarm().await;
        }
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
                && let Some(to) = self.spliced(left)
            {
                if place.take().is_some() {
                    worker.buffers.give(std::mem::replace(&mut buf, worker.buffers.large()));
                }
                // Rare and large, so kept out of the connection's own future.
                Box::pin(self.splice(to)).await?;
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
            room = body::data_room(&buf);
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
            let start = body::close_piece(self.framing, &self.decoder, self.plan.accepts_trailers, &mut buf);
            let end = buf.len();
            self.read_ahead(left_over);
            let patience = self.tx.worker.patience(self.to_watch, idle_body);
            let (result, written) = self.to.write(buf, start, end, patience).await;
            buf = written;
            result.map_err(|_| self.to_watch.ending(Failure::ClientGone))?;
        }
        *inbound = buf;
        Ok(left_over)
    }

    /// The upstream's receive does not stay armed: what it sends is long.
    async fn disarm(&mut self) {
        poll_fn(|cx| self.from.with_inbox(|inbox| inbox.poll_disarm(cx)).unwrap_or(Poll::Ready(()))).await;
    }

    /// To whom the rest of the body goes through pipes, of which `left` bytes are to come, if that is known: where it is long, goes from
    /// TCP to TCP as it is, and there are pipes.
    fn spliced(&self, left: Option<u64>) -> Option<Tcp> {
        if !self.tx.worker.pipes.are_for(left) {
            return None;
        }
        self.from.tcp()?;
        self.to.tcp()
    }

    /// Passes the body on through pipes, to its end; or as long as it comes fast, there are pipes, and nothing is wrong with the
    /// upstream: what that is, the next read finds.
    async fn splice(&mut self, to: Tcp) -> Result<(), Failure> {
        let worker = Rc::clone(&self.tx.worker);
        let idle_body = self.tx.timeouts().idle_body;
        let mut turns = 0;
        let mut is_fast = true;
        while is_fast && let Some(left @ 1..) = self.decoder.remaining() {
            worker.share(&mut turns).await;
            let Some(mut pipe) = self.fill_pipe(left, idle_body).await else { break };
            is_fast = pipe.held() >= SLOW_BYTES;
            self.decoder.skip(pipe.held() as u64);
            self.tx.bytes_out += pipe.held() as u64;
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

    /// Waits for the upstream, for at most `left` bytes; as [`Pipes::receive`](super::splice::Pipes::receive).
    async fn fill_pipe(&mut self, left: u64, idle_body: Duration) -> Option<Pipe> {
        // Not for longer than this: others may have the connection, or nobody, while the client takes the last of it in.
        let from = self.from.tcp()?;
        self.from_watch.read_until(self.tx.worker.after(idle_body), Deadline::IdleBody);
        self.to_watch.keep_waiting(self.tx.worker.now());
        let received = self.tx.worker.pipes.receive(&from, left).await;
        self.from_watch.read_done();
        self.to_watch.stop_waiting();
        received
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
            && self.from.with_inbox(Inbox::begin) == Some(false)
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
