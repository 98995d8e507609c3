//! One run: an event queue, workers with clocks of their own, one ledger, and the books that the bounds are checked by.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use ringway::policy::rate_limit::{LeaseTable, Ticket, Token, Verdict};
use ringway::traffic::window::{Grant, Limit, LimitKey, Order, Report, SLOTS, Window};

/// Where the ledger's clock stands when a run begins.
const EPOCH_US: u64 = 1_700_000_000_000_000;

/// How long a worker waits for an answer.
const TIMEOUT_US: u64 = 60_000;

/// How often a worker sweeps.
const SWEEP_US: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Faults {
    None,
    /// One order or answer in 30 is lost, and now and then a worker crashes.
    Many,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub limit: Limit,
    pub workers: usize,
    pub keys: u64,
    /// Requests offered, as a share of the limit.
    pub demand: f64,
    pub bursty: bool,
    pub windows: u64,
    /// One way, at least and at most.
    pub latency_us: (u64, u64),
    pub faults: Faults,
    /// Clients leave while they wait, and other limits deny after a token was taken.
    pub leavers: bool,
}

#[derive(Debug)]
enum Event {
    Arrive { worker: usize, key: LimitKey },
    AtLedger { worker: usize, key: LimitKey, order: Order, id: u64 },
    Answer { worker: usize, key: LimitKey, grant: Grant, id: u64, counted_us: u64 },
    Timeout { worker: usize, key: LimitKey, id: u64 },
    Leave { worker: usize, key: LimitKey, ticket: Ticket },
    Sweep { worker: usize },
    Crash { worker: usize },
}

struct Worker {
    table: LeaseTable,
    /// Its clock: ahead by `offset_us`, and faster by `drift_ppm`.
    offset_us: u64,
    drift_ppm: i64,
    waiting: HashMap<LimitKey, VecDeque<(Ticket, u64)>>,
    /// The order under way for a key: its id, and when it was sent by the worker's clock.
    sent: HashMap<LimitKey, (u64, Instant)>,
    /// The last refusal by the ledger: when the ledger said that it ends.
    refused_until_us: HashMap<LimitKey, u64>,
}

/// What is known of one key from outside.
#[derive(Default)]
struct Book {
    ledger: Window,
    /// (the moment that counts, admission), both by the ledger's clock.
    admitted: Vec<(u64, u64)>,
    /// By slot: requests that passed; tokens granted to waiting requests that have not landed, or never will since they are
    /// lost or the client left; tokens that landed and were refunded. The latter two are a little more than the ledger
    /// counts, once they are given back.
    spent: BTreeMap<u64, u32>,
    under_way: BTreeMap<u64, u32>,
    unwanted: BTreeMap<u64, u32>,
}

pub struct World {
    plan: Plan,
    base: Instant,
    random: fastrand::Rng,
    now_us: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    next_id: u64,
    workers: Vec<Worker>,
    books: BTreeMap<LimitKey, Book>,
    slowest_us: u64,
    is_over: bool,
    pub orders: u64,
    pub refused: u64,
}

impl World {
    pub fn run(plan: Plan) -> World {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let workers = (0..plan.workers).map(|_| Worker::new(&mut random)).collect();
        let mut world = World {
            plan,
            base: Instant::now(),
            random,
            now_us: EPOCH_US,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next_id: 0,
            workers,
            books: BTreeMap::new(),
            slowest_us: 0,
            is_over: false,
            orders: 0,
            refused: 0,
        };
        let end = EPOCH_US + world.plan.windows * world.plan.limit.window().as_micros() as u64;
        for worker in 0..world.plan.workers {
            world.after(SWEEP_US, Event::Sweep { worker });
            for key in 0..world.plan.keys {
                world.schedule_arrival(worker, LimitKey(u128::from(key)));
            }
        }
        world.play_until(end);
        // Nothing more arrives: leases go back.
        world.is_over = true;
        world.play_until(end + 200_000);
        world
    }

    fn play_until(&mut self, end: u64) {
        while let Some(&Reverse((at, id))) = self.queue.peek() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now_us = at;
            let event = self.events.remove(&id).expect("queued with its event");
            self.play(&event);
        }
        self.now_us = end;
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Arrive { worker, key } => self.arrive(worker, key),
            Event::AtLedger { worker, key, ref order, id } => self.at_ledger(worker, key, order, id),
            Event::Answer { worker, key, ref grant, id, counted_us } => self.answer(worker, key, grant, id, counted_us),
            Event::Timeout { worker, key, id } => self.timeout(worker, key, id),
            Event::Leave { worker, key, ticket } => self.leave(worker, key, ticket),
            Event::Sweep { worker } => self.sweep(worker),
            Event::Crash { worker } => {
                let mut random = self.random.fork();
                self.workers[worker] = Worker::new(&mut random);
            }
        }
    }

    fn arrive(&mut self, worker: usize, key: LimitKey) {
        if self.is_over {
            return;
        }
        self.schedule_arrival(worker, key);
        let now = self.local(worker);
        let limit = self.plan.limit;
        match self.workers[worker].table.check(key, &limit, now) {
            Verdict::Allow { token, refill, .. } => {
                if let Some(order) = refill {
                    self.send(worker, key, order);
                }
                self.pass(worker, key, token, self.now_us, self.now_us);
            }
            Verdict::Deny { .. } => {
                self.refused += 1;
                // No slot has left the window since the ledger refused, give or take what the worker's clock drifts.
                let until = self.workers[worker].refused_until_us[&key];
                let drift = self.plan.limit.window().as_micros() as u64 / 1_000;
                assert!(self.now_us <= until + drift, "denied for {} us too long", self.now_us - until);
            }
            Verdict::Ask { ticket, order } => {
                self.wait(worker, key, ticket);
                self.send(worker, key, order);
            }
            Verdict::Join { ticket } => self.wait(worker, key, ticket),
            Verdict::Full => panic!("there is room for all keys"),
        }
    }

    fn wait(&mut self, worker: usize, key: LimitKey, ticket: Ticket) {
        self.workers[worker].waiting.entry(key).or_default().push_back((ticket, self.now_us));
        if self.plan.leavers && self.random.u8(..20) == 0 {
            let patience = self.random.u64(..2 * self.plan.latency_us.1);
            self.after(patience, Event::Leave { worker, key, ticket });
        }
    }

    fn send(&mut self, worker: usize, key: LimitKey, order: Order) {
        let id = self.next_id;
        let sent_at = self.local(worker);
        self.workers[worker].sent.insert(key, (id, sent_at));
        self.after(TIMEOUT_US, Event::Timeout { worker, key, id });
        self.deliver(worker, key, order, id);
    }

    fn deliver(&mut self, worker: usize, key: LimitKey, order: Order, id: u64) {
        self.orders += 1;
        if !self.is_lost() {
            let latency = self.latency();
            self.after(latency, Event::AtLedger { worker, key, order, id });
        }
    }

    fn at_ledger(&mut self, worker: usize, key: LimitKey, order: &Order, id: u64) {
        let limit = self.plan.limit;
        let now_us = self.now_us;
        let book = self.books.entry(key).or_default();
        let grant = book.ledger.acquire(&limit, order, now_us);
        let waiting = grant.granted.min(order.waiting);
        *book.under_way.entry(grant.slot).or_default() += waiting;
        if waiting < order.waiting {
            // Refused: all but 1 % of the limit is spent, under way or gone.
            let slots = grant.slot.saturating_sub(SLOTS)..;
            let of = |tokens: &BTreeMap<u64, u32>| tokens.range(slots.clone()).map(|(_, count)| count).sum::<u32>();
            let used = of(&book.spent) + of(&book.under_way) + of(&book.unwanted);
            assert!(used >= limit.requests() - limit.requests() / 100, "refused with {used} used");
        }
        if !self.is_lost() && (order.waiting > 0 || order.ahead > 0) {
            let latency = self.latency();
            self.after(latency, Event::Answer { worker, key, grant, id, counted_us: now_us });
        }
    }

    fn answer(&mut self, worker: usize, key: LimitKey, grant: &Grant, id: u64, counted_us: u64) {
        let Some(&(expected, sent_at)) = self.workers[worker].sent.get(&key) else { return };
        if expected != id {
            return;
        }
        let now = self.local(worker);
        let state = &mut self.workers[worker];
        state.sent.remove(&key);
        let settled = state.table.granted(key, grant, sent_at, now).expect("an order is under way");
        state.refused_until_us.insert(key, counted_us + grant.reset_after.as_micros() as u64);
        let waiting = state.waiting.entry(key).or_default();
        let passing: Vec<_> = waiting.drain(..settled.admitted as usize).collect();
        if settled.denied.is_some() {
            self.refused += waiting.drain(..).count() as u64;
        }
        assert_eq!(waiting.is_empty(), settled.order.is_none(), "who waits waits for something");
        for (index, (_, arrived_us)) in (0..).zip(passing) {
            let token = settled.token(index);
            let moment = if token.is_leased() { self.now_us } else { counted_us };
            assert!(arrived_us <= moment, "counted before it came");
            if !token.is_leased() {
                self.slowest_us = self.slowest_us.max(self.now_us - counted_us);
                self.land(key, token);
            }
            self.pass(worker, key, token, moment, self.now_us);
        }
        if let Some(order) = settled.order {
            self.send(worker, key, order);
        }
    }

    fn land(&mut self, key: LimitKey, token: Token) {
        let book = self.books.get_mut(&key).expect("a key with a grant");
        *book.under_way.get_mut(&token.slot()).expect("a token under way") -= 1;
    }

    fn pass(&mut self, worker: usize, key: LimitKey, token: Token, moment: u64, now_us: u64) {
        let slot_us = self.plan.limit.slot_us();
        assert_eq!(moment / slot_us, token.slot(), "used outside its slot");
        let book = self.books.get_mut(&key).expect("a key with a grant");
        if self.plan.leavers && self.random.u8(..20) == 0 {
            if !token.is_leased() {
                *book.unwanted.entry(token.slot()).or_default() += 1;
            }
            let now = self.local(worker);
            self.workers[worker].table.refund(key, token, now);
            return;
        }
        book.admitted.push((moment, now_us));
        *book.spent.entry(token.slot()).or_default() += 1;
    }

    fn timeout(&mut self, worker: usize, key: LimitKey, id: u64) {
        if self.workers[worker].sent.get(&key).is_some_and(|&(expected, _)| expected == id) {
            let state = &mut self.workers[worker];
            state.sent.remove(&key);
            let waiting = std::mem::take(state.waiting.entry(key).or_default());
            assert_eq!(state.table.failed(key) as usize, waiting.len());
        }
    }

    fn leave(&mut self, worker: usize, key: LimitKey, ticket: Ticket) {
        let state = &mut self.workers[worker];
        let waiting = state.waiting.entry(key).or_default();
        if let Some(index) = waiting.iter().position(|&(of, _)| of == ticket) {
            waiting.remove(index);
            state.table.cancel(key, ticket);
        }
    }

    fn sweep(&mut self, worker: usize) {
        let now = self.local(worker);
        let mut reports: Vec<(LimitKey, Report)> = Vec::new();
        self.workers[worker].table.sweep(10, now, |key, _, _, report| reports.push((key, report)));
        for (key, report) in reports {
            let id = self.next_id;
            self.deliver(worker, key, Order { report, ..Order::default() }, id);
        }
        self.after(SWEEP_US, Event::Sweep { worker });
        if !self.is_over && self.plan.faults == Faults::Many && self.random.u32(..400) == 0 {
            self.after(1, Event::Crash { worker });
        }
    }

    /// In no interval as long as the window are more than the limit counted; in none shorter than that by the longest time
    /// that an answer took are more admitted.
    pub fn never_over_the_limit(&self) {
        let window_us = self.plan.limit.window().as_micros() as u64;
        for (key, book) in &self.books {
            let (mut counted, mut admitted): (Vec<u64>, Vec<u64>) = book.admitted.iter().copied().unzip();
            counted.sort_unstable();
            admitted.sort_unstable();
            let most = most_within(&counted, window_us);
            assert!(most <= self.plan.limit.requests() as usize, "{key:?}: {most} counted in a window");
            let most = most_within(&admitted, window_us.saturating_sub(self.slowest_us));
            assert!(most <= self.plan.limit.requests() as usize, "{key:?}: {most} admitted in a window");
        }
    }

    /// Once all is quiet, the ledger counts what was spent and nothing else, unless something was lost.
    pub fn nothing_leaks(&self) {
        for (key, book) in &self.books {
            let grant = book.ledger.clone().acquire(&self.plan.limit, &Order::default(), self.now_us);
            let in_window = |tokens: &BTreeMap<u64, u32>| -> u32 {
                tokens.range(grant.slot.saturating_sub(SLOTS)..).map(|(_, count)| count).sum()
            };
            let counted = self.plan.limit.requests() - grant.remaining;
            let spent = in_window(&book.spent);
            assert!(counted >= spent, "{key:?}: {counted} counted, {spent} spent");
            if self.plan.faults == Faults::None {
                assert_eq!(counted, spent, "{key:?}: tokens leaked");
            }
        }
    }

    pub fn admitted(&self) -> u64 {
        self.books.values().map(|book| book.admitted.len() as u64).sum()
    }

    fn schedule_arrival(&mut self, worker: usize, key: LimitKey) {
        let window_us = self.plan.limit.window().as_micros() as f64;
        let rate = f64::from(self.plan.limit.requests()) * self.plan.demand / window_us / self.plan.workers as f64;
        let mean = 1.0 / rate;
        // In bursts: nine in ten come at once, the tenth after ten times as long.
        let gap = match self.plan.bursty {
            true if self.random.u8(..10) > 0 => mean / 1_000.0,
            true => mean * 10.0,
            false => mean,
        };
        let gap = -gap * (1.0 - self.random.f64()).ln();
        self.after(gap.round() as u64, Event::Arrive { worker, key });
    }

    fn is_lost(&mut self) -> bool {
        !self.is_over && self.plan.faults == Faults::Many && self.random.u8(..30) == 0
    }

    fn latency(&mut self) -> u64 {
        let (least, most) = self.plan.latency_us;
        self.random.u64(least / 2..=most / 2)
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.queue.push(Reverse((self.now_us + delay_us, self.next_id)));
        self.events.insert(self.next_id, event);
        self.next_id += 1;
    }

    fn local(&self, worker: usize) -> Instant {
        let Worker { offset_us, drift_ppm, .. } = self.workers[worker];
        let since = (self.now_us - EPOCH_US) as i64;
        let drifted = since * 1_000 + since * drift_ppm / 1_000;
        self.base + Duration::from_micros(offset_us) + Duration::from_nanos(drifted as u64)
    }
}

impl Worker {
    fn new(random: &mut fastrand::Rng) -> Worker {
        Worker {
            table: LeaseTable::new(10_000),
            offset_us: random.u64(..1_000_000_000),
            drift_ppm: random.i64(-500..=500),
            waiting: HashMap::new(),
            sent: HashMap::new(),
            refused_until_us: HashMap::new(),
        }
    }
}

/// The most of the ascending `moments` that lie in one closed interval of the given length.
fn most_within(moments: &[u64], length_us: u64) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, &moment) in moments.iter().enumerate() {
        while moments[first] + length_us < moment {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}
