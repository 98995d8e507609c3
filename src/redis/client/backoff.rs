//! How long to wait before connecting again. Pure.

use std::time::Duration;

/// The first pause is at most so long.
const FIRST: Duration = Duration::from_millis(10);

/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(2);

/// The pause after `failures` attempts in a row that came to nothing; `draw` is uniform. Its ceiling doubles, and it lies in
/// the upper half below it: many gateways come back neither all at once nor much later than they could.
pub(crate) fn pause(failures: u32, draw: u64) -> Duration {
    let ceiling = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
    let half = ceiling / 2;
    half + Duration::from_nanos(draw % (half.as_nanos() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_maximum_and_vary() {
        let span = |failures| (pause(failures, 0).as_millis(), pause(failures, 1).as_nanos() % 2);
        assert_eq!(span(0), (5, 1));
        assert_eq!(pause(0, 5_000_000), Duration::from_millis(10));
        assert_eq!(pause(3, 0), Duration::from_millis(40));
        for failures in [8, 9, 16, 1_000, u32::MAX] {
            assert_eq!(pause(failures, 0), LONGEST / 2);
            assert_eq!(pause(failures, 1_000_000_000), LONGEST);
            assert!((0..1_000u64).all(|draw| pause(failures, draw.wrapping_mul(0x9E37_79B9_7F4A_7C15)) <= LONGEST));
        }
    }
}
