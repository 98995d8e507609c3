//! Lines on their way to a reader who may be slow: a thread of their own writes them, and what is beyond [`LINES_MAX`] is lost.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that wait for a slow reader.
pub(super) const LINES_MAX: usize = 8_192;

/// Takes lines and never waits.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    taken: AtomicU64,
    written: AtomicU64,
    lost: AtomicU64,
}

impl Outlet {
    /// Writes to `out`, on a thread, for as long as there is an outlet.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn to(mut out: impl Write + Send + 'static) -> io::Result<Outlet> {
        let (lines, coming) = mpsc::sync_channel::<Vec<u8>>(LINES_MAX);
        let counts = Arc::new(Counts::default());
        let outlet = Outlet { lines, counts: Arc::clone(&counts) };
        let write = move || {
            for line in coming {
                // A reader that is gone cannot be helped.
                let _ = out.write_all(&line);
                counts.written.fetch_add(1, Ordering::Release);
            }
        };
        thread::Builder::new().name("ringway-events".into()).spawn(write)?;
        Ok(outlet)
    }

    /// How many lines were lost since the last call.
    pub(super) fn take_lost(&self) -> u64 {
        self.counts.lost.swap(0, Ordering::Relaxed)
    }

    /// Waits until what was taken so far is written, or `most`.
    pub(super) fn flush(&self, most: Duration) {
        let taken = self.counts.taken.load(Ordering::Acquire);
        let until = Instant::now() + most;
        while self.counts.written.load(Ordering::Acquire) < taken && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for Outlet {
    /// Takes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Counted first: whoever flushes must not find more written than taken.
        self.counts.taken.fetch_add(1, Ordering::Release);
        if self.lines.try_send(line.to_vec()).is_err() {
            self.counts.written.fetch_add(1, Ordering::Release);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn every_line_is_written_in_order() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut outlet = Outlet::to(writer).expect("a thread");
        for number in 0..100 {
            writeln!(outlet, "{number}").expect("it takes all");
        }
        outlet.flush(Duration::from_secs(10));
        drop(outlet);
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("text");
        let lines: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(read.split_whitespace().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn who_reads_nothing_costs_lines_and_a_moment_at_the_end() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut outlet = Outlet::to(writer).expect("a thread");
        for _ in 0..LINES_MAX + 1_000 {
            outlet.write_all(&[b'x'; 1_024]).expect("it never fails");
        }
        let lost = outlet.take_lost();
        assert!((1..=1_000).contains(&lost), "{lost}");
        assert_eq!(outlet.take_lost(), 0);
        let begun = Instant::now();
        outlet.flush(Duration::from_millis(50));
        assert!((Duration::from_millis(50)..Duration::from_secs(5)).contains(&begun.elapsed()));
        drop(reader);
    }
}
