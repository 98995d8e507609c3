//! What is written down about a request.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use ringway::http::method::Method;
use ringway::policy::access_log::{self, AccessRecord, Clock};
use ringway::snapshot::{LogFormat, RouteId};
use ringway::telemetry::counters::{Counters, Shape};

use super::{NOW, REQUEST_ID, Work, work};

/// A request forwarded without a fault.
const RECORD: AccessRecord<'_> = AccessRecord {
    unix_ms: NOW * 1_000 + 123,
    request_id: REQUEST_ID,
    trace_id: b"4bf92f3577b34da6a3ce929d0e0e4736",
    worker: 3,
    client: Some(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST)),
    method: b"GET",
    path: b"/api/v1/sms/messages/42?full=1",
    route: "/api/v1/sms",
    service: "sms",
    instance: "127.0.0.1:9001",
    status: 200,
    duration: Duration::from_micros(740),
    upstream: Some(Duration::from_micros(610)),
    bytes_in: 0,
    bytes_out: 512,
    auth: "",
    user: "",
    rate_limited: false,
    retries: 0,
    tried: &[],
    breaker: "",
    error: None,
};

/// Its line in the access log.
pub fn log_line(format: LogFormat) -> Work {
    let mut clock = Clock::default();
    let mut line = Vec::with_capacity(1024);
    work(move || {
        line.clear();
        access_log::render(black_box(&RECORD), format, &[], &mut clock, &mut line);
        line.len()
    })
}

/// A worker's counters.
pub fn counters() -> Counters {
    Counters::new(&Shape { enabled: true, buckets: vec![0.001, 0.01, 0.1, 1.0], max_series: 10_000 })
}

/// What is counted of it.
pub fn counted() -> Work {
    let counters = counters();
    work(move || {
        counters.request_started();
        counters.request_finished(
            RouteId(black_box(5)),
            Method::Get,
            200,
            Duration::from_micros(740),
            Some((&[b'a'; 32], NOW * 1_000)),
        );
    })
}
