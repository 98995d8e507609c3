//! After an upgrade: bytes both ways, until both sides are done or nothing moves any more.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::connection::{Client, Next};
use super::failure::Failure;
use super::socket::{Reader, Socket, Writer};
use super::transaction::Transaction;
use super::watch::Watched;
use super::worker::Worker;
use crate::telemetry::counters::Deadline;

/// Carries bytes between client and upstream. What came behind the heads, `leftover` from the client and the scratch's
/// `inbound` from the upstream, goes first.
pub async fn run(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    leftover: &mut Vec<u8>,
    mut upstream: Socket,
) -> Result<Next, Failure> {
    tx.answer_begun = true;
    let worker = std::rc::Rc::clone(&tx.worker);
    let idle = tx.timeouts().idle_body;
    let both = Both {
        worker: &worker,
        client: &client.socket.watch,
        upstream: &upstream.watch,
        idle,
        writing: Cell::new(0),
        broken: Cell::new(false),
    };
    client.socket.reader.disarm().await;
    upstream.reader.disarm().await;
    let (bytes_in, bytes_out) = (Cell::new(0), Cell::new(0));
    {
        let first = std::mem::take(leftover);
        let up = both.carry(first, &mut client.socket.reader, (&mut upstream.writer, &upstream.watch), &bytes_in);
        let first = std::mem::take(&mut tx.scratch.inbound);
        let down =
            both.carry(first, &mut upstream.reader, (&mut client.socket.writer, &client.socket.watch), &bytes_out);
        join(up, down).await;
    }
    tx.bytes_in += bytes_in.get();
    tx.bytes_out += bytes_out.get();
    if client.socket.watch.stopped() {
        tx.error = Some(Failure::Stopped.word());
    } else if !both.broken.get() && (client.socket.watch.expired() || upstream.watch.expired()) {
        tx.error = Some("tunnel_idle");
    }
    Ok(Next::Close)
}

/// The two ends, and the time that may pass without a byte on either.
struct Both<'a> {
    worker: &'a Worker,
    client: &'a Watched,
    upstream: &'a Watched,
    idle: Duration,
    /// How many of the two directions are writing.
    writing: Cell<u32>,
    broken: Cell<bool>,
}

impl Both<'_> {
    /// One direction, from `from` to `to`: until its end, which is passed on as such, or until either side breaks, which
    /// ends the other too.
    async fn carry(&self, first: Vec<u8>, from: &mut Reader, to: (&mut Writer, &Watched), carried: &Cell<u64>) {
        let buffers = &self.worker.buffers;
        let (to, to_watch) = to;
        let mut buf = first;
        let mut turns = 0;
        loop {
            self.worker.share(&mut turns).await;
            if !buf.is_empty() {
                let size = buf.len() as u64;
                self.writing.set(self.writing.get() + 1);
                self.refresh();
                let (result, written) = to.write_all(buf, self.worker.patience(to_watch, self.idle)).await;
                self.writing.set(self.writing.get() - 1);
                buf = written;
                if result.is_err() {
                    self.break_off();
                    break;
                }
                carried.set(carried.get() + size);
                buf = buffers.fitting(buf);
            } else if buf.capacity() == 0 {
                buf = buffers.small();
            }
            self.refresh();
            let (result, filled) = from.read(buf).await;
            buf = filled;
            match result {
                Ok(read) if read > 0 => {}
                Ok(_) => {
                    to.finish().await;
                    break;
                }
                Err(_) => {
                    self.break_off();
                    break;
                }
            }
        }
        buffers.give(buf);
    }

    /// Traffic in either direction keeps both alive, and so does a write that moves on; unless one of them is broken.
    fn refresh(&self) {
        for watch in [self.client, self.upstream] {
            match (self.broken.get(), self.writing.get()) {
                (true, _) => watch.end(),
                (false, 0) => watch.read_until(self.worker.after(self.idle), Deadline::IdleBody),
                (false, _) => watch.read_done(),
            }
        }
    }

    /// The next sweep ends both, unless a deadline has ended one of them already.
    fn break_off(&self) {
        if !self.client.expired() && !self.upstream.expired() {
            self.broken.set(true);
            self.refresh();
        }
    }
}

/// Waits for both.
async fn join(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut one_runs, mut other_runs) = (true, true);
    poll_fn(|cx| {
        one_runs = one_runs && one.as_mut().poll(cx).is_pending();
        other_runs = other_runs && other.as_mut().poll(cx).is_pending();
        if one_runs || other_runs { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}
