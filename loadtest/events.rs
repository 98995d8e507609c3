//! Server-Sent Events, from both ends, on loopback. `events serve PORT EVERY_US` sends each client an event so often, until it is killed;
//! `events read PORT PATH STREAMS SECONDS` reads so many streams, and prints how many events came, and percentiles of how long after
//! they were due, in microseconds, as JSON.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// One event, as a chunk of its own: 64 bytes of it. When it was due, in nanoseconds of the monotonic clock, stands in the middle.
const BEFORE_DUE: &str = "40\r\ndata: {\"due\":\"";
const DUE_DIGITS: usize = 20;
const BEHIND_DUE: &str = "\",\"token\":\"word of a model\"}\n\n\r\n";
/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(5);

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
    // Else the kernel may let a sleep last 50 µs longer. Threads inherit it.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
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
    let start = now();
    for number in 1.. {
        let due = start + every * number;
        thread::sleep(due.saturating_sub(now()));
        // In one piece.
        client.write_all(format!("{BEFORE_DUE}{:0DUE_DIGITS$}{BEHIND_DUE}", due.as_nanos()).as_bytes())?;
    }
    Ok(())
}

/// The monotonic clock, which all processes of the machine share.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn read(port: u16, path: &str, streams: u64, time: Duration) -> io::Result<()> {
    let until = Instant::now() + time;
    let readers: Vec<_> = (0..streams)
        .map(|_| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n")?;
            Ok(thread::spawn(move || delays(&mut stream, until)))
        })
        .collect::<io::Result<_>>()?;
    let mut delays = histogram()?;
    for reader in readers {
        delays.add(reader.join().map_err(|_| io::Error::other("a reader panicked"))??).map_err(io::Error::other)?;
    }
    let at = |quantile| delays.value_at_quantile(quantile);
    println!(r#"{{"events":{},"p50":{},"p99":{},"p999":{}}}"#, delays.len(), at(0.5), at(0.99), at(0.999));
    Ok(())
}

fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new(3).map_err(io::Error::other)
}

/// How long after they were due the events come until then.
fn delays(stream: &mut TcpStream, until: Instant) -> io::Result<Histogram<u64>> {
    let mut delays = histogram()?;
    let mut piece = [0; 16 * 1024];
    // The latest digits in a row.
    let (mut due, mut digits) = (0, 0);
    while Instant::now() < until {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let came = now();
        for byte in &piece[..read] {
            (due, digits) = match byte {
                b'0'..=b'9' => (due * 10 + u64::from(byte - b'0'), digits + 1),
                _ => (0, 0),
            };
            if digits == DUE_DIGITS {
                let delay = came.saturating_sub(Duration::from_nanos(due));
                delays.record(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)).map_err(io::Error::other)?;
            }
        }
    }
    Ok(delays)
}
