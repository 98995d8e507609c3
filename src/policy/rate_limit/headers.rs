//! What a client is told about its limits: header lines, rendered without allocating.
//!
//! `RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-10, lists of one item a limit.
//! `X-RateLimit-*` are what clients knew before: the tightest limit alone, the reset as seconds from now.

use std::time::Duration;

use crate::http::text::push_decimal;
use crate::traffic::window::Limit;

/// Where a request stands under one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many requests could follow it at once.
    pub remaining: u32,
    /// Until the oldest requests no longer count.
    pub reset_after: Duration,
}

/// One limit of a request, as its headers show it.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The limit's name: printable ASCII; other bytes are left out.
    pub name: &'a str,
    /// The limit.
    pub limit: &'a Limit,
    /// The request's standing under it.
    pub standing: Standing,
}

/// Appends the header lines of an answer under `limits`, none for none.
pub fn push_headers<'a>(limits: impl Iterator<Item = Shown<'a>> + Clone, out: &mut Vec<u8>) {
    let Some(tightest) = limits.clone().min_by_key(|shown| (shown.standing.remaining, shown.standing.reset_after))
    else {
        return;
    };
    for (index, shown) in limits.clone().enumerate() {
        push_item(if index == 0 { "RateLimit-Policy: " } else { ", " }, shown.name, out);
        push_number(";q=", u64::from(shown.limit.requests()), out);
        push_number(";w=", seconds(shown.limit.window()), out);
    }
    for (index, shown) in limits.enumerate() {
        push_item(if index == 0 { "\r\nRateLimit: " } else { ", " }, shown.name, out);
        push_number(";r=", u64::from(shown.standing.remaining), out);
        push_number(";t=", seconds(shown.standing.reset_after), out);
    }
    push_number("\r\nX-RateLimit-Limit: ", u64::from(tightest.limit.requests()), out);
    push_number("\r\nX-RateLimit-Remaining: ", u64::from(tightest.standing.remaining), out);
    push_number("\r\nX-RateLimit-Reset: ", seconds(tightest.standing.reset_after), out);
    out.extend_from_slice(b"\r\n");
}

/// Appends `Retry-After` (RFC 9110, section 10.2.3) in whole seconds, rounded up, at least one.
pub fn push_retry_after(retry_after: Duration, out: &mut Vec<u8>) {
    push_number("Retry-After: ", seconds(retry_after).max(1), out);
    out.extend_from_slice(b"\r\n");
}

/// A structured field string (RFC 9651, section 3.3.3).
fn push_item(before: &str, name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(before.as_bytes());
    out.push(b'"');
    for &byte in name.as_bytes().iter().filter(|byte| (b' '..=b'~').contains(byte)) {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn push_number(before: &str, number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(before.as_bytes());
    push_decimal(number, out);
}

/// Rounded up: who waits that long has waited long enough.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let minute = Limit::new(100, Duration::from_secs(60));
        let hour = Limit::new(1_000, Duration::from_secs(3_600));
        let shown = |name, limit, remaining, reset_ms| Shown {
            name,
            limit,
            standing: Standing { remaining, reset_after: Duration::from_millis(reset_ms) },
        };
        let check = |limits: &[Shown<'_>], expected: &[&str]| {
            let mut out = Vec::new();
            push_headers(limits.iter().copied(), &mut out);
            let expected: String = expected.iter().map(|line| format!("{line}\r\n")).collect();
            assert_eq!(String::from_utf8_lossy(&out), expected);
        };
        check(&[], &[]);
        check(
            &[shown("default", &minute, 50, 29_001)],
            &[
                r#"RateLimit-Policy: "default";q=100;w=60"#,
                r#"RateLimit: "default";r=50;t=30"#,
                "X-RateLimit-Limit: 100",
                "X-RateLimit-Remaining: 50",
                "X-RateLimit-Reset: 30",
            ],
        );
        check(
            &[shown("a\"\\b\r\nc", &minute, 50, 0), shown("hour", &hour, 3, 1_000_000)],
            &[
                r#"RateLimit-Policy: "a\"\\bc";q=100;w=60, "hour";q=1000;w=3600"#,
                r#"RateLimit: "a\"\\bc";r=50;t=0, "hour";r=3;t=1000"#,
                "X-RateLimit-Limit: 1000",
                "X-RateLimit-Remaining: 3",
                "X-RateLimit-Reset: 1000",
            ],
        );
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (milliseconds, expected) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (59_999, "60")] {
            let mut out = Vec::new();
            push_retry_after(Duration::from_millis(milliseconds), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("Retry-After: {expected}\r\n"));
        }
    }
}
