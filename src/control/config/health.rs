//! `[health]`, and `[services.<name>.health]` and `health_path` over it.

use std::time::Duration;

use crate::snapshot::{HealthPolicy, StatusRange};

use super::read::Section;
use super::value::Node;

/// How a service's endpoints are checked, and what becomes of those that fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSettings {
    /// Off: every endpoint counts as healthy.
    pub enabled: bool,
    /// What `GET` asks for: an absolute path, perhaps with a query, 2,048 visible ASCII characters at most. `None`: that a
    /// connection is accepted is enough. A service's own matter, so always `None` in the global table.
    pub path: Option<String>,
    /// From the start of one check to the start of the next, 1 s to 1 h.
    pub interval: Duration,
    /// How long a check may take, 10 ms to 1 min and at most `interval`.
    pub timeout: Duration,
    /// So many checks in a row must pass before an unhealthy endpoint is healthy again, 1 to 100.
    pub rise: u32,
    /// So many checks in a row must fail before a healthy endpoint is unhealthy, 1 to 100.
    pub fall: u32,
    /// The statuses that pass a check.
    pub expected_status: Vec<StatusRange>,
    /// The share of healthy endpoints below which health is ignored, in thousandths, 0 (never) to 1,000.
    pub panic_threshold: u16,
    /// How long an endpoint that has come back takes to get its whole weight, up to 1 h.
    pub slow_start: Duration,
}

impl HealthSettings {
    /// What the workers need of it.
    pub fn policy(&self) -> HealthPolicy {
        HealthPolicy { panic_threshold: self.panic_threshold, slow_start: self.slow_start }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);

/// The longest `health_path`, in bytes.
const PATH_MAX: usize = 2_048;

/// What holds where nothing is set.
pub(super) fn defaults() -> HealthSettings {
    HealthSettings {
        enabled: true,
        path: None,
        interval: SECOND * 30,
        timeout: SECOND * 2,
        rise: 2,
        fall: 3,
        expected_status: vec![StatusRange { first: 200, last: 399 }],
        panic_threshold: 500,
        slow_start: SECOND * 30,
    }
}

/// The table over `base`.
pub(super) fn health(section: Section<'_>, base: &HealthSettings) -> HealthSettings {
    let count = |key, default| section.read(key, default, |node| Ok(node.integer(1..=100)? as u32));
    let interval = section.read("interval", base.interval, |node| node.duration(SECOND..=HOUR));
    // What is inherited gives way, what is written here must fit.
    let timeout = section.read("timeout", base.timeout.min(interval), |node| node.duration(TIMEOUT_MIN..=MINUTE));
    if timeout > interval
        && let Some(node) = section.node("timeout")
    {
        section.errors.reject(&section.path("timeout"), node, "must not be longer than the interval between checks");
    }
    HealthSettings {
        enabled: section.read("enabled", base.enabled, Node::boolean),
        path: base.path.clone(),
        interval,
        timeout,
        rise: count("rise", base.rise),
        fall: count("fall", base.fall),
        expected_status: section
            .list("expected_status", 1..=64, statuses)
            .map(|ranges| ranges.into_iter().map(|(range, _)| range).collect())
            .unwrap_or_else(|| base.expected_status.clone()),
        panic_threshold: section.read("panic_threshold", base.panic_threshold, |node| {
            let share = node.number().filter(|share| (0.0..=1.0).contains(share));
            let share = share.ok_or("must be a number from 0.0 to 1.0")?;
            // What is above zero stays so.
            Ok(((share * 1_000.0).round() as u16).max(u16::from(share > 0.0)))
        }),
        slow_start: section.read("slow_start", base.slow_start, |node| node.duration(Duration::ZERO..=HOUR)),
    }
}

/// What a service has of its own, over the global table.
pub(super) fn of_service(section: Section<'_>, global: &HealthSettings) -> HealthSettings {
    let path = section.path("health");
    let own = Section::of(&path, section.node("health"), section.errors);
    HealthSettings { path: section.get("health_path", target), ..health(own, global) }
}

/// `200`, or `"200-399"`.
pub(super) fn statuses(node: &Node) -> Result<StatusRange, String> {
    const PROBLEM: &str = "must be a status from 200 to 599, or a range of them such as \"200-399\"";
    if let Ok(status) = node.integer(200..=599) {
        return Ok(StatusRange { first: status as u16, last: status as u16 });
    }
    let range = node.text().ok().and_then(|text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |digits: &str| -> Option<u16> {
            let digits = digits.trim();
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
        };
        Some(StatusRange { first: status(first)?, last: status(last)? })
    });
    range.filter(|range| 200 <= range.first && range.first <= range.last && range.last <= 599).ok_or(PROBLEM.to_owned())
}

/// A request target in origin form (RFC 9112, section 3.2.1).
pub(super) fn target(node: &Node) -> Result<String, String> {
    match node.text()? {
        text if text.len() > PATH_MAX => Err(format!("must not be longer than {PATH_MAX} characters")),
        text if !text.starts_with('/') => Err("must begin with \"/\", as in \"/health\"".to_owned()),
        text if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') => Ok(text.to_owned()),
        _ => Err("must be visible ASCII characters without \"#\"; percent-encode others".to_owned()),
    }
}
