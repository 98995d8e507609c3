//! A weighted draw over the usable endpoints: no state, so nothing that workers could fall into step with.

/// One service's weights.
#[derive(Debug)]
pub(super) struct Random {
    weights: Box<[u16]>,
}

impl Random {
    pub(super) fn new(weights: impl Iterator<Item = u16>) -> Random {
        Random { weights: weights.collect() }
    }

    pub(super) fn pick(
        &self,
        draw: u64,
        usable: impl Fn(usize) -> bool,
        share: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let candidates = || {
            let usable = self.weights.iter().enumerate().filter(|&(index, _)| usable(index));
            usable.map(|(index, &weight)| (index, u64::from(weight) * u64::from(share(index))))
        };
        let total = candidates().map(|(_, weight)| weight).sum();
        let mut left = super::scale(draw, total);
        for (index, weight) in candidates() {
            if left < weight {
                return Some(index);
            }
            left -= weight;
        }
        // Nothing is usable: `left` starts below the sum of the weights passed, if there is one.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::FULL_SHARE;
    use super::super::testing::draws;
    use super::*;

    #[test]
    fn each_draw_falls_into_its_share() {
        let balancer = Random::new([1, 2, 1].into_iter());
        for (draw, all, without_second) in
            [(0, 0, 0), (1 << 62, 1, 0), (1 << 63, 1, 2), ((1 << 63) | (1 << 62), 2, 2), (u64::MAX, 2, 2)]
        {
            assert_eq!(balancer.pick(draw, |_| true, |_| FULL_SHARE), Some(all), "{draw:x}");
            assert_eq!(balancer.pick(draw, |index| index != 1, |_| FULL_SHARE), Some(without_second), "{draw:x}");
            assert_eq!(balancer.pick(draw, |_| false, |_| FULL_SHARE), None, "{draw:x}");
        }
    }

    #[test]
    fn chi_square() {
        // The limits are the 99.9th percentiles of the distribution with one degree of freedom less than endpoints.
        for (weights, out_of_service, limit, seed) in [
            (&[1, 1, 1, 1][..], None, 16.27, 1),
            (&[1, 2, 3, 4, 90], None, 18.47, 2),
            (&[1_000, 1], None, 10.83, 3),
            (&[5, 7, 11, 13], Some(2), 13.82, 4),
        ] {
            let usable = |index| Some(index) != out_of_service;
            let balancer = Random::new(weights.iter().copied());
            let total: f64 = (0..weights.len()).filter(|&i| usable(i)).map(|i| f64::from(weights[i])).sum();
            let rounds = 100_000;
            let mut counts = vec![0u32; weights.len()];
            for draw in draws(seed).take(rounds) {
                counts[balancer.pick(draw, usable, |_| FULL_SHARE).expect("some are usable")] += 1;
            }
            let chi_square: f64 = (0..weights.len())
                .filter(|&index| usable(index))
                .map(|index| {
                    let expected = rounds as f64 * f64::from(weights[index]) / total;
                    (f64::from(counts[index]) - expected).powi(2) / expected
                })
                .sum();
            assert!(chi_square < limit, "{weights:?}: {chi_square} over {limit}, {counts:?}");
        }
    }
}
