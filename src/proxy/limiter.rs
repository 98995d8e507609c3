//! Rate limits, the shell: sends a worker's orders to the ledger, and lets requests wait for its answers.
//!
//! What is leased is spent at once, what is denied is denied at once. A request whose key has nothing left sends an order and
//! waits; others of the key that come meanwhile wait with it, in their order. The ledger in memory answers on the spot.
//! Redis answers later, or not at all: then `redis.on_error` decides.
//!
//! - A request waits for `redis.timeout` at most, whatever it waits for: its own orders, all at once, those of others that it
//!   has joined, and those sent again. An order whose request is gone, or has waited for long enough, goes on without it, since
//!   others may wait for the same answer.
//! - An error that all orders would meet means that Redis is away: nobody waits for it until a probe of the worker's own has
//!   been answered. An error of one order alone is the matter of those who wait for that one.

mod held;
mod line;
mod proof;
mod seat;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hash::RandomState;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

pub use self::held::{Admission, Denial, Held, Subject};

use self::held::Place;
use self::line::{Line, Outcome};
use self::proof::Proof;
use self::seat::{Ordered, Seat};
use super::ledger::{NoGrant, Pending, RedisLedger};
use crate::policy::rate_limit::identity::{Identity, KeyHasher};
use crate::policy::rate_limit::{KEYS_MAX, LIMITS_MAX, LeaseTable, Settled, Ticket, Verdict};
use crate::redis::ledger::MemoryLedger;
use crate::snapshot::{OnError, RateLimit, RateLimitKey};
use crate::telemetry::counters::{Counters, RateLimitMode};
use crate::traffic::window::{Grant, Limit, LimitKey, Order};

/// Replies that lie there already when a wait is over are read first.
const GRACE: Duration = Duration::from_millis(1);

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
    proof: Proof,
    /// Whether a task ends waits whose time is over.
    is_expiring: Cell<bool>,
    figures: Figures,
}

/// What is counted of it.
#[derive(Debug, Default)]
struct Figures {
    /// Requests that passed without being counted.
    uncounted: Cell<u64>,
    /// Tokens asked of a ledger, and those of them that it granted.
    asked: Cell<u64>,
    granted: Cell<u64>,
    /// Requests refused without asking.
    denied_locally: Cell<u64>,
}

fn add(cell: &Cell<u64>, count: u64) {
    cell.set(cell.get() + count);
}

/// Whose counts hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This process's; there is no Redis.
    Memory,
    /// Redis's.
    Redis,
    /// Redis does not answer, or is not known to.
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
            proof: Proof::default(),
            is_expiring: Cell::new(false),
            figures: Figures::default(),
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
        let source = self.source();
        held.clear();
        let mut denial = None;
        for (index, rule) in rules.iter().take(LIMITS_MAX).enumerate() {
            let Some(limit) = rule.quota.of(subject.own) else { continue };
            match (source, self.on_error) {
                (Source::Degraded, OnError::Allow) => {
                    add(&self.figures.uncounted, 1);
                    return Admission::Pass;
                }
                (Source::Degraded, OnError::Deny) => {
                    add(&self.figures.denied_locally, 1);
                    return Admission::Deny(Denial { index, retry_after: UNKNOWN });
                }
                _ => {}
            }
            let limit = self.share(limit, source);
            let key = self.shared.hasher.key(rule.id, &limit, &identity(rule, subject));
            if let Some(retry_after) = self.leases.borrow_mut().denied(key, &limit, moment.instant) {
                denial = longer(denial, Denial { index, retry_after });
            }
            held.push(Held { index, limit, is_share: source == Source::Degraded, key, place: Place::Passed });
        }
        if denial.is_some() {
            add(&self.figures.denied_locally, 1);
        } else {
            for entry in held.iter_mut() {
                let rule = &rules[entry.index];
                let identity = identity(rule, subject);
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
        poll_fn(|cx| {
            let mut has_decided = true;
            for entry in held.iter_mut() {
                if let Place::Seat(seat) = &mut entry.place {
                    has_decided &= seat.poll(cx);
                }
            }
            if has_decided { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut denial = None;
        for entry in held.iter_mut() {
            let Place::Seat(seat) = &mut entry.place else { continue };
            let place = match seat.take() {
                Outcome::Admitted(token, standing) => Ok(Place::Token(token, standing)),
                Outcome::Denied(retry_after) => Err(retry_after),
                Outcome::Unanswered => self.unanswered(entry, clock()),
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

    /// Whether one of `rules` is known by this worker to deny the client's address still, which everybody counts against who
    /// is not known.
    pub fn denied(&self, rules: &[RateLimit], subject: &Subject<'_>, now: Instant) -> Option<Denial> {
        let source = self.source();
        let mut denial = None;
        for (index, rule) in rules.iter().take(LIMITS_MAX).enumerate() {
            let Some(limit) = rule.quota.of(None) else { continue };
            let limit = self.share(limit, source);
            let key = self.shared.hasher.key(rule.id, &limit, &subject.ip);
            if let Some(retry_after) = self.leases.borrow_mut().denied(key, &limit, now) {
                denial = longer(denial, Denial { index, retry_after });
            }
        }
        add(&self.figures.denied_locally, u64::from(denial.is_some()));
        denial
    }

    /// Waits until Redis counts, or `most`.
    pub async fn connected(self: &Rc<Self>, most: Duration) {
        const STEP: Duration = Duration::from_millis(5);
        let begun = Instant::now();
        while self.source() == Source::Degraded && begun.elapsed() < most {
            self.probe(Instant::now());
            monoio::time::sleep(STEP).await;
        }
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
        counters.rate_limit_uncounted.set(self.figures.uncounted.get());
        counters.rate_limit_asked.set(self.figures.asked.get());
        counters.rate_limit_granted.set(self.figures.granted.get());
        counters.rate_limit_denied_locally.set(self.figures.denied_locally.get());
        let mode = match self.source.get() {
            Source::Memory => RateLimitMode::Memory,
            Source::Redis => RateLimitMode::Shared,
            Source::Degraded => RateLimitMode::Degraded,
        };
        counters.rate_limit_mode.set(mode as u64);
        let Some(redis) = &self.redis else { return };
        counters.rate_limit_gateways.set(u64::from(self.shared.gateways.load(Ordering::Relaxed)));
        let stats = redis.stats();
        counters.redis_calls.set(stats.calls.get());
        counters.redis_writes.set(stats.writes.get());
        counters.redis_errors.set(stats.errors());
        counters.redis_connects.set(stats.connects.get());
        counters.redis_degraded.set(u64::from(self.source.get() == Source::Degraded));
    }

    /// Tells the ledger what leases lie unused, and asks a Redis that was away whether it is back. Once a tick.
    pub fn sweep(self: &Rc<Self>, moment: Moment) {
        self.probe(moment.instant);
        let source = self.source();
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

    /// Whose counts hold.
    pub fn source(&self) -> Source {
        let source = match &self.redis {
            None => Source::Memory,
            Some(redis) if redis.is_up() && self.proof.holds(redis.generation()) => Source::Redis,
            Some(_) => Source::Degraded,
        };
        if self.source.replace(source) != source {
            self.era.set(self.era.get().wrapping_add(1));
            self.leases.borrow_mut().forget();
        }
        source
    }

    /// Asks Redis whether it counts, where that is open and it can be asked.
    fn probe(self: &Rc<Self>, now: Instant) {
        let Some(redis) = self.redis.as_ref().filter(|redis| redis.is_up()) else { return };
        let generation = redis.generation();
        if self.proof.holds(generation) || !self.proof.begin(now) {
            return;
        }
        let limiter = Rc::clone(self);
        monoio::spawn(async move {
            let Some(redis) = &limiter.redis else { return };
            let was_answered = redis.probe().await;
            limiter.proof.end(generation, was_answered, Instant::now(), fastrand::u64(..));
            limiter.source();
        });
    }

    /// What of `limit` is this process's own.
    fn share(&self, limit: Limit, source: Source) -> Limit {
        match source {
            Source::Memory | Source::Redis => limit,
            Source::Degraded => {
                let gateways = self.shared.gateways.load(Ordering::Relaxed).max(1);
                Limit::new(limit.requests() / gateways, limit.window())
            }
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
            (Verdict::Deny { retry_after }, _) => {
                add(&self.figures.denied_locally, 1);
                Err(retry_after)
            }
            (Verdict::Ask { order, .. }, None) => {
                let settled = self.ask_memory(entry.key, &entry.limit, &order, moment);
                match settled {
                    Some(settled) if settled.admitted > 0 => Ok(Place::Token(settled.token(0), settled.standing)),
                    settled => Err(settled.and_then(|settled| settled.denied).unwrap_or(UNKNOWN)),
                }
            }
            (Verdict::Ask { ticket, order }, Some(redis)) => {
                let pending = self.send(redis, entry, rule, identity, &order, moment);
                Ok(Place::Seat(self.seat(redis, entry.key, ticket, moment.instant, Some(pending))))
            }
            (Verdict::Join { ticket }, Some(redis)) => {
                Ok(Place::Seat(self.seat(redis, entry.key, ticket, moment.instant, None)))
            }
            // The order is one to Redis, from before it went away.
            (Verdict::Join { ticket }, None) => {
                self.leases.borrow_mut().cancel(entry.key, ticket);
                self.unanswered(entry, moment)
            }
            (Verdict::Full, _) => self.unanswered(entry, moment),
        }
    }

    /// What becomes of a request that Redis has no answer for.
    fn unanswered(&self, entry: &Held, moment: Moment) -> Result<Place, Duration> {
        match self.on_error {
            OnError::Allow => {
                add(&self.figures.uncounted, 1);
                Ok(Place::Passed)
            }
            OnError::Deny => Err(UNKNOWN),
            OnError::Local => {
                let limit = if entry.is_share { entry.limit } else { self.share(entry.limit, Source::Degraded) };
                let order = Order { waiting: 1, ..Order::default() };
                let grant = self.shared.memory.acquire(entry.key, &limit, &order, moment.unix_us);
                match grant.granted {
                    0 => Err(grant.reset_after),
                    _ => Ok(Place::Passed),
                }
            }
        }
    }

    fn ask_memory(&self, key: LimitKey, limit: &Limit, order: &Order, moment: Moment) -> Option<Settled> {
        let grant = self.shared.memory.acquire(key, limit, order, moment.unix_us);
        self.count_grant(order, Some(&grant));
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
        Ordered { pending, key, limit, order, sent_at: moment.instant, era: self.era.get(), is_resent: false }
    }

    fn count_grant(&self, order: &Order, grant: Option<&Grant>) {
        add(&self.figures.asked, u64::from(order.waiting) + u64::from(order.ahead));
        add(&self.figures.granted, grant.map_or(0, |grant| u64::from(grant.granted)));
    }

    /// Settles an order: by an answer, or by there being none.
    fn answered(self: &Rc<Self>, order: &Ordered, grant: Result<Grant, NoGrant>, now: Instant) {
        let is_current = order.era == self.era.get();
        if is_current && grant == Err(NoGrant::Outage) {
            self.proof.lose(now, fastrand::u64(..));
        }
        self.count_grant(&order.order, grant.as_ref().ok());
        let mut leases = self.leases.borrow_mut();
        let settled =
            grant.ok().filter(|_| is_current).and_then(|grant| leases.granted(order.key, &grant, order.sent_at, now));
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
            Ordered { pending, order: more, sent_at: now, is_resent: false, ..*order }.detach(self);
        }
    }

    fn seat(
        self: &Rc<Self>,
        redis: &RedisLedger,
        key: LimitKey,
        ticket: Ticket,
        now: Instant,
        order: Option<Ordered>,
    ) -> Seat {
        let at = self.line.borrow_mut().join(key, ticket, now + redis.timeout());
        if !self.is_expiring.replace(true) {
            let limiter = Rc::clone(self);
            monoio::spawn(async move { limiter.expire().await });
        }
        Seat { limiter: Rc::clone(self), key, ticket, at, order }
    }

    /// Ends waits whose time is over, until nobody waits. Under load it wakes up about once in `redis.timeout`, not once for
    /// each wait: deadlines that have been met by then are not looked at.
    async fn expire(&self) {
        loop {
            let Some(deadline) = self.line.borrow().deadline() else { break };
            monoio::time::sleep_until(deadline.into()).await;
            monoio::time::sleep(GRACE).await;
            let leases = &mut self.leases.borrow_mut();
            let left = |key, ticket| leases.cancel(key, ticket);
            self.line.borrow_mut().expire(Instant::now(), left);
        }
        self.is_expiring.set(false);
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

/// Whom `rule` counts a request against.
fn identity<'a>(rule: &RateLimit, subject: &Subject<'a>) -> Identity<'a> {
    match rule.key {
        RateLimitKey::Identity => subject.identity.unwrap_or(subject.ip),
        RateLimitKey::Ip => subject.ip,
    }
}

fn longer(known: Option<Denial>, other: Denial) -> Option<Denial> {
    Some(match known {
        Some(known) if known.retry_after >= other.retry_after => known,
        _ => other,
    })
}
