//! Names to addresses, off the ring threads: a worker is handed addresses only.
//!
//! What is asked ([`question`]), who answers it ([`resolver`]: /etc/hosts, then the DNS), how SRV records become endpoints
//! ([`srv`]), and what is known so far: [`Resolved`]. When a name is asked for again is `control::dns`'s business.
//!
//! A name that cannot be resolved keeps the last good answer, however old: a backend that still runs is better than none,
//! and trouble with the DNS is no reason to take services down.

mod names;
pub mod question;
pub mod resolver;
pub mod srv;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::config::Config;
use super::registry::instance::Registered;
pub use question::{Plan, Question};
use resolver::Resolver;
pub use srv::Target;

/// How long a question may take, and all of them together before the gateway starts.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The most addresses of one name that are used, the lowest ones; the most SRV records too.
pub const ADDRESSES_MAX: usize = 64;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    /// The addresses of a host, ascending, each once, [`ADDRESSES_MAX`] at most.
    Addresses(Vec<IpAddr>),
    /// The targets of SRV records, by address, each once, [`ADDRESSES_MAX`] at most.
    Targets(Vec<Target>),
}

/// A good answer: at least one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the name stands for.
    pub records: Records,
    /// For how long, by the lowest TTL of the records that led there; `None`: as long as nobody asks again (/etc/hosts).
    pub ttl: Option<Duration>,
}

/// What a question led to: an answer, or a phrase that says why there is none.
pub type Outcome = Result<Answer, String>;

/// What the configuration's names stand for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Resolved(Arc<BTreeMap<Question, Known>>);

/// What is known about one name.
#[derive(Debug, Clone)]
struct Known {
    /// The last good answer's.
    records: Option<Records>,
    /// The last answer's, while it was a good one.
    ttl: Option<Duration>,
    /// Why the last lookup gave nothing.
    problem: Option<String>,
}

/// What an outcome changed about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It does not resolve any more; or never did, and was asked for the first time.
    Failed,
    /// It resolves again.
    Recovered,
}

impl Resolved {
    /// The addresses of `host`, ascending, each once; none when it never could be resolved.
    pub fn addresses(&self, host: &str, port: u16) -> impl Iterator<Item = SocketAddr> {
        let addresses = match self.records(&Question::Host(host.to_owned())) {
            Some(Records::Addresses(addresses)) => addresses.as_slice(),
            Some(Records::Targets(_)) | None => &[],
        };
        addresses.iter().map(move |address| SocketAddr::new(*address, port))
    }

    /// The targets of the SRV records `name`, by address; none when it never could be resolved.
    pub fn targets(&self, name: &str) -> &[Target] {
        match self.records(&Question::Srv(name.to_owned())) {
            Some(Records::Targets(targets)) => targets,
            Some(Records::Addresses(_)) | None => &[],
        }
    }

    /// The last good answer, however old.
    pub fn records(&self, question: &Question) -> Option<&Records> {
        self.0.get(question)?.records.as_ref()
    }

    /// Whether the question was ever asked, with what the last outcome says about when to ask it again: the answer's TTL,
    /// or that there was none.
    pub fn last(&self, question: &Question) -> Option<Result<Option<Duration>, ()>> {
        self.0.get(question).map(|known| if known.problem.is_some() { Err(()) } else { Ok(known.ttl) })
    }

    /// What went wrong the last time, a sentence for each name, in the order of the names.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|(question, known)| known.failure(question))
    }

    /// The sentence about `question`, when its last lookup failed.
    pub fn failure(&self, question: &Question) -> Option<String> {
        self.0.get(question)?.failure(question)
    }

    /// Takes what `other` knows of those names of `plan` that were not looked up here.
    pub fn keep(&mut self, plan: &Plan, other: &Resolved) {
        for question in &plan.questions {
            if let (None, Some(known)) = (self.0.get(question), other.0.get(question)) {
                Arc::make_mut(&mut self.0).insert(question.clone(), known.clone());
            }
        }
    }

    /// Whether every name stands for what it did in `other`: then no new snapshot is needed.
    pub fn same_addresses(&self, other: &Resolved) -> bool {
        fn records(resolved: &Resolved) -> impl Iterator<Item = (&Question, &Records)> {
            resolved.0.iter().filter_map(|(question, known)| Some((question, known.records.as_ref()?)))
        }
        records(self).eq(records(other))
    }

    /// Takes what a question led to. `None`: the name resolves as before, or still does not.
    pub fn learn(&mut self, question: Question, outcome: Outcome) -> Option<Change> {
        let known =
            Arc::make_mut(&mut self.0).entry(question).or_insert(Known { records: None, ttl: None, problem: None });
        let failed_before = known.problem.is_some();
        match outcome {
            Ok(Answer { records, ttl }) => *known = Known { records: Some(records), ttl, problem: None },
            Err(problem) => known.problem = Some(problem),
        }
        match (failed_before, known.problem.is_some()) {
            (false, true) => Some(Change::Failed),
            (true, false) => Some(Change::Recovered),
            (false, false) | (true, true) => None,
        }
    }

    /// Forgets every name that `plan` does not ask for.
    pub fn forget_others(&mut self, plan: &Plan) {
        if self.0.keys().any(|question| !plan.questions.contains(question)) {
            Arc::make_mut(&mut self.0).retain(|question, _| plan.questions.contains(question));
        }
    }
}

impl Known {
    fn failure(&self, question: &Question) -> Option<String> {
        let problem = self.problem.as_ref()?;
        let kept = if self.records.is_some() { "its last addresses are kept" } else { "it has no endpoint" };
        Some(format!("cannot resolve {question}: {problem}; {kept}"))
    }
}

/// Resolves every name of `config`, all at once; takes 5 s at most. What fails keeps what it stood for in `previous`; names
/// that `config` no longer has are forgotten. Must run within a tokio runtime.
pub async fn resolve(config: &Config, previous: &Resolved) -> Resolved {
    resolve_plan(Plan::of(config, &Registered::default()), previous).await
}

/// The same, for every name of `plan`.
pub async fn resolve_plan(plan: Plan, previous: &Resolved) -> Resolved {
    let mut resolved = previous.clone();
    resolved.forget_others(&plan);
    if plan.questions.is_empty() {
        return resolved;
    }
    let deadline = Instant::now() + LOOKUP_TIMEOUT;
    let resolver = Arc::new(Resolver::new(&plan.servers));
    let mut lookups: JoinSet<(Question, Outcome)> = JoinSet::new();
    for question in plan.questions {
        let (resolver, known) = (Arc::clone(&resolver), previous.records(&question).cloned());
        lookups.spawn(async move {
            let outcome = timeout_at(deadline, resolver.ask(&question, known.as_ref())).await;
            (question, outcome.unwrap_or_else(|_| Err(too_late())))
        });
    }
    for (question, outcome) in lookups.join_all().await {
        resolved.learn(question, outcome);
    }
    resolved
}

/// The addresses of one name, as `servers` or the system's know it; takes 5 s at most.
///
/// # Errors
/// Why there is none.
pub async fn lookup(host: &str, servers: &[SocketAddr]) -> Result<Vec<IpAddr>, String> {
    let (resolver, question) = (Resolver::new(servers), Question::Host(host.to_owned()));
    let outcome = timeout(LOOKUP_TIMEOUT, resolver.ask(&question, None)).await;
    match outcome.unwrap_or_else(|_| Err(too_late()))?.records {
        Records::Addresses(addresses) => Ok(addresses),
        Records::Targets(_) => Ok(Vec::new()),
    }
}

/// Why a question that took [`LOOKUP_TIMEOUT`] has no answer.
pub(super) fn too_late() -> String {
    format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Question {
        Question::Host(name.to_owned())
    }

    fn addresses(list: &[&str]) -> Outcome {
        let addresses = list.iter().map(|address| address.parse().unwrap()).collect();
        Ok(Answer { records: Records::Addresses(addresses), ttl: Some(Duration::from_secs(5)) })
    }

    fn known(resolved: &Resolved, name: &str) -> Vec<String> {
        resolved.addresses(name, 80).map(|address| address.to_string()).collect()
    }

    #[test]
    fn a_failure_keeps_the_last_good_answer() {
        let mut resolved = Resolved::default();
        assert_eq!(resolved.last(&host("a")), None);
        assert_eq!(resolved.learn(host("a"), addresses(&["10.0.0.1"])), None);
        assert_eq!(resolved.last(&host("a")), Some(Ok(Some(Duration::from_secs(5)))));
        let good = resolved.clone();

        assert_eq!(resolved.learn(host("a"), Err("no answer".to_owned())), Some(Change::Failed));
        assert_eq!(resolved.learn(host("a"), Err("no such name".to_owned())), None);
        assert_eq!(known(&resolved, "a"), ["10.0.0.1:80"]);
        assert_eq!(resolved.last(&host("a")), Some(Err(())));
        assert_eq!(resolved.learn(host("b"), Err("no such name".to_owned())), Some(Change::Failed));
        assert!(known(&resolved, "b").is_empty());
        assert!(resolved.same_addresses(&good), "nothing to publish");
        let failures: Vec<String> = resolved.failures().collect();
        let expected = [
            "cannot resolve a: no such name; its last addresses are kept",
            "cannot resolve b: no such name; it has no endpoint",
        ];
        assert_eq!(failures, expected);

        assert_eq!(resolved.learn(host("a"), addresses(&["10.0.0.1", "::1"])), Some(Change::Recovered));
        assert!(!resolved.same_addresses(&good));
        assert_eq!(known(&resolved, "a"), ["10.0.0.1:80", "[::1]:80"]);
        assert_eq!(resolved.failures().count(), 1);
    }

    #[test]
    fn real_lookups() {
        let text = r#"
            [services.a]
            prefix = "/a"
            endpoints = ["http://localhost:9001", "http://name.invalid:9001", "http://127.0.0.1:9001", "srv+http://_a._tcp.name.invalid"]
            auth = "none"
        "#;
        let config = Config::from_toml(text, "test", &[], &[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolved = runtime.block_on(resolve(&config, &Resolved::default()));
        let localhost: Vec<SocketAddr> = resolved.addresses("localhost", 9001).collect();
        assert!(matches!(localhost[..], [address] if address.ip().is_loopback()), "{localhost:?}");
        let failures: Vec<String> = resolved.failures().collect();
        let expected = [
            "cannot resolve name.invalid: there is no such name; it has no endpoint",
            "cannot resolve _a._tcp.name.invalid (SRV): there is no such name; it has no endpoint",
        ];
        assert_eq!(failures, expected);
    }
}
