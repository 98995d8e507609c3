//! What the health of a service's endpoints means for its requests: who may be chosen, and with how much of its weight.
//!
//! - An unhealthy endpoint is out, unless **panic** reigns: where fewer than a given share of the endpoints are healthy,
//!   health is ignored and all are used alike (Envoy's panic threshold). The few that are left would only be overrun by
//!   everybody's requests, and checks that fail nearly everywhere say more about the checks.
//! - One that has come back **starts slowly**: its weight grows linearly from a tenth to the whole. Computed at each choice,
//!   so that a ramp needs no new snapshot.
//!
//! A [`Standing`] is built once for a snapshot; asking it allocates nothing.

use super::balance::FULL_SHARE;

/// What an endpoint that has just come back has of its weight.
const FIRST_SHARE: u32 = FULL_SHARE / 10;

/// What the checks say about an endpoint; times in milliseconds on the caller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Usable.
    Healthy,
    /// Usable again since then.
    Returned(u64),
    /// Out.
    Unhealthy,
}

/// The endpoints of one service, by health.
#[derive(Debug)]
pub struct Standing {
    endpoints: Box<[Health]>,
    in_panic: bool,
    slow_start: u64,
}

impl Standing {
    /// `panic_threshold` in thousandths of the endpoints, 0 for never; `slow_start` in milliseconds, 0 for none.
    pub fn new(health: impl Iterator<Item = Health>, panic_threshold: u16, slow_start: u64) -> Standing {
        let endpoints: Box<[Health]> = health.collect();
        let healthy = endpoints.iter().filter(|&&health| health != Health::Unhealthy).count();
        Standing { in_panic: is_panic(healthy, endpoints.len(), panic_threshold), endpoints, slow_start }
    }

    /// Whether the endpoint may be chosen. One that does not exist may not.
    pub fn is_usable(&self, index: usize) -> bool {
        self.endpoints.get(index).is_some_and(|&health| self.in_panic || health != Health::Unhealthy)
    }

    /// How much of its weight the endpoint has at `now`, in milliseconds: 1 to [`FULL_SHARE`].
    pub fn share(&self, index: usize, now: u64) -> u32 {
        match self.endpoints.get(index) {
            // In a panic, one that has come back is the best there is, and no reason to prefer one that has not.
            Some(&Health::Returned(since)) if !self.in_panic => ramp(now.saturating_sub(since), self.slow_start),
            _ => FULL_SHARE,
        }
    }
}

/// Whether so few of `total` endpoints are `healthy` that health is ignored: fewer than `threshold` thousandths of them.
pub fn is_panic(healthy: usize, total: usize, threshold: u16) -> bool {
    healthy * 1_000 < total * usize::from(threshold)
}

/// The share of its weight that an endpoint has, `elapsed` after it came back, where the ramp takes `whole`.
fn ramp(elapsed: u64, whole: u64) -> u32 {
    if elapsed >= whole {
        return FULL_SHARE;
    }
    // Saturates for no ramp shorter than half a million years.
    FIRST_SHARE + (u64::from(FULL_SHARE - FIRST_SHARE).saturating_mul(elapsed) / whole) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Health::{Healthy, Returned, Unhealthy};
    use super::*;
    use crate::traffic::balance::{Algorithm, Balancer};

    #[test]
    fn the_unhealthy_are_out_unless_too_few_are_left() {
        let check = |health: &[Health], threshold: u16, expected: &str| {
            let standing = Standing::new(health.iter().copied(), threshold, 0);
            let usable: String = (0..=health.len()).map(|i| if standing.is_usable(i) { '1' } else { '0' }).collect();
            assert_eq!(usable, format!("{expected}0"), "{health:?} {threshold}");
        };
        check(&[], 500, "");
        check(&[Healthy], 500, "1");
        check(&[Unhealthy], 500, "1");
        check(&[Unhealthy], 0, "0");
        check(&[Healthy, Unhealthy], 500, "10");
        check(&[Healthy, Unhealthy], 501, "11");
        check(&[Healthy, Unhealthy, Unhealthy], 500, "111");
        check(&[Returned(7), Unhealthy, Unhealthy], 333, "100");
        check(&[Unhealthy, Unhealthy], 0, "00");
        check(&[Unhealthy, Unhealthy], 1, "11");
        check(&[Healthy, Healthy, Unhealthy], 1_000, "111");
    }

    #[test]
    fn the_ramp() {
        let check = |since: u64, slow_start: u64, now: u64, expected: u32| {
            let standing = Standing::new([Returned(since), Healthy].into_iter(), 500, slow_start);
            assert_eq!((standing.share(0, now), standing.share(1, now)), (expected, FULL_SHARE));
        };
        check(5_000, 10_000, 5_000, 100);
        check(5_000, 10_000, 0, 100);
        check(5_000, 10_000, 10_000, 550);
        check(5_000, 10_000, 14_999, 999);
        check(5_000, 10_000, 15_000, 1_000);
        check(5_000, 10_000, u64::MAX, 1_000);
        check(5_000, 0, 5_000, 1_000);
    }

    #[test]
    fn no_ramp_in_a_panic() {
        let standing = Standing::new([Returned(0), Unhealthy, Unhealthy].into_iter(), 500, 10_000);
        assert_eq!([0, 1, 2].map(|index| standing.share(index, 0)), [FULL_SHARE; 3]);
    }

    /// Two alike, of which one came back at 0: its part of the requests in each tenth of the ramp.
    #[test]
    fn its_part_of_the_requests_grows_with_time() {
        for algorithm in [Algorithm::RoundRobin, Algorithm::Random] {
            let standing = Standing::new([Healthy, Returned(0)].into_iter(), 0, 10_000);
            let mut balancer = Balancer::new(algorithm, [1, 1].into_iter());
            let mut part = |now: u64| {
                let draws = (0..1_000u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let chosen = draws.filter_map(|draw| {
                    balancer.pick(draw, |i| standing.is_usable(i), |i| standing.share(i, now), |_| 0)
                });
                chosen.filter(|&index| index == 1).count()
            };
            let parts: Vec<usize> = [0, 2_500, 5_000, 7_500, 10_000].map(&mut part).into();
            // share / (1 + share), of 1,000.
            for (part, ideal) in parts.iter().zip([91usize, 245, 355, 437, 500]) {
                assert!(part.abs_diff(ideal) <= 15, "{algorithm:?} {parts:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn never_shrinks_and_never_leaves_its_range(
            since in 0u64..1_000_000, whole in 0u64..4_000_000, mut times in proptest::collection::vec(0u64..6_000_000, 1..50)
        ) {
            times.sort_unstable();
            let standing = Standing::new([Returned(since)].into_iter(), 500, whole);
            let mut last = FIRST_SHARE;
            for now in times {
                let share = standing.share(0, now);
                prop_assert!(last <= share && share <= FULL_SHARE);
                prop_assert!(now < since.saturating_add(whole) || share == FULL_SHARE);
                last = share;
            }
        }

        #[test]
        fn with_a_threshold_somebody_is_always_usable(
            health in proptest::collection::vec(prop_oneof![Just(Healthy), Just(Unhealthy)], 1..40), threshold in 1u16..=1_000
        ) {
            let standing = Standing::new(health.iter().copied(), threshold, 0);
            prop_assert!((0..health.len()).any(|index| standing.is_usable(index)));
            prop_assert!((0..health.len()).all(|index| standing.is_usable(index) || health[index] == Unhealthy));
        }
    }
}
