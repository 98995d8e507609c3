//! HTTP: heads and bodies.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;

use ringway::control::config::Config;
use ringway::http::body::{Decoder, Framing};
use ringway::http::headers::HeadScan;
use ringway::http::method::Method;
use ringway::http::request::{self, Forwarding, HEADER_COUNT_MAX, Version};
use ringway::http::response::{self, Asked, Replaces, Returning};
use ringway::http::trace_context;

use super::{REQUEST_ID, TRACEPARENT, Work, work};

/// A browser's request.
pub const REQUEST: &[u8] = b"GET /api/v1/sms/messages/42?full=1 HTTP/1.1\r\nHost: gateway.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: application/json\r\n\
    Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nCookie: session=0123456789abcdef\r\n\
    X-Request-Id: 0123456789abcdef0123456789abcdef\r\n\r\n";

/// A backend's answer; its body follows.
pub const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: backend\r\n\
    Content-Type: application/json\r\nContent-Length: 512\r\nCache-Control: no-store\r\n\r\n";

/// A request's head is found, parsed, and written for the upstream.
pub fn request() -> Work {
    let limits = Config::default().limits;
    let mut out = Vec::with_capacity(4096);
    work(move || {
        let bytes = black_box(REQUEST);
        let end = request::holds_head(bytes, 0, &mut HeadScan::default(), &limits).expect("fine").expect("whole");
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let head = request::parse(&bytes[..end], &mut storage, &limits).expect("fine");
        out.clear();
        request::write(&head, &forwarding(head.path), &mut out);
        out.len()
    })
}

/// The same head, parsed alone.
pub fn request_parse() -> Work {
    let limits = Config::default().limits;
    work(move || {
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        request::parse(black_box(REQUEST), &mut storage, &limits).expect("fine").bytes.len()
    })
}

/// The same head, written alone.
pub fn request_rewrite() -> Work {
    let storage = Box::leak(Box::new([const { MaybeUninit::uninit() }; HEADER_COUNT_MAX]));
    let head = request::parse(REQUEST, storage, &Config::default().limits).expect("fine");
    let mut out = Vec::with_capacity(4096);
    work(move || {
        out.clear();
        request::write(black_box(&head), &forwarding(head.path), &mut out);
        out.len()
    })
}

/// What is said to the upstream beside the head.
fn forwarding(path: &[u8]) -> Forwarding<'_> {
    Forwarding {
        path,
        authority: "127.0.0.1:9001",
        peer: Some(Ipv4Addr::LOCALHOST.into()),
        peer_is_trusted: false,
        request_id: REQUEST_ID,
        traceparent: TRACEPARENT,
        identity: b"",
        with_credentials: true,
        with_forwarded: false,
    }
}

/// An answer's head is found, parsed, and written for the client.
pub fn response() -> Work {
    let limits = Config::default().limits;
    let mut out = Vec::with_capacity(4096);
    work(move || {
        let bytes = black_box(RESPONSE);
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let asked = Asked { method: Method::Get, upgrade: false };
        let head = response::parse(bytes, &mut HeadScan::default(), &mut storage, asked, &limits).expect("fine");
        let head = head.expect("whole");
        out.clear();
        response::write(&head, &returning(head.framing), &mut out);
        out.len()
    })
}

/// The same head, written alone.
pub fn response_rewrite() -> Work {
    let storage = Box::leak(Box::new([const { MaybeUninit::uninit() }; HEADER_COUNT_MAX]));
    let asked = Asked { method: Method::Get, upgrade: false };
    let head = response::parse(RESPONSE, &mut HeadScan::default(), storage, asked, &Config::default().limits);
    let head = head.expect("fine").expect("whole");
    let mut out = Vec::with_capacity(4096);
    work(move || {
        out.clear();
        response::write(black_box(&head), &returning(head.framing), &mut out);
        out.len()
    })
}

/// What is said to the client beside the head.
fn returning(framing: Framing) -> Returning<'static> {
    Returning {
        version: Version::Http11,
        framing,
        persistent: true,
        from_gateway: false,
        request_id: REQUEST_ID,
        date: b"Sun, 06 Nov 1994 08:49:37 GMT",
        fields: b"",
        replaces: Replaces::default(),
    }
}

/// A body of 16 chunks, as events are streamed, is decoded in place; putting it there is counted too.
pub fn chunked() -> Work {
    let chunk = [b"c8\r\n", &[b'x'; 200][..], b"\r\n"].concat();
    let wire = [&chunk.repeat(16)[..], b"0\r\n\r\n"].concat();
    let mut buf = wire.clone();
    work(move || {
        buf.copy_from_slice(&wire);
        Decoder::new(Framing::Chunked).decode(&mut buf).expect("fine").data
    })
}

/// A client's `traceparent` is checked and joined, and the head that goes out names the try as its parent.
pub fn trace_context() -> Work {
    let mut out = [b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\ntraceparent: ", TRACEPARENT, b"\r\n\r\n"].concat();
    work(move || {
        let known = trace_context::known_part(black_box(TRACEPARENT)).expect("well-formed");
        let trace = trace_context::number(&known[1..33]);
        trace_context::replace_parent_id(&mut out, b"53995c3f42cd8ad8");
        (trace, trace_context::is_sampled(TRACEPARENT), trace_context::is_chosen(trace, 1 << 62))
    })
}
