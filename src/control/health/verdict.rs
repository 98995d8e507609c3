//! When an endpoint counts as healthy: a state machine over the outcomes of its checks, without clock or sockets.
//!
//! The first check decides alone: an instance that has just appeared and does not answer would otherwise get requests until
//! it has failed `fall` times. After that a single outcome decides nothing unless `rise` or `fall` is 1.

/// How many outcomes in a row change what an endpoint counts as; both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// So many passes make an unhealthy one healthy.
    pub rise: u32,
    /// So many failures make a healthy one unhealthy.
    pub fall: u32,
}

/// What an endpoint counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// No check has ended yet; it is used.
    #[default]
    Unknown,
    /// It is used.
    Healthy,
    /// It is not used.
    Unhealthy,
}

/// A change that others must hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was used and is so no more.
    Fell,
    /// It is used again.
    Rose,
}

/// What the checks of one endpoint say so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// What it counts as.
    pub state: State,
    /// How many checks have passed since the last that failed.
    pub passes: u32,
    /// How many checks have failed since the last that passed.
    pub failures: u32,
}

impl Verdict {
    /// Takes the outcome of one more check.
    pub fn record(&mut self, passed: bool, thresholds: Thresholds) -> Option<Change> {
        if passed {
            (self.passes, self.failures) = (self.passes.saturating_add(1), 0);
        } else {
            (self.passes, self.failures) = (0, self.failures.saturating_add(1));
        }
        match self.state {
            State::Unknown if passed => {
                self.state = State::Healthy;
                None
            }
            State::Unknown => self.fall(),
            State::Healthy if self.failures >= thresholds.fall => self.fall(),
            State::Unhealthy if self.passes >= thresholds.rise => {
                self.state = State::Healthy;
                Some(Change::Rose)
            }
            State::Healthy | State::Unhealthy => None,
        }
    }

    fn fall(&mut self) -> Option<Change> {
        self.state = State::Unhealthy;
        Some(Change::Fell)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `+` and `-` are outcomes; expected is, after each, `?` unknown, `h` healthy, `u` unhealthy.
    fn check(rise: u32, fall: u32, outcomes: &str, expected: &str) {
        let mut verdict = Verdict::default();
        let mut states = String::new();
        for outcome in outcomes.chars() {
            let before = verdict.state;
            let change = verdict.record(outcome == '+', Thresholds { rise, fall });
            states.push(match verdict.state {
                State::Unknown => '?',
                State::Healthy => 'h',
                State::Unhealthy => 'u',
            });
            let expected = match (before, verdict.state) {
                (State::Unhealthy, State::Healthy) => Some(Change::Rose),
                (State::Unknown | State::Healthy, State::Unhealthy) => Some(Change::Fell),
                _ => None,
            };
            assert_eq!(change, expected, "{outcomes}");
        }
        assert_eq!(states, expected, "{outcomes}");
    }

    #[test]
    fn outcomes_and_states() {
        check(2, 3, "+", "h");
        check(2, 3, "-", "u");
        check(2, 3, "+--+--+--", "hhhhhhhhh");
        check(2, 3, "+---", "hhhu");
        check(2, 3, "+---+-+-++", "hhhuuuuuuh");
        check(1, 1, "+-+-", "huhu");
        check(1, 3, "-+---+", "uhhhuh");
        check(3, 1, "-++-+++-", "uuuuuuhu");
    }

    #[test]
    fn a_long_streak_is_counted_without_overflow() {
        let mut verdict = Verdict { state: State::Healthy, passes: u32::MAX, failures: 0 };
        assert_eq!(verdict.record(true, Thresholds { rise: 2, fall: 3 }), None);
        assert_eq!(verdict.passes, u32::MAX);
    }

    proptest! {
        /// Against the definition, read off the whole history.
        #[test]
        fn flips_exactly_after_a_whole_streak(
            rise in 1u32..6, fall in 1u32..6, outcomes in proptest::collection::vec(any::<bool>(), 1..200)
        ) {
            let mut verdict = Verdict::default();
            let mut healthy = outcomes[0];
            for (index, &passed) in outcomes.iter().enumerate() {
                let change = verdict.record(passed, Thresholds { rise, fall });
                let streak = outcomes[..=index].iter().rev().take_while(|&&other| other == passed).count() as u32;
                prop_assert_eq!((verdict.passes, verdict.failures), if passed { (streak, 0) } else { (0, streak) });
                let before = healthy;
                if index > 0 && passed != healthy && streak >= if passed { rise } else { fall } {
                    healthy = passed;
                }
                prop_assert_eq!(verdict.state == State::Healthy, healthy);
                let is_change = healthy != before || index == 0 && !passed;
                prop_assert_eq!(change, is_change.then_some(if healthy { Change::Rose } else { Change::Fell }));
            }
        }
    }
}
