//! The answer of an endpoint: its head is read and written anew for the client, its body follows it.

use std::mem::{MaybeUninit, take};

use super::attempt;
use super::batch::Source;
use super::body::Shared;
use super::download::Download;
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

/// Reads the answer and passes it on to the client.
pub async fn receive(
    tx: &mut Transaction<'_>,
    writer: &mut Writer,
    client_watch: &Watched,
    mut source: Source<'_>,
    watch: &Watch,
    plan: &Plan,
    shared: &Shared,
) -> Result<Ended, Failure> {
    let mut inbound = take(&mut tx.scratch.inbound);
    let mut scan = HeadScan::default();
    let mut interim = 0;
    let answer = loop {
        let rendered = match inbound.is_empty() {
            true => Rendered::Incomplete,
            false => render(tx, &inbound, &mut scan, plan, shared).map_err(Failure::UpstreamHead)?,
        };
        if let Rendered::NotPassedOn = rendered {
            tx.worker.buffers.give(inbound);
            return Err(Failure::UpstreamStatus);
        }
        if let Rendered::Answer(answer) = rendered {
            if answer.is_final() {
                break answer;
            }
            interim += 1;
            if interim > INTERIM_MAX {
                return Err(Failure::UpstreamHead(response::ResponseError::TooLarge));
            }
            if tx.version == Version::Http11 {
                // Until all of it is out, no other answer can be given.
                tx.answer_begun = true;
                pass(tx, writer, client_watch).await?;
                tx.answer_begun = false;
            }
            if answer.status == 100 && shared.awaits_continue.replace(false) {
                watch.read_done();
                client_watch.read_until(tx.worker.after(tx.timeouts().idle_body), Deadline::IdleBody);
            }
            inbound.drain(..answer.head_bytes);
            scan = HeadScan::default();
            continue;
        }
        if !inbound.is_empty() && inbound.len() == inbound.capacity() {
            // A service may allow longer heads than the buffers are made for.
            inbound.reserve(inbound.len());
        }
        let worker = &tx.worker;
        let lend = || if inbound.capacity() == 0 { worker.buffers.head() } else { inbound };
        let (result, filled) = source.read(lend, usize::MAX).await;
        inbound = filled;
        match result {
            Ok(read) if read > 0 => {}
            closed => {
                let silent = inbound.is_empty() && interim == 0;
                return Err(watch.ending(Failure::UpstreamClosed { silent, reset: closed.is_err() }));
            }
        }
    };
    shared.head_seen.set(true);
    watch.read_done();
    // An upstream that does not take the rest of the request still gets its answer through.
    watch.limit_writes(false);
    // A client that goes on with its body as slowly as it likes still gets its answer.
    client_watch.read_done();
    client_watch.stop_waiting();
    tx.upstream_answered(answer.status);
    tx.status = answer.status;
    tx.ends_at_close = answer.framing == Framing::Close;
    tx.persistent = answer.client_persistent;
    if answer.status == 101 {
        pass(tx, writer, client_watch).await?;
        inbound.drain(..answer.head_bytes);
        tx.scratch.inbound = inbound;
        return Ok(Ended::Switched);
    }
    let mut download = Download {
        tx,
        from: source,
        from_watch: watch,
        to: writer,
        to_watch: client_watch,
        framing: answer.framing,
        decoder: Decoder::new(answer.upstream_framing),
        with_trailers: plan.accepts_trailers,
        upstream_persistent: answer.upstream_persistent,
        bodiless: answer.bodiless,
        pipelines: answer.pipelines,
    };
    download.run(&mut inbound, answer.head_bytes).await
}

/// What [`render`] made of what an upstream sent.
#[derive(Debug, Clone, Copy)]
enum Rendered {
    /// The head goes on.
    Incomplete,
    /// Another endpoint is to answer, and the request stands in the scratch's `out` still.
    NotPassedOn,
    /// The client's head stands there, unless it gets none.
    Answer(Answer),
}

/// What [`render`] read out of an upstream's head.
#[derive(Debug, Clone, Copy)]
struct Answer {
    head_bytes: usize,
    status: u16,
    upstream_framing: Framing,
    upstream_persistent: bool,
    bodiless: bool,
    pipelines: bool,
    framing: Framing,
    client_persistent: bool,
}

impl Answer {
    /// 1xx other than 101 are followed by another answer.
    fn is_final(self) -> bool {
        self.status >= 200 || self.status == 101
    }
}

/// Reads an upstream's head and writes the client's into the scratch's `out`.
fn render(
    tx: &mut Transaction<'_>,
    inbound: &[u8],
    scan: &mut HeadScan,
    plan: &Plan,
    shared: &Shared,
) -> Result<Rendered, response::ResponseError> {
    let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
    let Some(head) = response::parse(inbound, scan, &mut storage, plan.asked, tx.limits())? else {
        return Ok(Rendered::Incomplete);
    };
    // How long the client took to send its body is no time of the endpoint's.
    tx.tries.begun = shared.uploaded_at.get().or(tx.tries.begun);
    if head.status >= 400 && shared.is_at_hand() && attempt::again_for_status(tx, plan, head.status) {
        return Ok(Rendered::NotPassedOn);
    }
    let framing = match (head.framing, tx.version) {
        (Framing::Chunked | Framing::Close, Version::Http11) => Framing::Chunked,
        (Framing::Chunked | Framing::Close, Version::Http10) => Framing::Close,
        (known, _) => known,
    };
    let client_persistent =
        tx.persistent && shared.upload_done.get() && framing != Framing::Close && !tx.worker.is_draining();
    let answer = Answer {
        head_bytes: head.bytes.len(),
        status: head.status,
        upstream_framing: head.framing,
        upstream_persistent: head.persistent,
        bodiless: head.bodiless,
        pipelines: head.version == Version::Http11 && !head.bodiless,
        framing,
        client_persistent,
    };
    if !answer.is_final() && tx.version == Version::Http10 {
        // Such a client gets none of them, and the request in `out` may have to be sent again.
        return Ok(Rendered::Answer(answer));
    }
    let mut clock = tx.worker.clock.borrow_mut();
    let returning = Returning {
        version: tx.version,
        framing,
        persistent: client_persistent,
        from_gateway: tx.service().is_some_and(|(service, _)| service.kind == ServiceKind::Management),
        request_id: &tx.scratch.request_id,
        date: clock.http_date(tx.worker.unix_ms_coarse()),
        fields: &tx.scratch.fields,
        replaces: tx.replaces,
    };
    tx.request_gone = true;
    tx.scratch.out.clear();
    response::write(&head, &returning, &mut tx.scratch.out);
    Ok(Rendered::Answer(answer))
}

/// Sends what stands in the scratch's `out` to the client.
pub async fn pass(tx: &mut Transaction<'_>, writer: &mut Writer, watch: &Watched) -> Result<(), Failure> {
    let patience = tx.worker.patience(watch, tx.timeouts().idle_body);
    let (result, out) = writer.write_all(take(&mut tx.scratch.out), patience).await;
    tx.scratch.out = out;
    result.map_err(|_| watch.ending(Failure::ClientGone))
}
