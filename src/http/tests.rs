//! The codec against raw bytes: hostile heads, and properties that hold for any bytes.

use std::mem::MaybeUninit;

use proptest::prelude::*;

use super::body::{Decoder, Framing};
use super::headers::HeadScan;
use super::request::{self, Forwarding, HEADER_COUNT_MAX, RequestError, Version};
use super::response::{self, Asked, Replaces, ResponseError, ResponseHead, Returning};
use crate::http::method::Method;
use crate::snapshot::Limits;

const LIMITS: Limits =
    Limits { header_bytes: 2048, header_count: 10, uri_bytes: 200, body_bytes: 0, requests_in_flight: 1 };

/// What a gateway would do with `bytes`, all at once: the head that goes upstream, or the refusal.
fn forwarded(bytes: &[u8]) -> Result<Option<Vec<u8>>, RequestError> {
    forwarded_in(&[bytes])
}

/// The same, for bytes that come in pieces.
fn forwarded_in(pieces: &[&[u8]]) -> Result<Option<Vec<u8>>, RequestError> {
    Ok(read_in(pieces)?.map(|(out, _)| out))
}

/// The same, with where in the bytes the head ends.
fn read_in(pieces: &[&[u8]]) -> Result<Option<(Vec<u8>, usize)>, RequestError> {
    let mut buf = Vec::new();
    let mut skip = 0;
    let mut scan = HeadScan::default();
    for piece in pieces {
        buf.extend_from_slice(piece);
        if !scan.has_first_line(skip) {
            skip = request::leading_empty_lines(&buf);
            scan = HeadScan::from(skip);
        }
        if let Some(end) = request::holds_head(&buf, skip, &mut scan, &LIMITS)? {
            let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
            let head = request::parse(&buf[skip..end], &mut storage, &LIMITS)?;
            let forwarding = Forwarding {
                path: head.path,
                authority: "backend:80",
                peer: Some([127, 0, 0, 1].into()),
                peer_is_trusted: false,
                request_id: b"id",
                traceparent: b"tp",
                identity: b"",
                with_credentials: true,
                with_forwarded: false,
            };
            let mut out = Vec::new();
            request::write(&head, &forwarding, &mut out);
            return Ok(Some((out, skip + head.bytes.len())));
        }
    }
    Ok(None)
}

#[test]
fn hostile_request_heads() {
    use RequestError::*;
    let check = |head: &str, expected: RequestError| assert_eq!(forwarded(head.as_bytes()), Err(expected), "{head:?}");
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");

    for bare in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nE:\nB: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        check(bare, BareLineEnd);
    }
    check("GET / HTTP/1.1\nHost: a\n\n", BareLineEnd);
    check("GET / HTTP/1.1\r\nHost: a\n\r\n", BareLineEnd);
    check(&get("A: b\rc\r\n"), BareLineEnd);
    check("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareLineEnd);

    check(&get("A: b\0c\r\n"), Field);
    check(&get("A: b\x01\r\n"), Field);
    check(&get("A: b\x7f\r\n"), Field);
    check(&get("A: b\r\n c\r\n"), Field);
    check(&get("A: b\r\n\tc\r\n"), Field);
    check(&get("A : b\r\n"), Field);
    check(&get(" A: b\r\n"), Field);
    check(&get(": b\r\n"), Field);
    check(&get("A\r\n"), Field);
    check(&get("A(: b\r\n"), Field);
    check(&get("A\u{e9}: b\r\n"), Field);

    check("GET /\r\nHost: a\r\n\r\n", RequestLine);
    check("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine);
    check("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", RequestLine);
    check("GET / HTTX/1.1\r\nHost: a\r\n\r\n", RequestLine);
    check("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine);
    check("GET / http/1.1\r\nHost: a\r\n\r\n", RequestLine);
    check("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version);
    check("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version);
    check("GET / HTTP/0.9\r\nHost: a\r\n\r\n", Version);

    check("GET / HTTP/1.1\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost:\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", Host);
    check("GET / HTTP/1.1\r\nHost: [zz]\r\n\r\n", Host);

    check("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Target);
    check("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Target);
    check("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", Target);
    check("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Target);
    check("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Target);
    check("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", Target);
    check("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Connect);

    for value in ["+5", "-5", "5,5", "5, 6", "5 6", "0x5", "", "99999999999999999999"] {
        check(&post(&format!("Content-Length: {value}\r\n")), ContentLength);
    }
    check(&post("Content-Length: 5\r\nContent-Length: 5\r\n"), ContentLength);
    check(&post("Content-Length: 5\r\nContent-Length: 6\r\n"), ContentLength);
    check(&post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), TransferEncoding);
    check(&post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), TransferEncoding);
    check(&post("Transfer-Encoding: chunked, chunked\r\n"), TransferEncoding);
    check(&post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), TransferEncoding);
    check(&post("Transfer-Encoding: chunked, identity\r\n"), TransferEncoding);
    check(&post("Transfer-Encoding: \r\n"), TransferEncoding);
    check(&post("Transfer-Encoding: \"chunked\"\r\n"), TransferEncoding);
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding);
    check(&post("Transfer-Encoding: gzip, chunked\r\n"), UnknownCoding);
    check(&post("Transfer-Encoding: xchunked\r\n"), UnknownCoding);
    check(&post("Expect: 200-ok\r\nContent-Length: 1\r\n"), Expectation);

    check(&format!("GET /{}", "a".repeat(300)), TargetTooLong);
    check(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(200)), TargetTooLong);
    check(&get(&format!("A: {}\r\n", "b".repeat(2048))), HeadTooLarge);
    check(&get(&"A: b\r\n".repeat(10)), HeadTooLarge);
}

#[test]
fn what_goes_upstream() {
    let check = |head: &str, expected: &str| {
        let out = forwarded(head.as_bytes()).expect("well-formed").expect("whole");
        assert_eq!(String::from_utf8_lossy(&out), expected, "{head:?}");
    };
    const TAIL: &str = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\
                        Via: 1.1 ringway\r\nX-Request-Id: id\r\ntraceparent: tp\r\n";
    check(
        "GET /p?q=%2e&x=?y HTTP/1.1\r\nHost: a\r\nAccept:  text/html \r\n\r\n",
        &format!("GET /p?q=%2e&x=?y HTTP/1.1\r\nHost: backend:80\r\nAccept: text/html\r\n{TAIL}\r\n"),
    );
    // Lines that are copied stand between lines that are written anew, and between lines that are left out.
    check(
        "GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nHost: a\r\nC:3\t\r\nD: \r\nE:\r\nF: 6\r\nX-User-Id: 1\r\nDate: 8\r\nI: 9\r\n\r\n",
        &format!(
            "GET / HTTP/1.1\r\nHost: backend:80\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: \r\nE: \r\nF: 6\r\nDate: 8\r\nI: 9\r\n{TAIL}\r\n"
        ),
    );
    // Hop-by-hop fields, nominated ones, and names that the gateway alone may set.
    check(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n\
         X-User-Id: root\r\nX-Forwarded-For: 6.6.6.6\r\nX-Keep: 1\r\n\r\n",
        &format!("GET / HTTP/1.1\r\nHost: backend:80\r\nX-Keep: 1\r\n{TAIL}\r\n"),
    );
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n",
        &format!(
            "POST / HTTP/1.1\r\nHost: backend:80\r\nExpect: 100-Continue\r\n{TAIL}\
             Connection: TE\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
        ),
    );
    check(
        "POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        &format!("POST / HTTP/1.1\r\nHost: backend:80\r\n{TAIL}Content-Length: 0\r\n\r\n"),
    );
    check(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
        &format!(
            "GET / HTTP/1.1\r\nHost: backend:80\r\nSec-WebSocket-Key: k\r\n{TAIL}\
             Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        ),
    );
    // The target's authority wins over the Host field.
    check(
        "GET http://a?x HTTP/1.1\r\nHost: other\r\n\r\n",
        &format!("GET /?x HTTP/1.1\r\nHost: backend:80\r\n{TAIL}\r\n"),
    );
    check(
        "\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: backend:80\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\
         Via: 1.0 ringway\r\nX-Request-Id: id\r\ntraceparent: tp\r\n\r\n",
    );
}

#[test]
fn a_head_is_the_same_at_every_split() {
    let head = b"\r\nPOST /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-A: b\r\n\r\n";
    let whole = forwarded(head);
    assert!(matches!(whole, Ok(Some(_))));
    for split in 0..=head.len() {
        let (first, second) = head.split_at(split);
        assert_eq!(forwarded_in(&[first, second]), whole, "{split}");
    }
    let bytes: Vec<&[u8]> = head.chunks(1).collect();
    assert_eq!(forwarded_in(&bytes), whole);
}

#[test]
fn what_stands_behind_a_head_is_left_alone() {
    let check = |head: &str, behind: &str| {
        let bytes = format!("{head}{behind}");
        let (_, end) = read_in(&[bytes.as_bytes()]).expect("well-formed").expect("whole");
        assert_eq!(end, head.len(), "{bytes:?}");
    };
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    check(get, "");
    check(get, get);
    check(get, "GET / HTTP/1.1\nHost: a\r\n\r\n");
    check(&format!("\r\n\r\n{get}"), "\r\n\r\n");
    check("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n0\r\n\r\n");
    check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", "GET /");
}

/// Reads a response head and writes the client's.
fn returned(head: &[u8], asked: Asked) -> Result<(Framing, bool, Vec<u8>), ResponseError> {
    returned_in(&[head], asked)
}

/// The same, for a head that comes in pieces; [`ResponseError::Malformed`] if it never ends.
fn returned_in(pieces: &[&[u8]], asked: Asked) -> Result<(Framing, bool, Vec<u8>), ResponseError> {
    let mut buf = Vec::new();
    let mut scan = HeadScan::default();
    for piece in pieces {
        buf.extend_from_slice(piece);
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        if let Some(head) = response::parse(&buf, &mut scan, &mut storage, asked, &LIMITS)? {
            return Ok(written(&head));
        }
    }
    Err(ResponseError::Malformed)
}

fn written(parsed: &ResponseHead<'_>) -> (Framing, bool, Vec<u8>) {
    let returning = Returning {
        version: Version::Http11,
        framing: if parsed.framing == Framing::Close { Framing::Chunked } else { parsed.framing },
        persistent: true,
        from_gateway: false,
        request_id: b"id",
        date: b"Sun, 06 Nov 1994 08:49:37 GMT",
        fields: b"",
        replaces: Replaces::default(),
    };
    let mut out = Vec::new();
    response::write(parsed, &returning, &mut out);
    (parsed.framing, parsed.persistent, out)
}

const GET: Asked = Asked { method: Method::Get, upgrade: false };
const HEAD: Asked = Asked { method: Method::Head, upgrade: false };
const UPGRADE: Asked = Asked { method: Method::Get, upgrade: true };

#[test]
fn a_host_is_a_name_or_an_address_and_may_have_a_port() {
    let accepted = |host: &str| {
        let read = forwarded(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        assert!(matches!(read, Ok(Some(_)) | Err(RequestError::Host)), "{host}: {read:?}");
        read.is_ok()
    };
    let longest = "a".repeat(255);
    for host in
        ["a", "a.example:8080", "a:", "a:65535", "A-b_c~%41", "192.0.2.1:80", "[::1]", "[2001:db8::7]:443", &longest]
    {
        assert!(accepted(host), "{host}");
    }
    let too_long = "a".repeat(256);
    for host in [
        "", ":80", "a:123456", "a:8:0", "a:8a", "a@80", "a@b:80", "u:p@a", "a/b", "a b", "a,b c", "\u{e9}", "[::1",
        "[::1]x", "[::1]:x", "[a]", &too_long,
    ] {
        assert!(!accepted(host), "{host}");
    }
}

#[test]
fn response_framing_follows_method_and_status() {
    let check = |asked: Asked, head: &str, framing: Framing, persistent: bool| {
        let (found, lives, _) = returned(head.as_bytes(), asked).expect("well-formed");
        assert_eq!((found, lives), (framing, persistent), "{asked:?} {head:?}");
    };
    check(GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), true);
    check(GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), true);
    check(GET, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Framing::None, true);
    check(GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::Chunked, true);
    check(GET, "HTTP/1.1 200 OK\r\n\r\n", Framing::Close, false);
    check(GET, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), false);
    check(GET, "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), false);
    for both in ["Connection: close\r\nConnection: keep-alive\r\n", "Connection: keep-alive\r\nConnection: Close\r\n"] {
        check(GET, &format!("HTTP/1.1 200 OK\r\n{both}Content-Length: 5\r\n\r\n"), Framing::Length(5), false);
    }
    check(GET, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), false);
    check(GET, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), true);
    check(GET, "HTTP/1.0 200 OK\r\nConnection: Keep-Alive, x\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), true);
    check(HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Framing::None, true);
    check(HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::None, true);
    check(GET, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Framing::None, true);
    check(GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Framing::None, true);
    check(GET, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", Framing::None, true);
    check(UPGRADE, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", Framing::None, true);
}

#[test]
fn hostile_response_heads() {
    let check = |head: &str, expected: ResponseError| {
        assert_eq!(returned(head.as_bytes(), GET).map(|_| ()), Err(expected), "{head:?}");
    };
    let ok = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    check("HTTP/1.1 200 OK\nContent-Length: 5\n\n", ResponseError::BareLineEnd);
    check(&ok("Content-Length: 5\r\nContent-Length: 6\r\n"), ResponseError::Framing);
    check(&ok("Content-Length: 5, 5\r\n"), ResponseError::Framing);
    check(&ok("Content-Length: -1\r\n"), ResponseError::Framing);
    check(&ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), ResponseError::Framing);
    check(&ok("Transfer-Encoding: gzip, chunked\r\n"), ResponseError::Framing);
    check("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseError::Framing);
    check("HTTP/1.1 101 Switching Protocols\r\n\r\n", ResponseError::UnaskedUpgrade);
    check("HTTP/1.1 99 Low\r\n\r\n", ResponseError::Malformed);
    check("HTTP/1.1 099 Low\r\n\r\n", ResponseError::Malformed);
    check("HTTP/2.0 200 OK\r\n\r\n", ResponseError::Malformed);
    check("ICY 200 OK\r\n\r\n", ResponseError::Malformed);
    check("\r\nHTTP/1.1 200 OK\r\n\r\n", ResponseError::Malformed);
    check("\nHTTP/1.1 200 OK\r\n\r\n", ResponseError::BareLineEnd);
    check("HTTP/1.1 200 OK\nA: b\r\n\r\n", ResponseError::BareLineEnd);
    check("HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", ResponseError::BareLineEnd);
    check("HTTP/1.1 200 OK\r\nA:\nC: d\r\n\r\n", ResponseError::BareLineEnd);
    check("HTTP/1.1 200 OK\r\nA: b\n\nHTTP/1.1 200 OK\r\n\r\n", ResponseError::BareLineEnd);
    check(&ok("A : b\r\n"), ResponseError::Malformed);
    check(&ok("A: b\r\n c\r\n"), ResponseError::Malformed);
    check(&ok("A: b\0\r\n"), ResponseError::Malformed);
    check(&ok(&format!("A: {}\r\n", "b".repeat(2048))), ResponseError::TooLarge);
}

#[test]
fn what_goes_to_the_client() {
    let check = |asked, head: &str, expected: &str| {
        let (.., out) = returned(head.as_bytes(), asked).expect("well-formed");
        assert_eq!(String::from_utf8_lossy(&out), expected, "{head:?}");
    };
    const IDENTITY: &str = "X-Request-Id: id\r\nVia: 1.1 ringway\r\n";
    check(
        GET,
        "HTTP/1.1 200 Fine\r\nDate: then\r\nServer: s\r\nConnection: X-Drop\r\nX-Drop: 1\r\nX-Request-Id: theirs\r\n\
         X-Gateway-Error: forged\r\nTransfer-Encoding: chunked\r\nAge: 1\r\n\r\n",
        &format!(
            "HTTP/1.1 200 Fine\r\nDate: then\r\nServer: s\r\nAge: 1\r\n{IDENTITY}Transfer-Encoding: chunked\r\n\r\n"
        ),
    );
    check(
        HEAD,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        &format!("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n{IDENTITY}Content-Length: 5\r\n\r\n"),
    );
    check(
        GET,
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        &format!("HTTP/1.1 204 No Content\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n{IDENTITY}\r\n"),
    );
    check(
        UPGRADE,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\nConnection: Upgrade\r\n\
         X-Request-Id: id\r\n\r\n",
    );
    check(GET, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
}

/// Bytes that look enough like HTTP to get past the first checks.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"GET / HTTP/1.1\r\n".to_vec()),
        Just(b"POST /a HTTP/1.0\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"Host: a\r\n".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"Connection: ".to_vec()),
        Just(b"A: b\r\n".to_vec()),
        Just(b"A:b \r\n".to_vec()),
        Just(b"A: b\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"5\r\nhello\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..12),
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in nearly_http()) {
        let _ = forwarded(&bytes);
        for asked in [GET, HEAD, UPGRADE] {
            let _ = returned(&bytes, asked);
        }
    }

    /// A head that comes at once is read in another way than one whose end has to be looked for.
    #[test]
    fn heads_do_not_depend_on_reads(bytes in nearly_http(), begins in 0..3usize) {
        let bytes = [[&b""[..], b"GET / HTTP/1.1\r\nHost: a\r\n", b"HTTP/1.1 200 OK\r\n"][begins], &bytes].concat();
        if let Some(last) = bytes.len().checked_sub(1) {
            let (first, second) = bytes.split_at(last);
            prop_assert_eq!(read_in(&[&bytes]), read_in(&[first, second]));
            for asked in [GET, HEAD, UPGRADE] {
                prop_assert_eq!(returned(&bytes, asked), returned_in(&[first, second], asked));
            }
        }
    }

    /// What the gateway sends is what it would accept itself, and means the same the second time.
    #[test]
    fn what_is_forwarded_is_well_formed(bytes in nearly_http()) {
        if let Ok(Some(out)) = forwarded(&bytes) {
            prop_assert!(matches!(forwarded(&out), Ok(Some(_))), "{:?}", String::from_utf8_lossy(&out));
            let lines = out.windows(4).filter(|four| *four == b"\r\n\r\n").count();
            prop_assert_eq!(lines, 1);
        }
    }

    /// A body that is cut anywhere decodes to the same bytes.
    #[test]
    fn chunked_bodies_do_not_depend_on_reads(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        cuts in proptest::collection::vec(1usize..9, 1..60),
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:X};e=1\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\nA: b\r\n\r\nrest");
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut body = Vec::new();
        let mut at = 0;
        let mut cuts = cuts.iter().cycle();
        while !decoder.is_done() {
            let end = (at + cuts.next().expect("endless")).min(wire.len());
            let decoded = decoder.decode(&mut wire[at..end]).expect("well-formed");
            body.extend_from_slice(&wire[at..at + decoded.data]);
            at += decoded.consumed;
        }
        prop_assert_eq!(body, chunks.concat());
        prop_assert_eq!(&wire[at..], b"rest");
    }
}
