//! A request's part in a trace (W3C Trace Context): its identities, and the record that spans are made of.
//!
//! With tracing off, what a client sent is passed on, and a request that came without is given a trace of its own. With
//! tracing on, a request that is recorded is a span, and each of its tries another below it, which the endpoint is told of as
//! the one that asks. One that is not recorded passes on what it came with.

use std::time::Instant;

use super::transaction::{Transaction, push_hex};
use crate::http::trace_context::{self, FLAGS, PARENT_ID, TRACE_ID};
use crate::snapshot::EndpointId;
use crate::telemetry::counters::TraceId;
use crate::telemetry::spans::SpanId;

impl Transaction<'_> {
    /// Joins the trace that the client named, by the part of its `traceparent` that every version has, or begins one.
    pub(super) fn join_trace(&mut self, known_part: Option<&[u8]>) {
        let out = &mut self.scratch.traceparent;
        match known_part {
            Some(known) => {
                out.extend_from_slice(b"00");
                out.extend_from_slice(known);
            }
            None => {
                let mut random = self.worker.random.borrow_mut();
                // Zero is no identity.
                let (trace, parent) = (random.u128(..).max(1), random.u64(..).max(1));
                out.extend_from_slice(b"00-");
                push_hex(trace, 32, out);
                out.push(b'-');
                push_hex(u128::from(parent), 16, out);
                out.extend_from_slice(b"-01");
            }
        }
        if let (Some(tracing), Some(spans)) = (self.loaded.snapshot.tracing, &self.worker.spans) {
            let trace = trace_context::number(&out[TRACE_ID]);
            let is_recorded = match known_part {
                Some(_) => trace_context::is_sampled(out),
                None => trace_context::is_chosen(trace, tracing.threshold),
            };
            if is_recorded {
                let mut record = spans.borrow_mut().record();
                record.trace = trace;
                record.parent = known_part.map_or(0, |_| trace_context::number(&out[PARENT_ID]) as SpanId);
                record.span = self.worker.random.borrow_mut().u64(..).max(1);
                record.set_path(&self.scratch.target);
                self.record = Some(record);
            } else if known_part.is_none() {
                out[FLAGS].copy_from_slice(b"00");
            }
        }
    }

    /// The trace that it belongs to, where somebody records that.
    pub(super) fn recorded_trace(&self) -> Option<&TraceId> {
        let traceparent = &self.scratch.traceparent;
        traceparent.get(TRACE_ID)?.try_into().ok().filter(|_| trace_context::is_sampled(traceparent))
    }

    /// A try at `endpoint` begins: what says who asks, and the head where that stands already, name it from now on.
    pub(super) fn trace_attempt(&mut self, endpoint: EndpointId, now: Instant) {
        let started = self.started();
        let Some(record) = &mut self.record else { return };
        let after_ns = nanos(now, started);
        let span = self.worker.random.borrow_mut().u64(..).max(1);
        record.begin_attempt(span, endpoint, after_ns);
        let traceparent = &mut self.scratch.traceparent;
        traceparent.truncate(PARENT_ID.start);
        push_hex(u128::from(span), 16, traceparent);
        if let Ok(digits) = <&[u8; 16]>::try_from(&traceparent[PARENT_ID]) {
            trace_context::replace_parent_id(&mut self.scratch.out, digits);
        }
        // One that is not recorded has no record.
        traceparent.extend_from_slice(b"-01");
    }

    /// The try under way begins only now: there was a pause before it.
    pub(super) fn trace_attempt_delayed(&mut self, now: Instant) {
        let started = self.started();
        if let Some(attempt) = self.record.as_mut().and_then(|record| record.last_attempt()) {
            attempt.after_ns = nanos(now, started);
        }
    }

    /// The try under way was answered with `status`.
    pub(super) fn trace_answer(&mut self, status: u16) {
        if let Some(attempt) = self.record.as_mut().and_then(|record| record.last_attempt()) {
            attempt.status = status;
        }
    }

    /// The try under way has ended, by failing if there is an `error`.
    pub(super) fn trace_attempt_ended(&mut self, now: Instant, error: Option<&'static str>) {
        let started = self.started();
        if let Some(attempt) = self.record.as_mut().and_then(|record| record.last_attempt()) {
            attempt.took_ns = nanos(now, started).saturating_sub(attempt.after_ns);
            attempt.error = error;
        }
    }

    /// Hands what is known of the request, which has ended, to whoever makes spans of it.
    pub(super) fn send_record(&mut self, ended: Instant) {
        // An answer that came does not make a try one that failed, unless its end did not come.
        let error = self.error.filter(|_| self.status != 499);
        self.trace_attempt_ended(ended, error);
        let Some(mut record) = self.record.take() else { return };
        record.ended_unix_ns = self.worker.unix_ns(ended);
        record.took_ns = nanos(ended, self.started());
        record.method = self.method;
        record.version = self.version;
        record.route = self.route;
        record.service = self.service().map(|(service, _)| service.id);
        record.status = self.status;
        record.error = self.error;
        record.client = self.client;
        record.worker = self.worker.index as u16;
        record.bytes_in = self.bytes_in;
        record.bytes_out = self.bytes_out;
        record.rate_limited = self.rate_limited;
        if let Some(spans) = &self.worker.spans
            && !spans.borrow_mut().send(record)
        {
            self.worker.counters.spans_dropped.add(1);
        }
    }
}

/// From `before` to `now`, in nanoseconds.
fn nanos(now: Instant, before: Instant) -> u64 {
    now.saturating_duration_since(before).as_nanos() as u64
}
