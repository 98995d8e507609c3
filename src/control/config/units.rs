//! Durations and byte sizes, read and shown.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads `250ms`, `30s`, `1.5m`, `1h`, or a plain number of seconds.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, milliseconds) = split(text, &DURATION_UNITS, 1_000)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(milliseconds).map(Duration::from_millis);
    }
    let seconds = number.parse::<f64>().ok()? * milliseconds as f64 / 1_000.0;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Reads `16KiB`, `10MiB`, `1GiB`, `512B`, or a plain number of bytes. Decimal units (`KB`) are refused: half of their
/// users mean 1,000 and the other half 1,024.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, bytes) = split(text, &SIZE_UNITS, 1)?;
    number.parse::<u64>().ok()?.checked_mul(bytes)
}

/// The number and the factor of its unit. Only digits and a point in the number: no sign, no exponent, no `inf`.
fn split<'a>(text: &'a str, units: &[(&str, u64)], plain: u64) -> Option<(&'a str, u64)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return None;
    }
    match unit {
        "" => Some((number, plain)),
        _ => units.iter().find(|(name, _)| *name == unit).map(|&(_, factor)| (number, factor)),
    }
}

/// Reads a time (RFC 3339), as seconds since the Unix epoch.
pub(super) fn parse_time(text: &str) -> Option<u64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp()).ok()
}

/// The shortest exact form in whole units: `75s`, `5m`, `250ms`.
pub(super) fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    show(milliseconds, &DURATION_UNITS)
}

/// The shortest exact form in whole units: `16KiB`, `1000B`.
pub(super) fn show_size(bytes: u64) -> String {
    show(u128::from(bytes), &SIZE_UNITS)
}

fn show(amount: u128, units: &[(&str, u64)]) -> String {
    let fits = |&&(_, factor): &&(&str, u64)| amount != 0 && amount.is_multiple_of(u128::from(factor));
    let (unit, factor) = units.iter().rev().find(fits).unwrap_or(&units[0]);
    format!("{}{unit}", amount / u128::from(*factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text:?}");
        };
        check("30s", Some(30_000));
        check("250ms", Some(250));
        check("5m", Some(300_000));
        check("1h", Some(3_600_000));
        check("1.5s", Some(1_500));
        check("0.5m", Some(30_000));
        check("7", Some(7_000));
        check("0.25", Some(250));
        check("0", Some(0));
        for bad in ["", "s", "-1s", "+1s", "1 s", "1d", "1S", "1e3s", "inf", "nan", ".5s", "5.s", "1.2.3s", "1h30m"] {
            check(bad, None);
        }
        check("18446744073709551615h", None);
        check("99999999999999999999999h", None);
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse_size(text), expected, "{text:?}");
        check("16KiB", Some(16_384));
        check("10MiB", Some(10 << 20));
        check("2GiB", Some(2 << 30));
        check("512B", Some(512));
        check("4096", Some(4096));
        check("0", Some(0));
        for bad in ["", "KiB", "16KB", "16k", "1.5MiB", "-1", "16 KiB", "18446744073709551615KiB"] {
            check(bad, None);
        }
    }

    #[test]
    fn shown_in_the_largest_exact_unit() {
        let check = |milliseconds, expected| {
            assert_eq!(show_duration(Duration::from_millis(milliseconds)), expected);
        };
        check(0, "0s");
        check(250, "250ms");
        check(75_000, "75s");
        check(300_000, "5m");
        check(7_200_000, "2h");
        for (bytes, expected) in [(0, "0B"), (1_000, "1000B"), (16_384, "16KiB"), (10 << 20, "10MiB")] {
            assert_eq!(show_size(bytes), expected);
        }
    }
}
