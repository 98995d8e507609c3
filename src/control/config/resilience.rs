//! `[circuit_breaker]`, `[outlier_detection]` and `[retry]`, and a service's own over them.

use std::time::Duration;

use crate::snapshot::{BreakerPolicy, RetryPolicy, StatusRange};
use crate::traffic::breaker::BreakerSettings;
use crate::traffic::outlier::OutlierSettings;
use crate::traffic::retry::{ATTEMPTS_MAX, RetrySettings};

use super::health;
use super::read::Section;
use super::value::Node;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// The largest `retry.body_bytes`.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// What holds for breakers where nothing is set.
pub(super) fn default_breaker() -> BreakerPolicy {
    let settings = BreakerSettings {
        enabled: true,
        failure_threshold: 5,
        failure_ratio: Some(0.5),
        minimum_requests: 20,
        window: SECOND * 10,
        open_for: SECOND * 10,
        open_for_max: SECOND * 300,
        half_open_requests: 1,
    };
    BreakerPolicy { settings, failure_statuses: [StatusRange { first: 502, last: 504 }].into() }
}

/// `[circuit_breaker]` over `base`.
pub(super) fn breaker(section: Section<'_>, base: &BreakerPolicy) -> BreakerPolicy {
    let known = &base.settings;
    let count = |key, default| section.read(key, default, |node| Ok(node.integer(1..=1_000_000)? as u32));
    let open_for = section.read("open_for", known.open_for, |node| node.duration(MILLISECOND * 100..=HOUR));
    let settings = BreakerSettings {
        enabled: section.read("enabled", known.enabled, Node::boolean),
        failure_threshold: count("failure_threshold", known.failure_threshold),
        // 0 is how a file says "none".
        failure_ratio: section.read("failure_ratio", known.failure_ratio, |node| {
            let ratio = share(node)?;
            Ok((ratio > 0.0).then_some(ratio))
        }),
        minimum_requests: count("minimum_requests", known.minimum_requests),
        window: section.read("window", known.window, |node| node.duration(SECOND..=HOUR)),
        open_for,
        // What is inherited gives way, what is written here must fit.
        open_for_max: section
            .read("open_for_max", known.open_for_max.max(open_for), |node| node.duration(open_for..=HOUR * 24)),
        half_open_requests: count("half_open_requests", known.half_open_requests),
    };
    BreakerPolicy { settings, failure_statuses: statuses(section, "failure_statuses", &base.failure_statuses) }
}

/// What holds for outliers where nothing is set.
pub(super) fn default_outliers() -> OutlierSettings {
    OutlierSettings {
        enabled: true,
        interval: SECOND * 10,
        minimum_requests: 100,
        threshold: 0.2,
        max_ejected: 0.5,
        eject_for: SECOND * 30,
        eject_for_max: SECOND * 300,
    }
}

/// `[outlier_detection]` over `base`.
pub(super) fn outliers(section: Section<'_>, base: &OutlierSettings) -> OutlierSettings {
    let eject_for = section.read("eject_for", base.eject_for, |node| node.duration(SECOND..=HOUR));
    OutlierSettings {
        enabled: section.read("enabled", base.enabled, Node::boolean),
        interval: section.read("interval", base.interval, |node| node.duration(SECOND..=HOUR)),
        minimum_requests: section
            .read("minimum_requests", base.minimum_requests, |node| Ok(node.integer(1..=1_000_000)? as u32)),
        threshold: section.read("threshold", base.threshold, |node| match share(node)? {
            0.0 => Err("must be above 0.0".to_owned()),
            threshold => Ok(threshold),
        }),
        max_ejected: section.read("max_ejected", base.max_ejected, share),
        eject_for,
        eject_for_max: section
            .read("eject_for_max", base.eject_for_max.max(eject_for), |node| node.duration(eject_for..=HOUR * 24)),
    }
}

/// What holds for retries where nothing is set.
pub(super) fn default_retry() -> RetryPolicy {
    let settings = RetrySettings {
        enabled: true,
        attempts: 3,
        budget: 0.2,
        budget_minimum: 3,
        backoff: MILLISECOND * 25,
        backoff_max: MILLISECOND * 250,
    };
    let statuses = [StatusRange { first: 502, last: 503 }].into();
    RetryPolicy { settings, statuses, try_timeout: None, body_bytes: 16 << 10 }
}

/// `[retry]` over `base`.
pub(super) fn retry(section: Section<'_>, base: &RetryPolicy) -> RetryPolicy {
    let known = &base.settings;
    let backoff = section.read("backoff", known.backoff, |node| node.duration(Duration::ZERO..=SECOND * 10));
    let settings = RetrySettings {
        enabled: section.read("enabled", known.enabled, Node::boolean),
        attempts: section.read("attempts", known.attempts, |node| Ok(node.integer(1..=u64::from(ATTEMPTS_MAX))? as u8)),
        budget: section.read("budget", known.budget, share),
        budget_minimum: section
            .read("budget_minimum", known.budget_minimum, |node| Ok(node.integer(0..=1_000_000)? as u32)),
        backoff,
        backoff_max: section
            .read("backoff_max", known.backoff_max.max(backoff), |node| node.duration(backoff..=SECOND * 60)),
    };
    RetryPolicy {
        settings,
        statuses: statuses(section, "statuses", &base.statuses),
        // 0 is how a file says "none".
        try_timeout: section.read("try_timeout", base.try_timeout, |node| {
            let time = node.duration(Duration::ZERO..=HOUR * 24)?;
            match time {
                Duration::ZERO => Ok(None),
                time if time < MILLISECOND * 10 => Err("must be 0 for none, or at least 10ms".to_owned()),
                time => Ok(Some(time)),
            }
        }),
        body_bytes: section.read("body_bytes", base.body_bytes, |node| Ok(node.size(0..=BODY_BYTES_MAX)? as usize)),
    }
}

fn share(node: &Node) -> Result<f64, String> {
    node.number().filter(|share| (0.0..=1.0).contains(share)).ok_or("must be a number from 0.0 to 1.0".to_owned())
}

/// Statuses of errors: others are no reason to doubt an endpoint.
fn statuses(section: Section<'_>, key: &str, base: &[StatusRange]) -> Box<[StatusRange]> {
    let ranges = section.list(key, 0..=64, |node| {
        let range = health::statuses(node)?;
        if range.first >= 400 {
            Ok(range)
        } else {
            Err("must be a status from 400 to 599, or a range of them".to_owned())
        }
    });
    ranges.map_or_else(|| base.into(), |ranges| ranges.into_iter().map(|(range, _)| range).collect())
}
