//! How exact the sliding window of 128 slots is, beside a log of every request and the usual counter of two buckets.
//!
//! `cargo test --test accuracy_rate_limit -- --nocapture` prints the table of README.md.

use std::collections::VecDeque;
use std::time::Duration;

use ringway::traffic::window::{Limit, Order, SLOTS, Window};

const LIMIT: u32 = 1_000;
const WINDOW_US: u64 = 60_000_000;

trait Limiter {
    fn admits(&mut self, now_us: u64) -> bool;
}

/// A log of the moments of all requests in the window: exact, at 8 bytes a request.
#[derive(Default)]
struct Log(VecDeque<u64>);

impl Log {
    fn has_room(&mut self, now_us: u64) -> bool {
        while self.0.front().is_some_and(|&at| at + WINDOW_US < now_us) {
            self.0.pop_front();
        }
        self.0.len() < LIMIT as usize
    }
}

impl Limiter for Log {
    fn admits(&mut self, now_us: u64) -> bool {
        let has_room = self.has_room(now_us);
        if has_room {
            self.0.push_back(now_us);
        }
        has_room
    }
}

/// The count of the bucket of a window's length before this one, weighted by the part of it that the window still covers.
#[derive(Default)]
struct TwoBuckets {
    bucket: u64,
    previous: u64,
    current: u64,
}

impl Limiter for TwoBuckets {
    fn admits(&mut self, now_us: u64) -> bool {
        let bucket = now_us / WINDOW_US;
        if bucket != self.bucket {
            self.previous = if bucket == self.bucket + 1 { self.current } else { 0 };
            (self.bucket, self.current) = (bucket, 0);
        }
        let weighted = self.previous as f64 * (1.0 - (now_us % WINDOW_US) as f64 / WINDOW_US as f64);
        let is_admitted = weighted + self.current as f64 + 1.0 <= f64::from(LIMIT);
        self.current += u64::from(is_admitted);
        is_admitted
    }
}

struct Slots(Window, Limit);

impl Limiter for Slots {
    fn admits(&mut self, now_us: u64) -> bool {
        self.0.acquire(&self.1, &Order { waiting: 1, ..Order::default() }, now_us).granted == 1
    }
}

/// What a limiter did: the most admitted in any window, and how many in all.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    most: usize,
    admitted: usize,
}

/// No refusal may come while a log of what was admitted in the window and `late_us` before it has room.
fn measure(limiter: &mut dyn Limiter, traffic: &[u64], late_us: u64) -> Outcome {
    let (mut window, mut longer) = (Log::default(), VecDeque::new());
    let mut outcome = Outcome { most: 0, admitted: 0 };
    for &at in traffic {
        window.has_room(at);
        while longer.front().is_some_and(|&of| of + WINDOW_US + late_us < at) {
            longer.pop_front();
        }
        if limiter.admits(at) {
            window.0.push_back(at);
            longer.push_back(at);
            outcome.most = outcome.most.max(window.0.len());
            outcome.admitted += 1;
        } else {
            assert!(longer.len() >= LIMIT as usize, "refused with {} in the longer window", longer.len());
        }
    }
    outcome
}

/// Beyond the limit in the worst window, and fewer admitted than by a log; both in percent.
fn errors(outcome: Outcome, log: Outcome) -> (f64, f64) {
    let over = (outcome.most as f64 / f64::from(LIMIT) - 1.0).max(0.0);
    let fewer = 1.0 - outcome.admitted as f64 / log.admitted as f64;
    (over * 100.0, fewer * 100.0)
}

/// Ten windows of requests that come `rate` times as fast as the limit allows, evenly.
fn uniform(rate: f64) -> Vec<u64> {
    let gap = WINDOW_US as f64 / f64::from(LIMIT) / rate;
    (0..(10.0 * f64::from(LIMIT) * rate) as u64).map(|index| start() + (index as f64 * gap) as u64).collect()
}

/// Requests at random, at 0.3 or 5 times the limit's rate in turns of random length.
fn bursty(seed: u64) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut at, mut traffic) = (start(), Vec::new());
    while traffic.len() < 20 * LIMIT as usize {
        let rate = if random.bool() { 0.3 } else { 5.0 };
        let end = at + random.u64(WINDOW_US / 20..WINDOW_US);
        while at < end {
            at += (WINDOW_US as f64 / f64::from(LIMIT) / rate * -(1.0 - random.f64()).ln()) as u64 + 1;
            traffic.push(at);
        }
    }
    traffic
}

/// The whole limit just before a bucket's edge, then as much as passes, four times.
fn edges() -> Vec<u64> {
    let mut traffic = Vec::new();
    for round in 0..4 {
        let edge = start() + (4 * round + 1) * WINDOW_US;
        traffic.extend((0..u64::from(LIMIT)).map(|index| edge - 1_000 + index));
        traffic.extend((0..3 * u64::from(LIMIT)).map(|index| edge + index * WINDOW_US / u64::from(LIMIT) / 3));
    }
    traffic
}

/// On the edge of a bucket.
fn start() -> u64 {
    28_333_333 * WINDOW_US
}

#[test]
fn accuracy() {
    let traffic = [
        ("uniform, at the limit", uniform(1.0)),
        ("uniform, at twice the limit", uniform(2.0)),
        ("bursty", bursty(1)),
        ("bursts at a window's edge", edges()),
    ];
    println!("| traffic | 128 slots: over the limit | fewer than a log | two buckets: over | fewer |");
    println!("|---|---|---|---|---|");
    let mut worst_two_buckets: f64 = 0.0;
    for (name, traffic) in traffic {
        let limit = Limit::new(LIMIT, Duration::from_micros(WINDOW_US));
        let log = measure(&mut Log::default(), &traffic, 0);
        let slots = measure(&mut Slots(Window::default(), limit), &traffic, limit.slot_us());
        // Its refusals are not bounded so.
        let two = measure(&mut TwoBuckets::default(), &traffic, u64::MAX / 4);
        let ((over, fewer), (two_over, two_fewer)) = (errors(slots, log), errors(two, log));
        println!("| {name} | {over:.2} % | {fewer:.2} % | {two_over:.2} % | {two_fewer:.2} % |");
        assert!(slots.most <= LIMIT as usize, "{name}: {slots:?}");
        assert!(fewer <= 100.0 / SLOTS as f64, "{name}: {slots:?}, {log:?}");
        worst_two_buckets = worst_two_buckets.max(two_over);
    }
    assert!(worst_two_buckets > 90.0, "what we depart from: {worst_two_buckets}");
}
