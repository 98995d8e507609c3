//! W3C Trace Context: who asked, and whether that is recorded. <https://www.w3.org/TR/trace-context-2/>
//!
//! `traceparent` is `version-traceid-parentid-flags`, in lower-case hexadecimal.

use std::ops::Range;

/// A whole field value of version 00, in bytes.
pub const LENGTH: usize = 55;

/// Where the trace's identity stands.
pub const TRACE_ID: Range<usize> = 3..35;

/// Where the identity of the span stands that the request comes from.
pub const PARENT_ID: Range<usize> = 36..52;

/// Where the flags stand.
pub const FLAGS: Range<usize> = 53..55;

/// The part of a `traceparent` that every version has: what stands behind the version, up to the flags. `None` for one that
/// is malformed, and must be replaced (section 3.2). Versions to come may go on behind the flags.
pub fn known_part(value: &[u8]) -> Option<&[u8]> {
    let (version, known) = (value.get(..2)?, value.get(2..LENGTH)?);
    let is_hex = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == b'0');
    let is_known_version = match version {
        b"ff" => false,
        b"00" => value.len() == LENGTH,
        _ => is_hex(version) && value.get(LENGTH).is_none_or(|&next| next == b'-'),
    };
    let has_separators = [2, 35, 52].iter().all(|&at| value[at] == b'-');
    let ids = [&value[TRACE_ID], &value[PARENT_ID]];
    let is_good =
        is_known_version && has_separators && ids.iter().all(|id| is_hex(id) && !is_zero(id)) && is_hex(&value[FLAGS]);
    is_good.then_some(known)
}

/// Whether the flags, of a value of version 00, say that the trace is recorded.
pub fn is_sampled(value: &[u8]) -> bool {
    value.get(FLAGS).is_some_and(|flags| number(flags) & 1 == 1)
}

/// A number in lower-case hexadecimal, of 32 digits at most.
pub fn number(digits: &[u8]) -> u128 {
    let digit = |byte: u8| u128::from(if byte > b'9' { byte.wrapping_sub(b'a') + 10 } else { byte.wrapping_sub(b'0') });
    digits.iter().fold(0, |value, &byte| value << 4 | digit(byte) & 15)
}

/// Whether a trace that begins here is recorded: the same ones everywhere, at a ratio (OpenTelemetry's TraceIdRatioBased).
/// `threshold` is the ratio times 2^63.
pub fn is_chosen(trace: u128, threshold: u64) -> bool {
    (trace as u64) >> 1 < threshold
}

/// The `threshold` of a ratio from 0.0 to 1.0.
pub fn threshold(ratio: f64) -> u64 {
    (ratio * (1u64 << 63) as f64) as u64
}

/// Replaces the identity of the span that a request comes from in the head `out`, which must have a `traceparent` of
/// version 00: by 16 digits.
pub fn replace_parent_id(out: &mut [u8], digits: &[u8; 16]) {
    const FIELD: &[u8] = b"\r\ntraceparent: ";
    // The first one: values hold no line ends, and bodies come behind the head.
    if let Some(field) = memchr::memmem::find(out, FIELD) {
        let value = field + FIELD.len();
        if let Some(parent) = out.get_mut(value + PARENT_ID.start..value + PARENT_ID.end) {
            parent.copy_from_slice(digits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn what_every_version_has() {
        let good = |value: &str| {
            let known = known_part(value.as_bytes()).unwrap_or_else(|| panic!("{value}"));
            assert_eq!(String::from_utf8_lossy(known), format!("-{TRACE}-{PARENT}-{}", &value[53..55]));
        };
        good(&format!("00-{TRACE}-{PARENT}-01"));
        good(&format!("00-{TRACE}-{PARENT}-ff"));
        good(&format!("01-{TRACE}-{PARENT}-00"));
        good(&format!("cc-{TRACE}-{PARENT}-01-what-the-future-brings"));
        let (zero_trace, zero_parent) = ("0".repeat(32), "0".repeat(16));
        for refused in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{PARENT}-0"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("01-{TRACE}-{PARENT}-01more"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("FE-{TRACE}-{PARENT}-01"),
            format!("0-{TRACE}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", PARENT.to_uppercase()),
            format!("00-{TRACE}-{PARENT}-0G"),
            format!("00-{zero_trace}-{PARENT}-01"),
            format!("00-{TRACE}-{zero_parent}-01"),
            format!("00_{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}_{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}_01"),
        ] {
            assert_eq!(known_part(refused.as_bytes()), None, "{refused}");
        }
    }

    #[test]
    fn flags_and_numbers() {
        for (flags, expected) in [("00", false), ("01", true), ("02", false), ("03", true), ("ff", true), ("fe", false)]
        {
            assert_eq!(is_sampled(format!("00-{TRACE}-{PARENT}-{flags}").as_bytes()), expected, "{flags}");
        }
        assert_eq!(number(b"00f067aa0ba902b7"), 0x00f0_67aa_0ba9_02b7);
        assert_eq!(number(b""), 0);
        assert_eq!(number(&[b'f'; 32]), u128::MAX);
    }

    #[test]
    fn a_ratio_chooses_its_share() {
        let chosen = |ratio: f64| {
            let traces = (0..10_000u128).map(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            traces.filter(|&trace| is_chosen(trace, threshold(ratio))).count()
        };
        assert_eq!((chosen(0.0), chosen(1.0)), (0, 10_000));
        assert!((900..1_100).contains(&chosen(0.1)), "{}", chosen(0.1));
        // As OpenTelemetry's own sampler decides it, on the low half of the identity.
        assert!(is_chosen(u128::from(u64::MAX / 4) << 64 | u128::from(u64::MAX / 4), threshold(0.5)));
        assert!(!is_chosen(u128::from(u64::MAX / 4 * 3), threshold(0.5)));
    }

    #[test]
    fn the_parent_is_replaced_in_place() {
        let head = |parent: &str| {
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX-Odd: traceparent: 00\r\ntraceparent: 00-{TRACE}-{parent}-01\r\n\r\nbody"
            )
        };
        let mut out = head(PARENT).into_bytes();
        replace_parent_id(&mut out, b"0123456789abcdef");
        assert_eq!(String::from_utf8_lossy(&out), head("0123456789abcdef"));
        let mut without = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        replace_parent_id(&mut without, b"0123456789abcdef");
        assert_eq!(without, b"GET / HTTP/1.1\r\n\r\n");
    }
}
