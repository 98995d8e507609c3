//! Server-Sent Events, from both ends, on loopback. `events serve PORT EVERY_US` sends each client an event so often, until it is killed;
//! `events read PORT PATH STREAMS SECONDS` reads so many streams, and prints how many events came.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// One event, as a chunk of its own: 64 bytes of it.
const EVENT: &[u8] = b"40\r\ndata: {\"token\":\"sixty-four bytes, as a model sends its words\"}\n\n\r\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let port = |text: &str| text.parse::<u16>().map_err(io::Error::other);
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", at, every] => serve(port(at)?, Duration::from_micros(number(every)?)),
        ["read", at, path, streams, seconds] => {
            read(port(at)?, path, number(streams)?, Duration::from_secs(number(seconds)?))
        }
        _ => Err(io::Error::other("usage: events serve PORT EVERY_US | events read PORT PATH STREAMS SECONDS")),
    }
}

fn serve(port: u16, every: Duration) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    for client in listener.incoming() {
        let mut client = client?;
        // A client that leaves ends its thread.
        thread::spawn(move || send(&mut client, every));
    }
    Ok(())
}

fn send(client: &mut TcpStream, every: Duration) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut head = [0; 4096];
    // A request without a body comes in one piece on loopback; readiness probes send nothing.
    if client.read(&mut head)? == 0 {
        return Ok(());
    }
    client.write_all(HEAD)?;
    let start = Instant::now();
    for number in 1.. {
        client.write_all(EVENT)?;
        thread::sleep((start + every * number).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn read(port: u16, path: &str, streams: u64, time: Duration) -> io::Result<()> {
    let until = Instant::now() + time;
    let readers: Vec<_> = (0..streams)
        .map(|_| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n")?;
            Ok(thread::spawn(move || count(&mut stream, until)))
        })
        .collect::<io::Result<_>>()?;
    let mut events = 0;
    for reader in readers {
        events += reader.join().map_err(|_| io::Error::other("a reader panicked"))??;
    }
    println!("{events}");
    Ok(())
}

/// How many events come until then; each ends with two line feeds.
fn count(stream: &mut TcpStream, until: Instant) -> io::Result<u64> {
    let mut piece = [0; 16 * 1024];
    let (mut events, mut last) = (0, 0);
    while Instant::now() < until {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for &byte in &piece[..read] {
            events += u64::from(byte == b'\n' && last == b'\n');
            last = byte;
        }
    }
    Ok(events)
}
