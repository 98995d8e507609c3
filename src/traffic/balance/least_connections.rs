//! The endpoint that would be the least loaded with one more request: the smallest `(in_flight + 1) / weight`.
//!
//! Counted with the request to come, so that weights tell among idle endpoints too: with nothing in flight, the heaviest is
//! chosen. Fractions are compared by cross-multiplication, exactly.

/// The state of one service's choice.
#[derive(Debug)]
pub(super) struct LeastConnections {
    weights: Box<[u16]>,
    /// The endpoint to look at first: the one behind the last chosen, so that equals take turns. `None` before the first
    /// pick.
    first: Option<usize>,
}

impl LeastConnections {
    pub(super) fn new(weights: impl Iterator<Item = u16>) -> LeastConnections {
        LeastConnections { weights: weights.collect(), first: None }
    }

    /// `draw` only tells where the rotation among equals starts.
    pub(super) fn pick(
        &mut self,
        draw: u64,
        usable: impl Fn(usize) -> bool,
        share: impl Fn(usize) -> u32,
        in_flight: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let count = self.weights.len();
        let first = self.first.unwrap_or_else(|| super::scale(draw, count as u64) as usize);
        let mut best: Option<(usize, u64, u64)> = None;
        for index in (first..count).chain(0..first).filter(|&index| usable(index)) {
            let (load, weight) =
                (u64::from(in_flight(index)) + 1, u64::from(self.weights[index]) * u64::from(share(index)));
            // load / weight < best_load / best_weight; both products are below 2^53.
            if best.is_none_or(|(_, best_load, best_weight)| load * best_weight < best_load * weight) {
                best = Some((index, load, weight));
            }
        }
        let (index, ..) = best?;
        self.first = Some(if index + 1 == count { 0 } else { index + 1 });
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::FULL_SHARE;
    use super::super::testing::draws;
    use super::*;

    #[test]
    fn the_least_loaded_for_its_weight() {
        let check = |weights: &[u16], in_flight: &[u32], expected: usize| {
            let mut balancer = LeastConnections::new(weights.iter().copied());
            assert_eq!(
                balancer.pick(0, |_| true, |_| FULL_SHARE, |index| in_flight[index]),
                Some(expected),
                "{weights:?} {in_flight:?}"
            );
        };
        check(&[1, 1, 1], &[2, 1, 2], 1);
        check(&[1, 1, 1], &[0, 0, 0], 0);
        check(&[1, 3], &[0, 0], 1);
        check(&[1, 3], &[0, 2], 0);
        check(&[1, 3], &[0, 3], 0);
        check(&[1, 3], &[1, 3], 1);
        check(&[1, 1], &[u32::MAX, u32::MAX - 1], 1);
        check(&[1_000, 999], &[u32::MAX, u32::MAX], 0);
    }

    #[test]
    fn equals_take_turns() {
        let mut balancer = LeastConnections::new([2; 5].into_iter());
        let in_flight = [1, 0, 1, 0, 0];
        let chosen: Vec<_> =
            (0..9).map(|_| balancer.pick(0, |_| true, |_| FULL_SHARE, |index| in_flight[index]).unwrap()).collect();
        assert_eq!(chosen, [1, 3, 4, 1, 3, 4, 1, 3, 4]);
    }

    /// A closed loop of `clients`, each of whose requests takes 1 to 40 steps, long ones everywhere alike.
    fn simulate(weights: &[u16], clients: usize, seed: u64) -> Vec<f64> {
        let mut draws = draws(seed);
        let mut draw = move || draws.next().expect("endless");
        let mut balancer = LeastConnections::new(weights.iter().copied());
        let mut in_flight = vec![0u32; weights.len()];
        let mut ends = BTreeSet::new();
        let mut area = vec![0u64; weights.len()];
        for client in 0..clients {
            ends.insert((draw() % 40, client, None));
        }
        let mut now = 0;
        while now < 20_000 {
            let (at, client, endpoint): (u64, usize, Option<usize>) = ends.pop_first().expect("clients never leave");
            for (area, &count) in area.iter_mut().zip(&in_flight) {
                *area += u64::from(count) * (at - now);
            }
            now = at;
            if let Some(endpoint) = endpoint {
                in_flight[endpoint] -= 1;
            }
            let chosen =
                balancer.pick(draw(), |_| true, |_| FULL_SHARE, |index| in_flight[index]).expect("all are usable");
            in_flight[chosen] += 1;
            ends.insert((now + 1 + draw() % 40, client, Some(chosen)));
        }
        area.iter().map(|&area| area as f64 / now as f64).collect()
    }

    #[test]
    fn in_flight_follows_the_weights() {
        for (weights, seed) in [(&[1, 1, 1, 1][..], 1), (&[1, 2, 5], 2), (&[10, 10, 1], 3), (&[100, 300], 4)] {
            let clients = 210;
            let total: u16 = weights.iter().sum();
            for (mean, &weight) in simulate(weights, clients, seed).iter().zip(weights) {
                let ideal = clients as f64 * f64::from(weight) / f64::from(total);
                assert!((mean - ideal).abs() <= 1.0 + ideal * 0.05, "{weights:?}: {mean} rather than {ideal}");
            }
        }
    }
}
