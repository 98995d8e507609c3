//! What the encoder's text still lacks: exemplars, which it takes only of its own histograms; and the older format.

use std::sync::{Mutex, PoisonError};

use crate::telemetry::counters::Exemplar;

/// The histogram whose buckets can be told by a trace.
pub(super) const TRACED: &str = "api_gateway_request_duration_seconds";

/// What each bucket of [`TRACED`] can be told by, in the order in which they were encoded.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<Vec<Option<Exemplar>>>);

impl Exemplars {
    /// Takes those of the text that is being encoded.
    pub(super) fn set(&self, exemplars: Vec<Option<Exemplar>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = exemplars;
    }

    /// Puts them behind their buckets (OpenMetrics 1.0.0, "Exemplars").
    pub(super) fn insert_into(&self, openmetrics: &str) -> String {
        let exemplars = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut exemplars = exemplars.iter();
        let mut text = String::with_capacity(openmetrics.len() + exemplars.len() * 96);
        for line in openmetrics.lines() {
            text.push_str(line);
            let is_bucket = line.strip_prefix(TRACED).is_some_and(|rest| rest.starts_with("_bucket{"));
            if is_bucket && let Some(Some(Exemplar { trace, nanos, unix_ms })) = exemplars.next() {
                let (trace, seconds, at) = (String::from_utf8_lossy(trace), *nanos as f64 / 1e9, *unix_ms as f64 / 1e3);
                text.push_str(&format!(" # {{trace_id=\"{trace}\"}} {seconds} {at:.3}"));
            }
            text.push('\n');
        }
        text
    }
}

/// Turns OpenMetrics into the older format, which calls a counter by its sample's name and knows neither units nor an end
/// mark.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        let is_counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        let is_counter_help = line.starts_with("# HELP ") && lines.peek().is_some_and(|next| is_counter(next));
        match line.splitn(4, ' ').collect::<Vec<_>>().as_slice() {
            ["#", "EOF"] | ["#", "UNIT", ..] => continue,
            ["#", keyword, name, rest] if is_counter_help || is_counter(line) => {
                text.push_str(&format!("# {keyword} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}
