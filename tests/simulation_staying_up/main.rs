//! Breakers, retries, their budget, ejection and balancing together, in virtual time: workers whose endpoints fail, stall,
//! flap, leave and come back, and whose requests are cancelled at any moment.
//!
//! `SEED=7 cargo test --test simulation_staying_up -- --nocapture` replays one seed and tells what happens;
//! `SEEDS=20000` runs so many instead of 256.

mod world;

use std::time::Instant;

use world::{Summary, World};

#[test]
fn whatever_happens_nothing_leaks_and_everything_comes_back() {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        println!("{:?}", World::new(seed, true).run());
        return;
    }
    let seeds: u64 = std::env::var("SEEDS").map_or(256, |seeds| seeds.parse().expect("SEEDS is a number"));
    let begun = Instant::now();
    let mut sum = Summary::default();
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| World::new(seed, false).run());
        sum.add(&run.unwrap_or_else(|_| panic!("SEED={seed} fails; replay it with that variable and --nocapture")));
    }
    println!("{seeds} seeds in {:?}: {sum:?}", begun.elapsed());
    // A simulation in which nothing happens shows nothing.
    assert!(sum.trips > seeds && sum.retries > seeds && sum.cancelled > seeds && sum.ejections > 0 && sum.reloads > 0);
}
