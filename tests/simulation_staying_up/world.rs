//! The world: workers, endpoints, requests, time.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use ringway::traffic::balance::{Algorithm, Balancer, FULL_SHARE};
use ringway::traffic::breaker::{Breaker, BreakerSettings, BreakerState, Permit, Verdict};
use ringway::traffic::outlier::{self, OutlierRecord, OutlierSettings};
use ringway::traffic::retry::{self, RetryBudget, RetrySettings};

/// How long the world is bad, and how long it is good afterwards.
const BAD: Duration = Duration::from_secs(60);
const GOOD: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug, Default)]
pub struct Summary {
    pub requests: u64,
    pub retries: u64,
    pub cancelled: u64,
    pub refused: u64,
    pub trips: u64,
    pub ejections: u64,
    pub reloads: u64,
}

impl Summary {
    pub fn add(&mut self, other: &Summary) {
        self.requests += other.requests;
        self.retries += other.retries;
        self.cancelled += other.cancelled;
        self.refused += other.refused;
        self.trips += other.trips;
        self.ejections += other.ejections;
        self.reloads += other.reloads;
    }
}

/// What an endpoint does with its requests.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Good,
    Refuses,
    Stalls,
    /// Fails so many of a thousand.
    Flaky(u32),
}

/// One worker's side of one endpoint: what outlives a reload.
#[derive(Default)]
struct Side {
    breaker: Breaker,
    outlier: Cell<OutlierRecord>,
    in_flight: u32,
    /// Trials under way in the breaker's present round.
    trials: u32,
    round: u32,
    asked_at: Option<Instant>,
}

struct Worker {
    sides: BTreeMap<usize, Side>,
    balancer: Balancer,
    budget: RetryBudget,
    requests: u64,
    retries: u64,
}

struct Request {
    worker: usize,
    tried: Vec<usize>,
    /// The endpoint, the permit, and the round that it is a trial of.
    at: Option<(usize, Permit, Option<u32>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    /// The pause before a retry is over.
    Send(usize),
    Answer(usize, bool),
    Cancel(usize),
    Mood(usize),
    Reload,
    Compare,
}

pub struct World {
    trace: bool,
    random: fastrand::Rng,
    now: Instant,
    begun: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    sequence: u64,
    moods: Vec<Mood>,
    /// The endpoints of the present snapshot.
    present: Vec<usize>,
    workers: Vec<Worker>,
    requests: BTreeMap<usize, Request>,
    breaker: BreakerSettings,
    retry: RetrySettings,
    outliers: OutlierSettings,
    algorithm: Algorithm,
    summary: Summary,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let endpoints = random.usize(1..6);
        let algorithm = [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Random][random.usize(0..3)];
        let now = Instant::now();
        let open_for = Duration::from_millis(random.u64(200..2_000));
        let mut world = World {
            trace,
            now,
            begun: now,
            events: BinaryHeap::new(),
            sequence: 0,
            moods: vec![Mood::Good; endpoints],
            present: (0..endpoints).collect(),
            workers: Vec::new(),
            requests: BTreeMap::new(),
            breaker: BreakerSettings {
                enabled: true,
                failure_threshold: random.u32(1..8),
                failure_ratio: random.bool().then_some(0.5),
                minimum_requests: 10,
                window: Duration::from_secs(random.u64(1..20)),
                open_for,
                open_for_max: open_for * random.u32(1..8),
                half_open_requests: random.u32(1..4),
            },
            retry: RetrySettings {
                enabled: true,
                attempts: random.u8(1..5),
                budget: f64::from(random.u32(0..50)) / 100.0,
                budget_minimum: random.u32(0..4),
                backoff: Duration::from_millis(random.u64(0..50)),
                backoff_max: Duration::from_millis(200),
            },
            outliers: OutlierSettings {
                enabled: random.bool(),
                interval: Duration::from_secs(1),
                minimum_requests: 5,
                threshold: 0.2,
                max_ejected: f64::from(random.u32(0..101)) / 100.0,
                eject_for: Duration::from_secs(2),
                eject_for_max: Duration::from_secs(10),
            },
            algorithm,
            summary: Summary::default(),
            random,
        };
        for _ in 0..world.random.usize(1..4) {
            let balancer = world.balancer();
            let budget = RetryBudget::default();
            world.workers.push(Worker { sides: BTreeMap::new(), balancer, budget, requests: 0, retries: 0 });
        }
        world.adopt();
        world.after(Duration::ZERO, Event::Arrive);
        world.after(Duration::from_secs(1), Event::Compare);
        world.after(Duration::from_secs(5), Event::Reload);
        for endpoint in 0..endpoints {
            world.after(Duration::from_millis(100), Event::Mood(endpoint));
        }
        world
    }

    pub fn run(mut self) -> Summary {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.handle(event);
            self.check();
        }
        self.finish();
        self.summary
    }

    fn is_bad(&self) -> bool {
        self.now < self.begun + BAD
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + time, self.sequence, event)));
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:9.3} {}", (self.now - self.begun).as_secs_f64(), text());
        }
    }

    fn balancer(&self) -> Balancer {
        Balancer::new(self.algorithm, self.present.iter().map(|_| 1))
    }

    /// Every worker takes the present endpoints; what it knows of the others stays only as long as requests need it.
    fn adopt(&mut self) {
        for index in 0..self.workers.len() {
            let balancer = self.balancer();
            let worker = &mut self.workers[index];
            worker.balancer = balancer;
            for &endpoint in &self.present {
                worker.sides.entry(endpoint).or_default();
            }
            worker.sides.retain(|endpoint, side| self.present.contains(endpoint) || side.in_flight > 0);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                if self.now < self.begun + BAD + GOOD {
                    let pause = self.millis(1..60);
                    self.after(pause, Event::Arrive);
                    self.arrive();
                }
            }
            Event::Send(id) => self.send(id),
            Event::Answer(id, is_good) => self.answer(id, is_good),
            Event::Cancel(id) => {
                if self.requests.contains_key(&id) {
                    self.say(|| format!("request {id}: the client leaves"));
                    self.summary.cancelled += 1;
                    self.settle(id, Verdict::Neutral);
                    self.requests.remove(&id);
                }
            }
            Event::Mood(endpoint) => {
                let flaky = Mood::Flaky(self.random.u32(1..900));
                let moods = [Mood::Good, Mood::Good, Mood::Refuses, Mood::Stalls, flaky];
                let mood = if self.is_bad() { moods[self.random.usize(0..5)] } else { Mood::Good };
                self.say(|| format!("endpoint {endpoint}: {mood:?}"));
                self.moods[endpoint] = mood;
                if self.is_bad() {
                    let pause = self.millis(200..15_000).min(self.begun + BAD - self.now);
                    self.after(pause, Event::Mood(endpoint));
                }
            }
            Event::Reload => {
                let all = 0..self.moods.len();
                let stays: Vec<usize> = all.clone().filter(|_| !self.is_bad() || self.random.u32(0..4) > 0).collect();
                self.present = if stays.is_empty() { all.collect() } else { stays };
                self.say(|| format!("reload: {:?}", self.present));
                self.summary.reloads += 1;
                self.adopt();
                if self.is_bad() {
                    let pause = self.millis(1_000..20_000).min(self.begun + BAD - self.now);
                    self.after(pause, Event::Reload);
                }
            }
            Event::Compare => {
                if self.now < self.begun + BAD + GOOD {
                    self.compare();
                    self.after(self.outliers.interval, Event::Compare);
                }
            }
        }
    }

    fn arrive(&mut self) {
        self.summary.requests += 1;
        let id = self.summary.requests as usize;
        let worker = self.random.usize(0..self.workers.len());
        self.requests.insert(id, Request { worker, tried: Vec::new(), at: None });
        let now = self.now;
        match self.pick(id) {
            Some(endpoint) => {
                self.workers[worker].requests += 1;
                self.workers[worker].budget.note_request(now);
                self.enter(id, endpoint);
                self.send(id);
                if self.random.u32(0..10) == 0 {
                    let pause = self.millis(0..1_500);
                    self.after(pause, Event::Cancel(id));
                }
            }
            None => {
                self.summary.refused += 1;
                self.requests.remove(&id);
                let worker = &self.workers[worker];
                let refuses = |endpoint: &usize| !worker.sides[endpoint].breaker.allows(&self.breaker, now);
                assert!(self.present.iter().all(refuses), "a request is refused though an endpoint is to be had");
            }
        }
    }

    /// As `proxy::attempt` does it.
    fn pick(&mut self, id: usize) -> Option<usize> {
        let request = &self.requests[&id];
        let worker = &mut self.workers[request.worker];
        let (present, sides, now) = (&self.present, &worker.sides, self.now);
        let current = request.at.as_ref().map(|at| at.0);
        let usable = |index: usize| {
            let endpoint = present[index];
            sides[&endpoint].breaker.allows(&self.breaker, now)
                && current != Some(endpoint)
                && !request.tried.contains(&endpoint)
        };
        let better = |index: usize| usable(index) && !sides[&present[index]].outlier.get().is_ejected(now);
        let in_flight = |index: usize| sides[&present[index]].in_flight;
        let draw = self.random.u64(..);
        let best = worker.balancer.pick(draw, better, |_| FULL_SHARE, in_flight);
        best.or_else(|| worker.balancer.pick(draw, usable, |_| FULL_SHARE, in_flight)).map(|index| present[index])
    }

    fn enter(&mut self, id: usize, endpoint: usize) {
        let request = self.requests.get_mut(&id).expect("it is under way");
        let side = self.workers[request.worker].sides.get_mut(&endpoint).expect("it is present");
        let is_trial = side.breaker.state(self.now) == BreakerState::HalfOpen;
        let permit = side.breaker.admit(&self.breaker, self.now).expect("it was asked");
        side.trials += u32::from(is_trial);
        side.in_flight += 1;
        side.asked_at = Some(self.now);
        assert!(side.trials <= self.breaker.half_open_requests, "{} trials at once", side.trials);
        request.at = Some((endpoint, permit, is_trial.then_some(side.round)));
    }

    fn send(&mut self, id: usize) {
        let Some(request) = self.requests.get(&id) else { return };
        let Some((endpoint, ..)) = request.at else { return };
        let (time, is_good) = match self.moods[endpoint] {
            Mood::Good => (self.millis(1..50), true),
            Mood::Refuses => (Duration::ZERO, false),
            Mood::Stalls => (Duration::from_secs(1), false),
            Mood::Flaky(share) => (self.millis(1..50), self.random.u32(0..1_000) >= share),
        };
        self.after(time, Event::Answer(id, is_good));
    }

    fn answer(&mut self, id: usize, is_good: bool) {
        if !self.requests.contains_key(&id) {
            return;
        }
        if is_good {
            self.settle(id, Verdict::Success);
            self.requests.remove(&id);
            return;
        }
        // The order of `proxy::attempt`: another endpoint, the budget, and only then goodbye to this one.
        let (worker, failed) = {
            let request = &self.requests[&id];
            (request.worker, request.at.as_ref().expect("it was sent").0)
        };
        let tries = self.requests[&id].tried.len() as u8 + 1;
        let next = if tries < self.retry.attempts { self.pick(id) } else { None };
        let next = next.filter(|_| self.workers[worker].budget.try_take(&self.retry, self.now));
        self.settle(id, Verdict::Failure);
        match next {
            // Settling may open no other breaker than its own, so that what was to be had is so still.
            Some(endpoint) => {
                self.summary.retries += 1;
                self.workers[worker].retries += 1;
                let request = self.requests.get_mut(&id).expect("it is under way");
                request.tried.push(failed);
                assert!(request.tried.len() < usize::from(self.retry.attempts), "too many tries");
                assert!(!request.tried.contains(&endpoint), "endpoint {endpoint} is tried twice");
                self.enter(id, endpoint);
                let pause = retry::backoff(&self.retry, tries - 1, self.random.u64(..));
                assert!(pause <= self.retry.backoff_max);
                self.say(|| format!("request {id}: {failed} failed, {endpoint} in {pause:?}"));
                self.after(pause, Event::Send(id));
            }
            None => _ = self.requests.remove(&id),
        }
    }

    fn settle(&mut self, id: usize, verdict: Verdict) {
        let request = self.requests.get_mut(&id).expect("it is under way");
        let Some((endpoint, permit, trial)) = request.at.take() else { return };
        let worker = request.worker;
        let draw = self.random.u64(..);
        let side = self.workers[worker].sides.get_mut(&endpoint).expect("it has a request");
        side.in_flight -= 1;
        if trial == Some(side.round) {
            side.trials -= 1;
        }
        if verdict != Verdict::Neutral {
            let mut record = side.outlier.get();
            record.note(verdict == Verdict::Failure);
            side.outlier.set(record);
        }
        let change = side.breaker.settle(permit, verdict, &self.breaker, self.now, draw);
        if let Some(change) = change {
            side.round += 1;
            side.trials = 0;
            assert!(trial.is_some() || change.to == BreakerState::Open, "late news close nothing");
            assert!(trial.is_some() == (change.from == BreakerState::HalfOpen), "late news change nothing: {change:?}");
            self.summary.trips += u64::from(change.to == BreakerState::Open);
            self.say(|| format!("worker {worker}, endpoint {endpoint}: {:?} → {:?}", change.from, change.to));
        }
    }

    fn compare(&mut self) {
        for worker in &mut self.workers {
            let records: Vec<_> = self.present.iter().map(|endpoint| &worker.sides[endpoint].outlier).collect();
            let out = |now| records.iter().filter(|record| record.get().is_ejected(now)).count();
            let before = out(self.now);
            outlier::evaluate(&self.outliers, &records, self.now);
            let after = out(self.now);
            let most = records.len() as f64 * self.outliers.max_ejected;
            assert!(after as f64 <= most && after < records.len(), "{after} of {} are out", records.len());
            self.summary.ejections += (after - before.min(after)) as u64;
        }
    }

    fn check(&self) {
        for worker in &self.workers {
            let seconds = (self.now - self.begun).as_secs_f64() + 20.0;
            let share = worker.requests as f64 * self.retry.budget + f64::from(self.retry.budget_minimum) * seconds;
            assert!(worker.retries as f64 <= share, "{} retries of {} requests", worker.retries, worker.requests);
        }
    }

    /// All is quiet, and had been good for long.
    fn finish(&self) {
        assert!(self.requests.is_empty(), "every request ends");
        // A breaker that opened at the end of the bad time, at its longest, and a few requests.
        let patience = self.breaker.open_for_max * 2 + self.outliers.eject_for_max + Duration::from_secs(20);
        for worker in &self.workers {
            for (&endpoint, side) in worker.sides.iter().filter(|side| self.present.contains(side.0)) {
                assert_eq!((side.in_flight, side.trials), (0, 0), "something leaks");
                assert_eq!(side.breaker.state(self.now), BreakerState::Closed, "endpoint {endpoint} works again");
                let asked = side.asked_at.is_some_and(|at| at + patience > self.begun + BAD + GOOD);
                assert!(asked, "endpoint {endpoint} gets requests again");
            }
        }
    }
}
