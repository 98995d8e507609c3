//! When each name is asked for again. Pure: the clock and the randomness are the caller's.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::resolve::{Plan, Question};

/// The shortest time between two lookups of a name, whatever its TTL.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// How much of an interval is left to chance, so that many gateways do not ask all at once.
const JITTER: f64 = 0.1;

/// The turn of each name.
#[derive(Debug, Default)]
pub(super) struct Schedule(BTreeMap<Question, Turn>);

#[derive(Debug)]
struct Turn {
    /// `None` while it is being asked for.
    due: Option<Instant>,
    /// How many lookups failed in a row.
    failures: u32,
}

impl Schedule {
    /// Forgets the names that `plan` does not have.
    pub(super) fn forget_others(&mut self, plan: &Plan) {
        self.0.retain(|question, _| plan.questions.contains(question));
    }

    /// Whether the name has a turn.
    pub(super) fn has(&self, question: &Question) -> bool {
        self.0.contains_key(question)
    }

    /// Gives a name its first turn.
    pub(super) fn add(&mut self, question: Question, due: Instant) {
        self.0.insert(question, Turn { due: Some(due), failures: 0 });
    }

    /// The names whose turn it is. They have none until they are [answered](Self::answered).
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Question> {
        let due = self.0.iter_mut().filter(|(_, turn)| turn.due.is_some_and(|due| due <= now));
        due.map(|(question, turn)| {
            turn.due = None;
            question.clone()
        })
        .collect()
    }

    /// When the next name has its turn; `None` when all of them are being asked for.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|turn| turn.due).min()
    }

    /// Gives a name its next turn. `ttl`: the answer's, or that there was none. One that was forgotten meanwhile gets no turn.
    pub(super) fn answered(
        &mut self,
        question: &Question,
        ttl: Result<Option<Duration>, ()>,
        refresh: Duration,
        now: Instant,
        draw: f64,
    ) {
        let Some(turn) = self.0.get_mut(question) else { return };
        turn.failures = if ttl.is_ok() { 0 } else { turn.failures.saturating_add(1) };
        turn.due = Some(now + interval(ttl, turn.failures, refresh, draw));
    }
}

/// How long until a name is asked for again: its TTL, or after the `failures`-th failure in a row 1, 2, 4 … seconds; at least
/// a second and at most `refresh`, with a tenth of it left to `draw`, 0.0 to 1.0. `ttl` is `None` where there is no limit.
pub(super) fn interval(ttl: Result<Option<Duration>, ()>, failures: u32, refresh: Duration, draw: f64) -> Duration {
    let backoff = || INTERVAL_MIN * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    let wanted = ttl.map_or_else(|()| backoff(), |ttl| ttl.unwrap_or(refresh));
    let wanted = wanted.max(INTERVAL_MIN);
    // Later than the TTL, since a cache on the way has no fresh answer before; but never later than `refresh`.
    let latest = wanted.mul_f64(1.0 + JITTER).min(refresh);
    let earliest = wanted.min(refresh.mul_f64(1.0 - JITTER)).max(INTERVAL_MIN).min(latest);
    earliest + (latest - earliest).mul_f64(draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn intervals_are_within_bounds() {
        let check = |ttl: Result<Option<f64>, ()>, failures, refresh, earliest, latest| {
            for (draw, expected) in [(0.0, earliest), (1.0, latest)] as [(f64, f64); 2] {
                let found: f64 =
                    interval(ttl.map(|ttl| ttl.map(seconds)), failures, seconds(refresh), draw).as_secs_f64();
                assert!((found - expected).abs() < 1e-6, "{ttl:?} {failures} {refresh} {draw}: {found}");
            }
        };
        check(Ok(Some(5.0)), 0, 30.0, 5.0, 5.5);
        check(Ok(Some(0.0)), 0, 30.0, 1.0, 1.1);
        check(Ok(Some(29.0)), 0, 30.0, 27.0, 30.0);
        check(Ok(Some(86_400.0)), 0, 30.0, 27.0, 30.0);
        check(Ok(None), 0, 30.0, 27.0, 30.0);
        check(Ok(Some(60.0)), 0, 1.0, 1.0, 1.0);
        check(Err(()), 1, 30.0, 1.0, 1.1);
        check(Err(()), 2, 30.0, 2.0, 2.2);
        check(Err(()), 5, 30.0, 16.0, 17.6);
        check(Err(()), 6, 30.0, 27.0, 30.0);
        check(Err(()), u32::MAX, 86_400.0, 65_536.0, 72_089.6);
        check(Err(()), 0, 30.0, 1.0, 1.1);
    }

    #[test]
    fn failures_space_out_until_an_answer() {
        let mut schedule = Schedule::default();
        let name = Question::Host("a".to_owned());
        let start = Instant::now();
        let mut now = start;
        schedule.add(name.clone(), now);
        let mut turns = Vec::new();
        for outcome in [Err(()), Err(()), Err(()), Ok(Some(seconds(5.0))), Err(()), Ok(None)] {
            assert_eq!(schedule.take_due(now).len(), 1);
            assert_eq!((schedule.next(), schedule.take_due(now)), (None, Vec::new()), "it is being asked for");
            schedule.answered(&name, outcome, seconds(20.0), now, 0.0);
            now = schedule.next().unwrap();
            assert_eq!(schedule.take_due(now - seconds(0.001)), []);
            turns.push((now - start).as_secs());
        }
        assert_eq!(turns, [1, 3, 7, 12, 13, 31]);
    }

    #[test]
    fn what_was_forgotten_gets_no_turn() {
        let mut schedule = Schedule::default();
        let name = Question::Host("a".to_owned());
        let now = Instant::now();
        schedule.add(name.clone(), now);
        schedule.take_due(now);
        schedule.forget_others(&Plan { questions: [].into(), refresh: seconds(1.0), servers: Vec::new() });
        schedule.answered(&name, Ok(None), seconds(1.0), now, 0.5);
        assert!(!schedule.has(&name));
        assert_eq!(schedule.next(), None);
    }
}
