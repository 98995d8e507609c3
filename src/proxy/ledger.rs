//! The ledger in Redis, a worker's way to it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::policy::rate_limit::identity::Identity;
use crate::redis::client::{Call, CallError, Client, Settings, State, Stats};
use crate::redis::resp::{Arg, Refusal, Reply, Script, Value};
use crate::redis::script;
use crate::snapshot::Address;
use crate::traffic::window::{Grant, Limit, Order};

/// How often a gateway says that it is there.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// After how long in silence it no longer counts, in milliseconds.
const HEARTBEAT_MAX_MS: i64 = 5_000;

/// How long what a probe leaves behind stays.
const PROBE_WINDOW: Duration = Duration::from_secs(1);

/// Says that a gateway is there, and learns how many are.
const HEARTBEAT: &str = include_str!("../redis/heartbeat.lua");

/// A worker's connection to the ledger in Redis.
#[derive(Debug)]
pub struct RedisLedger {
    client: Client,
    acquire: Rc<Script>,
    heartbeat: Rc<Script>,
    prefix: Box<str>,
    probe_key: Box<str>,
    timeout: Duration,
}

/// Why an order has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoGrant {
    /// Redis does not know the script any more: nothing was done, and the order may go out with its text.
    Forgotten,
    /// This order failed, as others need not: too many are pending, or its key or answer is not what it should be.
    Alone,
    /// Redis is away, or does not count for anyone. Whether the tokens were taken is unknown.
    Outage,
}

/// An order under way. It resolves once, to the ledger's answer if there is one.
#[derive(Debug)]
pub struct Pending(Option<Call>);

impl RedisLedger {
    /// Starts to connect. Keys begin with `prefix`; `seed` spreads the reconnections of many workers.
    pub fn start(settings: Settings, prefix: &str, seed: u64) -> RedisLedger {
        let acquire = Rc::new(Script::new(script::ACQUIRE));
        let heartbeat = Rc::new(Script::new(HEARTBEAT));
        let scripts = [Rc::clone(&acquire), Rc::clone(&heartbeat)];
        RedisLedger {
            timeout: settings.timeout,
            client: Client::start(settings, &scripts, seed),
            acquire,
            heartbeat,
            prefix: prefix.into(),
            probe_key: format!("{prefix}:rl:{{probe}}").into(),
        }
    }

    /// Whether Redis answers.
    pub fn is_up(&self) -> bool {
        self.client.state() == State::Up
    }

    /// Grows whenever Redis goes up or down, see [`Client::generation`].
    pub fn generation(&self) -> u64 {
        self.client.generation()
    }

    /// How long an order may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether Redis does what orders ask for: one token, of a limit that nobody is held to, is taken.
    pub async fn probe(&self) -> bool {
        let limit = Limit::new(Limit::REQUESTS_MAX, PROBE_WINDOW);
        let order = Order { waiting: 1, ..Order::default() };
        let arguments = script::arguments(&limit, &order).map(|value| Arg::Integer(value as i64));
        let answer = self.client.eval(&self.acquire, &[self.probe_key.as_bytes()], &arguments).await;
        let is_grant = |reply: &Reply| matches!(reply.value(), Value::Bulk(text) if script::parse(text).is_some());
        answer.as_ref().is_ok_and(is_grant)
    }

    /// Redis may be found at `address` from now on.
    pub fn set_address(&self, address: &Address) {
        self.client.set_address(address.clone());
    }

    /// What has been counted.
    pub fn stats(&self) -> &Stats {
        self.client.stats()
    }

    /// Appends what the ledger calls the key of `identity` under the limit that it knows as `name`.
    pub fn push_key(&self, name: &str, limit: &Limit, identity: &Identity<'_>, out: &mut Vec<u8>) {
        script::push_key(self.prefix.as_bytes(), name.as_bytes(), limit, identity, out);
    }

    /// Sends an order; `with_text` says that Redis does not know the script.
    pub fn order(&self, address: &[u8], limit: &Limit, order: &Order, with_text: bool) -> Pending {
        let arguments = script::arguments(limit, order).map(|value| Arg::Integer(value as i64));
        let call = self.client.call(|out| match with_text {
            false => self.acquire.evalsha(&[address], &arguments, out),
            true => self.acquire.eval(&[address], &arguments, out),
        });
        Pending(Some(call))
    }

    /// Sends an order whose answer nobody waits for.
    pub fn tell(&self, address: &[u8], limit: &Limit, order: &Order) {
        drop(self.order(address, limit, order, false));
    }

    /// Keeps `gateways` at how many gateways share the ledger. One worker of a process does so, for as long as it runs;
    /// `id` is the process's.
    pub async fn beat(&self, id: u128, gateways: &AtomicU32) {
        let id = format!("{id:032x}");
        let key = format!("{}:gateways", self.prefix);
        loop {
            if self.is_up() {
                let arguments = [Arg::Bytes(id.as_bytes()), Arg::Integer(HEARTBEAT_MAX_MS)];
                let answer = self.client.eval(&self.heartbeat, &[key.as_bytes()], &arguments).await;
                let count = answer.ok().and_then(|reply| reply.integer()).and_then(|count| u32::try_from(count).ok());
                if let Some(count) = count {
                    gateways.store(count.max(1), Ordering::Relaxed);
                }
            }
            monoio::time::sleep(HEARTBEAT_EVERY).await;
        }
    }
}

impl Pending {
    /// Has no answer.
    pub fn failed() -> Pending {
        Pending(None)
    }
}

impl Future for Pending {
    type Output = Result<Grant, NoGrant>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(call) = &mut self.0 else { return Poll::Ready(Err(NoGrant::Alone)) };
        Pin::new(call).poll(cx).map(|answer| match answer {
            Ok(reply) => match reply.value() {
                Value::Bulk(text) => script::parse(text).ok_or(NoGrant::Alone),
                _ => Err(NoGrant::Alone),
            },
            Err(CallError::Refused(Refusal::NoScript)) => Err(NoGrant::Forgotten),
            Err(error) if error.concerns_all() => Err(NoGrant::Outage),
            Err(_) => Err(NoGrant::Alone),
        })
    }
}
