//! `GET /metrics`, for anybody who asks, as often and as many at once as they like: what that takes of the process is bounded.
//!
//! One text is made at a time, off the control thread, and serves all who asked before it was begun; making them takes a share
//! of one core at most. A text is sent piece by piece, from one place for all its readers: those who do not take it in hold up
//! neither the process' memory nor, beyond [`READ_WITHIN`], others who want a newer one.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::Mutex;

use crate::telemetry::exposition::{Exposition, Format};

/// Once the texts of one format that are still being read are as large as this, in bytes, newer ones wait.
const TEXT_BYTES_MAX: usize = 32 << 20;

/// What a reader of a text has at least, before it is cut for want of room; Prometheus' default `scrape_timeout`.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// How many times as long as a text takes to be made none is made.
const REST: u32 = 4;

/// How much of a text waits in a connection, about, in bytes.
const PIECE_BYTES: usize = 8 << 10;

/// Everybody's scrapes.
#[derive(Debug)]
pub(super) struct Scrapes {
    exposition: Exposition,
    /// Whoever holds it makes a text.
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    prometheus: Texts,
    open_metrics: Texts,
    /// Until when none is made.
    rests_until: Instant,
}

/// The texts of one format: the latest, and those that somebody still reads; the oldest first.
#[derive(Debug, Default)]
struct Texts(VecDeque<Arc<Text>>);

#[derive(Debug)]
struct Text {
    begun: Instant,
    text: String,
    /// One for each of its readers, and its own.
    readers: Arc<()>,
}

impl Texts {
    /// Whether there may be one more at `now`. Those that nobody reads go, and, for want of room, those that are old.
    fn make_room(&mut self, now: Instant) -> bool {
        self.0.retain(|text| Arc::strong_count(&text.readers) > 1);
        while self.0.iter().map(|text| text.text.len()).sum::<usize>() >= TEXT_BYTES_MAX {
            match self.0.front() {
                Some(oldest) if now.saturating_duration_since(oldest.begun) < READ_WITHIN => return false,
                _ => self.0.pop_front(),
            };
        }
        true
    }

    /// One more reader of the latest, if it is as new as that.
    fn since(&self, asked: Instant) -> Option<Reader> {
        self.0.back().filter(|text| text.begun >= asked).map(Reader::of)
    }
}

impl Kept {
    fn texts(&mut self, format: Format) -> &mut Texts {
        match format {
            Format::Prometheus => &mut self.prometheus,
            Format::OpenMetrics => &mut self.open_metrics,
        }
    }
}

impl Scrapes {
    pub(super) fn new(exposition: Exposition) -> Arc<Scrapes> {
        let kept = Kept { prometheus: Texts::default(), open_metrics: Texts::default(), rests_until: Instant::now() };
        Arc::new(Scrapes { exposition, kept: Arc::new(Mutex::new(kept)) })
    }

    /// A text of now; under siege the latest one.
    async fn read(self: &Arc<Self>, format: Format) -> Result<Reader, fmt::Error> {
        let asked = Instant::now();
        let mut kept = Arc::clone(&self.kept).lock_owned().await;
        if let Some(reader) = kept.texts(format).since(asked) {
            return Ok(reader);
        }
        tokio::time::sleep_until(kept.rests_until.into()).await;
        let latest = kept.texts(format).0.back().map(Reader::of);
        if let Some(latest) = latest {
            // The latest has a reader already, and stays.
            if !kept.texts(format).make_room(Instant::now()) {
                return Ok(latest);
            }
        }
        let scrapes = Arc::clone(self);
        // Whoever asked may be gone before it is made: it is made all the same, and nobody else makes one meanwhile.
        let making = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let text = Arc::new(Text { begun, text: scrapes.exposition.render(format)?, readers: Arc::default() });
            let reader = Reader::of(&text);
            kept.texts(format).0.push_back(text);
            let now = Instant::now();
            kept.rests_until = now + (now - begun) * REST;
            Ok(reader)
        });
        making.await.unwrap_or(Err(fmt::Error))
    }
}

/// Reads a text from its beginning to its end, or to where it is cut.
#[derive(Debug)]
struct Reader {
    text: Weak<Text>,
    at: usize,
    len: usize,
    _reads: Arc<()>,
}

impl Reader {
    fn of(text: &Arc<Text>) -> Reader {
        Reader { text: Arc::downgrade(text), at: 0, len: text.text.len(), _reads: Arc::clone(&text.readers) }
    }
}

impl Iterator for Reader {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.at == self.len {
            return None;
        }
        let Some(text) = self.text.upgrade() else { return Some(Err(io::ErrorKind::TimedOut.into())) };
        let piece = &text.text.as_bytes()[self.at..self.len.min(self.at + PIECE_BYTES)];
        self.at += piece.len();
        Some(Ok(Bytes::copy_from_slice(piece)))
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(scrapes): State<Arc<Scrapes>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::negotiate(accept);
    let Ok(reader) = scrapes.read(format).await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let head = [
        (header::CONTENT_TYPE, HeaderValue::from_static(format.content_type())),
        (header::CONTENT_LENGTH, reader.len.into()),
    ];
    (head, Body::from_stream(stream::iter(reader))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(begun: Instant, bytes: usize) -> Arc<Text> {
        Arc::new(Text { begun, text: "x".repeat(bytes), readers: Arc::default() })
    }

    fn read(reader: Reader) -> Option<usize> {
        reader.map(|piece| piece.ok().map(|piece| piece.len())).sum()
    }

    #[test]
    fn a_text_is_read_whole_by_each_of_its_readers() {
        for bytes in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 1] {
            let text = text(Instant::now(), bytes);
            assert_eq!([Reader::of(&text), Reader::of(&text)].map(read), [Some(bytes); 2]);
        }
    }

    #[test]
    fn texts_that_nobody_reads_go_and_the_others_have_their_time() {
        let start = Instant::now();
        let mut texts = Texts::default();
        let mut readers: Vec<Reader> = Vec::new();
        while texts.make_room(start) {
            let one = text(start, TEXT_BYTES_MAX / 4);
            readers.push(Reader::of(&one));
            texts.0.push_back(one);
        }
        assert_eq!(texts.0.len(), 4);
        // Whoever has read makes room at once.
        assert_eq!(readers.pop().and_then(read), Some(TEXT_BYTES_MAX / 4));
        assert!(texts.make_room(start) && texts.0.len() == 3);
        let one = text(start, TEXT_BYTES_MAX / 4);
        readers.push(Reader::of(&one));
        texts.0.push_back(one);
        assert!(!texts.make_room(start + READ_WITHIN / 2));
        // Whoever has not is cut, the oldest first, and no more of them than it takes.
        assert!(texts.make_room(start + READ_WITHIN));
        let left: Vec<Option<usize>> = readers.into_iter().map(read).collect();
        assert_eq!(left, [None, Some(TEXT_BYTES_MAX / 4), Some(TEXT_BYTES_MAX / 4), Some(TEXT_BYTES_MAX / 4)]);
    }

    #[test]
    fn a_text_serves_those_who_asked_before_it_was_begun() {
        let begun = Instant::now();
        let texts = Texts(VecDeque::from([text(begun, 1)]));
        assert!(texts.since(begun).is_some());
        assert!(texts.since(begun + Duration::from_nanos(1)).is_none());
    }
}
