//! The way of an access-log line out of a worker: a bounded ring of bytes, emptied by one thread of its own.
//!
//! A worker never waits for the log. A line goes into the ring whole or not at all, and a reader that is too slow costs
//! lines, which are counted, and nothing else.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};

/// A worker's end.
#[derive(Debug)]
pub struct LogSender {
    ring: Producer<u8>,
    writer: Thread,
    waiting: usize,
}

impl LogSender {
    /// Takes a line, or says that there is no room for it. Wakes the writer once half of the ring is full, so that it is
    /// woken once for many lines.
    pub fn push(&mut self, line: &[u8]) -> bool {
        if self.ring.slots() < line.len() {
            return false;
        }
        let (pushed, _) = self.ring.push_partial_slice(line);
        debug_assert_eq!(pushed.len(), line.len(), "only this end adds, so the room that was seen is there");
        self.waiting += line.len();
        if self.waiting > self.ring.buffer().capacity() / 2 {
            self.wake();
        }
        true
    }

    /// Lets the writer know of the lines since the last call.
    pub fn wake(&mut self) {
        if self.waiting > 0 {
            self.waiting = 0;
            self.writer.unpark();
        }
    }
}

/// The thread that writes.
#[derive(Debug)]
pub struct LogWriter {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

/// Starts the writer: a ring of `ring_bytes` for each of `workers`, emptied into `out`.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    workers: usize,
    ring_bytes: usize,
    out: impl Write + Send + 'static,
) -> io::Result<(Vec<LogSender>, LogWriter)> {
    let (producers, consumers): (Vec<_>, Vec<_>) = (0..workers).map(|_| RingBuffer::new(ring_bytes)).unzip();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = thread::Builder::new().name("ringway-log".into()).spawn({
        let stop = Arc::clone(&stop);
        move || write_until(&stop, consumers, out)
    })?;
    let senders =
        producers.into_iter().map(|ring| LogSender { ring, writer: thread.thread().clone(), waiting: 0 }).collect();
    Ok((senders, LogWriter { thread, stop }))
}

impl LogWriter {
    /// Writes what is left and ends the thread; gives up after `timeout`, when the reader takes nothing.
    pub fn finish(self, timeout: Duration) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let until = Instant::now() + timeout;
        while !self.thread.is_finished() && Instant::now() < until {
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn write_until(stop: &AtomicBool, mut rings: Vec<Consumer<u8>>, mut out: impl Write) {
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let mut wrote = false;
        for ring in &mut rings {
            wrote |= drain(ring, &mut out);
        }
        if wrote {
            // A reader that is gone cannot be helped; its lines are read from the rings all the same.
            let _ = out.flush();
        } else if stopping {
            return;
        } else {
            thread::park();
        }
    }
}

/// Writes what a ring holds; says whether it held anything.
fn drain(ring: &mut Consumer<u8>, out: &mut impl Write) -> bool {
    let Ok(chunk) = ring.read_chunk(ring.slots()) else { return false };
    let (first, second) = chunk.as_slices();
    let some = !first.is_empty();
    for part in [first, second] {
        let _ = out.write_all(part);
    }
    chunk.commit_all();
    some
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_line_comes_out_whole() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (senders, log) = start(3, 4096, writer).expect("a thread");
        let workers: Vec<_> = senders
            .into_iter()
            .enumerate()
            .map(|(worker, mut sender)| {
                thread::spawn(move || {
                    for index in 0..5_000 {
                        while !sender.push(format!("{worker} {index} end\n").as_bytes()) {
                            thread::yield_now();
                        }
                    }
                    sender.wake();
                })
            })
            .collect();
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        for worker in workers {
            worker.join().expect("no panic");
        }
        log.finish(Duration::from_secs(10));
        let text = reading.join().expect("no panic").expect("text");
        let mut next = [0; 3];
        for line in text.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let worker: usize = parts[0].parse().expect("a worker");
            assert_eq!(parts[1..], [next[worker].to_string(), "end".to_owned()]);
            next[worker] += 1;
        }
        assert_eq!(next, [5_000; 3]);
    }

    /// A reader that takes nothing until it is told to.
    struct Stalled(mpsc::Receiver<()>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time() {
        let (release, stalled) = mpsc::channel();
        let (mut senders, log) = start(1, 1024, Stalled(stalled)).expect("a thread");
        let sender = &mut senders[0];
        let taken = (0..1_000).filter(|_| sender.push(&[b'x'; 100])).count();
        assert!((10..=20).contains(&taken), "{taken}");
        sender.wake();
        let started = Instant::now();
        log.finish(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(5));
        drop(release);
    }
}
