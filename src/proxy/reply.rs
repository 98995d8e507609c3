//! The answer of an endpoint: its head is read and written anew for the client, its body follows it.

use std::mem::{MaybeUninit, take};

use super::attempt;
use super::batch::Source;
use super::body::Shared;
use super::failure::Failure;
use super::socket::Writer;
use super::transaction::Transaction;
use super::upstream::Plan;
use super::watch::{Watch, Watched};
use crate::http::body::{Decoder, Framing};
use crate::http::headers::HeadScan;
use crate::http::request::{HEADER_COUNT_MAX, Version};
use crate::http::response::{self, Returning};
use crate::snapshot::ServiceKind;
use crate::telemetry::counters::Deadline;

/// The most 1xx answers that may come before the final one.
const INTERIM_MAX: u32 = 32;

/// How an exchange ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The answer is complete.
    Complete {
        /// Whether the upstream connection is clean and may serve again.
        reusable: bool,
    },
    /// 101: both sides speak another protocol from here on.
    Switched,
}

/// An answer, from an endpoint to the client. What its futures have in common stands here, since an async function holds what it is
/// given twice.
#[derive(Debug)]
pub struct Reply<'a, 's> {
    /// The request's record; the client's head is written into its scratch's `out`.
    pub(super) tx: &'a mut Transaction<'s>,
    /// The upstream.
    pub(super) from: Source<'a>,
    /// The upstream's deadlines.
    pub(super) from_watch: &'a Watch,
    /// The client.
    pub(super) to: &'a mut Writer,
    /// The client's deadlines.
    pub(super) to_watch: &'a Watched,
    /// The request.
    pub(super) plan: &'a Plan,
    /// What its two directions know of each other.
    pub(super) shared: &'a Shared,
    /// How the body goes to the client.
    pub(super) framing: Framing,
    /// Where in the body the upstream is.
    pub(super) decoder: Decoder,
    /// Whether the upstream's connection lives on after the answer.
    pub(super) upstream_persistent: bool,
    /// See [`ResponseHead::bodiless`](crate::http::response::ResponseHead::bodiless).
    pub(super) bodiless: bool,
    /// Whether it shows where the next answer begins, and that the upstream knows of such: one with a body, of HTTP/1.1.
    pub(super) pipelines: bool,
}

impl<'a, 's> Reply<'a, 's> {
    /// One of which nothing has come.
    pub fn new(
        tx: &'a mut Transaction<'s>,
        (from, from_watch): (Source<'a>, &'a Watch),
        (to, to_watch): (&'a mut Writer, &'a Watched),
        plan: &'a Plan,
        shared: &'a Shared,
    ) -> Reply<'a, 's> {
        Reply {
            tx,
            from,
            from_watch,
            to,
            to_watch,
            plan,
            shared,
            framing: Framing::None,
            decoder: Decoder::new(Framing::None),
            upstream_persistent: false,
            bodiless: false,
            pipelines: false,
        }
    }

    /// Reads the answer and passes it on to the client.
    pub async fn receive(&mut self) -> Result<Ended, Failure> {
        let mut inbound = take(&mut self.tx.scratch.inbound);
        let mut scan = HeadScan::default();
        let mut interim = 0;
        let (head_bytes, status) = loop {
            let rendered = match inbound.is_empty() {
                true => Rendered::Incomplete,
                false => self.render(&inbound, &mut scan).map_err(Failure::UpstreamHead)?,
            };
            match rendered {
                Rendered::NotPassedOn => {
                    self.tx.worker.buffers.give(inbound);
                    return Err(Failure::UpstreamStatus);
                }
                Rendered::Final { head_bytes, status } => break (head_bytes, status),
                Rendered::Interim { head_bytes, status } => {
                    interim += 1;
                    if interim > INTERIM_MAX {
                        return Err(Failure::UpstreamHead(response::ResponseError::TooLarge));
                    }
                    if self.tx.version == Version::Http11 {
                        // Until all of it is out, no other answer can be given.
                        self.tx.answer_begun = true;
                        self.pass().await?;
                        self.tx.answer_begun = false;
                    }
                    if status == 100 && self.shared.awaits_continue.replace(false) {
                        self.from_watch.read_done();
                        let idle_body = self.tx.worker.after(self.tx.timeouts().idle_body);
                        self.to_watch.read_until(idle_body, Deadline::IdleBody);
                    }
                    inbound.drain(..head_bytes);
                    scan = HeadScan::default();
                    continue;
                }
                Rendered::Incomplete => {}
            }
            if !inbound.is_empty() && inbound.len() == inbound.capacity() {
                // A service may allow longer heads than the buffers are made for.
                inbound.reserve(inbound.len());
            }
            let worker = &self.tx.worker;
            let lend = || if inbound.capacity() == 0 { worker.buffers.head() } else { inbound };
            let (result, filled) = self.from.read(lend, usize::MAX).await;
            inbound = filled;
            match result {
                Ok(read) if read > 0 => {}
                closed => {
                    let silent = inbound.is_empty() && interim == 0;
                    return Err(self.from_watch.ending(Failure::UpstreamClosed { silent, reset: closed.is_err() }));
                }
            }
        };
        self.shared.head_seen.set(true);
        self.from_watch.read_done();
        // An upstream that does not take the rest of the request still gets its answer through.
        self.from_watch.limit_writes(false);
        // A client that goes on with its body as slowly as it likes still gets its answer.
        self.to_watch.read_done();
        self.to_watch.stop_waiting();
        self.tx.upstream_answered(status);
        self.tx.status = status;
        if status == 101 {
            self.pass().await?;
            inbound.drain(..head_bytes);
            self.tx.scratch.inbound = inbound;
            return Ok(Ended::Switched);
        }
        let left_over = self.begin_body(&mut inbound, head_bytes)?;
        if !self.post() {
            self.pass().await?;
        }
        let left_over = if self.decoder.is_done() { left_over } else { self.rest(&mut inbound, left_over).await? };
        if self.tx.scratch.inbound.capacity() == 0 {
            self.tx.scratch.inbound = inbound;
        } else {
            self.tx.worker.buffers.give(inbound);
        }
        Ok(Ended::Complete { reusable: self.upstream_persistent && !left_over })
    }

    /// Reads an upstream's head and writes the client's into the scratch's `out`.
    fn render(&mut self, inbound: &[u8], scan: &mut HeadScan) -> Result<Rendered, response::ResponseError> {
        let (tx, plan, shared) = (&mut *self.tx, self.plan, self.shared);
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let Some(head) = response::parse(inbound, scan, &mut storage, plan.asked, tx.limits())? else {
            return Ok(Rendered::Incomplete);
        };
        // How long the client took to send its body is no time of the endpoint's.
        tx.tries.begun = shared.uploaded_at.get().or(tx.tries.begun);
        if head.status >= 400 && shared.is_at_hand() && attempt::again_for_status(tx, plan, head.status) {
            return Ok(Rendered::NotPassedOn);
        }
        // 1xx other than 101 are followed by another answer.
        let is_final = head.status >= 200 || head.status == 101;
        let head_bytes = head.bytes.len();
        let framing = match (head.framing, tx.version) {
            (Framing::Chunked | Framing::Close, Version::Http11) => Framing::Chunked,
            (Framing::Chunked | Framing::Close, Version::Http10) => Framing::Close,
            (known, _) => known,
        };
        let persistent =
            tx.persistent && shared.upload_done.get() && framing != Framing::Close && !tx.worker.is_draining();
        // A client of HTTP/1.0 gets only the final one: until then, the request in `out` may have to be sent again.
        if is_final || tx.version == Version::Http11 {
            let mut clock = tx.worker.clock.borrow_mut();
            let returning = Returning {
                version: tx.version,
                framing,
                persistent,
                from_gateway: tx.service().is_some_and(|(service, _)| service.kind == ServiceKind::Management),
                request_id: &tx.scratch.request_id,
                date: clock.http_date(tx.worker.unix_ms_coarse()),
                fields: &tx.scratch.fields,
                replaces: tx.replaces,
            };
            tx.request_gone = true;
            tx.scratch.out.clear();
            response::write(&head, &returning, &mut tx.scratch.out);
        }
        if !is_final {
            return Ok(Rendered::Interim { head_bytes, status: head.status });
        }
        tx.ends_at_close = framing == Framing::Close;
        tx.persistent = persistent;
        self.framing = framing;
        self.decoder = Decoder::new(head.framing);
        self.upstream_persistent = head.persistent;
        self.bodiless = head.bodiless;
        self.pipelines = head.version == Version::Http11 && !head.bodiless;
        Ok(Rendered::Final { head_bytes, status: head.status })
    }

    /// Has what stands in the scratch's `out` sent to the client, if it is the last of the answer; whether nobody has to wait for that.
    fn post(&mut self) -> bool {
        self.decoder.is_done() && self.tx.persistent && self.to.post(&self.tx.scratch.out)
    }

    /// Sends what stands in the scratch's `out` to the client.
    async fn pass(&mut self) -> Result<(), Failure> {
        let patience = self.tx.worker.patience(self.to_watch, self.tx.timeouts().idle_body);
        let (result, out) = self.to.write_all(take(&mut self.tx.scratch.out), patience).await;
        self.tx.scratch.out = out;
        result.map_err(|_| self.to_watch.ending(Failure::ClientGone))
    }
}

/// What [`Reply::render`] made of what an upstream sent.
#[derive(Debug, Clone, Copy)]
enum Rendered {
    /// The head goes on.
    Incomplete,
    /// Another endpoint is to answer, and the request stands in the scratch's `out` still.
    NotPassedOn,
    /// Another answer follows. The client's head stands there, unless it gets none.
    Interim { head_bytes: usize, status: u16 },
    /// The client's head stands there.
    Final { head_bytes: usize, status: u16 },
}
