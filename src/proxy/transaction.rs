//! One request's record, from its head to its end.
//!
//! The end is the drop: whichever way a request goes out, answered, cut, cancelled, panicked, it is counted and logged
//! exactly once and gives back what it took. There is no other place that does either.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::attempt::Tries;
use super::limiter::Held;
use super::loaded::{Loaded, ServiceState};
use super::pool::EndpointState;
use super::worker::Worker;
use crate::http::body::Framing;
use crate::http::method::Method;
use crate::http::request::{RequestHead, Version};
use crate::http::response::Replaces;
use crate::http::trace_context::TRACE_ID;
use crate::policy::access_log::{AccessRecord, Try};
use crate::policy::auth::Identity;
use crate::snapshot::{Endpoint, Limits, RouteId, Service, Timeouts};
use crate::telemetry::spans::SpanRecord;
use crate::traffic::breaker::{BreakerState, Verdict};
use crate::traffic::retry::ATTEMPTS_MAX;

/// What a request needs room for; reused, so that a warm request allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What is about to be sent: the head to the upstream, then the head to the client.
    pub out: Vec<u8>,
    /// What the upstream sent: a buffer of the worker's, for the time of the exchange.
    pub inbound: Vec<u8>,
    /// The normalised path, where it differs from the one sent; then the body of an answer about the gateway's health.
    pub path: Vec<u8>,
    /// The method as it was sent.
    pub method: Vec<u8>,
    /// The target as it was sent.
    pub target: Vec<u8>,
    /// `X-Request-Id`.
    pub request_id: Vec<u8>,
    /// `traceparent`.
    pub traceparent: Vec<u8>,
    /// What the gateway adds to the answer, whoever gives it: whole lines.
    pub fields: Vec<u8>,
    /// What the request has of its rate limits.
    pub held: Vec<Held>,
}

impl Scratch {
    fn texts(&mut self) -> [&mut Vec<u8>; 8] {
        let Scratch { out, inbound, path, method, target, request_id, traceparent, fields, held: _ } = self;
        [out, inbound, path, method, target, request_id, traceparent, fields]
    }

    fn clear(&mut self) {
        self.texts().into_iter().for_each(Vec::clear);
        self.held.clear();
    }

    fn is_clear(&mut self) -> bool {
        self.texts().iter().all(|text| text.is_empty()) && self.held.is_empty()
    }
}

/// A workspace whose `out` grew beyond this, for a long head or a gathered body, is freed rather than kept.
const SCRATCH_BYTES_MAX: usize = 128 * 1024;

/// A request under way.
#[derive(Debug)]
pub struct Transaction<'a> {
    /// The worker.
    pub worker: Rc<Worker>,
    /// The snapshot that holds for this request from its beginning to its end.
    pub loaded: Rc<Loaded>,
    /// Its room.
    pub scratch: &'a mut Scratch,
    /// The client, behind trusted proxies the one that they name.
    pub client: Option<IpAddr>,
    /// The method; GET until the head was understood.
    pub method: Method,
    /// The version; 1.1 until the head was understood.
    pub version: Version,
    /// Whether the client's connection lives on.
    pub persistent: bool,
    /// Whether nothing more is to come from the client, which said so itself: no other request (RFC 9112, section 9.6), and no
    /// body of this one.
    pub is_last: bool,
    /// The route's identity in the counters.
    pub route: RouteId,
    /// The status answered, 0 while there is none.
    pub status: u16,
    /// Whether a byte of the answer may have reached the client, so that no other answer can be given.
    pub answer_begun: bool,
    /// Whether the client's answer, be it a 1xx, has taken the request's place in the scratch, so that it cannot be sent again.
    pub request_gone: bool,
    /// Whether only the connection's end tells the client that it has the whole answer.
    pub ends_at_close: bool,
    /// Which fields of an upstream's answer the gateway has its own word for.
    pub replaces: Replaces,
    /// Who the client is, once that is verified.
    pub identity: Option<Rc<Identity>>,
    /// Whether the ledger must be waited for before the request may go on.
    pub awaits_ledger: bool,
    /// Whether a rate limit refused it.
    pub rate_limited: bool,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// Times that the request was sent again.
    pub retries: u32,
    /// What went wrong, in the log's words.
    pub error: Option<&'static str>,
    /// What became of its tries.
    pub tries: Tries,
    /// What the endpoint's breaker was when it let the request through, or refused it.
    pub breaker: Option<BreakerState>,
    /// What the endpoint's breaker is told in the end.
    pub outcome: Verdict,
    /// What spans are made of; `None` for a request that is not recorded.
    pub record: Option<Box<SpanRecord>>,
    service: Option<usize>,
    endpoint: Option<usize>,
    started: Instant,
    upstream: Option<Duration>,
}

impl<'a> Transaction<'a> {
    /// A request has come, by the read or at the end of the exchange that the worker has just taken the time of. Nothing of an
    /// earlier one is in `scratch`.
    pub fn begin(worker: &Rc<Worker>, client: Option<IpAddr>, scratch: &'a mut Scratch) -> Transaction<'a> {
        let started = worker.latest();
        worker.counters.request_started();
        debug_assert!(scratch.is_clear(), "one request's words would be another's");
        if scratch.out.capacity() == 0 {
            scratch.out = worker.buffers.head();
        }
        Transaction {
            loaded: worker.loaded(),
            worker: Rc::clone(worker),
            scratch,
            client,
            method: Method::Get,
            version: Version::Http11,
            persistent: false,
            is_last: false,
            route: RouteId::NONE,
            status: 0,
            answer_begun: false,
            request_gone: false,
            ends_at_close: false,
            replaces: Replaces::default(),
            identity: None,
            awaits_ledger: false,
            rate_limited: false,
            bytes_in: 0,
            bytes_out: 0,
            retries: 0,
            error: None,
            tries: Tries::default(),
            breaker: None,
            outcome: Verdict::Neutral,
            record: None,
            service: None,
            endpoint: None,
            started,
            upstream: None,
        }
    }

    /// Notes who asks for what, and gives the request its identity where it brought none.
    pub fn identify(&mut self, head: &RequestHead<'_>) {
        self.method = head.method;
        self.version = head.version;
        self.is_last = !head.persistent && head.framing == Framing::None;
        self.persistent = head.persistent && !self.worker.is_draining();
        self.scratch.method.extend_from_slice(head.method_token);
        self.scratch.target.extend_from_slice(head.target);
        self.identify_as(head.request_id, head.traceparent);
    }

    /// The identity alone, for a request whose head was not understood. `traceparent` is that of [`RequestHead`].
    pub fn identify_as(&mut self, request_id: Option<&[u8]>, traceparent: Option<&[u8]>) {
        self.join_trace(traceparent);
        let out = &mut self.scratch.request_id;
        match (request_id, traceparent) {
            (Some(id), _) => out.extend_from_slice(id),
            // A trace that begins here is this request's alone: one number to look for.
            (None, None) => out.extend_from_slice(&self.scratch.traceparent[TRACE_ID]),
            (None, Some(_)) => push_hex(self.worker.random.borrow_mut().u128(..), 32, out),
        }
    }

    /// The request goes to the service with this index.
    pub fn enter_service(&mut self, index: usize) {
        let in_flight = &self.loaded.services[index].memory.in_flight;
        in_flight.set(in_flight.get() + 1);
        self.route = self.loaded.snapshot.services[index].route;
        self.service = Some(index);
    }

    /// The request goes to this endpoint of its service, and no longer to another.
    pub fn enter_endpoint(&mut self, index: usize) {
        if let Some((_, state)) = self.service() {
            if let Some(other) = self.endpoint {
                state.endpoints[other].count(-1);
            }
            state.endpoints[index].count(1);
            self.endpoint = Some(index);
        }
    }

    /// Tells the endpoint's breaker what became of the try under way, once for each try.
    pub fn settle(&mut self, verdict: Verdict, now: Instant) {
        let Some(permit) = self.tries.permit.take() else { return };
        let Some((service, _)) = self.service() else { return };
        if let Some((endpoint, state)) = self.endpoint_state() {
            let draw = self.worker.draw();
            if verdict != Verdict::Neutral {
                let mut record = state.outlier.get();
                record.note(verdict == Verdict::Failure);
                state.outlier.set(record);
            }
            let change = state.breaker.borrow_mut().settle(permit, verdict, &service.breaker.settings, now, draw);
            if change.is_some() {
                state.export(endpoint.id, &self.worker.counters, now);
            }
        }
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When the try under way began.
    pub fn try_begun(&self) -> Instant {
        self.tries.begun.unwrap_or(self.started)
    }

    /// Which of the snapshot's services it goes to, once that is known.
    pub fn service_index(&self) -> Option<usize> {
        self.service
    }

    /// Which of the service's endpoints it goes to, once that is known.
    pub fn endpoint_index(&self) -> Option<usize> {
        self.endpoint
    }

    /// The service, once there is one.
    pub fn service(&self) -> Option<(&Service, &ServiceState)> {
        let index = self.service?;
        Some((&self.loaded.snapshot.services[index], &self.loaded.services[index]))
    }

    /// The times that hold for it: its service's, or while it has none, the gateway's.
    pub fn timeouts(&self) -> &Timeouts {
        self.service.map_or(&self.loaded.snapshot.timeouts, |index| &self.loaded.snapshot.services[index].timeouts)
    }

    /// The sizes that hold for it.
    pub fn limits(&self) -> &Limits {
        self.service.map_or(&self.loaded.snapshot.limits, |index| &self.loaded.snapshot.services[index].limits)
    }

    /// The endpoint, once there is one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        Some(&self.service()?.0.endpoints[self.endpoint?])
    }

    /// The endpoint with this worker's side of it.
    pub fn endpoint_state(&self) -> Option<(&Endpoint, &EndpointState)> {
        let (service, state) = self.service()?;
        let index = self.endpoint?;
        Some((&service.endpoints[index], &state.endpoints[index]))
    }

    /// The upstream's final head has come.
    pub fn upstream_answered(&mut self, status: u16) {
        let now = Instant::now();
        let took = now - self.try_begun();
        self.upstream = Some(took);
        self.trace_answer(status);
        let Some((endpoint, state)) = self.endpoint_state() else { return };
        self.worker.counters.upstream_answered(endpoint.id, status, took);
        state.answered(took);
        let is_failure = self.service().is_some_and(|(service, _)| service.breaker.is_failure(status));
        let is_trial = self.breaker == Some(BreakerState::HalfOpen);
        match is_failure {
            true => self.settle(Verdict::Failure, now),
            // What is tried is whether it answers: a stream would leave that open for as long as it lasts. In other cases
            // an answer is a success once it is complete.
            false if is_trial || status == 101 => self.settle(Verdict::Success, now),
            false => {}
        }
    }

    fn count(&self, duration: Duration) {
        let counters = &self.worker.counters;
        let trace = self.recorded_trace().map(|trace| (trace, self.worker.unix_ms_coarse()));
        counters.request_finished(self.route, self.method, self.status, duration, trace);
        counters.bytes_in.add(self.bytes_in);
        counters.bytes_out.add(self.bytes_out);
        counters.retries.add(u64::from(self.retries));
    }

    fn log(&self, ended: Instant) {
        let logging = &self.loaded.snapshot.logging;
        let sampled =
            self.status >= 400 || logging.sample >= 1.0 || self.worker.random.borrow_mut().f64() < logging.sample;
        if !logging.enabled || !sampled {
            return;
        }
        let service = self.service().map(|(service, _)| service);
        let mut tried = [Try::default(); ATTEMPTS_MAX as usize];
        for (slot, &(endpoint, error)) in tried.iter_mut().zip(self.tries.failed()) {
            let endpoint = service.and_then(|service| service.endpoints.get(usize::from(endpoint)));
            *slot = Try { instance: endpoint.map_or("", |endpoint| &endpoint.instance), error };
        }
        let record = AccessRecord {
            unix_ms: self.worker.unix_ms(ended),
            request_id: &self.scratch.request_id,
            trace_id: self.scratch.traceparent.get(TRACE_ID).unwrap_or_default(),
            worker: self.worker.index,
            client: self.client,
            method: &self.scratch.method,
            path: &self.scratch.target,
            route: service.map_or("", |service| &service.prefix),
            service: service.map_or("", |service| &service.name),
            instance: self.endpoint().map_or("", |endpoint| &endpoint.instance),
            status: self.status,
            duration: ended - self.started,
            upstream: self.upstream,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            auth: self.identity.as_ref().map_or("", |identity| identity.method().as_str()),
            user: self.identity.as_ref().map_or("", |identity| identity.subject()),
            rate_limited: self.rate_limited,
            retries: self.retries,
            tried: &tried[..self.tries.failed().len()],
            breaker: self.breaker.map_or("", BreakerState::as_str),
            error: self.error,
        };
        self.worker.write_log(&record, &self.loaded);
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.status == 0 {
            // Dropped before there was an answer: by the end of the process, or by a panic on its way up.
            (self.status, self.error) =
                if std::thread::panicking() { (500, Some("panic")) } else { (499, Some("cancelled")) };
        }
        let ended = Instant::now();
        self.settle(self.outcome, ended);
        if let Some((_, state)) = self.service() {
            let in_flight = &state.memory.in_flight;
            in_flight.set(in_flight.get().saturating_sub(1));
            if let Some(endpoint) = self.endpoint {
                state.endpoints[endpoint].count(-1);
            }
        }
        self.worker.set_now(ended);
        self.count(ended - self.started);
        self.log(ended);
        self.send_record(ended);
        self.worker.buffers.give(std::mem::take(&mut self.scratch.inbound));
        match self.scratch.out.capacity() {
            0..=SCRATCH_BYTES_MAX => self.scratch.clear(),
            _ => *self.scratch = Scratch::default(),
        }
    }
}

/// Appends the low `digits` hexadecimal digits of `value`.
pub(super) fn push_hex(value: u128, digits: usize, out: &mut Vec<u8>) {
    let mut text = [[0; 8]; 4];
    for (part, bytes) in text.iter_mut().zip(value.to_be_bytes().as_chunks().0) {
        *part = hex(u32::from_be_bytes(*bytes));
    }
    out.extend_from_slice(&text.as_flattened()[32 - digits..]);
}

/// Eight digits at once, a byte of a word each: identities are written with every request, and a table of digits would take the
/// cache's lines.
fn hex(value: u32) -> [u8; 8] {
    let mut word = u64::from(value);
    word = (word | word << 16) & 0x0000_ffff_0000_ffff;
    word = (word | word << 8) & 0x00ff_00ff_00ff_00ff;
    word = (word | word << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let is_letter = (word + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    const ZERO: u64 = 0x0101_0101_0101_0101 * b'0' as u64;
    const TO_LETTER: u64 = (b'a' - b'9' - 1) as u64;
    (word + ZERO + is_letter * TO_LETTER).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_stand_most_significant_first() {
        let check = |value: u128, digits: usize, expected: &str| {
            let mut out = b"x".to_vec();
            push_hex(value, digits, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("x{expected}"));
        };
        check(0x0123_4567_89ab_cdef, 16, "0123456789abcdef");
        check(0xff, 32, &format!("{}ff", "0".repeat(30)));
        check(u128::MAX, 32, &"f".repeat(32));
        check(0x12_3456, 4, "3456");
        for turn in 0..128 {
            let value = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210_u128.rotate_left(turn);
            check(value, 32, &format!("{value:032x}"));
        }
    }
}
