//! Asks for each name when it is due, any number of them at a time, and hands over what comes.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::schedule::{Schedule, interval};
use crate::control::resolve::{Outcome, Plan, Question, Records, Resolved};

/// The most questions that are asked at a time; others wait for their turn.
const LOOKUPS_MAX: usize = 256;

/// Answers a question, given the last good answer to it, within a time of its own choice.
pub(super) type Ask = Box<dyn FnMut(Question, Option<Records>) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send>;

/// The lookups that are due, and those under way.
pub(super) struct Refresh {
    ask: Ask,
    schedule: Schedule,
    lookups: JoinSet<Outcome>,
    asked: HashMap<Id, Question>,
    permits: Arc<Semaphore>,
    known: Resolved,
}

impl Refresh {
    /// Has no name yet.
    pub(super) fn new(ask: Ask) -> Refresh {
        Refresh {
            ask,
            schedule: Schedule::default(),
            lookups: JoinSet::new(),
            asked: HashMap::new(),
            permits: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            known: Resolved::default(),
        }
    }

    /// Takes over the names of `plan`. One that is new here is due when what is `known` about it is no longer fresh, at once
    /// when nothing is.
    pub(super) fn follow(&mut self, plan: &Plan, known: &Resolved, now: Instant) {
        self.schedule.forget_others(plan);
        for question in &plan.questions {
            if !self.schedule.has(question) {
                let wait = known.last(question).map(|ttl| interval(ttl, 1, plan.refresh, fastrand::f64()));
                self.schedule.add(question.clone(), now + wait.unwrap_or_default());
            }
        }
        self.known = known.clone();
    }

    /// What was answered, once something is. Can be dropped and called again.
    pub(super) async fn answered(&mut self) -> Vec<(Question, Outcome)> {
        loop {
            for question in self.schedule.take_due(Instant::now()) {
                let lookup = (self.ask)(question.clone(), self.known.records(&question).cloned());
                let permits = Arc::clone(&self.permits);
                let task = self.lookups.spawn(async move {
                    let _permit = permits.acquire_owned().await.expect("it is never closed");
                    lookup.await
                });
                self.asked.insert(task.id(), question);
            }
            let due = self.schedule.next();
            tokio::select! {
                Some(first) = self.lookups.join_next_with_id() => {
                    // What came at the same time becomes one snapshot with it.
                    let mut answered = vec![first];
                    answered.extend(std::iter::from_fn(|| self.lookups.try_join_next_with_id()));
                    return answered.into_iter().filter_map(|ended| self.ended(ended)).collect();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Whose lookup it was, and what it led to. A panic is a failure as any other: the name must have its next turn.
    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) -> Option<(Question, Outcome)> {
        let (id, outcome) = ended.unwrap_or_else(|error| (error.id(), Err("the lookup panicked".to_owned())));
        Some((self.asked.remove(&id)?, outcome))
    }

    /// Gives the name its next turn.
    pub(super) fn plan_next(&mut self, question: &Question, outcome: &Outcome, plan: &Plan, now: Instant) {
        let ttl = outcome.as_ref().map(|answer| answer.ttl).map_err(|_| ());
        self.schedule.answered(question, ttl, plan.refresh, now, fastrand::f64());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::control::resolve::Answer;

    fn host(name: &str) -> Question {
        Question::Host(name.to_owned())
    }

    fn answer(ttl: u64) -> Outcome {
        let records = Records::Addresses(vec!["10.0.0.1".parse().unwrap()]);
        Ok(Answer { records, ttl: Some(Duration::from_secs(ttl)) })
    }

    /// How often each name is asked for within `seconds`, by a DNS that answers each one its way.
    async fn asked(
        names: &[&str],
        refresh: u64,
        seconds: u64,
        dns: fn(&str) -> (Duration, Outcome),
    ) -> BTreeMap<String, usize> {
        let counts: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let seen = Arc::clone(&counts);
        let mut refreshing = Refresh::new(Box::new(move |question, _| {
            let seen = Arc::clone(&seen);
            Box::pin(async move {
                let name = question.to_string();
                *seen.lock().unwrap().entry(name.clone()).or_default() += 1;
                let (delay, outcome) = dns(&name);
                tokio::time::sleep(delay).await;
                outcome
            })
        }));
        let questions = names.iter().map(|name| host(name)).collect();
        let plan = Plan { questions, refresh: Duration::from_secs(refresh), servers: Vec::new() };
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut known = Resolved::default();
        while Instant::now() < end {
            refreshing.follow(&plan, &known, Instant::now());
            let Ok(answered) = tokio::time::timeout_at(end, refreshing.answered()).await else { break };
            for (question, outcome) in answered {
                refreshing.plan_next(&question, &outcome, &plan, Instant::now());
                known.learn(question, outcome);
            }
        }
        counts.lock().unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn each_name_by_its_own_ttl() {
        let counts = asked(&["day", "hung", "panics", "quick", "zero"], 30, 600, |name| match name {
            "day" => (Duration::ZERO, answer(86_400)),
            "quick" => (Duration::ZERO, answer(5)),
            "zero" => (Duration::ZERO, answer(0)),
            // Slower than the others' TTLs: nobody waits for it.
            "hung" => (Duration::from_secs(60), answer(1)),
            _ => panic!("a bug in the resolver"),
        })
        .await;
        for (name, range) in
            [("day", 20..=24), ("quick", 108..=121), ("zero", 540..=601), ("hung", 9..=11), ("panics", 20..=30)]
        {
            assert!(range.contains(&counts[name]), "{name} {counts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_fails_is_asked_for_less_and_less() {
        let counts = asked(&["gone"], 60, 600, |_| (Duration::ZERO, Err("there is no such name".to_owned()))).await;
        // 1 + 2 + … + 32 s, then once a minute or somewhat earlier.
        assert!((13..=18).contains(&counts["gone"]), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn more_names_than_lookups_get_their_turn() {
        let names: Vec<String> = (0..2 * LOOKUPS_MAX).map(|i| format!("n{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let counts = asked(&names, 30, 60, |_| (Duration::from_millis(20), answer(30))).await;
        assert_eq!(counts.len(), names.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_plan_is_followed() {
        let mut refresh = Refresh::new(Box::new(|question, _| {
            Box::pin(async move {
                if question == host("hung") {
                    std::future::pending::<()>().await;
                }
                answer(10)
            })
        }));
        let plan = |names: &[&str]| Plan {
            questions: names.iter().map(|name| host(name)).collect(),
            refresh: Duration::from_secs(30),
            servers: Vec::new(),
        };
        let none = Resolved::default();
        refresh.follow(&plan(&["hung", "old"]), &none, Instant::now());
        let (question, outcome) = refresh.answered().await.remove(0);
        assert_eq!(question, host("old"));
        // It has left the plan meanwhile.
        refresh.follow(&plan(&["hung", "new"]), &none, Instant::now());
        refresh.plan_next(&question, &outcome, &plan(&["hung", "new"]), Instant::now());
        assert_eq!(refresh.answered().await[0].0, host("new"));
        let more = tokio::time::timeout(Duration::from_secs(100), refresh.answered()).await;
        assert!(more.is_err(), "neither of the others has a turn");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_fresh_is_not_asked_for() {
        let mut refresh = Refresh::new(Box::new(|_, _| Box::pin(async { answer(10) })));
        let plan = Plan { questions: [host("a")].into(), refresh: Duration::from_secs(30), servers: Vec::new() };
        let mut known = Resolved::default();
        known.learn(host("a"), answer(10));
        let start = Instant::now();
        refresh.follow(&plan, &known, start);
        assert_eq!(refresh.answered().await.len(), 1);
        assert!((10.0..11.1).contains(&start.elapsed().as_secs_f64()));
    }
}
