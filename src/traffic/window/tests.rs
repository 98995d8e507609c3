use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;

/// 128 slots of one second each.
fn limit(requests: u32) -> Limit {
    Limit::new(requests, Duration::from_secs(SLOTS))
}

/// An order for `waiting` requests and `ahead` more, in seconds of the ledger's clock; the answer as (granted, remaining,
/// reset in seconds, slot).
fn order(window: &mut Window, requests: u32, at: u64, waiting: u32, ahead: u32) -> (u32, u32, u64, u64) {
    let order = Order { waiting, ahead, report: Report::default() };
    let grant = window.acquire(&limit(requests), &order, at * SECOND);
    (grant.granted, grant.remaining, grant.reset_after.as_secs(), grant.slot)
}

fn report(window: &mut Window, requests: u32, at: u64, slot: u64, unused: u32, settled: u32) -> u32 {
    let order = Order { report: Report { slot, unused, settled }, ..Order::default() };
    window.acquire(&limit(requests), &order, at * SECOND).remaining
}

#[test]
fn limits_are_brought_into_their_ranges() {
    let check = |requests, window, expected| {
        let limit = Limit::new(requests, window);
        assert_eq!((limit.requests(), limit.slot_us(), limit.parked_max()), expected);
        assert!(limit.slot() * SLOTS as u32 >= limit.window());
    };
    check(100, Duration::from_secs(60), (100, 468_750, 1));
    check(99, Duration::from_secs(1), (99, 7_813, 0));
    check(0, Duration::ZERO, (1, 79, 0));
    check(u32::MAX, Duration::MAX, (1_000_000_000, 270_000_000_000, 10_000_000));
}

#[test]
fn a_token_comes_back_when_its_slot_has_left() {
    let mut window = Window::default();
    assert_eq!(order(&mut window, 3, 1_000, 1, 0), (1, 2, 129, 1_000));
    assert_eq!(order(&mut window, 3, 1_010, 5, 0), (2, 0, 119, 1_010));
    assert_eq!(order(&mut window, 3, 1_128, 1, 0), (0, 0, 1, 1_128));
    assert_eq!(order(&mut window, 3, 1_129, 2, 0), (1, 0, 10, 1_129));
    assert_eq!(order(&mut window, 3, 1_139, 3, 0), (2, 0, 119, 1_139));
    assert!(!window.is_over(1_267 * SECOND));
    assert!(window.is_over(1_268 * SECOND));
}

#[test]
fn leases_end_with_their_slot() {
    let mut window = Window::default();
    let valid = |window: &mut Window, now_us| window.acquire(&limit(100), &Order::default(), now_us).valid_for;
    assert_eq!(valid(&mut window, 5 * SECOND), Duration::from_secs(1));
    assert_eq!(valid(&mut window, 5 * SECOND + 1), Duration::from_micros(SECOND - 1));
    assert_eq!(valid(&mut window, 6 * SECOND - 1), Duration::from_micros(1));
}

#[test]
fn little_is_parked() {
    // Below 200 nothing is: half of one is none.
    for requests in [1, 99, 100, 199] {
        assert_eq!(order(&mut Window::default(), requests, 1, 1, 50).0, 1, "{requests}");
    }
    let mut window = Window::default();
    assert_eq!(order(&mut window, 1_000, 1, 1, 50).0, 1 + 5);
    assert_eq!(order(&mut window, 1_000, 1, 1, 50).0, 1 + 2);
    assert_eq!(order(&mut window, 1_000, 1, 1, 50).0, 1 + 1);
    assert_eq!(order(&mut window, 1_000, 2, 1, 50).0, 1 + 1);
    assert_eq!(order(&mut window, 1_000, 3, 1, 50).0, 1);
    // Six of slot 1 were spent and two come back; one of slot 2 is unused.
    assert_eq!(report(&mut window, 1_000, 3, 1, 2, 8), 1_000 - 14 + 2);
    assert_eq!(report(&mut window, 1_000, 3, 2, 1, 1), 1_000 - 14 + 3);
    assert_eq!(order(&mut window, 1_000, 3, 1, 3).0, 1 + 3);
    // What is parked with the dead is parked no longer once its slot has left.
    assert_eq!(order(&mut window, 1_000, 3 + 129, 0, 50).0, 5);
}

#[test]
fn leases_shrink_as_the_limit_nears() {
    let mut window = Window::default();
    assert_eq!(order(&mut window, 10_000, 1, 9_990, 0), (9_990, 10, 129, 1));
    assert_eq!(order(&mut window, 10_000, 1, 1, 50), (1 + 4, 5, 129, 1));
    assert_eq!(order(&mut window, 10_000, 1, 1, 50), (1 + 2, 2, 129, 1));
    assert_eq!(order(&mut window, 10_000, 1, 3, 50), (2, 0, 129, 1));
}

#[test]
fn reports_change_only_what_is_there() {
    let mut window = Window::default();
    order(&mut window, 300, 1, 10, 0);
    order(&mut window, 300, 2, 10, 3);
    assert_eq!(report(&mut window, 300, 2, 5, 1, 1), 300 - 21);
    assert_eq!(report(&mut window, 300, 2, 0, 1, 1), 300 - 21);
    assert_eq!(report(&mut window, 300, 2, 1, 11, 11), 300 - 11);
    assert_eq!(report(&mut window, 300, 129, 2, 11, 1), 300);
    assert!(window.is_over(129 * SECOND));
    order(&mut window, 300, 130, 10, 0);
    assert_eq!(report(&mut window, 300, 130 + 129, 130, 1, 1), 300);
}

#[test]
fn a_clock_set_back_stands_still_or_starts_anew() {
    let mut window = Window::default();
    assert_eq!(order(&mut window, 3, 1_000, 1, 0).3, 1_000);
    assert_eq!(order(&mut window, 3, 990, 1, 0), (1, 1, 139, 1_000));
    assert_eq!(order(&mut window, 3, 1_000 - SLOTS, 1, 0).0, 1);
    assert_eq!(order(&mut window, 3, 1_000 - SLOTS - 1, 3, 0), (3, 0, 129, 871));
}

#[test]
fn another_window_starts_anew() {
    let mut window = Window::default();
    assert_eq!(order(&mut window, 3, 1_000, 3, 0).0, 3);
    // A limit of another size keeps the counts.
    assert_eq!(order(&mut window, 2, 1_000, 1, 0), (0, 0, 129, 1_000));
    assert_eq!(order(&mut window, 4, 1_000, 2, 0), (1, 0, 129, 1_000));
    let minute = Limit::new(3, Duration::from_secs(60));
    assert_eq!(window.acquire(&minute, &Order { waiting: 5, ..Order::default() }, 1_000 * SECOND).granted, 3);
}

/// (time since the last, waiting, ahead, share of the granted that comes back)
fn steps() -> impl Strategy<Value = Vec<(u64, u32, u32, u32)>> {
    let gap = prop_oneof![0..2_000u64, 0..200_000u64, 0..20_000_000u64];
    proptest::collection::vec((gap, 0..40u32, 0..400u32, 0..4u32), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What is taken and not given back, in any interval as long as the window, is within the limit; the counts add up.
    #[test]
    fn never_over_the_limit(requests in 1..3_000u32, window_us in 10_000..10_000_000u64, steps in steps()) {
        let limit = Limit::new(requests, Duration::from_micros(window_us));
        let mut window = Window::default();
        let mut taken: Vec<(u64, u32)> = Vec::new();
        let mut now = 1_700_000_000_000_000;
        let mut report = Report::default();
        for (gap, waiting, ahead, unused_quarters) in steps {
            now += gap;
            let order = Order { waiting, ahead, report };
            let grant = window.acquire(&limit, &order, now);
            prop_assert!(grant.granted <= waiting + ahead);
            prop_assert!(window.cells.len() as u64 <= SLOTS + 1);
            prop_assert_eq!(window.total, window.cells.iter().map(|cell| cell.count).sum::<u32>());
            prop_assert_eq!(window.parked, window.cells.iter().map(|cell| cell.parked).sum::<u32>());
            prop_assert!(window.parked <= limit.parked_max());
            prop_assert_eq!(grant.remaining, requests - window.total);
            let extra = grant.granted.saturating_sub(waiting);
            let unused = extra * unused_quarters / 4;
            report = Report { slot: grant.slot, unused, settled: extra };
            taken.push((now, grant.granted - unused));
            let since = taken.iter().filter(|(at, _)| at + window_us >= now).map(|(_, count)| count).sum::<u32>();
            prop_assert!(since <= requests, "{} > {}", since, requests);
        }
    }
}
