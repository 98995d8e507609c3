//! Requests at a fixed rate, whatever the answers take: an open loop. `pace PORT RATE SECONDS CONNECTIONS [new]`, on loopback. The requests
//! come by standard input, with a zero byte between one and the next, and are sent in turns; with `new`, each on a connection of its own.
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

/// Bytes of an answer that are read at once.
const PIECE: usize = 64 * 1024;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (paced, is_anew) = match &arguments[..] {
        [paced @ .., word] if word == "new" => (paced, true),
        paced => (paced, false),
    };
    let [port, rate, seconds, connections] = paced else {
        return Err(io::Error::other(
            "usage: pace PORT RATE SECONDS CONNECTIONS [new], with the requests on standard input",
        ));
    };
    let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
    let port = u16::try_from(number(port)?).map_err(io::Error::other)?;
    let total = number(rate)? * number(seconds)?;
    let mut requests = Vec::new();
    io::stdin().read_to_end(&mut requests)?;
    let requests = requests.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let load = Load { port, requests, gap: Duration::from_secs(1) / number(rate)?, total, is_anew };
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
    requests: Vec<Vec<u8>>,
    gap: Duration,
    total: u32,
    /// Whether each request has a connection of its own.
    is_anew: bool,
}

/// What came of it.
struct Outcome {
    micros: Histogram<u64>,
    failed: u64,
}

/// One connection, and the request that is under way on it.
struct Connection {
    stream: TcpStream,
    due: Option<Instant>,
    /// Which request, and how much of it has been sent.
    request: usize,
    sent: usize,
    head: Vec<u8>,
    /// Bytes of the answer's body that are still to come.
    left: usize,
    /// Whether the answer is the last one.
    is_last: bool,
}

/// What came on a connection.
#[derive(Default)]
struct Received {
    has_answer: bool,
    is_over: bool,
}

impl Load {
    fn run(&self, connections: u32) -> io::Result<Outcome> {
        // Else the kernel may let a sleep last 50 µs longer, to wake up for several things at once.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut lines = (0..connections)
            .map(|index| (!self.is_anew).then(|| self.connect(&ready, index)).transpose())
            .collect::<io::Result<Vec<_>>>()?;
        let mut free: Vec<usize> = (0..lines.len()).collect();
        let mut outcome = Outcome { micros: Histogram::new(3).map_err(io::Error::other)?, failed: 0 };
        let mut events = Vec::with_capacity(lines.len());
        let mut piece = vec![0; PIECE];
        let start = Instant::now();
        let mut sent = 0;
        while outcome.micros.len() + outcome.failed < u64::from(self.total) {
            let now = Instant::now();
            while sent < self.total && now >= start + self.gap * sent {
                let Some(index) = free.pop() else { break };
                if self.is_anew {
                    lines[index] = None;
                }
                let line = match &mut lines[index] {
                    Some(line) => line,
                    none => none.insert(self.connect(&ready, index as u32)?),
                };
                (line.due, line.request, line.sent) =
                    (Some(start + self.gap * sent), sent as usize % self.requests.len(), 0);
                sent += 1;
                // What goes wrong shows when the connection is read.
                let _ = line.send(&self.requests);
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
                let Some(line) = &mut lines[index] else { continue };
                let _ = line.send(&self.requests);
                let received = line.receive(&mut piece);
                // A connection that is ended while it is idle fails no request.
                if let Some(due) = line.due.take_if(|_| received.has_answer || received.is_over) {
                    free.push(index);
                    match received.has_answer {
                        true => outcome.record(due.elapsed())?,
                        false => outcome.failed += 1,
                    }
                }
                // An answer to a request that is not sent to its end is the last one, too.
                if received.is_over || received.has_answer && line.sent < self.requests[line.request].len() {
                    lines[index] = None;
                }
            }
        }
        Ok(outcome)
    }

    fn connect(&self, ready: &OwnedFd, index: u32) -> io::Result<Connection> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(ready, &stream, epoll::EventData::new_u64(index.into()), events)?;
        Ok(Connection {
            stream,
            due: None,
            request: 0,
            sent: 0,
            head: Vec::with_capacity(4096),
            left: 0,
            is_last: false,
        })
    }
}

impl Outcome {
    fn record(&mut self, time: Duration) -> io::Result<()> {
        self.micros.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).map_err(io::Error::other)
    }
}

impl Connection {
    /// Sends as much of the request as the kernel takes.
    fn send(&mut self, requests: &[Vec<u8>]) -> io::Result<()> {
        while self.due.is_some() && self.sent < requests[self.request].len() {
            self.sent += self.stream.write(&requests[self.request][self.sent..])?;
        }
        Ok(())
    }

    /// Reads all that has come.
    fn receive(&mut self, piece: &mut [u8]) -> Received {
        let mut received = Received::default();
        loop {
            match self.stream.read(piece) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Received { is_over: received.has_answer && self.is_last, ..received };
                }
                Ok(read @ 1..) => match self.take(&piece[..read]) {
                    Ok(is_whole) => received.has_answer |= is_whole,
                    Err(_) => return Received { has_answer: false, is_over: true },
                },
                Ok(_) | Err(_) => return Received { is_over: true, ..received },
            }
        }
    }

    /// Takes in bytes of an answer; whether it is whole.
    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.left > 0 {
            self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| io::Error::other("more than an answer"))?;
            return Ok(self.left == 0);
        }
        self.head.extend_from_slice(bytes);
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(head_bytes) = head.parse(&self.head).map_err(io::Error::other)? else {
            return Ok(false);
        };
        if head.code != Some(200) {
            return Err(io::Error::other("a status other than 200"));
        }
        let value = |name| {
            let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        self.is_last = value("connection").is_some_and(|options| options.eq_ignore_ascii_case("close"));
        let length = value("content-length").and_then(|digits| digits.parse::<usize>().ok());
        let length = length.ok_or_else(|| io::Error::other("an answer without Content-Length"))?;
        let come = self.head.len() - head_bytes;
        self.left = length.checked_sub(come).ok_or_else(|| io::Error::other("more than an answer"))?;
        self.head.clear();
        Ok(self.left == 0)
    }
}
