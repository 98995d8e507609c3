//! What is kept of a request that is traced, and its way to the control plane, which makes spans of it.
//!
//! A record has a fixed size and holds nothing on the heap. It goes through a bounded ring; one that finds no room is lost and
//! counted, and no worker ever waits.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::http::method::Method;
use crate::http::request::Version;
use crate::snapshot::{EndpointId, RouteId, ServiceId};
use crate::traffic::retry::ATTEMPTS_MAX;

/// Records that may wait in a worker.
pub const RING_RECORDS: usize = 1_024;

/// The most of a path that is kept, in bytes.
pub const PATH_MAX: usize = 128;

/// How many spans a collector did not take. Written by the control thread, read by scrapes.
#[derive(Debug, Default)]
pub struct LostSpans(AtomicU64);

impl LostSpans {
    /// Counts `spans` more.
    pub fn add(&self, spans: usize) {
        self.0.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A span's identity; never 0.
pub type SpanId = u64;

/// A request, from its head to its end.
#[derive(Debug, Clone, Copy)]
pub struct SpanRecord {
    /// The trace that it belongs to.
    pub trace: u128,
    /// The client's span; 0 where the trace begins here.
    pub parent: SpanId,
    /// The request's own span.
    pub span: SpanId,
    /// When it ended, in nanoseconds since the Unix epoch.
    pub ended_unix_ns: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// Its method.
    pub method: Method,
    /// Its version.
    pub version: Version,
    /// Its route.
    pub route: RouteId,
    /// Its service, where a route matched.
    pub service: Option<ServiceId>,
    /// The status that the client was answered.
    pub status: u16,
    /// The stable word for what went wrong.
    pub error: Option<&'static str>,
    /// The client behind trusted proxies; `None` for a peer on a Unix socket.
    pub client: Option<IpAddr>,
    /// Which worker served it, from 0.
    pub worker: u16,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// Whether a rate limit turned it away.
    pub rate_limited: bool,
    path: [u8; PATH_MAX],
    path_len: u8,
    attempts: [Attempt; ATTEMPTS_MAX as usize],
    attempts_len: u8,
}

/// A try to get an answer from an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Its span, which the endpoint has been told.
    pub span: SpanId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// How long after the request it began, in nanoseconds.
    pub after_ns: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// The status that the endpoint answered; 0 when it did not.
    pub status: u16,
    /// The stable word for how it failed.
    pub error: Option<&'static str>,
}

const NO_ATTEMPT: Attempt =
    Attempt { span: 0, endpoint: EndpointId(0), after_ns: 0, took_ns: 0, status: 0, error: None };

impl SpanRecord {
    /// Nothing known yet.
    pub const EMPTY: SpanRecord = SpanRecord {
        trace: 0,
        parent: 0,
        span: 0,
        ended_unix_ns: 0,
        took_ns: 0,
        method: Method::Get,
        version: Version::Http11,
        route: RouteId::NONE,
        service: None,
        status: 0,
        error: None,
        client: None,
        worker: 0,
        bytes_in: 0,
        bytes_out: 0,
        rate_limited: false,
        path: [0; PATH_MAX],
        path_len: 0,
        attempts: [NO_ATTEMPT; ATTEMPTS_MAX as usize],
        attempts_len: 0,
    };

    /// Keeps the path of a request target, as far as there is room. Its query is left out: it may hold secrets.
    pub fn set_path(&mut self, target: &[u8]) {
        let end = memchr::memchr(b'?', target).unwrap_or(target.len()).min(PATH_MAX);
        self.path[..end].copy_from_slice(&target[..end]);
        self.path_len = end as u8;
    }

    /// The path, or its beginning.
    pub fn path(&self) -> &[u8] {
        &self.path[..usize::from(self.path_len)]
    }

    /// A try begins.
    pub fn begin_attempt(&mut self, span: SpanId, endpoint: EndpointId, after_ns: u64) {
        if let Some(slot) = self.attempts.get_mut(usize::from(self.attempts_len)) {
            *slot = Attempt { span, endpoint, after_ns, ..NO_ATTEMPT };
            self.attempts_len += 1;
        }
    }

    /// The try under way, or the last one.
    pub fn last_attempt(&mut self) -> Option<&mut Attempt> {
        self.attempts[..usize::from(self.attempts_len)].last_mut()
    }

    /// All tries, in their order.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts[..usize::from(self.attempts_len)]
    }
}

/// A worker's end.
#[derive(Debug)]
pub struct SpanSender {
    ring: Producer<SpanRecord>,
    /// Records to be filled again, so that none is allocated for a request.
    #[expect(clippy::vec_box, reason = "they go in and out as they are: to move one is to copy a kilobyte")]
    free: Vec<Box<SpanRecord>>,
}

impl SpanSender {
    /// A record to be filled.
    pub fn record(&mut self) -> Box<SpanRecord> {
        match self.free.pop() {
            Some(mut record) => {
                *record = SpanRecord::EMPTY;
                record
            }
            None => Box::new(SpanRecord::EMPTY),
        }
    }

    /// Takes a record; whether there was room for it.
    pub fn send(&mut self, record: Box<SpanRecord>) -> bool {
        let is_sent = self.ring.push(*record).is_ok();
        if self.free.len() < RING_RECORDS {
            self.free.push(record);
        }
        is_sent
    }
}

/// The control plane's end of one worker's ring.
pub type SpanReceiver = Consumer<SpanRecord>;

/// A ring for a worker.
pub fn channel() -> (SpanSender, SpanReceiver) {
    let (ring, receiver) = RingBuffer::new(RING_RECORDS);
    (SpanSender { ring, free: Vec::new() }, receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_lost() {
        let (mut sender, mut receiver) = channel();
        let sent = (0..RING_RECORDS + 10)
            .filter(|&index| {
                let mut record = sender.record();
                assert_eq!((record.status, record.attempts().len()), (0, 0), "a record that is used again is empty");
                record.status = index as u16;
                record.begin_attempt(1, EndpointId(2), 3);
                sender.send(record)
            })
            .count();
        assert_eq!(sent, RING_RECORDS);
        assert_eq!(receiver.pop().map(|record| record.status), Ok(0));
        let record = sender.record();
        assert!(sender.send(record), "there is room again");
    }

    #[test]
    fn a_record_has_so_much_of_a_path_and_so_many_tries() {
        let mut record = SpanRecord::EMPTY;
        for (target, expected) in [("/a?token=secret", "/a"), ("*", "*"), ("", ""), ("/b", "/b")] {
            record.set_path(target.as_bytes());
            assert_eq!(record.path(), expected.as_bytes());
        }
        record.set_path("/x".repeat(100).as_bytes());
        assert_eq!(record.path().len(), PATH_MAX);
        for index in 0..20 {
            record.begin_attempt(index + 1, EndpointId(0), 0);
        }
        assert_eq!(record.attempts().len(), usize::from(ATTEMPTS_MAX));
        assert_eq!(record.last_attempt().map(|attempt| attempt.span), Some(u64::from(ATTEMPTS_MAX)));
    }
}
