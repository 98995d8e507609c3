use super::*;

/// A table of one key on a ledger that the test plays itself; slots are one second, the clock counts milliseconds.
struct Bench {
    table: LeaseTable,
    limit: Limit,
    start: Instant,
}

const KEY: LimitKey = LimitKey(7);

impl Bench {
    fn new(requests: u32) -> Bench {
        let limit = Limit::new(requests, Duration::from_secs(128));
        Bench { table: LeaseTable::new(4), limit, start: Instant::now() }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn check(&mut self, ms: u64) -> Verdict {
        self.table.check(KEY, &self.limit, self.at(ms))
    }

    /// The order of a request that must ask.
    fn asks(&mut self, ms: u64) -> Order {
        match self.check(ms) {
            Verdict::Ask { order, .. } => order,
            other => panic!("{other:?}"),
        }
    }

    fn joins(&mut self, ms: u64) -> Ticket {
        match self.check(ms) {
            Verdict::Join { ticket } => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// How many of `count` requests pass without asking.
    fn pass(&mut self, ms: u64, count: usize) -> usize {
        (0..count).filter(|_| matches!(self.check(ms), Verdict::Allow { .. })).count()
    }

    fn granted(&mut self, sent: u64, now: u64, granted: u32, slot: u64, valid_for: u64) -> Settled {
        let grant = Grant {
            granted,
            remaining: 50,
            reset_after: Duration::from_secs(5),
            valid_for: Duration::from_millis(valid_for),
            slot,
        };
        let (sent, now) = (self.at(sent), self.at(now));
        self.table.granted(KEY, &grant, sent, now).expect("an order is under way")
    }

    fn swept(&mut self, ms: u64) -> Vec<(u64, u32, u32)> {
        let mut reports = Vec::new();
        let now = self.at(ms);
        self.table.sweep(10, now, |key, address, _, report| {
            assert_eq!((key, address), (KEY, &b"address"[..]));
            reports.push((report.slot, report.unused, report.settled));
        });
        reports
    }
}

fn report(slot: u64, unused: u32, settled: u32) -> Report {
    Report { slot, unused, settled }
}

#[test]
fn a_key_seen_once_takes_one_token() {
    let mut bench = Bench::new(10_000);
    assert_eq!(bench.asks(0), Order { waiting: 1, ahead: 0, report: Report::default() });
    let settled = bench.granted(0, 1, 1, 3, 900);
    assert_eq!((settled.admitted, settled.denied, settled.order), (1, None, None));
    assert_eq!(settled.standing, Standing { remaining: 50, reset_after: Duration::from_millis(4_999) });
    bench.table.address(KEY).expect("a known key").extend_from_slice(b"address");
    assert_eq!(bench.swept(10_000), []);
    assert!(bench.table.is_empty());
}

#[test]
fn a_lease_grows_with_use_and_dies_with_its_slot() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    bench.granted(0, 0, 1, 3, 1_000);
    // It runs dry in its slot: by then one request came in no time at all.
    let order = bench.asks(100);
    assert_eq!((order.waiting, order.report), (1, report(3, 0, 0)));
    assert!((1..=20).contains(&order.ahead), "{order:?}");
    bench.granted(100, 100, 1 + 20, 3, 900);
    // At a quarter of what it had it asks for what the rest of the slot needs, and nobody waits.
    assert_eq!(bench.pass(200, 14), 14);
    let Verdict::Allow { refill: Some(order), .. } = bench.check(200) else { panic!("a quarter is left") };
    assert_eq!((order.waiting, order.report), (0, report(3, 0, 15)));
    assert!((60..=70).contains(&(order.ahead + 5)), "{order:?}");
    assert_eq!(bench.granted(200, 200, 18, 3, 800).admitted, 0);
    assert_eq!(bench.pass(999, 10), 10);
    // A thousandth is left to clocks that differ; the rest of the lease goes back with the next order. What the slot before
    // used, and a little more, is taken at once.
    assert_eq!(bench.asks(1_000), Order { waiting: 1, ahead: 26 + 5, report: report(3, 13, 23) });
    bench.granted(1_000, 1_000, 1 + 31, 4, 1_000);
    // After a pause it starts small.
    assert_eq!(bench.asks(4_000), Order { waiting: 1, ahead: 0, report: report(4, 31, 31) });
}

#[test]
fn a_lease_that_comes_late_serves_only_those_asked_for() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    bench.joins(1);
    bench.joins(2);
    // The answer took longer than its slot: the first passes on the token taken for it, the others ask together.
    let settled = bench.granted(0, 600, 1 + 5, 3, 500);
    assert_eq!(settled.admitted, 1);
    assert_eq!(settled.token(0), Token { slot: 3, leased: false });
    let order = settled.order.expect("two are waiting");
    assert_eq!((order.waiting, order.report), (2, report(3, 5, 5)));
    let settled = bench.granted(600, 1_600, 2, 4, 900);
    assert_eq!((settled.admitted, settled.order), (2, None));
}

#[test]
fn those_that_join_are_served_from_the_lease() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    for _ in 0..4 {
        bench.joins(1);
    }
    let settled = bench.granted(0, 2, 1 + 3, 3, 500);
    assert_eq!(settled.admitted, 4);
    assert_eq!([0, 1, 3].map(|index| settled.token(index).leased), [false, true, true]);
    let order = settled.order.expect("one is waiting");
    assert_eq!((order.waiting, order.report), (1, report(3, 0, 3)));
}

#[test]
fn a_denied_key_asks_nothing_until_its_reset() {
    let mut bench = Bench::new(50);
    bench.asks(0);
    bench.joins(1);
    let settled = bench.granted(0, 10, 0, 3, 500);
    assert_eq!((settled.admitted, settled.denied), (0, Some(Duration::from_millis(4_990))));
    assert_eq!(bench.check(2_000), Verdict::Deny { retry_after: Duration::from_secs(3) });
    assert_eq!(bench.check(4_999), Verdict::Deny { retry_after: Duration::from_millis(1) });
    assert_eq!(bench.asks(5_000).waiting, 1);
    bench.granted(5_000, 5_000, 0, 8, 500);
    // A limit that was changed is asked about at once.
    bench.limit = Limit::new(60, Duration::from_secs(128));
    assert_eq!(bench.asks(5_001).waiting, 1);
}

#[test]
fn a_denial_holds_under_lower_limits_too() {
    let mut bench = Bench::new(5);
    bench.asks(0);
    assert!(bench.granted(0, 1, 0, 3, 900).denied.is_some());
    let (low, high) = (bench.limit, Limit::new(10, bench.limit.window()));
    let denied = |bench: &mut Bench, ms| matches!(bench.check(ms), Verdict::Deny { .. });
    // Whoever is under a higher limit asks, and changes nothing for the others.
    for (ms, granted) in [(10, 1), (20, 1), (30, 0)] {
        assert!(denied(&mut bench, ms), "at {ms}");
        bench.limit = high;
        assert_eq!(bench.asks(ms).waiting, 1);
        bench.granted(ms, ms + 1, granted, 3, 900);
        bench.limit = low;
    }
    assert!(denied(&mut bench, 40));
    bench.limit = high;
    assert!(denied(&mut bench, 40));
    assert_eq!(bench.table.denied(KEY, &Limit::new(11, low.window()), bench.at(40)), None);
    // One that is granted under the same or a lower limit ends it.
    bench.limit = Limit::new(20, low.window());
    bench.asks(50);
    bench.granted(50, 51, 0, 3, 900);
    bench.limit = low;
    assert!(denied(&mut bench, 5_049));
    bench.asks(5_060);
    bench.granted(5_060, 5_061, 1, 8, 900);
    bench.limit = Limit::new(20, low.window());
    bench.asks(5_070);
}

#[test]
fn some_of_those_waiting_may_be_denied() {
    let mut bench = Bench::new(50);
    bench.asks(0);
    bench.joins(0);
    bench.joins(0);
    let order = bench.granted(0, 1, 1, 3, 500).order.expect("two are waiting");
    assert_eq!((order.waiting, order.ahead), (2, 0));
    let settled = bench.granted(1, 2, 1, 3, 499);
    assert_eq!(settled.admitted, 1);
    assert!(settled.denied.is_some() && settled.order.is_none());
}

#[test]
fn a_client_that_is_gone_leaves_its_token() {
    let mut bench = Bench::new(10_000);
    bench.table.check(KEY, &bench.limit, bench.start);
    bench.table.cancel(KEY, Ticket(0));
    let second = bench.joins(0);
    bench.joins(0);
    bench.table.cancel(KEY, second);
    let settled = bench.granted(0, 600, 1, 3, 500);
    assert_eq!(settled.admitted, 0);
    assert_eq!(settled.order.map(|order| (order.waiting, order.report)), Some((1, report(3, 1, 0))));
}

#[test]
fn an_answer_that_never_comes_leaves_nothing_behind() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    bench.joins(0);
    assert_eq!(bench.table.failed(KEY), 2);
    assert_eq!(bench.table.failed(KEY), 0);
    assert_eq!(bench.asks(1).waiting, 1);
    let late = Grant::refusal(&bench.limit, 1);
    bench.table.failed(KEY);
    assert_eq!(bench.table.granted(KEY, &late, bench.start, bench.start), None);
}

#[test]
fn a_refund_is_spent_again_or_goes_back() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    let asked = bench.granted(0, 0, 1 + 1, 3, 500).token(0);
    let Verdict::Allow { token: leased, .. } = bench.check(1) else { panic!("one is left") };
    let now = bench.at(2);
    bench.table.refund(KEY, leased, now);
    assert_eq!(bench.pass(2, 1), 1);
    // A token that was not leased is not parked: it goes back, it does not join the lease.
    bench.table.refund(KEY, asked, now);
    assert_eq!(bench.asks(3).report, report(3, 1, 0));
    bench.table.failed(KEY);
    // Leased, and its lease is over by now.
    let now = bench.at(700);
    bench.table.refund(KEY, leased, now);
    assert_eq!(bench.asks(700).report, report(3, 1, 1));
    bench.table.failed(KEY);
    // Leased, and reported spent before.
    bench.table.refund(KEY, leased, now);
    assert_eq!(bench.asks(701).report, report(3, 1, 0));
}

#[test]
fn idle_leases_go_back() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    bench.table.address(KEY).expect("a known key").extend_from_slice(b"address");
    bench.granted(0, 0, 1 + 8, 3, 900);
    assert_eq!(bench.pass(1, 3), 3);
    assert_eq!(bench.swept(100), []);
    assert_eq!(bench.swept(251), [(3, 5, 8)]);
    assert_eq!(bench.swept(400), []);
    assert_eq!(bench.table.len(), 1);
    bench.swept(2_500);
    assert!(bench.table.is_empty());
}

#[test]
fn another_ledger_hears_nothing_of_the_last() {
    let mut bench = Bench::new(10_000);
    bench.asks(0);
    bench.granted(0, 0, 1 + 8, 3, 900);
    bench.table.forget();
    assert_eq!(bench.asks(1).report, report(3, 0, 0));
    assert_eq!(bench.table.failed(KEY), 1);
    assert_eq!(bench.swept(2_000), []);
    // A denial of the old one is forgotten too.
    bench.asks(2_000);
    bench.granted(2_000, 2_000, 0, 5, 900);
    bench.table.forget();
    bench.asks(2_001);
}

#[test]
fn several_limits_take_all_or_nothing() {
    let mut bench = Bench::new(10_000);
    let (other, limit, now) = (LimitKey(8), bench.limit, bench.at(1));
    bench.asks(0);
    bench.granted(0, 0, 1 + 8, 3, 900);
    for key in [KEY, other] {
        assert_eq!(bench.table.denied(key, &limit, now), None);
    }
    let Verdict::Allow { token, .. } = bench.table.check(KEY, &limit, now) else { panic!("tokens are at hand") };
    assert!(matches!(bench.table.check(other, &limit, now), Verdict::Ask { .. }));
    let refusal = Grant { reset_after: Duration::from_secs(9), ..Grant::refusal(&limit, 0) };
    assert!(bench.table.granted(other, &refusal, now, now).expect("it asked").denied.is_some());
    bench.table.refund(KEY, token, now);
    // From now on the other is known to deny, and asking takes nothing.
    for _ in 0..20 {
        assert_eq!(bench.table.denied(KEY, &limit, now), None);
        assert_eq!(bench.table.denied(other, &limit, now), Some(Duration::from_secs(9)));
    }
    assert_eq!(bench.pass(2, 20), 8);
}

#[test]
fn a_lease_is_small() {
    // With its address and its place in the table less than 400 bytes, 25 MB for all keys.
    assert!(size_of::<Lease>() <= 264, "{}", size_of::<Lease>());
}

#[test]
fn a_full_table_evicts_what_nobody_waits_for() {
    let mut bench = Bench::new(10_000);
    for key in 0..4 {
        let (key, now) = (LimitKey(key), bench.start);
        assert!(matches!(bench.table.check(key, &bench.limit, now), Verdict::Ask { .. }));
    }
    assert_eq!(bench.check(0), Verdict::Full);
    let grant = Grant { granted: 4, ..Grant::refusal(&bench.limit, 0) };
    bench.table.granted(LimitKey(2), &grant, bench.start, bench.start);
    assert_eq!(bench.asks(0).waiting, 1);
    assert_eq!(bench.table.dropped(), 3);
    assert_eq!(bench.table.len(), 4);
}
