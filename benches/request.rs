//! The pure work of a request, without sockets: `cargo bench`.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::http::body::{Decoder, Framing};
use ringway::http::headers::HeadScan;
use ringway::http::method::Method;
use ringway::http::request::{self, Forwarding, HEADER_COUNT_MAX};
use ringway::http::response::{self, Asked, Replaces, Returning};
use ringway::policy::access_log::{self, AccessRecord, Clock};
use ringway::snapshot::{LogFormat, RouteId};
use ringway::telemetry::counters::{Counters, Shape};
use ringway::traffic::balance::{Algorithm, Balancer, FULL_SHARE};
use ringway::traffic::path;
use ringway::traffic::route::{RouteSpec, RouteTable};

const REQUEST: &[u8] = b"GET /api/v1/sms/messages/42?full=1 HTTP/1.1\r\nHost: gateway.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: application/json\r\n\
    Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nCookie: session=0123456789abcdef\r\n\
    X-Request-Id: 0123456789abcdef0123456789abcdef\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: backend\r\n\
    Content-Type: application/json\r\nContent-Length: 512\r\nCache-Control: no-store\r\n\r\n";

fn limits() -> ringway::snapshot::Limits {
    ringway::control::config::Config::default().limits
}

fn heads(c: &mut Criterion) {
    let limits = limits();
    let mut out = Vec::with_capacity(4096);
    c.bench_function("request head: find, parse, rewrite", |b| {
        b.iter(|| {
            let bytes = black_box(REQUEST);
            let end = request::find_end(bytes, 0, &mut HeadScan::default(), &limits).expect("fine").expect("whole");
            let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
            let head = request::parse(&bytes[..end], &mut storage, &limits).expect("fine");
            let forwarding = Forwarding {
                path: head.path,
                authority: "127.0.0.1:9001",
                peer: Some(Ipv4Addr::LOCALHOST.into()),
                peer_is_trusted: false,
                request_id: b"0123456789abcdef0123456789abcdef",
                traceparent: b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                identity: b"",
                with_credentials: true,
                with_forwarded: false,
            };
            out.clear();
            request::write(&head, &forwarding, &mut out);
            out.len()
        });
    });
    c.bench_function("response head: find, parse, rewrite", |b| {
        b.iter(|| {
            let bytes = black_box(RESPONSE);
            let end = response::find_end(bytes, &mut HeadScan::default(), &limits).expect("fine").expect("whole");
            let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
            let asked = Asked { method: Method::Get, upgrade: false };
            let head = response::parse(&bytes[..end], &mut storage, asked).expect("fine");
            let returning = Returning {
                version: request::Version::Http11,
                framing: head.framing,
                persistent: true,
                from_gateway: false,
                request_id: b"0123456789abcdef0123456789abcdef",
                date: b"Sun, 06 Nov 1994 08:49:37 GMT",
                fields: b"",
                replaces: Replaces::default(),
            };
            out.clear();
            response::write(&head, &returning, &mut out);
            out.len()
        });
    });
    c.bench_function("chunked body: decode 16 KiB in 16 chunks", |b| {
        let mut wire = Vec::new();
        for _ in 0..16 {
            wire.extend_from_slice(b"400\r\n");
            wire.extend_from_slice(&[b'x'; 1024]);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        let mut buf = wire.clone();
        b.iter(|| {
            buf.copy_from_slice(&wire);
            Decoder::new(Framing::Chunked).decode(&mut buf).expect("fine").data
        });
    });
}

fn decisions(c: &mut Criterion) {
    let specs: Vec<_> = (0..16)
        .map(|service| RouteSpec { prefix: format!("/api/v1/service-{service}"), hosts: Vec::new(), service })
        .collect();
    let routes = RouteTable::new(&specs);
    let mut scratch = Vec::new();
    c.bench_function("normalise a path and find its route among 16", |b| {
        b.iter(|| {
            let path = path::normalize(black_box(b"/api/v1/service-11/a/b"), &mut scratch).expect("fine");
            routes.find(b"gateway.example.com", path)
        });
    });
    for algorithm in [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Random] {
        let mut balancer = Balancer::new(algorithm, [1, 2, 3, 4].into_iter());
        let mut draw = 0u64;
        c.bench_function(&format!("balance over 4: {algorithm:?}"), |b| {
            b.iter(|| {
                draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                balancer.pick(draw, |_| true, |_| FULL_SHARE, |index| index as u32)
            });
        });
    }
}

fn records(c: &mut Criterion) {
    let record = AccessRecord {
        unix_ms: 1_700_000_000_123,
        request_id: b"0123456789abcdef0123456789abcdef",
        trace_id: b"4bf92f3577b34da6a3ce929d0e0e4736",
        worker: 3,
        client: Some(Ipv4Addr::LOCALHOST.into()),
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
    let mut clock = Clock::default();
    let mut line = Vec::with_capacity(1024);
    c.bench_function("access-log line, JSON", |b| {
        b.iter(|| {
            line.clear();
            access_log::render(black_box(&record), LogFormat::Json, &[], &mut clock, &mut line);
            line.len()
        });
    });
    let counters = Counters::new(&Shape { enabled: true, buckets: vec![0.001, 0.01, 0.1, 1.0], max_series: 10_000 });
    c.bench_function("counters of a request", |b| {
        b.iter(|| {
            counters.request_started();
            counters.request_finished(
                RouteId(black_box(5)),
                Method::Get,
                200,
                Duration::from_micros(740),
                Some((&[b'a'; 32], 1_700_000_000_000)),
            );
        });
    });
}

criterion_group!(benches, heads, decisions, records);
criterion_main!(benches);
