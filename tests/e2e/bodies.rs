//! Bodies of any size, in their own time: nothing is gathered, nothing grows.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{Backend, Gate, Gateway, PatternCheck, gateway_to, pattern, service, until_still};

const MIB: u64 = 1024 * 1024;
const LARGE: u64 = 64 * MIB;
/// How much the gateway may grow over a large body: buffers, and what the allocator keeps.
const GROWTH_KIB: u64 = 8 * 1024;

/// The most that the kernel takes on the way through the gateway while nobody reads: two sockets' buffers for what is to be
/// sent and two for what has come, as large as this machine lets them grow (tcp(7)); and what the gateway and a thread here hold.
fn buffers_max() -> u64 {
    let most = |name| {
        let sizes = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("Linux says so");
        sizes.split_whitespace().last().and_then(|size| size.parse::<u64>().ok()).expect("least, usual, most")
    };
    2 * (most("tcp_wmem") + most("tcp_rmem")) + MIB
}

/// Writes `total` bytes of the pattern in pieces, whole or as chunks of uneven sizes.
fn send_pattern(total: u64, chunked: bool, mut send: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let (mut at, mut size) = (0, 1_000);
    while at < total {
        let length = (total - at).min(size);
        let piece = pattern(at, length as usize);
        match chunked {
            true => send(&[format!("{length:x}\r\n").as_bytes(), &piece, b"\r\n"].concat())?,
            false => send(&piece)?,
        }
        at += length;
        size = size * 7 % 300_007 + 1;
    }
    if chunked { send(b"0\r\n\r\n") } else { Ok(()) }
}

fn check_download(chunked: bool) {
    let backend = Backend::start(move |connection| {
        loop {
            let request = connection.request()?;
            if request.line().contains("small") {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
                continue;
            }
            match chunked {
                true => connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?,
                false => connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"))?,
            }
            send_pattern(LARGE, chunked, |piece| connection.send(piece))?;
        }
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /api/small HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response();
    let before = gateway.resident_kib();

    client.send("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: large\r\n\r\n");
    let head = client.head();
    let mut check = PatternCheck::default();
    if head.contains("Transfer-Encoding: chunked") {
        while let data @ [_, ..] = client.chunk().expect("a chunk").as_slice() {
            check.take(data);
        }
        client.take(2).expect("the end of the last chunk");
    } else {
        while check.length() < LARGE {
            let most = (LARGE - check.length()).min(64 * 1024) as usize;
            check.take(&client.take(most).expect("more of the body"));
        }
    }
    assert_eq!(check.length(), LARGE);
    let after = gateway.resident_kib();
    assert!(after < before + GROWTH_KIB, "resident memory grew from {before} to {after} KiB");
    assert_eq!(gateway.logged("large")["bytes_out"], LARGE);
    client.send("GET /api/small HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "ok", "the connection is where it should be");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_large_counted_answer_streams() {
    check_download(false);
}

#[test]
fn a_large_chunked_answer_streams() {
    check_download(true);
}

fn check_upload(chunked: bool) {
    let backend = Backend::start(move |connection| {
        let mut check = PatternCheck::default();
        let head = connection.head()?;
        if head.header("transfer-encoding").is_some() {
            while let data @ [_, ..] = connection.chunk()?.as_slice() {
                check.take(data);
            }
        } else {
            while check.length() < LARGE {
                let most = (LARGE - check.length()).min(64 * 1024) as usize;
                check.take(&connection.take(most)?);
            }
        }
        let length = check.length().to_string();
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}", length.len()))
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.limits]\nbody_bytes = 0"));
    let before = gateway.resident_kib();
    let mut client = gateway.connect();
    let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {LARGE}") };
    client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: large\r\n{framing}\r\n\r\n"));
    send_pattern(LARGE, chunked, |piece| client.try_send(piece)).expect("the gateway takes it");
    assert_eq!(client.response().text(), LARGE.to_string());
    let after = gateway.resident_kib();
    assert!(after < before + GROWTH_KIB, "resident memory grew from {before} to {after} KiB");
    assert_eq!(gateway.logged("large")["bytes_in"], LARGE);
}

#[test]
fn a_large_counted_upload_streams() {
    check_upload(false);
}

#[test]
fn a_large_chunked_upload_streams() {
    check_upload(true);
}

#[test]
fn a_client_that_reads_nothing_holds_the_backend_back() {
    let most = buffers_max();
    let length = most + LARGE;
    let sent = Arc::new(AtomicU64::new(0));
    let backend = Backend::start({
        let sent = Arc::clone(&sent);
        move |connection| {
            connection.request()?;
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
            send_pattern(length, false, |piece| {
                connection.send(piece)?;
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Ok(())
            })
        }
    });
    let gateway = gateway_to(&backend);
    let before = gateway.resident_kib();
    let mut client = gateway.connect();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    // The sockets' buffers fill up, and then nothing moves any more.
    until_still("the backend is held back", || sent.load(Ordering::Relaxed));
    assert!(sent.load(Ordering::Relaxed) <= most, "{} bytes were taken", sent.load(Ordering::Relaxed));
    let after = gateway.resident_kib();
    assert!(after < before + GROWTH_KIB, "resident memory grew from {before} to {after} KiB");
    let mut check = PatternCheck::default();
    while check.length() < length {
        let piece = (length - check.length()).min(64 * 1024) as usize;
        check.take(&client.take(piece).expect("more of the body"));
    }
}

#[test]
fn a_backend_that_reads_nothing_holds_the_client_back() {
    let most = buffers_max();
    let length = most + LARGE;
    let gate = Gate::default();
    let backend = Backend::start({
        let gate = gate.clone();
        move |connection| {
            connection.head()?;
            gate.pass();
            let body = connection.take(length as usize)?;
            let mut check = PatternCheck::default();
            check.take(&body);
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        }
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.limits]\nbody_bytes = 0"));
    let before = gateway.resident_kib();
    let mut client = gateway.connect();
    client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    let sent = Arc::new(AtomicU64::new(0));
    let mut sender = client.sender();
    let sending = thread::spawn({
        let sent = Arc::clone(&sent);
        move || {
            send_pattern(length, false, |piece| {
                sender.try_send(piece)?;
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Ok(())
            })
        }
    });
    until_still("the client is held back", || sent.load(Ordering::Relaxed));
    assert!(sent.load(Ordering::Relaxed) <= most, "{} bytes were taken", sent.load(Ordering::Relaxed));
    let after = gateway.resident_kib();
    assert!(after < before + GROWTH_KIB, "resident memory grew from {before} to {after} KiB");
    gate.open();
    sending.join().expect("no panic").expect("the gateway takes it");
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn events_are_passed_on_one_by_one() {
    for framing in ["Transfer-Encoding: chunked\r\n", ""] {
        let seen = Gate::default();
        let backend = Backend::start({
            let seen = seen.clone();
            move |connection| {
                connection.request()?;
                connection.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n"))?;
                for index in 0..20 {
                    // The next event is not even sent before the client has seen this one.
                    let event = format!("data: {index}\n\n");
                    match framing {
                        "" => connection.send(event)?,
                        _ => connection.send(format!("{:x}\r\n{event}\r\n", event.len()))?,
                    }
                    seen.pass();
                }
                connection.send(if framing.is_empty() { "" } else { "0\r\n\r\n" })
            }
        });
        let gateway = gateway_to(&backend);
        let mut client = gateway.connect();
        client.send("GET /api/stream HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
        let head = client.head();
        assert!(head.contains("Content-Type: text/event-stream\r\n"), "{head}");
        for index in 0..20 {
            assert_eq!(client.chunk().expect("an event"), format!("data: {index}\n\n").as_bytes());
            seen.open();
        }
        assert_eq!(client.chunk().expect("the end"), b"");
    }
}

#[test]
fn the_head_of_an_answer_does_not_wait_for_its_body() {
    let seen = Gate::default();
    let backend = Backend::start({
        let seen = seen.clone();
        move |connection| {
            connection.request()?;
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")?;
            seen.pass();
            connection.send("ok")
        }
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200"));
    seen.open();
    assert_eq!(client.take(2).expect("the body"), b"ok");
}

#[test]
fn both_directions_stream_at_the_same_time() {
    let backend = Backend::start(|connection| {
        connection.head()?;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            let data = connection.chunk()?;
            connection.send(format!("{:x}\r\n", data.len()))?;
            connection.send([&data[..], b"\r\n"].concat())?;
            if data.is_empty() {
                return Ok(());
            }
        }
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for index in 0..20 {
        let word = format!("word {index}");
        client.send(format!("{:x}\r\n{word}\r\n", word.len()));
        assert_eq!(client.chunk().expect("its echo"), word.as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk().expect("the end"), b"");
}

#[test]
fn expect_100_continue_waits_for_the_backends_word() {
    let backend = Backend::start(|connection| {
        loop {
            let head = connection.head()?;
            assert_eq!(head.header("expect"), Some("100-continue"));
            connection.send("HTTP/1.1 100 Continue\r\n\r\n")?;
            let body = connection.take(5)?;
            assert_eq!(body, b"hello");
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("POST /api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.response().status, 100);
        client.send("hello");
        assert_eq!(client.response().text(), "ok");
    }
}

#[test]
fn a_final_answer_instead_of_100_stops_the_upload() {
    let checked = Gate::default();
    let backend = Backend::start({
        let checked = checked.clone();
        move |connection| {
            connection.head()?;
            connection.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")?;
            assert_eq!(connection.rest(), b"", "the body never comes");
            checked.open();
            Ok(())
        }
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    assert_eq!(answer.header("connection"), Some("close"), "whether the body follows is not known");
    assert!(client.is_closed());
    checked.pass();
}

#[test]
fn an_answer_before_the_body_is_through_stops_the_upload() {
    let backend = Backend::start(|connection| {
        connection.head()?;
        connection.take(100_000)?;
        connection.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.limits]\nbody_bytes = 0"));
    let mut client = gateway.connect();
    client.send(format!("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
    let mut receiver = client.sender();
    let sending = thread::spawn(move || send_pattern(LARGE, false, |piece| client.try_send(piece)));
    let answer = receiver.response();
    assert_eq!((answer.status, answer.text().as_str()), (413, "no"));
    assert!(receiver.stream.read(&mut [0; 16]).map_or(true, |read| read == 0));
    assert!(sending.join().expect("no panic").is_err(), "the rest is not taken");
}

#[test]
fn http_1_0_knows_no_expectations() {
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = gateway_to(&backend);
    let answer = gateway.send("POST /api HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(answer.text(), "ok");
    assert_eq!(backend.last().header("expect"), None);
}

#[test]
fn a_short_body_goes_out_with_its_head_however_many_clients_wait() {
    // What one receive brings, and whether it is all.
    let pieces = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&pieces);
    let backend = Backend::start(move |connection| {
        loop {
            let piece = connection.piece()?;
            let is_whole = piece.ends_with(b"!");
            seen.lock().expect("no panic").push((piece.len(), is_whole));
            if is_whole {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            }
        }
    });
    let gateway = gateway_to(&backend);
    // More than wait with a whole buffer.
    let mut clients: Vec<_> = (0..150).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    let request = format!("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 4096\r\n\r\n{:x<4095}!", "");
    for client in &mut clients {
        client.send(&request);
        assert_eq!(client.response().status, 200);
    }
    let pieces = pieces.lock().expect("no panic");
    assert!(pieces.len() == clients.len() && pieces.iter().all(|(_, is_whole)| *is_whole), "{pieces:?}");
}
