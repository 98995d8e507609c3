//! Active health checks: one prober for all workers, so that none of them can disagree with another.
//!
//! Every endpoint of the snapshot in force is checked at once when it appears, and then every `interval`, give or take a
//! tenth; the second check comes after a random part of it, so that endpoints that appeared together are not checked
//! together for ever. [`verdict`] decides what the outcomes mean. What changes becomes a snapshot, which every worker takes
//! before its next request. So, as long as no more than [`CHECKS_MAX`] checks hang at once, an endpoint that stops to answer
//! gets its last request at most
//!
//! > 1.1 × `interval` × `fall` + `timeout` + the request that each worker is in the middle of
//!
//! later. Intervals count from start to start, which is why `timeout` appears once only.
//!
//! State belongs to an endpoint's identity: it survives reloads and new addresses of others, and ends with the endpoint.
//! In a drain the checks go on.

pub mod metrics;
pub mod probe;
pub mod report;
pub mod verdict;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::probe::{Check, CheckRequest, Failed, Passed};
use self::report::LastCheck;
use self::verdict::{Change, State, Thresholds};
use super::config::HealthSettings;
use super::publisher::Publisher;
use crate::snapshot::{Endpoint, EndpointId, Health};

pub use self::report::{HealthReport, Reports};

/// How many checks run at once; further ones wait.
pub const CHECKS_MAX: usize = 256;

/// How often it is asked whether there is a new snapshot, with other endpoints perhaps.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The largest part of an interval that a check comes early or late.
const JITTER: f64 = 0.1;

/// Checks what the publisher publishes, and tells it what came of that, for as long as the control thread runs.
pub async fn keep_checking(publisher: Arc<Publisher>, reports: Arc<Reports>) {
    let mut prober = Prober::new(reports);
    loop {
        prober.look(&publisher);
        prober.start_due(Instant::now());
        let wake = prober.wake(Instant::now() + LOOK_EVERY);
        tokio::select! {
            Some(ended) = prober.running.join_next() => {
                prober.note(ended);
                while let Some(ended) = prober.running.try_join_next() {
                    prober.note(ended);
                }
            }
            () = sleep_until(wake) => {}
        }
        prober.tell(&publisher);
    }
}

/// An endpoint that is checked.
#[derive(Debug)]
struct Subject {
    service: Box<str>,
    instance: Box<str>,
    check: Arc<Check>,
    thresholds: Thresholds,
    interval: Duration,
    report: HealthReport,
    /// When it became healthy again, if it ever was otherwise.
    returned: Option<std::time::Instant>,
    /// When its next check is due; entries of the queue that say otherwise are void.
    due: Instant,
    started: bool,
}

/// A check that has ended.
#[derive(Debug)]
struct Ended {
    id: EndpointId,
    check: Arc<Check>,
    result: Result<Passed, Failed>,
    latency: Duration,
}

#[derive(Debug)]
struct Prober {
    reports: Arc<Reports>,
    /// The generation that the subjects are taken from.
    generation: u64,
    subjects: HashMap<EndpointId, Subject>,
    queue: BinaryHeap<Reverse<(Instant, EndpointId)>>,
    running: JoinSet<Ended>,
    /// What has changed since it was last told: which endpoint, how, and why.
    news: Vec<(EndpointId, Change, String)>,
    /// Whether the subjects have changed since the health was last told.
    is_stale: bool,
}

impl Prober {
    fn new(reports: Arc<Reports>) -> Prober {
        Prober {
            reports,
            generation: 0,
            subjects: HashMap::new(),
            queue: BinaryHeap::new(),
            running: JoinSet::new(),
            news: Vec::new(),
            is_stale: false,
        }
    }

    /// Takes the endpoints of the snapshot in force, where it is another than at the last look.
    fn look(&mut self, publisher: &Publisher) {
        let generation = publisher.generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let now = Instant::now();
        let mut present = HashSet::new();
        publisher.each_service(|service, settings| {
            for endpoint in service.endpoints.iter().filter(|_| settings.enabled) {
                present.insert(endpoint.id);
                self.admit(&service.name, endpoint, settings, now);
            }
        });
        let before = self.subjects.len();
        self.subjects.retain(|id, _| present.contains(id));
        self.reports.retain(|id| present.contains(&id));
        self.is_stale |= self.subjects.len() != before;
    }

    /// Takes an endpoint in, or notes how it is checked from now on.
    fn admit(&mut self, service: &str, endpoint: &Endpoint, settings: &HealthSettings, now: Instant) {
        let check = check(endpoint, settings);
        let thresholds = Thresholds { rise: settings.rise, fall: settings.fall };
        if let Some(subject) = self.subjects.get_mut(&endpoint.id) {
            subject.thresholds = thresholds;
            if *subject.check == check && subject.interval == settings.interval {
                return;
            }
            (subject.check, subject.interval, subject.due) = (Arc::new(check), settings.interval, now);
        } else {
            let subject = Subject {
                service: service.into(),
                instance: endpoint.instance.clone(),
                check: Arc::new(check),
                thresholds,
                interval: settings.interval,
                report: HealthReport::default(),
                returned: None,
                due: now,
                started: false,
            };
            self.subjects.insert(endpoint.id, subject);
            self.reports.set(endpoint.id, HealthReport::default());
        }
        self.queue.push(Reverse((now, endpoint.id)));
    }

    /// Starts the checks that are due, the most overdue first, as far as there is room.
    fn start_due(&mut self, now: Instant) {
        while self.running.len() < CHECKS_MAX
            && let Some(&Reverse((due, id))) = self.queue.peek()
            && due <= now
        {
            self.queue.pop();
            let Some(subject) = self.subjects.get_mut(&id).filter(|subject| subject.due == due) else { continue };
            let pause = if subject.started {
                pause(subject.interval, fastrand::f64())
            } else {
                subject.interval.mul_f64(fastrand::f64())
            };
            subject.started = true;
            // Not before the one that starts now has ended.
            subject.due = now + pause.max(subject.check.timeout);
            self.queue.push(Reverse((subject.due, id)));
            let check = Arc::clone(&subject.check);
            self.running.spawn(async move {
                let began = Instant::now();
                let result = probe::run(&check).await;
                Ended { id, check, result, latency: began.elapsed() }
            });
        }
    }

    /// When there is something to do, `latest` at the latest.
    fn wake(&self, latest: Instant) -> Instant {
        match self.queue.peek() {
            Some(&Reverse((due, _))) if self.running.len() < CHECKS_MAX => due.min(latest),
            _ => latest,
        }
    }

    fn note(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { id, check, result, latency } = match ended {
            Ok(ended) => ended,
            // The next check of its endpoint is in the queue already.
            Err(error) => return tracing::error!(%error, "a health check broke off"),
        };
        // One that has gone meanwhile, or that is checked in another way by now.
        let Some(subject) = self.subjects.get_mut(&id).filter(|subject| subject.check == check) else { return };
        let passed = result.is_ok();
        let result = result.map_or_else(|failed| failed.to_string(), |passed| passed.to_string());
        tracing::debug!(service = %subject.service, instance = %subject.instance, passed, result, "health check");
        let change = subject.report.verdict.record(passed, subject.thresholds);
        if change == Some(Change::Rose) {
            subject.returned = Some(std::time::Instant::now());
        }
        self.news.extend(change.map(|change| (id, change, result.clone())));
        subject.report.last = Some(LastCheck { at: SystemTime::now(), passed, result, latency });
        self.reports.set(id, subject.report.clone());
    }

    /// Publishes what has changed, and says so once.
    fn tell(&mut self, publisher: &Publisher) {
        if self.news.is_empty() && !self.is_stale {
            return;
        }
        self.is_stale = false;
        let health = self.subjects.iter().filter_map(|(&id, subject)| Some((id, subject.health()?))).collect();
        // None when the news cancel each other out.
        let generation = publisher.set_health(health).unwrap_or_else(|| publisher.generation());
        for (id, change, reason) in self.news.drain(..) {
            let Some(Subject { service, instance, report, .. }) = self.subjects.get(&id) else { continue };
            let failures = report.verdict.failures;
            match change {
                Change::Fell => tracing::warn!(
                    %service, %instance, %reason, failures, generation, "endpoint is unhealthy"
                ),
                Change::Rose => tracing::info!(%service, %instance, %reason, generation, "endpoint is healthy again"),
            }
        }
    }
}

impl Subject {
    /// What the workers must know; `None` for one that simply is healthy.
    fn health(&self) -> Option<Health> {
        match (self.report.verdict.state, self.returned) {
            (State::Unhealthy, _) => Some(Health::Unhealthy),
            (_, Some(at)) => Some(Health::Returned(at)),
            (State::Unknown | State::Healthy, None) => None,
        }
    }
}

fn check(endpoint: &Endpoint, settings: &HealthSettings) -> Check {
    Check {
        address: endpoint.address.clone(),
        request: settings.path.clone().map(|target| CheckRequest {
            target,
            authority: endpoint.authority.to_string(),
            expected: settings.expected_status.clone(),
        }),
        timeout: settings.timeout,
    }
}

/// From the start of one check to the start of the next; `draw` is uniform over 0 to 1.
fn pause(interval: Duration, draw: f64) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * draw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::build;
    use crate::control::config::Config;
    use crate::control::publisher::Ingredients;
    use crate::control::registry::instance::Registered;
    use crate::control::resolve::Resolved;
    use crate::policy::auth::KeySet;
    use crate::snapshot::{Address, Seam};
    use crate::telemetry::labels::Labels;

    fn config(services: &[(&str, &str, &str)]) -> Config {
        let service = |&(name, endpoints, lines): &(&str, &str, &str)| {
            let auth = "auth = \"none\"";
            format!("[services.{name}]\nprefix = \"/{name}\"\nendpoints = [{endpoints}]\n{auth}\n{lines}\n")
        };
        let text: String = services.iter().map(service).collect();
        Config::from_toml(&text, "test", &[], &[]).expect("valid")
    }

    /// What the gateway is between two reloads; `labels` are those of the process.
    fn publisher(config: Config, labels: &Arc<Labels>, before: Option<&Publisher>) -> Publisher {
        let authenticator = build::authenticator(&config, KeySet::default(), 1);
        let (resolved, management_address) = (Resolved::default(), Address::Unix("/management".into()));
        let generation = before.map_or(1, |before| before.generation() + 1);
        let address = management_address.clone();
        let snapshot =
            build::snapshot(&config, &resolved, &Registered::default(), &authenticator, labels, address, generation);
        let (seam, labels) = (Arc::new(Seam::new(snapshot, 1)), Arc::clone(labels));
        let health = HashMap::new();
        Publisher::new(Ingredients {
            registered: Registered::default(),
            config,
            resolved,
            fetched_keys: KeySet::default(),
            authenticator,
            labels,
            seam,
            management_address,
            health,
        })
    }

    /// `instance:h` for healthy, `u` for unhealthy, `r` for returned, of every endpoint.
    fn published(publisher: &Publisher) -> String {
        let mut all = Vec::new();
        publisher.each_service(|service, _| {
            all.extend(service.endpoints.iter().map(|endpoint| {
                let health = match endpoint.health {
                    Health::Healthy => 'h',
                    Health::Returned(_) => 'r',
                    Health::Unhealthy => 'u',
                };
                format!("{}:{health}", endpoint.instance.rsplit(':').next().unwrap_or_default())
            }));
        });
        all.join(" ")
    }

    /// The check of `port` ends, as far as the prober is concerned.
    fn end(prober: &mut Prober, port: u16, passed: bool) {
        let suffix = format!(":{port}");
        let (&id, subject) =
            prober.subjects.iter().find(|(_, subject)| subject.instance.ends_with(&suffix)).expect("it is checked");
        let check = Arc::clone(&subject.check);
        let result = if passed { Ok(Passed::Status(200)) } else { Err(Failed::Status(500)) };
        prober.note(Ok(Ended { id, check, result, latency: Duration::from_millis(1) }));
    }

    const TWO: &str = "\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"";

    #[test]
    fn what_the_checks_say_is_published_once() {
        let publisher = publisher(config(&[("a", TWO, "")]), &Arc::default(), None);
        let mut prober = Prober::new(Arc::default());
        prober.look(&publisher);
        assert_eq!((published(&publisher).as_str(), publisher.generation()), ("1:h 2:h", 1));
        let mut step = |outcomes: &[(u16, bool)], expected: &str, generation: u64| {
            outcomes.iter().for_each(|&(port, passed)| end(&mut prober, port, passed));
            prober.tell(&publisher);
            prober.look(&publisher);
            assert_eq!((published(&publisher).as_str(), publisher.generation()), (expected, generation));
        };
        step(&[(1, true), (2, false)], "1:h 2:u", 2);
        step(&[(1, false), (2, true), (1, false)], "1:h 2:u", 2);
        step(&[(1, false), (2, true)], "1:u 2:r", 3);
        step(&[(1, false), (2, true)], "1:u 2:r", 3);
        step(&[(2, false), (2, false), (2, false), (1, true), (1, true)], "1:r 2:u", 4);
    }

    #[test]
    fn state_survives_a_reload_and_ends_with_its_endpoint() {
        let labels = Arc::new(Labels::new());
        let first = publisher(config(&[("a", TWO, "")]), &labels, None);
        let reports = Arc::new(Reports::default());
        let mut prober = Prober::new(Arc::clone(&reports));
        prober.look(&first);
        for port in [1, 2] {
            end(&mut prober, port, false);
        }
        prober.tell(&first);
        assert_eq!(published(&first), "1:u 2:u");

        // The first stays and is checked in another way, the second goes, and another comes.
        let other = "\"http://127.0.0.1:1\", \"http://127.0.0.1:3\"";
        let second = publisher(config(&[("a", other, "health_path = \"/new\"")]), &labels, Some(&first));
        let old = prober.subjects.iter().find(|(_, subject)| subject.instance.ends_with(":1"));
        let (id, old) = old.map(|(&id, subject)| (id, Arc::clone(&subject.check))).expect("it is checked");
        prober.look(&second);
        prober.tell(&second);
        assert_eq!(published(&second), "1:u 3:h");
        assert_eq!(reports.get(id).expect("it is known").verdict.failures, 1);
        assert_eq!(prober.subjects.len(), 2);
        // What was asked in the old way says nothing any more.
        for _ in 0..2 {
            let (check, result) = (Arc::clone(&old), Ok(Passed::Connected));
            prober.note(Ok(Ended { id, check, result, latency: Duration::ZERO }));
        }
        assert_eq!(reports.get(id).expect("it is known").verdict.passes, 0);

        // Switched off, nothing is held against anybody.
        let third = publisher(config(&[("a", other, "health.enabled = false")]), &labels, Some(&second));
        prober.look(&third);
        prober.tell(&third);
        assert_eq!((published(&third).as_str(), prober.subjects.len()), ("1:h 3:h", 0));
        assert_eq!(reports.get(id), None);
    }

    #[test]
    fn checks_come_a_tenth_early_or_late_at_most() {
        let check = |draw: f64, expected_ms: u64| {
            let actual = pause(Duration::from_secs(30), draw);
            assert!(actual.abs_diff(Duration::from_millis(expected_ms)) < Duration::from_millis(1), "{actual:?}");
        };
        check(0.0, 27_000);
        check(0.5, 30_000);
        check(1.0, 33_000);
    }
}
