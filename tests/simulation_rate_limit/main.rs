//! The rate limiter as a whole, in simulated time: gateways with several workers each, one ledger, and between them latency,
//! reordering, lost orders and answers, crashes, clocks that differ, clients that leave, bursts.
//!
//! 256 seeds; `SEED=17` replays one. The bounds are those stated in `policy::rate_limit`.

mod world;

use std::time::Duration;

use ringway::traffic::window::Limit;
use world::{Faults, Plan, World};

fn seeds() -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..256).collect(),
    }
}

fn plan(seed: u64) -> Plan {
    let mut random = fastrand::Rng::with_seed(seed);
    let window_ms = *random.choice(&[50, 200, 1_000, 3_000]).expect("not empty");
    let requests = *random.choice(&[1, 5, 40, 150, 400, 1_000, 2_500]).expect("not empty");
    let workers = *random.choice(&[1, 2, 3, 8, 24]).expect("not empty");
    let keys = *random.choice(&[1, 1, 3]).expect("not empty");
    Plan {
        seed,
        limit: Limit::new(requests, Duration::from_millis(window_ms)),
        workers,
        keys,
        // Of the limit, over all workers.
        demand: *random.choice(&[0.5, 0.97, 1.3, 4.0]).expect("not empty"),
        bursty: random.bool(),
        windows: if requests > 500 { 3 } else { 5 },
        latency_us: *random.choice(&[(0, 10), (50, 200), (50, 3_000), (5_000, 40_000)]).expect("not empty"),
        faults: if random.bool() { Faults::Many } else { Faults::None },
        leavers: random.bool(),
    }
}

#[test]
fn the_bounds_hold() {
    let (mut admitted, mut refused) = (0, 0);
    for seed in seeds() {
        let plan = plan(seed);
        println!("SEED={seed} {plan:?}");
        let world = World::run(plan);
        world.never_over_the_limit();
        world.nothing_leaks();
        admitted += world.admitted();
        refused += world.refused;
    }
    println!("{admitted} admitted, {refused} refused");
}

/// Orders, and reports of their own, for each admitted request.
fn orders_per_request(limit: Limit, keys: u64, workers: usize, demand: f64) -> f64 {
    let world = World::run(Plan {
        seed: 1,
        limit,
        workers,
        keys,
        demand,
        bursty: false,
        windows: 2,
        latency_us: (100, 300),
        faults: Faults::None,
        leavers: false,
    });
    world.never_over_the_limit();
    let (admitted, refused, orders) = (world.admitted(), world.refused, world.orders);
    let per_request = orders as f64 / admitted as f64;
    println!(
        "{keys} keys, {workers} workers, demand {demand}: {admitted} admitted, {refused} refused, {per_request:.4}"
    );
    per_request
}

#[test]
fn orders_on_a_hot_key() {
    let limit = Limit::new(100_000, Duration::from_secs(1));
    // A worker asks at least once in each of its slots: 128 times the workers in each second.
    for (workers, demand, at_most) in
        [(2, 0.5, 0.02), (2, 0.95, 0.02), (2, 2.0, 0.02), (8, 0.95, 0.05), (64, 0.95, 0.15)]
    {
        let per_request = orders_per_request(limit, 1, workers, demand);
        assert!(per_request <= at_most, "{workers} workers: {per_request}");
    }
}

#[test]
fn orders_on_many_slow_keys() {
    let limit = Limit::new(100, Duration::from_secs(60));
    let per_request = orders_per_request(limit, 1_000, 2, 0.5);
    assert!((0.999..=1.0).contains(&per_request), "one each: {per_request}");
    // Twice too many requests: no more orders than those admitted and a refusal a slot and worker.
    let per_request = orders_per_request(limit, 50, 2, 2.0);
    assert!(per_request <= 1.5, "{per_request}");
}

/// What README.md says of Redis's load as workers and gateways grow: `cargo test --test simulation_rate_limit orders_by_workers -- --nocapture`.
#[test]
fn orders_by_workers() {
    const WORKERS: [usize; 5] = [1, 8, 64, 640, 6_400];
    println!("| requests a second of one key, limited to 1.05 times that | {WORKERS:?} workers |");
    for rate in [950, 9_500, 95_000] {
        let limit = Limit::new(rate / 95 * 100, Duration::from_secs(1));
        let row = WORKERS.map(|workers| orders_per_request(limit, 1, workers, 0.95));
        println!("| {rate} | {row:.4?} |");
        // However many workers share a key, that costs no more than asking for each request, and an empty hand's report.
        assert!(row.iter().all(|&orders| orders <= 1.2), "{rate}: {row:?}");
        // A worker asks once in each slot that it has requests in, and then as often as its lease runs low: about twice more.
        let at_most = |workers: usize| 4.0 * (128 * workers) as f64 / f64::from(rate);
        assert!(row.iter().zip(WORKERS).all(|(&orders, workers)| orders <= at_most(workers)), "{rate}: {row:?}");
    }
}
