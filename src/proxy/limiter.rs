//! Rate limits, the shell: sends a worker's orders to the ledger, and lets requests wait for its answers.
//!
//! What is leased is spent at once, what is denied is denied at once. A request whose key has nothing left sends an order and
//! waits; others of the key that come meanwhile wait with it, in their order. The ledger in memory answers on the spot.
//! Redis answers later, or not at all: then `redis.on_error` decides, and nobody waits for Redis until it is back.
//!
//! A request may be dropped while it waits. Its order goes on without it, since others may wait for the same answer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use super::ledger::{NoGrant, Pending, RedisLedger};
use crate::policy::rate_limit::identity::{Identity, KeyHasher};
use crate::policy::rate_limit::{KEYS_MAX, LIMITS_MAX, LeaseTable, Settled, Standing, Ticket, Token, Verdict};
use crate::redis::ledger::MemoryLedger;
use crate::snapshot::{OnError, RateLimit, RateLimitKey};
use crate::telemetry::counters::Counters;
use crate::traffic::table::Folded;
use crate::traffic::window::{Grant, Limit, LimitKey, Order};

/// After an answer that is an error Redis is not asked again for so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a refusal says that knows no better time.
const UNKNOWN: Duration = Duration::from_secs(1);

/// A sweep looks at the whole table in so many steps, one a tick.
const SWEEP_STEPS: usize = 20;

/// What all workers of a process share of their limits.
#[derive(Debug, Clone)]
pub struct SharedLimits {
    /// The counts while there is no Redis.
    pub memory: Arc<MemoryLedger>,
    /// What makes keys of identities.
    pub hasher: KeyHasher,
    /// How many gateways share the Redis ledger, as last seen; at least 1.
    pub gateways: Arc<AtomicU32>,
}

impl SharedLimits {
    /// Nothing counted yet. The ledger in memory counts at most `keys_max` clients apart.
    pub fn new(keys_max: usize) -> SharedLimits {
        SharedLimits {
            memory: Arc::new(MemoryLedger::new(keys_max)),
            hasher: KeyHasher::new([RandomState::new(), RandomState::new()]),
            gateways: Arc::new(AtomicU32::new(1)),
        }
    }
}

/// A worker's side of all limits.
#[derive(Debug)]
pub struct Limiter {
    shared: SharedLimits,
    redis: Option<RedisLedger>,
    on_error: OnError,
    leases: RefCell<LeaseTable>,
    line: RefCell<Line>,
    source: Cell<Source>,
    /// Grows with each change of source: what an older one granted means nothing to the present one.
    era: Cell<u32>,
    retry_at: Cell<Option<Instant>>,
    /// Requests that passed without being counted.
    uncounted: Cell<u64>,
}

/// Whose counts hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This process's; there is no Redis.
    Memory,
    /// Redis's.
    Redis,
    /// Redis does not answer.
    Degraded,
}

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic.
    pub instant: Instant,
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
}

/// Whom a request counts against.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The verified user or API key.
    pub identity: Option<Identity<'a>>,
    /// The client's address.
    pub ip: Identity<'a>,
    /// The limit of the API key itself, in the place of the service's first.
    pub own: Option<Limit>,
}

/// What a request has of one of its limits.
#[derive(Debug)]
pub struct Held {
    /// Which of the service's limits.
    pub index: usize,
    /// How many in how long.
    pub limit: Limit,
    key: LimitKey,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// It may pass.
    Token(Token, Standing),
    /// It waits.
    Seat(Seat),
    /// It may pass and holds nothing: Redis is away.
    Passed,
}

impl Held {
    /// Where the request stands under the limit; `None` while nobody counts.
    pub fn standing(&self) -> Option<Standing> {
        match self.place {
            Place::Token(_, standing) => Some(standing),
            Place::Seat(_) | Place::Passed => None,
        }
    }
}

/// What the limits say at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It passes.
    Pass,
    /// It is refused.
    Deny(Denial),
    /// It waits for [`Limiter::wait`].
    Wait,
}

/// A refusal. Nothing was taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Which of the service's limits refused.
    pub index: usize,
    /// The earliest time that it can let somebody pass.
    pub retry_after: Duration,
}

impl Limiter {
    /// A limiter over the process's own ledger, and over Redis's where there is one.
    pub fn new(shared: SharedLimits, redis: Option<RedisLedger>, on_error: OnError) -> Limiter {
        let source = if redis.is_some() { Source::Degraded } else { Source::Memory };
        Limiter {
            shared,
            redis,
            on_error,
            leases: RefCell::new(LeaseTable::new(KEYS_MAX)),
            line: RefCell::default(),
            source: Cell::new(source),
            era: Cell::new(0),
            retry_at: Cell::new(None),
            uncounted: Cell::new(0),
        }
    }

    /// Decides about a request under `rules`, as far as that can be done at once. `held` gets an entry for each limit that
    /// counts it; unless the request passes or waits, it is empty afterwards.
    pub fn admit(
        self: &Rc<Self>,
        rules: &[RateLimit],
        subject: &Subject<'_>,
        moment: Moment,
        held: &mut Vec<Held>,
    ) -> Admission {
        let source = self.source(moment.instant);
        match (source, self.on_error) {
            (Source::Degraded, OnError::Allow) => {
                self.uncounted.set(self.uncounted.get() + 1);
                return Admission::Pass;
            }
            (Source::Degraded, OnError::Deny) => {
                return Admission::Deny(Denial { index: 0, retry_after: UNKNOWN });
            }
            _ => {}
        }
        let share = if source == Source::Degraded { self.shared.gateways.load(Ordering::Relaxed).max(1) } else { 1 };
        held.clear();
        let mut denial = None;
        for (index, rule) in rules.iter().take(LIMITS_MAX).enumerate() {
            let limit = subject.own.filter(|_| index == 0).unwrap_or(rule.limit);
            let limit = if share > 1 { Limit::new(limit.requests() / share, limit.window()) } else { limit };
            let identity = self.identity(rule, subject);
            let key = self.shared.hasher.key(rule.id, &limit, &identity);
            if let Some(retry_after) = self.leases.borrow_mut().denied(key, &limit, moment.instant) {
                denial = longer(denial, Denial { index, retry_after });
            }
            held.push(Held { index, limit, key, place: Place::Passed });
        }
        if denial.is_none() {
            for entry in held.iter_mut() {
                let rule = &rules[entry.index];
                let identity = self.identity(rule, subject);
                let verdict = self.leases.borrow_mut().check(entry.key, &entry.limit, moment.instant);
                match self.place(verdict, entry, rule, &identity, moment, source) {
                    Ok(place) => entry.place = place,
                    Err(retry_after) => denial = longer(denial, Denial { index: entry.index, retry_after }),
                }
            }
        }
        match denial {
            Some(denial) => {
                self.refund(held, moment.instant);
                Admission::Deny(denial)
            }
            None if held.iter().any(|entry| matches!(entry.place, Place::Seat(_))) => Admission::Wait,
            None => Admission::Pass,
        }
    }

    /// Waits until every limit has decided; the refusal, if there is one.
    pub async fn wait(self: &Rc<Self>, held: &mut Vec<Held>, clock: impl Fn() -> Moment) -> Option<Denial> {
        // All own orders first: others wait for their answers, and this request may wait for theirs.
        for entry in held.iter_mut() {
            if let Place::Seat(seat) = &mut entry.place {
                seat.drive().await;
            }
        }
        let mut denial = None;
        for entry in held.iter_mut() {
            let Place::Seat(seat) = &mut entry.place else { continue };
            let outcome = seat.outcome().await;
            let place = match outcome {
                Outcome::Admitted(token, standing) => Ok(Place::Token(token, standing)),
                Outcome::Denied(retry_after) => Err(retry_after),
                Outcome::Unanswered => self.unanswered(entry.key, &entry.limit, clock()),
            };
            match place {
                Ok(place) => entry.place = place,
                Err(retry_after) => {
                    entry.place = Place::Passed;
                    denial = longer(denial, Denial { index: entry.index, retry_after });
                }
            }
        }
        if denial.is_some() {
            self.refund(held, clock().instant);
        }
        denial
    }

    /// How long `key` of the client's address is still denied, as far as this worker knows.
    pub fn denied(&self, rule: &RateLimit, subject: &Subject<'_>, now: Instant) -> Option<Duration> {
        let key = self.shared.hasher.key(rule.id, &rule.limit, &subject.ip);
        self.leases.borrow_mut().denied(key, &rule.limit, now)
    }

    /// The connection to Redis, where there is one.
    pub fn redis(&self) -> Option<&RedisLedger> {
        self.redis.as_ref()
    }

    /// How many gateways share the ledger, as last seen.
    pub fn gateways(&self) -> &AtomicU32 {
        &self.shared.gateways
    }

    /// Shows in `counters` how it stands with Redis. Once a tick.
    pub fn export(&self, counters: &Counters) {
        counters.rate_limit_uncounted.set(self.uncounted.get());
        let Some(redis) = &self.redis else { return };
        let stats = redis.stats();
        counters.redis_calls.set(stats.calls.get());
        counters.redis_writes.set(stats.writes.get());
        counters.redis_errors.set(stats.errors());
        counters.redis_connects.set(stats.connects.get());
        counters.redis_degraded.set(u64::from(self.source.get() == Source::Degraded));
    }

    /// Tells the ledger what leases lie unused. Once a tick.
    pub fn sweep(self: &Rc<Self>, moment: Moment) {
        let source = self.source(moment.instant);
        let mut leases = self.leases.borrow_mut();
        let count = leases.len().div_ceil(SWEEP_STEPS);
        leases.sweep(count, moment.instant, |key, address, limit, report| {
            let order = Order { report, ..Order::default() };
            match (source, &self.redis) {
                (Source::Redis, Some(redis)) => redis.tell(address, limit, &order),
                (Source::Memory | Source::Degraded, _) => {
                    self.shared.memory.acquire(key, limit, &order, moment.unix_us);
                }
                (Source::Redis, None) => {}
            }
        });
    }

    /// Whose counts hold at `now`.
    pub fn source(&self, now: Instant) -> Source {
        let source = match &self.redis {
            None => Source::Memory,
            Some(redis) if redis.is_up() && self.retry_at.get().is_none_or(|at| at <= now) => Source::Redis,
            Some(_) => Source::Degraded,
        };
        if self.source.replace(source) != source {
            self.era.set(self.era.get().wrapping_add(1));
            self.leases.borrow_mut().forget();
        }
        source
    }

    fn identity<'a>(&self, rule: &RateLimit, subject: &Subject<'a>) -> Identity<'a> {
        match rule.key {
            RateLimitKey::Identity => subject.identity.unwrap_or(subject.ip),
            RateLimitKey::Ip => subject.ip,
        }
    }

    fn place(
        self: &Rc<Self>,
        verdict: Verdict,
        entry: &Held,
        rule: &RateLimit,
        identity: &Identity<'_>,
        moment: Moment,
        source: Source,
    ) -> Result<Place, Duration> {
        let redis = self.redis.as_ref().filter(|_| source == Source::Redis);
        match (verdict, redis) {
            (Verdict::Allow { token, standing, refill }, redis) => {
                match (refill, redis) {
                    (Some(order), Some(redis)) => self.send(redis, entry, rule, identity, &order, moment).detach(self),
                    (Some(order), None) => {
                        self.ask_memory(entry.key, &entry.limit, &order, moment);
                    }
                    (None, _) => {}
                }
                Ok(Place::Token(token, standing))
            }
            (Verdict::Deny { retry_after }, _) => Err(retry_after),
            (Verdict::Ask { order, .. }, None) => {
                let settled = self.ask_memory(entry.key, &entry.limit, &order, moment);
                match settled {
                    Some(settled) if settled.admitted > 0 => Ok(Place::Token(settled.token(0), settled.standing)),
                    settled => Err(settled.and_then(|settled| settled.denied).unwrap_or(UNKNOWN)),
                }
            }
            (Verdict::Ask { ticket, order }, Some(redis)) => {
                let pending = self.send(redis, entry, rule, identity, &order, moment);
                Ok(Place::Seat(self.seat(entry.key, ticket, Some(pending))))
            }
            (Verdict::Join { ticket }, _) => Ok(Place::Seat(self.seat(entry.key, ticket, None))),
            (Verdict::Full, _) => self.unanswered(entry.key, &entry.limit, moment),
        }
    }

    /// What becomes of a request that Redis has no answer for.
    fn unanswered(&self, key: LimitKey, limit: &Limit, moment: Moment) -> Result<Place, Duration> {
        match self.on_error {
            OnError::Allow => {
                self.uncounted.set(self.uncounted.get() + 1);
                Ok(Place::Passed)
            }
            OnError::Deny => Err(UNKNOWN),
            OnError::Local => {
                let share = self.shared.gateways.load(Ordering::Relaxed).max(1);
                let limit = Limit::new(limit.requests() / share, limit.window());
                let order = Order { waiting: 1, ..Order::default() };
                let grant = self.shared.memory.acquire(key, &limit, &order, moment.unix_us);
                match grant.granted {
                    0 => Err(grant.reset_after),
                    _ => Ok(Place::Passed),
                }
            }
        }
    }

    fn ask_memory(&self, key: LimitKey, limit: &Limit, order: &Order, moment: Moment) -> Option<Settled> {
        let grant = self.shared.memory.acquire(key, limit, order, moment.unix_us);
        self.leases.borrow_mut().granted(key, &grant, moment.instant, moment.instant)
    }

    fn send(
        &self,
        redis: &RedisLedger,
        entry: &Held,
        rule: &RateLimit,
        identity: &Identity<'_>,
        order: &Order,
        moment: Moment,
    ) -> Ordered {
        let mut leases = self.leases.borrow_mut();
        let pending = match leases.address(entry.key) {
            Some(address) => {
                if address.is_empty() {
                    redis.push_key(&rule.ledger_name, &entry.limit, identity, address);
                }
                redis.order(address, &entry.limit, order, false)
            }
            None => Pending::failed(),
        };
        let (key, limit, order) = (entry.key, entry.limit, *order);
        Ordered { pending, key, limit, order, sent_at: moment.instant, era: self.era.get() }
    }

    /// Settles an order: by an answer, or by there being none.
    fn answered(self: &Rc<Self>, order: &Ordered, grant: Option<Grant>, now: Instant) {
        let grant = grant.filter(|_| order.era == self.era.get());
        if grant.is_none() && order.era == self.era.get() {
            self.retry_at.set(Some(now + RETRY_AFTER));
        }
        let mut leases = self.leases.borrow_mut();
        let settled = grant.and_then(|grant| leases.granted(order.key, &grant, order.sent_at, now));
        let mut line = self.line.borrow_mut();
        let Some(settled) = settled else {
            leases.failed(order.key);
            while line.settle_next(order.key, Outcome::Unanswered) {}
            return;
        };
        for index in 0..settled.admitted {
            if !line.settle_next(order.key, Outcome::Admitted(settled.token(index), settled.standing)) {
                leases.refund(order.key, settled.token(index), now);
            }
        }
        if let Some(retry_after) = settled.denied {
            while line.settle_next(order.key, Outcome::Denied(retry_after)) {}
        }
        if let (Some(more), Some(redis)) = (settled.order, &self.redis) {
            let address = leases.address(order.key);
            let send = |address: &mut Vec<u8>| redis.order(address, &order.limit, &more, false);
            let pending = address.map_or_else(Pending::failed, send);
            Ordered { pending, order: more, sent_at: now, ..*order }.detach(self);
        }
    }

    fn seat(self: &Rc<Self>, key: LimitKey, ticket: Ticket, order: Option<Ordered>) -> Seat {
        let at = self.line.borrow_mut().join(key);
        Seat { limiter: Rc::clone(self), key, ticket, at, order }
    }

    /// Gives back what a refused request has taken.
    fn refund(&self, held: &mut Vec<Held>, now: Instant) {
        for entry in held.drain(..) {
            if let Place::Token(token, _) = entry.place {
                self.leases.borrow_mut().refund(entry.key, token, now);
            }
        }
    }
}

fn longer(known: Option<Denial>, other: Denial) -> Option<Denial> {
    Some(match known {
        Some(known) if known.retry_after >= other.retry_after => known,
        _ => other,
    })
}

/// An order on its way to Redis.
#[derive(Debug)]
struct Ordered {
    pending: Pending,
    key: LimitKey,
    limit: Limit,
    order: Order,
    sent_at: Instant,
    era: u32,
}

impl Ordered {
    /// Lets the order go on by itself.
    fn detach(mut self, limiter: &Rc<Limiter>) {
        let limiter = Rc::clone(limiter);
        monoio::spawn(async move {
            let grant = self.grant(&limiter).await;
            limiter.answered(&self, grant, Instant::now());
        });
    }

    /// Waits for the answer. A script that Redis has forgotten is sent along in a second try.
    async fn grant(&mut self, limiter: &Limiter) -> Option<Grant> {
        let mut grant = (&mut self.pending).await;
        if grant == Err(NoGrant::Forgotten)
            && let Some(redis) = &limiter.redis
        {
            if let Some(address) = limiter.leases.borrow_mut().address(self.key) {
                self.pending = redis.order(address, &self.limit, &self.order, true);
            }
            grant = (&mut self.pending).await;
        }
        grant.ok()
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Admitted(Token, Standing),
    Denied(Duration),
    Unanswered,
}

/// A waiting request's place. Left before the outcome was looked at, it gives back what it was to have.
#[derive(Debug)]
struct Seat {
    limiter: Rc<Limiter>,
    key: LimitKey,
    ticket: Ticket,
    at: usize,
    /// The order that it sent for itself and for those that wait with it.
    order: Option<Ordered>,
}

impl Seat {
    /// Waits for the answer to the order that was sent from here, and settles it for all who wait.
    async fn drive(&mut self) {
        if let Some(order) = &mut self.order {
            let limiter = Rc::clone(&self.limiter);
            let grant = order.grant(&limiter).await;
            if let Some(order) = self.order.take() {
                limiter.answered(&order, grant, Instant::now());
            }
        }
    }

    async fn outcome(&mut self) -> Outcome {
        poll_fn(|cx| {
            let mut line = self.limiter.line.borrow_mut();
            let waiter = &mut line.waiters[self.at];
            match waiter.outcome.take() {
                Some(outcome) => {
                    waiter.taken = true;
                    Poll::Ready(outcome)
                }
                None => {
                    waiter.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let waiter = self.limiter.line.borrow_mut().leave(self.key, self.at);
        match waiter.outcome {
            Some(Outcome::Admitted(token, _)) => {
                self.limiter.leases.borrow_mut().refund(self.key, token, Instant::now());
            }
            None if !waiter.taken => self.limiter.leases.borrow_mut().cancel(self.key, self.ticket),
            _ => {}
        }
        if let Some(order) = self.order.take() {
            order.detach(&self.limiter);
        }
    }
}

/// The requests that wait, first come first served for each key.
#[derive(Debug, Default)]
struct Line {
    waiters: Slab<Waiter>,
    ends: HashMap<LimitKey, Ends, BuildHasherDefault<Folded>>,
}

#[derive(Debug, Default)]
struct Waiter {
    next: Option<usize>,
    outcome: Option<Outcome>,
    taken: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    first: usize,
    last: usize,
}

impl Line {
    fn join(&mut self, key: LimitKey) -> usize {
        let at = self.waiters.insert(Waiter::default());
        match self.ends.get_mut(&key) {
            Some(ends) => {
                self.waiters[ends.last].next = Some(at);
                ends.last = at;
            }
            None => {
                self.ends.insert(key, Ends { first: at, last: at });
            }
        }
        at
    }

    /// Tells the first of those who wait for `key`; whether there was one.
    fn settle_next(&mut self, key: LimitKey, outcome: Outcome) -> bool {
        let Some(ends) = self.ends.get_mut(&key) else { return false };
        let waiter = &mut self.waiters[ends.first];
        waiter.outcome = Some(outcome);
        if let Some(waker) = waiter.waker.take() {
            waker.wake();
        }
        match waiter.next.take() {
            Some(next) => ends.first = next,
            None => {
                self.ends.remove(&key);
            }
        }
        true
    }

    /// Takes a waiter out, settled or not.
    fn leave(&mut self, key: LimitKey, at: usize) -> Waiter {
        let left = self.waiters.remove(at);
        if left.outcome.is_some() || left.taken {
            return left;
        }
        // It still stands in line: whoever is before it gets the one behind it.
        let Some(ends) = self.ends.get_mut(&key) else { return left };
        if ends.first == at {
            match left.next {
                Some(next) => ends.first = next,
                None => {
                    self.ends.remove(&key);
                }
            }
            return left;
        }
        let mut before = ends.first;
        while let Some(next) = self.waiters.get(before).and_then(|waiter| waiter.next) {
            if next == at {
                self.waiters[before].next = left.next;
                if ends.last == at {
                    ends.last = before;
                }
                break;
            }
            before = next;
        }
        left
    }
}
