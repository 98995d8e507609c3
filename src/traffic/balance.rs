//! Which endpoint takes the next request.
//!
//! A [`Balancer`] knows endpoints only by their index and weight. Whether one may take traffic, how much of its weight it
//! has just now, and how many requests it has, is asked of the caller at each pick, so that health, breakers and attempts already made need no second home here.
//! A pick looks at every endpoint, once or twice: at most 256 of them, usually two to eight.
//!
//! Each worker balances for itself, and every new snapshot starts afresh. The first pick therefore begins at a drawn
//! endpoint: workers that all began with the first one would send it a burst at each reload.

mod least_connections;
mod random;
mod round_robin;

use least_connections::LeastConnections;
use random::Random;
use round_robin::RoundRobin;

/// `load_balancing` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Smooth weighted round robin (nginx's algorithm).
    #[default]
    RoundRobin,
    /// The fewest requests in flight per unit of weight on this worker; ties rotate.
    LeastConnections,
    /// Weighted draw.
    Random,
}

/// The whole of an endpoint's weight; less of it while the endpoint starts slowly.
pub const FULL_SHARE: u32 = 1_000;

/// Chooses endpoints for one service on one worker.
#[derive(Debug)]
pub struct Balancer(State);

#[derive(Debug)]
enum State {
    RoundRobin(RoundRobin),
    LeastConnections(LeastConnections),
    Random(Random),
}

impl Balancer {
    /// A balancer over as many endpoints as there are `weights`, 1 to 1,000 each; 0 is taken as 1.
    pub fn new(algorithm: Algorithm, weights: impl Iterator<Item = u16>) -> Balancer {
        let weights = weights.map(|weight| weight.max(1));
        Balancer(match algorithm {
            Algorithm::RoundRobin => State::RoundRobin(RoundRobin::new(weights)),
            Algorithm::LeastConnections => State::LeastConnections(LeastConnections::new(weights)),
            Algorithm::Random => State::Random(Random::new(weights)),
        })
    }

    /// The index of the endpoint for the next request; `None` when none is usable.
    ///
    /// `usable` says whether an endpoint may take traffic and was not tried for this request already, `share` how much of
    /// its weight it has just now, 1 to [`FULL_SHARE`], `in_flight` how many requests this worker has on it; `draw` is
    /// uniformly random.
    pub fn pick(
        &mut self,
        draw: u64,
        usable: impl Fn(usize) -> bool,
        share: impl Fn(usize) -> u32,
        in_flight: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        match &mut self.0 {
            State::RoundRobin(state) => state.pick(draw, usable, share),
            State::LeastConnections(state) => state.pick(draw, usable, share, in_flight),
            State::Random(state) => state.pick(draw, usable, share),
        }
    }
}

/// `draw`, uniform over all of `u64`, brought into `0..bound` by multiplication (Lemire, "Fast random integer generation in
/// an interval", 2019; its rejection step is left out: at these bounds the bias is below one in 2^45).
fn scale(draw: u64, bound: u64) -> u64 {
    ((u128::from(draw) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALGORITHMS: [Algorithm; 3] = [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Random];

    #[test]
    fn no_endpoint_at_all() {
        for algorithm in ALGORITHMS {
            let mut balancer = Balancer::new(algorithm, std::iter::empty());
            assert_eq!(balancer.pick(7, |_| true, |_| FULL_SHARE, |_| 0), None, "{algorithm:?}");
        }
    }

    #[test]
    fn a_weight_of_zero_is_taken_as_one() {
        for algorithm in ALGORITHMS {
            let mut balancer = Balancer::new(algorithm, [0].into_iter());
            assert_eq!(balancer.pick(u64::MAX, |_| true, |_| FULL_SHARE, |_| u32::MAX), Some(0), "{algorithm:?}");
        }
    }

    #[test]
    fn the_first_pick_is_spread() {
        for algorithm in ALGORITHMS {
            let mut first = [0; 4];
            for draw in super::testing::draws(1).take(4_000) {
                let mut balancer = Balancer::new(algorithm, [5; 4].into_iter());
                first[balancer.pick(draw, |_| true, |_| FULL_SHARE, |_| 0).unwrap()] += 1;
            }
            assert!(first.iter().all(|count| (850..1_150).contains(count)), "{algorithm:?} {first:?}");
        }
    }

    /// How often each of two endpoints is chosen while the second has only `share` of its weight, and `busy` requests are
    /// in flight all the time.
    fn counts(algorithm: Algorithm, weights: [u16; 2], share: u32, busy: usize) -> [u32; 2] {
        let mut balancer = Balancer::new(algorithm, weights.into_iter());
        let mut in_flight = std::collections::VecDeque::new();
        let mut counts = [0; 2];
        for draw in super::testing::draws(9).take(20_000) {
            let on = |index: usize| in_flight.iter().filter(|&&on| on == index).count() as u32;
            let chosen =
                balancer.pick(draw, |_| true, |index| if index == 1 { share } else { FULL_SHARE }, on).unwrap();
            counts[chosen] += 1;
            in_flight.push_back(chosen);
            if in_flight.len() > busy {
                in_flight.pop_front();
            }
        }
        counts
    }

    #[test]
    fn a_part_of_the_weight_is_a_part_of_the_requests() {
        for algorithm in ALGORITHMS {
            for (weights, share) in [([1, 1], 100), ([1, 1], 500), ([3, 1], 300), ([1, 4], 250), ([7, 7], 1_000)] {
                let [first, second] = weights.map(f64::from);
                let part = second * f64::from(share) / 1_000.0;
                let expected = 20_000.0 * part / (first + part);
                let [_, actual] = counts(algorithm, weights, share, 100);
                let near = (expected * 0.1).max(60.0);
                assert!((f64::from(actual) - expected).abs() < near, "{algorithm:?} {weights:?} {share}: {actual}");
            }
        }
    }

    proptest! {
        #[test]
        fn only_what_is_usable_and_none_only_if_nothing_is(
            weights in proptest::collection::vec(0u16..=1_000, 0..=256),
            rounds in proptest::collection::vec((any::<u64>(), any::<u64>(), 0u64..=8), 1..40),
        ) {
            for algorithm in ALGORITHMS {
                let mut balancer = Balancer::new(algorithm, weights.iter().copied());
                for &(draw, seed, of_eight) in &rounds {
                    let noise = |index: usize| super::testing::mix(seed.wrapping_add(index as u64));
                    let usable = |index: usize| noise(index) % 8 < of_eight;
                    let share = |index: usize| 1 + noise(index + 2_000) as u32 % FULL_SHARE;
                    let chosen = balancer.pick(draw, usable, share, |index| noise(index + 1_000) as u32);
                    match chosen {
                        Some(index) => prop_assert!(index < weights.len() && usable(index), "{:?}", algorithm),
                        None => prop_assert!(!(0..weights.len()).any(usable), "{:?}", algorithm),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod testing {
    /// SplitMix64's output function (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    pub(super) fn mix(state: u64) -> u64 {
        let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The same endless draws for the same seed.
    pub(super) fn draws(seed: u64) -> impl Iterator<Item = u64> {
        (0u64..).map(move |step| mix(mix(seed).wrapping_add(step.wrapping_mul(0x9E37_79B9_7F4A_7C15))))
    }
}
