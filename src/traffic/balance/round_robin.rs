//! Smooth weighted round robin: weights 5, 1, 1 give `a a b a c a a`, not `a a a a a b c`.
//!
//! nginx's algorithm (`ngx_http_upstream_get_peer` in `src/http/ngx_http_upstream_round_robin.c`, described in its commit
//! "Upstream: smooth weighted round-robin balancing", 2012): at each pick every usable endpoint gains its weight, the
//! highest is chosen, and pays the sum of what was gained. Over as many picks as the weights sum up to, each endpoint is
//! chosen exactly as often as its weight says.

/// The state of one service's rotation.
#[derive(Debug)]
pub(super) struct RoundRobin {
    turns: Box<[Turn]>,
    started: bool,
}

#[derive(Debug)]
struct Turn {
    weight: u16,
    /// What it has gained and not yet paid. Picks keep the sum over all endpoints at zero and each far within the range:
    /// one that is out of service neither gains nor pays.
    credit: i64,
}

impl RoundRobin {
    pub(super) fn new(weights: impl Iterator<Item = u16>) -> RoundRobin {
        RoundRobin { turns: weights.map(|weight| Turn { weight, credit: 0 }).collect(), started: false }
    }

    /// `draw` only tells where the rotation starts.
    pub(super) fn pick(
        &mut self,
        draw: u64,
        usable: impl Fn(usize) -> bool,
        share: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        if !self.started {
            self.started = true;
            for _ in 0..super::scale(draw, self.turns.len() as u64) {
                self.turn(|_| true, |_| super::FULL_SHARE);
            }
        }
        self.turn(usable, share)
    }

    fn turn(&mut self, usable: impl Fn(usize) -> bool, share: impl Fn(usize) -> u32) -> Option<usize> {
        let mut gained = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, turn) in self.turns.iter_mut().enumerate() {
            if !usable(index) {
                continue;
            }
            let weight = i64::from(turn.weight) * i64::from(share(index));
            turn.credit += weight;
            gained += weight;
            if best.is_none_or(|(_, credit)| turn.credit > credit) {
                best = Some((index, turn.credit));
            }
        }
        let (index, _) = best?;
        self.turns[index].credit -= gained;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::FULL_SHARE;
    use super::*;

    #[test]
    fn smooth_sequences() {
        let check = |weights: &[u16], expected: &str| {
            let mut rotation = RoundRobin::new(weights.iter().copied());
            let actual: String = expected
                .chars()
                .map(|_| char::from(b'a' + rotation.pick(0, |_| true, |_| FULL_SHARE).expect("all are usable") as u8))
                .collect();
            assert_eq!(actual, expected, "{weights:?}");
        };
        check(&[1], "aaa");
        check(&[1, 1, 1], "abcabc");
        check(&[5, 1, 1], "aabacaaaabacaa");
        check(&[3, 1], "aabaaaba");
        check(&[1, 2], "babbab");
    }

    #[test]
    fn one_out_of_service_leaves_its_share_to_the_others() {
        let mut rotation = RoundRobin::new([1, 1, 2].into_iter());
        let mut counts = [0; 3];
        for _ in 0..300 {
            counts[rotation.pick(0, |index| index != 1, |_| FULL_SHARE).unwrap()] += 1;
        }
        assert_eq!(counts, [100, 0, 200]);
        assert_eq!(rotation.turns[1].credit, 0, "nothing is saved up while away");
    }

    /// The longest run of picks without `index`, in a cycle that repeats.
    fn gap_max(cycle: &[usize], index: usize) -> usize {
        let at: Vec<_> = (0..2 * cycle.len()).filter(|step| cycle[step % cycle.len()] == index).collect();
        at.windows(2).map(|pair| pair[1] - pair[0]).max().expect("chosen at least once a cycle")
    }

    proptest! {
        #[test]
        fn a_cycle_holds_each_exactly_by_weight_and_spread_out(
            weights in proptest::collection::vec(1u16..=20, 1..12),
            draw in any::<u64>(),
        ) {
            let total: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
            let mut rotation = RoundRobin::new(weights.iter().copied());
            let cycle: Vec<_> = (0..total).map(|_| rotation.pick(draw, |_| true, |_| FULL_SHARE).unwrap()).collect();
            let again: Vec<_> = (0..total).map(|_| rotation.pick(draw, |_| true, |_| FULL_SHARE).unwrap()).collect();
            prop_assert_eq!(&cycle, &again, "the cycle repeats");
            for (index, &weight) in weights.iter().enumerate() {
                let weight = usize::from(weight);
                prop_assert_eq!(cycle.iter().filter(|&&chosen| chosen == index).count(), weight);
                // The ideal distance between two picks is total / weight; the algorithm stays within twice that.
                let gap = gap_max(&cycle, index);
                prop_assert!(gap <= (2 * total).div_ceil(weight), "{} of {} at weight {}", gap, total, weight);
            }
        }

        #[test]
        fn credits_stay_small_whatever_comes_and_goes(
            weights in proptest::collection::vec(1u16..=1_000, 1..20),
            masks in proptest::collection::vec(any::<u32>(), 1..400),
        ) {
            let total: i64 = weights.iter().map(|&weight| i64::from(weight) * i64::from(FULL_SHARE)).sum();
            let mut rotation = RoundRobin::new(weights.iter().copied());
            for mask in masks {
                rotation.pick(0, |index| mask >> index & 1 == 1, |index| 1 + mask.rotate_left(index as u32) % FULL_SHARE);
                prop_assert_eq!(rotation.turns.iter().map(|turn| turn.credit).sum::<i64>(), 0);
                prop_assert!(rotation.turns.iter().all(|turn| turn.credit.abs() <= total * weights.len() as i64));
            }
        }
    }
}
