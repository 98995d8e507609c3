//! One suite for both ledgers, in memory and in a real Redis: tables of orders with the expected answers, and random orders
//! against an exact model. The script's time is handed in here, as its last argument; in service it is Redis's own.

mod model;
mod redis;
#[path = "../support/redis.rs"]
mod server;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use model::Model;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::RedisLedger;
use ringway::redis::ledger::MemoryLedger;
use ringway::traffic::window::{Grant, Limit, LimitKey, Order, Report};

/// Slot 0 of the tests that look at single slots, far from the epoch.
const EPOCH: u64 = 1_700_000_000;

trait Ledger {
    fn acquire(&mut self, key: LimitKey, limit: &Limit, order: &Order, now_us: u64) -> Grant;
}

impl Ledger for MemoryLedger {
    fn acquire(&mut self, key: LimitKey, limit: &Limit, order: &Order, now_us: u64) -> Grant {
        MemoryLedger::acquire(self, key, limit, order, now_us)
    }
}

/// One line of a table: at a time in milliseconds, an order, and the answer (granted, remaining, reset and valid in
/// milliseconds, slot from the first one).
type Line = (u64, [u32; 2], (u64, u32, u32), (u32, u32, u64, u64, i64));

fn check(ledger: &mut impl Ledger, name: &str, limit: &Limit, lines: &[Line]) {
    let key = LimitKey(name.bytes().fold(1, |key: u128, byte| key.wrapping_mul(257).wrapping_add(byte.into())));
    let slot_0 = EPOCH * 1_000_000 / limit.slot_us();
    for (index, &(at, [waiting, ahead], (slot, unused, settled), expected)) in lines.iter().enumerate() {
        let order = Order { waiting, ahead, report: Report { slot: slot_0 + slot, unused, settled } };
        let grant = ledger.acquire(key, limit, &order, EPOCH * 1_000_000 + at * 1_000);
        let [reset, valid] = [grant.reset_after, grant.valid_for].map(|time| time.as_millis() as u64);
        let slot = grant.slot as i64 - slot_0 as i64;
        assert_eq!((grant.granted, grant.remaining, reset, valid, slot), expected, "{name}, line {index}");
    }
}

/// Slots of one second, 128 of them.
fn tables(ledger: &mut impl Ledger) {
    let limit = |requests| Limit::new(requests, Duration::from_secs(128));
    let none = (0, 0, 0);
    check(
        ledger,
        "a token comes back when its slot has left",
        &limit(3),
        &[
            (0, [1, 0], none, (1, 2, 129_000, 1_000, 0)),
            (10_250, [5, 0], none, (2, 0, 118_750, 750, 10)),
            (128_000, [1, 0], none, (0, 0, 1_000, 1_000, 128)),
            (129_000, [2, 0], none, (1, 0, 10_000, 1_000, 129)),
            (139_999, [3, 0], none, (2, 0, 118_001, 1, 139)),
            (1_000_000, [1, 0], none, (1, 2, 129_000, 1_000, 1_000)),
        ],
    );
    check(
        ledger,
        "an order for nothing takes nothing",
        &limit(3),
        &[(0, [0, 0], none, (0, 3, 0, 1_000, 0)), (500, [0, 0], (0, 5, 5), (0, 3, 0, 500, 0))],
    );
    check(
        ledger,
        "a refusal takes nothing",
        &limit(2),
        &[
            (0, [2, 0], none, (2, 0, 129_000, 1_000, 0)),
            (1_000, [9, 9], none, (0, 0, 128_000, 1_000, 1)),
            (128_999, [9, 9], none, (0, 0, 1, 1, 128)),
            (129_000, [1, 0], none, (1, 1, 129_000, 1_000, 129)),
        ],
    );
    check(
        ledger,
        "one percent is parked at most",
        &limit(1_000),
        &[
            (0, [1, 50], none, (6, 994, 129_000, 1_000, 0)),
            (0, [1, 50], none, (3, 991, 129_000, 1_000, 0)),
            (0, [0, 50], none, (1, 990, 129_000, 1_000, 0)),
            (1_000, [1, 50], none, (2, 988, 128_000, 1_000, 1)),
            (2_000, [1, 50], none, (1, 987, 127_000, 1_000, 2)),
            (2_000, [0, 0], (0, 2, 8), (0, 989, 127_000, 1_000, 2)),
            (2_000, [1, 3], (1, 1, 1), (4, 986, 127_000, 1_000, 2)),
            (2_000, [0, 0], (0, 100, 100), (0, 994, 128_000, 1_000, 2)),
            (2_000, [0, 0], (1, 100, 0), (0, 995, 129_000, 1_000, 2)),
            (2_000, [0, 0], (2, 100, 0), (0, 1_000, 0, 1_000, 2)),
        ],
    );
    check(
        ledger,
        "leases shrink as the limit nears",
        &limit(10_000),
        &[
            (0, [9_990, 0], none, (9_990, 10, 129_000, 1_000, 0)),
            (0, [1, 50], none, (5, 5, 129_000, 1_000, 0)),
            (0, [1, 50], none, (3, 2, 129_000, 1_000, 0)),
            (0, [3, 50], none, (2, 0, 129_000, 1_000, 0)),
        ],
    );
    check(
        ledger,
        "many slots leave at once",
        &limit(150),
        &(0..129u32)
            .map(|slot| {
                let since = u64::from(slot) * 1_000;
                (since, [1, 0], none, (1, 149 - slot, 129_000 - since, 1_000, i64::from(slot)))
            })
            .chain([
                (200_000, [0, 0], none, (0, 150 - 57, 1_000, 1_000, 200)),
                (256_000, [1, 0], none, (1, 150 - 2, 1_000, 1_000, 256)),
            ])
            .collect::<Vec<_>>(),
    );
    check(
        ledger,
        "a clock set back stands still, or starts anew",
        &limit(3),
        &[
            (1_000_000, [1, 0], none, (1, 2, 129_000, 1_000, 1_000)),
            (990_000, [1, 0], none, (1, 1, 139_000, 1_000, 1_000)),
            (872_000, [1, 0], none, (1, 0, 257_000, 1_000, 1_000)),
            (871_000, [3, 0], none, (3, 0, 129_000, 1_000, 871)),
        ],
    );
}

#[test]
fn tables_in_memory() {
    tables(&mut MemoryLedger::new(1_000));
}

#[test]
fn tables_in_redis() {
    tables(&mut RedisLedger::start());
}

/// Time since the last step in thousandths of a slot, waiting, ahead, and a report of one of the slots seen last.
type Step = (i64, u32, u32, (u8, u32, u32));

/// Mostly small steps in time, some over many slots, a few back.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slots =
        prop_oneof![5 => 0..2_000i64, 3 => 0..20_000i64, 2 => 0..200_000i64, 1 => -3_000..0i64, 1 => -200_000..0i64];
    let few_or_many = || prop_oneof![Just(0u32), 1..4u32, 1..400u32];
    let report = (0..8u8, few_or_many(), few_or_many());
    proptest::collection::vec((slots, few_or_many(), few_or_many(), report), 1..60)
}

/// Random orders, with reports of slots seen lately; every answer is the model's.
fn agrees_with_the_model(ledger: &mut impl Ledger, cases: u32) {
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let ledger = RefCell::new(ledger);
    let next_key = Cell::new(1u128 << 32);
    let input = (prop_oneof![1..20u32, 90..3_000u32], prop_oneof![Just(128_000u64), 10..5_000u64], steps());
    let outcome = runner.run(&input, |(requests, window_ms, steps)| {
        let key = next_key.replace(next_key.get() + 1);
        let limit = Limit::new(requests, Duration::from_millis(window_ms));
        let mut model = Model::default();
        let mut seen = [limit_slot(&limit); 8];
        let mut now = EPOCH * 1_000_000;
        for (index, (milli_slots, waiting, ahead, (of, unused, settled))) in steps.into_iter().enumerate() {
            now = now.saturating_add_signed(milli_slots * limit.slot_us() as i64 / 1_000);
            let report = Report { slot: seen[usize::from(of)], unused, settled };
            let order = Order { waiting, ahead, report };
            let expected = model.acquire(&limit, &order, now);
            let grant = ledger.borrow_mut().acquire(LimitKey(key), &limit, &order, now);
            prop_assert_eq!(grant, expected, "step {}", index);
            seen[index % 8] = grant.slot;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn limit_slot(limit: &Limit) -> u64 {
    EPOCH * 1_000_000 / limit.slot_us()
}

#[test]
fn memory_agrees_with_the_model() {
    agrees_with_the_model(&mut MemoryLedger::new(1 << 20), 2_000);
}

#[test]
fn redis_agrees_with_the_model() {
    agrees_with_the_model(&mut RedisLedger::start(), 300);
}

#[test]
fn redis_keeps_its_own_time_and_forgets_by_itself() {
    let mut redis = RedisLedger::start();
    let limit = Limit::new(2, Duration::from_millis(128));
    let take = |redis: &mut RedisLedger| redis.acquire_now("k", &limit, &Order { waiting: 1, ..Order::default() });
    let first = take(&mut redis);
    assert_eq!((first.granted, first.remaining), (1, 1));
    assert!(first.valid_for <= limit.slot() && first.reset_after <= limit.slot() * 129, "{first:?}");
    assert_eq!(take(&mut redis).granted, 1);
    let refused = take(&mut redis);
    assert_eq!(refused.granted, 0);
    // The wait is exact: a token is there when it is over.
    std::thread::sleep(refused.reset_after);
    assert_eq!(take(&mut redis).granted, 1);
    assert!((1..=130).contains(&redis.number(&["PTTL", "k"])), "the key expires");
    redis.until("gone", |redis| redis.number(&["EXISTS", "k"]) == 0);
}

#[test]
fn calls_of_redis_are_few() {
    let mut redis = RedisLedger::start();
    let limit = Limit::new(100_000, Duration::from_secs(60));
    let order = Order { waiting: 1, ahead: 10, report: Report::default() };
    let count = |redis: &mut RedisLedger| redis.commands_processed();
    // One token in each of 1,000 slots, then 1,000 in one.
    let before = count(&mut redis);
    for slot in 0..1_000 {
        redis.acquire(LimitKey(1), &limit, &order, EPOCH * 1_000_000 + slot * limit.slot_us());
    }
    let spread = count(&mut redis) - before;
    for _ in 0..1_000 {
        redis.acquire(LimitKey(1), &limit, &order, EPOCH * 1_000_000 + 1_000 * limit.slot_us());
    }
    let dense = count(&mut redis) - before - spread;
    // The script itself, HMGET, HSET; in a new slot PEXPIRE, the HMGET of what left, its HDEL, and an HGET for what it parked.
    assert!(dense <= 3 * 1_000 + 20, "{dense}");
    assert!(spread <= 8 * 1_000, "{spread}");
}

#[test]
fn a_full_ledger_neither_grows_nor_lets_more_pass() {
    let ledger = MemoryLedger::new(640);
    let limit = Limit::new(5, Duration::from_secs(60));
    let one = Order { waiting: 1, ..Order::default() };
    let now = EPOCH * 1_000_000;
    let key = |index: u128| LimitKey(index << 122 | index);
    // Those who were there first keep their windows through a flood of 100,000 keys.
    assert!((0..100).all(|index| ledger.acquire(key(index), &limit, &one, now).granted == 1));
    let admitted: u32 = (100..100_100).map(|index| ledger.acquire(key(index), &limit, &one, now).granted).sum();
    assert!(ledger.len() <= 640, "{}", ledger.len());
    assert!(admitted <= 640 + 64 * 5, "{admitted}");
    for index in 0..100 {
        let granted = (0..10).map(|_| ledger.acquire(key(index), &limit, &one, now).granted).sum::<u32>();
        assert_eq!(granted, 4, "{index}");
    }
    // A flooding key that gets a window of its own meanwhile is still counted for what it took from the shared one.
    let later = now + 129 * limit.slot_us();
    let flooder = key(100_050);
    let granted = (0..10).map(|_| ledger.acquire(flooder, &limit, &one, later - 1).granted).sum::<u32>();
    let more = (0..10).map(|_| ledger.acquire(flooder, &limit, &one, later).granted).sum::<u32>();
    assert!(granted + more <= 5, "{granted} + {more}");
    // Over time everything is forgotten but what is new.
    let much_later = now + 1_000 * limit.slot_us();
    for index in 0..1_000 {
        ledger.acquire(key(1_000_000 + index % 2), &limit, &one, much_later);
        ledger.acquire(key(2_000_000 + index), &limit, &one, much_later + index as u64 * 200 * limit.slot_us());
    }
    assert!(ledger.len() < 400, "{}", ledger.len());
}

#[test]
fn exact_across_threads() {
    let ledger = MemoryLedger::new(100);
    let limit = Limit::new(10_000, Duration::from_secs(60));
    let admitted: u32 = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let one = Order { waiting: 1, ..Order::default() };
                    let take = || ledger.acquire(LimitKey(7), &limit, &one, EPOCH * 1_000_000).granted;
                    (0..4_000).map(|_| take()).sum::<u32>()
                })
            })
            .collect();
        takers.into_iter().map(|taker| taker.join().expect("no panic")).sum()
    });
    assert_eq!(admitted, 10_000);
}
