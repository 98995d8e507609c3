//! Requests at a fixed rate, whatever the answers take: an open loop. `pace PORT PATH RATE SECONDS CONNECTIONS`, on loopback.
//!
//! Each request has a moment at which it is due, and its time counts from then, also where it had to wait for a free connection.
//! So a stall of the server shows in every request that came due during it; a closed loop, which sends nothing while it
//! waits, hides it (coordinated omission; G. Tene, "How NOT to Measure Latency"). Prints JSON: how many requests were answered and how
//! many failed, and percentiles in microseconds.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

/// How long the requests under way at the end may take.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, path, rate, seconds, connections] = &arguments[..] else {
        return Err(io::Error::other("usage: pace PORT PATH RATE SECONDS CONNECTIONS"));
    };
    let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
    let port = u16::try_from(number(port)?).map_err(io::Error::other)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let total = number(rate)? * number(seconds)?;
    let load = Load { port, request: request.into_bytes(), gap: Duration::from_secs(1) / number(rate)?, total };
    let result = load.run(number(connections)?)?;
    let at = |quantile| result.micros.value_at_quantile(quantile);
    println!(
        r#"{{"answered":{},"failed":{},"p50":{},"p99":{},"p999":{},"max":{}}}"#,
        result.micros.len(),
        result.failed,
        at(0.5),
        at(0.99),
        at(0.999),
        result.micros.max(),
    );
    Ok(())
}

/// What is asked, and how often.
struct Load {
    port: u16,
    request: Vec<u8>,
    gap: Duration,
    total: u32,
}

/// What came of it.
struct Outcome {
    micros: Histogram<u64>,
    failed: u64,
}

/// One connection, and when the request that is under way on it was due.
struct Connection {
    stream: TcpStream,
    due: Option<Instant>,
    answer: Vec<u8>,
}

impl Load {
    fn run(&self, connections: u32) -> io::Result<Outcome> {
        // Else the kernel may let a sleep last 50 µs longer, to wake up for several things at once.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut lines = (0..connections).map(|index| self.connect(&ready, index)).collect::<io::Result<Vec<_>>>()?;
        let mut free: Vec<usize> = (0..lines.len()).collect();
        let mut outcome = Outcome { micros: Histogram::new(3).map_err(io::Error::other)?, failed: 0 };
        let mut events = Vec::with_capacity(lines.len());
        let start = Instant::now();
        let mut sent = 0;
        while outcome.micros.len() + outcome.failed < u64::from(self.total) {
            let now = Instant::now();
            while sent < self.total && now >= start + self.gap * sent {
                let Some(index) = free.pop() else { break };
                lines[index].due = Some(start + self.gap * sent);
                sent += 1;
                lines[index].stream.write_all(&self.request)?;
            }
            if now > start + self.gap * self.total + GRACE {
                outcome.failed = u64::from(self.total) - outcome.micros.len();
                break;
            }
            let next = if sent < self.total && !free.is_empty() { start + self.gap * sent } else { now + GRACE };
            let wait = Timespec::try_from(next.saturating_duration_since(now)).map_err(io::Error::other)?;
            // poll(2) waits by the nanosecond, epoll_wait(2) by the millisecond.
            poll(&mut [PollFd::new(&ready, PollFlags::IN)], Some(&wait))?;
            events.clear();
            epoll::wait(&ready, spare_capacity(&mut events), Some(&Timespec::default()))?;
            for event in &events {
                let index = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
                let received = lines[index].receive();
                if matches!(received, Ok(false)) {
                    continue;
                }
                // A connection that is ended while it is idle fails no request.
                if let Some(due) = lines[index].due.take() {
                    free.push(index);
                    match received {
                        Ok(_) => outcome.record(due.elapsed())?,
                        Err(_) => outcome.failed += 1,
                    }
                }
                if received.is_err() {
                    lines[index] = self.connect(&ready, index as u32)?;
                }
            }
        }
        Ok(outcome)
    }

    fn connect(&self, ready: &OwnedFd, index: u32) -> io::Result<Connection> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        epoll::add(ready, &stream, epoll::EventData::new_u64(index.into()), epoll::EventFlags::IN)?;
        Ok(Connection { stream, due: None, answer: Vec::with_capacity(4096) })
    }
}

impl Outcome {
    fn record(&mut self, time: Duration) -> io::Result<()> {
        self.micros.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).map_err(io::Error::other)
    }
}

impl Connection {
    /// Reads what has come; whether the answer is whole.
    fn receive(&mut self) -> io::Result<bool> {
        let mut piece = [0; 4096];
        let read = self.stream.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.answer.extend_from_slice(&piece[..read]);
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(head_bytes) = head.parse(&self.answer).map_err(io::Error::other)? else {
            return Ok(false);
        };
        let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
        let Some(length) = length else { return Err(io::Error::other("an answer without Content-Length")) };
        if self.answer.len() < head_bytes + length {
            return Ok(false);
        }
        let is_good = head.code == Some(200);
        self.answer.clear();
        if is_good { Ok(true) } else { Err(io::Error::other("a status other than 200")) }
    }
}
