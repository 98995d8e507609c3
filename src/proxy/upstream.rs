//! The exchange with an endpoint: a connection, the request out, the answer in and on to the client.
//!
//! A connection goes back to its pool only after a full, clean exchange with no byte left over. A request goes out a second
//! time to the same endpoint only when the first went to a pooled connection that turned out to be dead: not a byte of an
//! answer had come, the whole request is still at hand, and either its method is idempotent (RFC 9110, section 9.2.2) or
//! the kernel says that the upstream never received any of it; and when it went out in a [`batch`](super::batch) that came apart.
//! When it goes to another endpoint is [`attempt`]'s matter, and the answer [`reply`](super::reply)'s.

use std::cell::Cell;
use std::io;
use std::mem::take;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::io::Canceller;
use monoio::net::{TcpStream, UnixStream};

use super::answer;
use super::attempt::{self, Progress};
use super::batch::{Seat, Source};
use super::body::{self, Shared, Upload};
use super::connection::{Client, Next};
use super::descriptors;
use super::failure::Failure;
use super::reply::{Ended, Reply};
use super::socket::Socket;
use super::transaction::Transaction;
use super::tunnel;
use super::watch::{Side, TICK, Watched};
use super::worker::Worker;
use crate::http::body::{Decoder, Framing};
use crate::http::method::Method;
use crate::http::response::Asked;
use crate::snapshot::{Address, Phase};
use crate::telemetry::counters::Deadline;
use crate::traffic::breaker::Verdict;

/// When a connection is tried again for which there was no descriptor: idle ones are closed meanwhile, other workers' with their next
/// ticks.
const SHORT_WAITS: [Duration; 3] = [Duration::from_millis(6), Duration::from_millis(6), Duration::from_millis(60)];
const _: () = assert!(SHORT_WAITS[2].as_millis() > TICK.as_millis());

/// A request that may go out. Its head, and what came of its body with it, stand in the scratch's `out`.
#[derive(Debug)]
pub struct Plan {
    /// What the answer's meaning depends on.
    pub asked: Asked,
    /// How the request's body is delimited, on both sides.
    pub framing: Framing,
    /// Where in its body the request stands.
    pub body: Decoder,
    /// Whether sending it twice means the same as sending it once.
    pub is_idempotent: bool,
    /// Whether the client takes trailers.
    pub accepts_trailers: bool,
    /// Whether the client sends its body only when it is told to go on.
    pub expects_continue: bool,
}

/// Forwards a request and passes its answer on.
pub async fn forward(tx: &mut Transaction<'_>, client: &mut Client, leftover: &mut Vec<u8>, plan: &mut Plan) -> Next {
    let failure = match tries(tx, client, leftover, plan).await {
        Ok(next) => return next,
        Err(failure) => failure,
    };
    if failure.is_endpoints() {
        tx.settle(Verdict::Failure, Instant::now());
    }
    let whole = plan.body.is_done();
    tx.error = Some(failure.word());
    tx.persistent &= whole;
    client.socket.watch.read_done();
    client.socket.watch.waited();
    if !tx.answer_begun
        && let Some(problem) = failure.problem()
    {
        return answer::problem(tx, client, &problem).await;
    }
    if tx.status == 0 || failure == Failure::ClientGone {
        tx.status = failure.status();
    }
    if tx.ends_at_close {
        // An orderly end would tell the client that it has the whole body.
        client.socket.watch.reset();
    }
    Next::Close
}

/// Sends the request to one endpoint after another, as far as the rules for retries go.
async fn tries(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    leftover: &mut Vec<u8>,
    plan: &mut Plan,
) -> Result<Next, Failure> {
    if let Some(length) = plan.body.remaining()
        && !plan.body.is_done()
        && attempt::is_worth_gathering(tx, plan, length)
    {
        Box::pin(body::gather(tx, client, &mut plan.body, length as usize)).await?;
        tx.tries.begun = Some(Instant::now());
    }
    loop {
        match exchange(tx, client, leftover, plan).await {
            Ok(next) => return Ok(next),
            // Rare, so kept out of the connection's own future.
            Err((failure, progress)) => {
                let again = Box::pin(attempt::again(tx, &client.socket.watch, plan, failure, progress));
                if !again.await? {
                    return Err(failure);
                }
            }
        }
    }
}

/// Sends the request to its endpoint and passes the answer on.
async fn exchange(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    leftover: &mut Vec<u8>,
    plan: &mut Plan,
) -> Result<Next, (Failure, Progress)> {
    let whole = plan.body.is_done();
    let request_bytes = tx.scratch.out.len();
    let mut seats = seats(tx, plan);
    let mut seat = if seats > 1 { join(tx, seats) } else { None };
    let mut must_be_fresh = false;
    loop {
        if let Some(seat) = seat.take() {
            if let Some(next) = ride(tx, client, plan, &seat).await? {
                return Ok(next);
            }
            seats = 1;
        }
        tx.scratch.inbound.clear();
        let connected = connect(tx, &client.socket.watch, must_be_fresh).await;
        let (mut upstream, reused) = connected.map_err(|failure| (failure, Progress::NotSent))?;
        client.socket.watch.wait_for(Some(upstream.watch.shared()), tx.worker.now());
        // One that has sent something of its body does not wait for leave to do so.
        let awaits_continue = plan.expects_continue && !whole && tx.bytes_in == 0;
        let shared = Shared::new(whole, awaits_continue);
        // Not on a new one: whether it outlives an answer is not known yet (RFC 9112, section 9.3.2).
        let leader = if seats > 1 && reused { lead(tx, seats).await } else { None };
        if leader.is_some() && !upstream.is_quiet() {
            // Others had their turn meanwhile, and the driver may have been asked.
            tx.scratch.out.truncate(request_bytes);
            tx.worker.counters.upstream_stale.add(1);
            continue;
        }
        let mut sent =
            if whole && upstream.writer.post(&tx.scratch.out) { Ok(()) } else { send(tx, &mut upstream).await };
        tx.scratch.out.truncate(request_bytes);
        if sent.is_ok()
            && let Some(leader) = leader
        {
            leader.depart(upstream);
            seat = Some(leader);
            continue;
        }
        let result = match sent {
            Err(failure) => Err(failure),
            Ok(()) if whole => {
                let (due, deadline) = attempt::answer_due(tx, plan);
                upstream.watch.read_until(due, deadline);
                let Socket { reader, watch, .. } = &mut upstream;
                let from = (Source::Own(reader.ahead()), &**watch);
                let to = (&mut client.socket.writer, &client.socket.watch);
                Reply::new(tx, from, to, plan, &shared).receive().await
            }
            // Rare and large, so kept out of the connection's own future.
            Ok(()) => Box::pin(duplex(tx, client, leftover, &mut upstream, plan, &shared)).await,
        };
        client.socket.watch.waited();
        // Nothing of what was posted has gone out.
        if result.is_err() && upstream.writer.cut() == Some(0) {
            sent = Err(Failure::UpstreamClosed { silent: true, reset: true });
        }
        match result {
            Err(failure @ Failure::UpstreamClosed { silent: true, reset })
                if reused && !client.socket.watch.peer_gone() =>
            {
                let progress = shared.progress(sent);
                let may_repeat =
                    plan.is_idempotent || (!reset && Box::pin(undelivered(&upstream, request_bytes)).await);
                if !(progress == Progress::NotSent || progress == Progress::AtHand && may_repeat) {
                    return Err((failure, progress));
                }
                tx.worker.counters.upstream_stale.add(1);
                tx.retries += 1;
                must_be_fresh = true;
            }
            Err(_) if client.socket.watch.peer_gone() => return Err((Failure::ClientGone, Progress::Gone)),
            Err(failure) => return Err((failure, shared.progress(sent))),
            Ok(Ended::Switched) => {
                let tunnel = Box::pin(tunnel::run(tx, client, leftover, upstream)).await;
                return tunnel.map_err(|failure| (failure, Progress::Gone));
            }
            Ok(Ended::Complete { reusable }) => {
                tx.outcome = Verdict::Success;
                let upload_done = plan.body.is_done();
                if reusable && upload_done {
                    give_back(tx, upstream);
                }
                return Ok(after(tx, upload_done));
            }
        }
    }
}

/// What follows a request that was answered.
fn after(tx: &Transaction<'_>, upload_done: bool) -> Next {
    if tx.persistent && upload_done { Next::KeepAlive } else { Next::Linger }
}

/// How many requests may go out together, this one among them.
fn seats(tx: &Transaction<'_>, plan: &Plan) -> usize {
    let Some((service, _)) = tx.service() else { return 1 };
    let may_share = service.pipelining > 1
        && plan.asked.method == Method::Get
        && plan.framing == Framing::None
        && !plan.asked.upgrade
        && tx.tries.failed().is_empty()
        && tx.endpoint_state().is_some_and(|(_, state)| state.takes_batches(tx.worker.now()));
    if may_share { service.pipelining } else { 1 }
}

/// A seat in the open batch for the request's endpoint, where there is one with room.
fn join(tx: &Transaction<'_>, seats: usize) -> Option<Seat> {
    let seat = tx.worker.batches.join(tx.endpoint_state()?.1, &tx.scratch.out, seats)?;
    tx.worker.counters.upstream_reused.add(1);
    tx.worker.counters.upstream_pipelined.add(1);
    Some(seat)
}

/// Lets others join the request, up to `seats` of them all. What is to be sent for all of them stands in the scratch's `out`
/// afterwards.
async fn lead(tx: &mut Transaction<'_>, seats: usize) -> Option<Seat> {
    let loaded = Rc::clone(&tx.loaded);
    let endpoint = &loaded.services[tx.service_index()?].endpoints[tx.endpoint_index()?];
    let requests = take(&mut tx.scratch.out);
    let now = tx.worker.now();
    let (seat, requests) = tx.worker.batches.lead(endpoint, requests, seats, now).await;
    tx.scratch.out = requests;
    seat
}

/// Waits for the request's turn in its batch and passes its answer on; `None` when it has to go alone.
async fn ride(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    plan: &Plan,
    seat: &Seat,
) -> Result<Option<Next>, (Failure, Progress)> {
    client.socket.watch.wait_for(None, tx.worker.now());
    let turn = seat.turn().await;
    if client.socket.watch.peer_gone() {
        return Err((Failure::ClientGone, Progress::Gone));
    }
    let (Some(inbound), Some(watch)) = (turn, seat.watch()) else {
        go_alone(tx);
        return Ok(None);
    };
    client.socket.watch.wait_for(Some(&watch), tx.worker.now());
    tx.scratch.inbound = inbound;
    let (due, deadline) = attempt::answer_due(tx, plan);
    watch.read_until(due, deadline);
    let shared = Shared::new(true, false);
    let to = (&mut client.socket.writer, &client.socket.watch);
    let result = Reply::new(tx, (Source::Shared(seat), &watch), to, plan, &shared).receive().await;
    client.socket.watch.waited();
    match result {
        Ok(ended) => {
            tx.outcome = Verdict::Success;
            if let Some(upstream) = seat.arrive()
                && let Ended::Complete { reusable: true } = ended
            {
                give_back(tx, upstream);
            }
            Ok(Some(after(tx, true)))
        }
        Err(_) if client.socket.watch.peer_gone() => Err((Failure::ClientGone, Progress::Gone)),
        Err(failure) => {
            if failure.is_endpoints()
                && let Some((_, state)) = tx.endpoint_state()
            {
                state.leave_alone(tx.worker.now());
            }
            // What such a connection says may be no answer to this request.
            let is_connections = matches!(failure, Failure::UpstreamClosed { .. } | Failure::UpstreamHead(_));
            if is_connections && !tx.request_gone {
                tx.worker.counters.upstream_stale.add(1);
                go_alone(tx);
                return Ok(None);
            }
            Err((failure, shared.progress(Ok(()))))
        }
    }
}

/// The request is sent again, on a connection of its own.
fn go_alone(tx: &mut Transaction<'_>) {
    let now = Instant::now();
    tx.worker.set_now(now);
    tx.retries += 1;
    tx.tries.begun = Some(now);
    tx.trace_attempt_delayed(now);
}

/// An idle connection to the endpoint, or a new one; and whether it is the former.
async fn connect(tx: &Transaction<'_>, client: &Watched, must_be_fresh: bool) -> Result<(Socket, bool), Failure> {
    let worker = &tx.worker;
    let Some((endpoint, state)) = tx.endpoint_state() else { return Err(Failure::ConnectRefused) };
    while !must_be_fresh && let Some(mut pooled) = state.take() {
        // Closed by the upstream meanwhile; or it said something that nobody asked for, which would pass for the answer to
        // this request.
        if pooled.is_quiet() {
            worker.counters.upstream_reused.add(1);
            return Ok((pooled, true));
        }
        worker.counters.upstream_stale.add(1);
    }
    worker.counters.upstream_connects.add(1);
    client.wait_for(None, worker.now());
    let begun = Instant::now();
    let socket = Box::pin(connect_anew(worker, endpoint.address.clone(), client, tx.timeouts().connect)).await?;
    worker.counters.upstream_connected(endpoint.id, begun.elapsed());
    Ok((socket, false))
}

/// A new connection. The attempt is given up when its time is over, when the client leaves, and when the drain ends.
async fn connect_anew(worker: &Worker, address: Address, client: &Watched, time: Duration) -> Result<Socket, Failure> {
    let begin = async || match &address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect_addr(*address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(Socket::tcp(stream, &worker.registry, Side::Upstream))
        }
        Address::Unix(path) => Ok(Socket::unix(UnixStream::connect(path).await?, &worker.registry, Side::Upstream)),
    };
    let mut attempt = pin!(begin());
    let mut left = time;
    let mut waits = SHORT_WAITS.into_iter();
    loop {
        let step = left.min(TICK);
        let result = monoio::time::timeout(step, attempt.as_mut()).await;
        if worker.seam.phase() >= Phase::Stopping {
            return Err(Failure::Stopped);
        }
        match result {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error))
                if descriptors::are_short(&error)
                    && let Some(wait) = waits.next() =>
            {
                worker.run_short();
                monoio::time::sleep(wait).await;
                attempt.set(begin());
            }
            Ok(Err(error)) => return Err(refusal(&error)),
            Err(_) if client.peer_gone() => return Err(Failure::ClientGone),
            Err(_) => left -= step,
        }
        if left.is_zero() {
            worker.counters.timeouts[Deadline::Connect as usize].add(1);
            return Err(Failure::ConnectTimeout);
        }
    }
}

/// Whose fault it is that there is no connection: the host's, which is out of descriptors, ports or memory, or the
/// upstream's.
fn refusal(error: &io::Error) -> Failure {
    const EXHAUSTED: [i32; 6] =
        [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL, libc::EAGAIN];
    match error.raw_os_error() {
        Some(code) if EXHAUSTED.contains(&code) => Failure::Exhausted,
        _ => Failure::ConnectRefused,
    }
}

/// Sends the head, and what there is of the body.
async fn send(tx: &mut Transaction<'_>, upstream: &mut Socket) -> Result<(), Failure> {
    upstream.watch.limit_writes(true);
    let patience = tx.worker.patience(&upstream.watch, tx.timeouts().idle_body);
    let (result, out) = upstream.writer.write_all(take(&mut tx.scratch.out), patience).await;
    tx.scratch.out = out;
    result.map_err(|error| upstream.watch.ending(Failure::UpstreamClosed { silent: error.written == 0, reset: true }))
}

/// Request body and answer at the same time: either may finish first.
async fn duplex(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    leftover: &mut Vec<u8>,
    upstream: &mut Socket,
    plan: &mut Plan,
    shared: &Shared,
) -> Result<Ended, Failure> {
    let body_max = tx.limits().body_bytes;
    let (idle_body, response_header) = (tx.timeouts().idle_body, tx.timeouts().response_header);
    let leave_due = shared.awaits_continue.get().then(|| attempt::answer_due(tx, plan));
    let worker = Rc::clone(&tx.worker);
    let received = Cell::new(tx.bytes_in);
    let mut body = std::mem::replace(&mut plan.body, Decoder::new(Framing::None));
    let Socket { reader, writer, watch, .. } = upstream;
    let first_read = Canceller::new();
    let result = {
        let upload = Upload {
            worker: &worker,
            from: &mut client.socket.reader,
            from_watch: &client.socket.watch,
            to: writer,
            to_watch: watch,
            framing: plan.framing,
            decoder: &mut body,
            body_max,
            received: &received,
            leftover,
            shared,
            first_read: Some(first_read.handle()),
            idle_body,
            response_header,
            leave_due,
        };
        let from = (Source::Own(reader.ahead()), &**watch);
        let to = (&mut client.socket.writer, &client.socket.watch);
        let mut reply = Reply::new(tx, from, to, plan, shared);
        body::run_both(upload.run(), reply.receive(), shared, first_read).await
    };
    plan.body = body;
    tx.bytes_in = received.get();
    // The body's last piece may have been read and not written yet: such a connection is in the middle of a request.
    result.map(|ended| match ended {
        Ended::Complete { reusable } => Ended::Complete { reusable: reusable && shared.upload_done.get() },
        Ended::Switched => Ended::Switched,
    })
}

/// Keeps the connection for the next request, unless a drain makes that one unlikely.
fn give_back(tx: &Transaction<'_>, upstream: Socket) {
    if let Some((_, state)) = tx.endpoint_state()
        && !tx.worker.is_draining()
    {
        state.give(upstream, tx.worker.now());
    }
}

/// Whether the upstream provably received nothing of a request. The proof is a reset, which may still be on its way, so it
/// is given a moment.
async fn undelivered(upstream: &Socket, request_bytes: usize) -> bool {
    for _ in 0..8 {
        if upstream.undelivered(request_bytes) {
            return true;
        }
        monoio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}
