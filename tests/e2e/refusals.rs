//! Requests that could be read in two ways, or that ask for too much: refused, the connection closed, no backend told.

use crate::support::{Backend, Gateway, gateway_to, service};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Every message is answered with its status, the connection closes, and nothing behind it is served.
fn check_refused(cases: &[(&str, &[u8], u16)]) {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    for (what, message, status) in cases {
        let mut client = gateway.connect();
        // The gateway may refuse before it has read everything, and close.
        let _ = client.try_send(message);
        let _ = client.try_send("GET /api/smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.try_response(false).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.status, *status, "{what}: {}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        answer.reason();
        assert!(client.is_closed(), "{what}: the connection stays open");
    }
    let served: Vec<_> = backend.requests().iter().map(|request| request.head.clone()).collect();
    assert!(served.is_empty(), "{served:#?}");
    assert_eq!(gateway.get("/api").status, 200, "the gateway still serves");
}

#[test]
fn malformed_heads() {
    check_refused(&[
        ("bare LF", b"GET /api HTTP/1.1\nHost: a\n\n", 400),
        ("bare LF after the request line", b"GET /api HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("bare LF after a field", b"GET /api HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        ("bare LF as the empty line", b"GET /api HTTP/1.1\r\nHost: a\r\n\n", 400),
        ("bare CR in a value", b"GET /api HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", 400),
        ("CR CR LF", b"GET /api HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
        ("NUL in a value", b"GET /api HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", 400),
        ("NUL in a name", b"GET /api HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", 400),
        ("NUL in the target", b"GET /api\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("control byte in a value", b"GET /api HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
        ("obs-fold", b"GET /api HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        ("obs-fold with a tab", b"GET /api HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", 400),
        ("space before the first field", b"GET /api HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("space before a colon", b"GET /api HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
        ("tab before a colon", b"GET /api HTTP/1.1\r\nHost: a\r\nContent-Length\t: 5\r\n\r\n", 400),
        ("empty name", b"GET /api HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        ("no colon", b"GET /api HTTP/1.1\r\nHost: a\r\nXb\r\n\r\n", 400),
        ("name with a bracket", b"GET /api HTTP/1.1\r\nHost: a\r\nX[]: b\r\n\r\n", 400),
        ("no Host", b"GET /api HTTP/1.1\r\n\r\n", 400),
        ("two Hosts", b"GET /api HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("two Hosts on 1.0", b"GET /api HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("empty Host", b"GET /api HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("list as Host", b"GET /api HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("path in Host", b"GET /api HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("user in Host", b"GET /api HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("two spaces", b"GET  /api HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("tab in the request line", b"GET\t/api\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("space behind the version", b"GET /api HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("leading space", b" GET /api HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("no version", b"GET /api\r\nHost: a\r\n\r\n", 400),
        ("no method", b"/api HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("method with a comma", b"GE,T /api HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("relative target", b"GET api HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("asterisk with GET", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("fragment", b"GET /api#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        ("unknown expectation", b"POST /api HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 2\r\n\r\nhi", 417),
        ("a space in the target", b"GET /api/a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("two spaces", b"GET /api  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("HTTP/2.0", b"GET /api HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("HTTP/1.2", b"GET /api HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("HTTP/0.9 named", b"GET /api HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("lower-case http", b"GET /api http/1.1\r\nHost: a\r\n\r\n", 400),
        ("another protocol", b"GET /api HTTPS/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

#[test]
fn ambiguous_lengths() {
    let cases: Vec<(&str, String, u16)> = [
        ("length and coding", "Content-Length: 4\r\nTransfer-Encoding: chunked", 400),
        ("coding and length", "Transfer-Encoding: chunked\r\nContent-Length: 4", 400),
        ("length 0 and coding", "Content-Length: 0\r\nTransfer-Encoding: chunked", 400),
        ("chunked twice", "Transfer-Encoding: chunked, chunked", 400),
        ("two lines chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("chunked not last", "Transfer-Encoding: chunked, gzip", 400),
        ("identity then chunked on two lines", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 400),
        ("empty coding", "Transfer-Encoding:", 400),
        ("coding with an empty element", "Transfer-Encoding: ,chunked", 400),
        ("quoted coding", "Transfer-Encoding: \"chunked\"", 400),
        ("coding with a vertical tab", "Transfer-Encoding: \u{b}chunked", 400),
        ("unknown coding", "Transfer-Encoding: gzip", 501),
        ("unknown coding, then chunked", "Transfer-Encoding: gzip, chunked", 501),
        ("nearly chunked", "Transfer-Encoding: xchunked", 501),
        ("identity", "Transfer-Encoding: identity", 501),
        ("signed length", "Content-Length: +5", 400),
        ("negative length", "Content-Length: -5", 400),
        ("empty length", "Content-Length:", 400),
        ("equal lengths, listed", "Content-Length: 5, 5", 400),
        ("equal lengths, listed tightly", "Content-Length: 5,5", 400),
        ("differing lengths, listed", "Content-Length: 5, 6", 400),
        ("equal lengths, two lines", "Content-Length: 5\r\nContent-Length: 5", 400),
        ("differing lengths, two lines", "Content-Length: 5\r\nContent-Length: 6", 400),
        ("hexadecimal length", "Content-Length: 0x5", 400),
        ("length with an exponent", "Content-Length: 1e1", 400),
        ("length with white space inside", "Content-Length: 5 5", 400),
        ("length beyond 64 bits", "Content-Length: 18446744073709551616", 400),
        (
            "length of a hundred digits",
            "Content-Length: 1000000000000000000000000000000000000000000000000000000000",
            400,
        ),
    ]
    .into_iter()
    .map(|(what, fields, status)| (what, format!("POST /api HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello"), status))
    .chain([(
        "coding on 1.0",
        "POST /api HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        400,
    )])
    .collect();
    let cases: Vec<_> = cases.iter().map(|(what, message, status)| (*what, message.as_bytes(), *status)).collect();
    check_refused(&cases);
}

/// Chunked bodies, each behind a good head.
fn check_chunks(cases: &[(&str, &str)]) {
    let messages: Vec<_> = cases
        .iter()
        .map(|(_, body)| format!("POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
        .collect();
    let cases: Vec<_> =
        cases.iter().zip(&messages).map(|((what, _), message)| (*what, message.as_bytes(), 400)).collect();
    check_refused(&cases);
}

#[test]
fn malformed_chunks() {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(70_000));
    let endless = format!("0\r\n{}\r\n", "X: y\r\n".repeat(20_000));
    check_chunks(&[
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("no digit before an extension", ";x\r\nhello\r\n0\r\n\r\n"),
        ("no hexadecimal digit", "g\r\nhello\r\n0\r\n\r\n"),
        ("prefix 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("negative", "-5\r\nhello\r\n0\r\n\r\n"),
        ("space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("bare CR behind the size", "5\rhello\r\n0\r\n\r\n"),
        ("bare LF in an extension", "5;x\nhello\r\n0\r\n\r\n"),
        ("overflow", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("overflow to a small number", "100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("data longer than its size", "4\r\nhello\r\n0\r\n\r\n"),
        ("bare LF behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("two CR behind the data", "5\r\nhello\r\r\n0\r\n\r\n"),
        ("bare LF behind the last size", "5\r\nhello\r\n0\n\r\n"),
        ("trailer without a colon", "0\r\nX\r\n\r\n"),
        ("trailer with a space before its colon", "0\r\nX : y\r\n\r\n"),
        ("folded trailer", "0\r\nX: y\r\n z\r\n\r\n"),
        ("trailer with NUL", "0\r\nX: \0\r\n\r\n"),
        ("trailer with bare LF", "0\r\nX: y\n\r\n"),
        ("endless extension", &long),
        ("endless trailers", &endless),
    ]);
}

#[test]
fn a_malformed_chunk_that_comes_late_cuts_the_upstream_off() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    crate::support::until("the backend is connected to", || backend.connections() == 1);
    client.send("x\r\n");
    assert_eq!(client.response().status, 400);
    assert!(client.is_closed());
    assert!(backend.requests().is_empty());
}

#[test]
fn more_than_the_limits_allow() {
    let backend = Backend::answering(OK);
    let limits = "[limits]\nheader_bytes = 2048\nheader_count = 16\nuri_bytes = 256\n";
    let gateway = Gateway::start(&format!("{limits}{}", service("api", &[backend.url()], "")));
    let get = |target: &str, fields: &str| {
        let mut client = gateway.connect();
        let _ = client.try_send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        client.try_response(false).map(|answer| answer.status).expect("an answer")
    };
    let path = |length: usize| format!("/api{}", "x".repeat(length - 4)).replacen("apix", "api/", 1);
    assert_eq!(get(&path(256), ""), 200);
    assert_eq!(get(&path(257), ""), 414);
    assert_eq!(get(&path(1_500), ""), 414);
    assert_eq!(get(&path(100_000), ""), 414);
    assert_eq!(get("/api", &"X: y\r\n".repeat(15)), 200);
    assert_eq!(get("/api", &"X: y\r\n".repeat(16)), 431);
    assert_eq!(get("/api", &format!("X: {}\r\n", "y".repeat(1_900))), 200);
    assert_eq!(get("/api", &format!("X: {}\r\n", "y".repeat(2_100))), 431);
    assert_eq!(get("/api", &format!("{}: y\r\n", "X".repeat(100_000))), 431);
    assert_eq!(get("/api", &"X: y\r\n".repeat(20_000)), 431);
}

#[test]
fn a_head_of_the_largest_size_passes() {
    let backend = Backend::answering(OK);
    let limits = "[limits]\nheader_bytes = \"64KiB\"\nheader_count = 256\n";
    let gateway = Gateway::start(&format!("{limits}{}", service("api", &[backend.url()], "")));
    let fields: String = (0..250).map(|index| format!("X-{index}: {}\r\n", "y".repeat(240))).collect();
    let answer = gateway.send(format!("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"));
    assert_eq!(answer.status, 200);
    let sent = backend.last();
    assert!((0..250).all(|index| sent.header(&format!("x-{index}")).is_some_and(|value| value.len() == 240)));
}

#[test]
fn refusals_tell_http_1_0_clients_too() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /nowhere HTTP/1.0\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.reason().as_str()), (404, "no_route"));
    assert!(client.is_closed());
}
