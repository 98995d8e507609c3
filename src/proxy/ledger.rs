//! The ledger in Redis, a worker's way to it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::policy::rate_limit::identity::Identity;
use crate::redis::client::{Call, CallError, Client, Settings, State, Stats};
use crate::redis::resp::{Arg, Refusal, Script, Value};
use crate::redis::script;
use crate::snapshot::Address;
use crate::traffic::window::{Grant, Limit, Order};

/// How often a gateway says that it is there.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// After how long in silence it no longer counts, in milliseconds.
const HEARTBEAT_MAX_MS: i64 = 5_000;

/// Says that a gateway is there, and learns how many are.
const HEARTBEAT: &str = include_str!("../redis/heartbeat.lua");

/// A worker's connection to the ledger in Redis.
#[derive(Debug)]
pub struct RedisLedger {
    client: Client,
    acquire: Rc<Script>,
    heartbeat: Rc<Script>,
    prefix: Box<str>,
}

/// Why an order has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoGrant {
    /// Redis does not know the script any more: nothing was done, and the order may go out with its text.
    Forgotten,
    /// Anything else. Whether the tokens were taken is unknown.
    Failed,
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
        RedisLedger { client: Client::start(settings, &scripts, seed), acquire, heartbeat, prefix: prefix.into() }
    }

    /// Whether Redis answers.
    pub fn is_up(&self) -> bool {
        self.client.state() == State::Up
    }

    /// Waits for the first connection, or `most`.
    pub async fn connected(&self, most: Duration) {
        const STEP: Duration = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while !self.is_up() && waited < most {
            monoio::time::sleep(STEP).await;
            waited += STEP;
        }
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
        let Some(call) = &mut self.0 else { return Poll::Ready(Err(NoGrant::Failed)) };
        Pin::new(call).poll(cx).map(|answer| match answer {
            Ok(reply) => match reply.value() {
                Value::Bulk(text) => script::parse(text).ok_or(NoGrant::Failed),
                _ => Err(NoGrant::Failed),
            },
            Err(CallError::Refused(Refusal::NoScript)) => Err(NoGrant::Forgotten),
            Err(_) => Err(NoGrant::Failed),
        })
    }
}
