//! Instances that register themselves while the gateway runs, and stay as long as they give signs of life.
//!
//! Without Redis they are this process's. With it ([`shared`]) every gateway that shares it has the same: each learns of a
//! change by a notice, reads all of them again every [`READ_EVERY`] whatever happens, and asks Redis, whose clock alone
//! decides, before it forgets anybody. While Redis is away the last ones known stay in use, and nothing can be changed.
//! Instances whose signs of life could not arrive meanwhile, or that a restarted Redis has lost, are brought back for one
//! more time to live; those that were deregistered are not.

pub mod book;
pub mod instance;
pub mod shared;
pub mod validate;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::sleep;

use self::book::{Book, Entry, INSTANCES_MAX, Put};
use self::instance::{Change, Instance, InstanceId};
use self::shared::{Away, Shared};
use self::validate::Refused;
use super::build;
use super::config::{Allowed, Config, EndpointUrl};
use super::publisher::Publisher;
use super::resolve::{self, Resolved};
use crate::policy::auth::api_key::KeyHash;
use crate::snapshot::Address;

/// How often Redis is read when nothing else gives reason to.
pub const READ_EVERY: Duration = Duration::from_secs(5);

/// How often it is tried while it is away.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// From one look at everything to the next, at least: many changes at once become few snapshots.
const LOOK_APART: Duration = Duration::from_millis(50);

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The configuration has no such service: 404.
    #[error("There is no service of this name. Services are configured; instances of them register.")]
    UnknownService,
    /// 404.
    #[error("There is no such instance; its time may be over. Register it again.")]
    UnknownInstance,
    /// 409.
    #[error("The service has {INSTANCES_MAX} registered instances, the most that there may be.")]
    Full,
    /// 422.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// 503.
    #[error("The registry is not available, so nothing can be changed. Try again later.")]
    Away(#[from] Away),
}

/// The registered instances.
#[derive(Debug)]
pub struct Registry {
    publisher: Arc<Publisher>,
    shared: Option<Shared>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// Redis is away: the book may be out of date.
    stale: bool,
    /// Counts what was changed here, so that what was read before is not taken for newer. Heartbeats do not count: who
    /// takes an old expiry for the newest only asks again too early.
    changes: u64,
}

/// Who is registered with a service.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Whether Redis is away, so that this may be out of date.
    pub stale: bool,
    /// In the order of their identities.
    pub entries: Vec<(InstanceId, Entry)>,
}

/// What the configuration says about a service's instances.
#[derive(Debug)]
struct Rules {
    allow: Option<Vec<Allowed>>,
    redis: Option<Address>,
    dns_servers: Vec<SocketAddr>,
}

/// Who is registered when the process starts: whom Redis knows. Takes 2 s at most. Must run within a tokio runtime.
pub async fn known(config: &Config, resolved: &Resolved) -> Book {
    if config.redis.server.is_none() {
        return Book::default();
    }
    let shared = Shared::new(config.redis.clone());
    let services = names_of(config);
    let address = build::redis_address(config, resolved);
    shared.read(address, &services, config.discovery.allow.as_deref()).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "Redis does not answer; registered instances are not known until it does");
        Book::default()
    })
}

fn names_of(config: &Config) -> Vec<String> {
    config.services.iter().map(|service| service.name.clone()).collect()
}

impl Registry {
    /// A registry that begins with what is `known`, and tells `publisher` of its instances.
    pub fn new(publisher: Arc<Publisher>, known: Book) -> Registry {
        let redis = publisher.read(|ingredients| ingredients.config.redis.clone());
        let shared = redis.server.is_some().then(|| Shared::new(redis));
        let state = Mutex::new(State { book: known, stale: false, changes: 0 });
        Registry { publisher, shared, state, wake: Notify::new() }
    }

    /// The hash of the key that whoever changes or reads it must show; `None`: nobody may.
    pub fn admin_key(&self) -> Option<KeyHash> {
        self.publisher.read(|ingredients| ingredients.config.admin.key_hash)
    }

    /// Registers an instance of `service`, or renews it where it is registered already.
    ///
    /// # Errors
    /// All but [`RegistryError::UnknownInstance`].
    pub async fn register(
        &self,
        service: &str,
        url: &str,
        weight: u64,
        ttl: Duration,
    ) -> Result<(Put, InstanceId, Entry), RegistryError> {
        let rules = self.rules_of_change(service)?;
        let url = validate::url(url, rules.allow.as_deref())?;
        let instance = Instance { url, weight: validate::weight(weight)?, ttl: validate::ttl(ttl)? };
        if let EndpointUrl::Name { host, .. } = &instance.url {
            let found = resolve::lookup(host, &rules.dns_servers).await.unwrap_or_default();
            validate::addresses(host, &found, rules.allow.as_deref())?;
        }
        let id = InstanceId::of(service, &instance.url);
        let url = instance.url.to_string();
        let put = match &self.shared {
            Some(shared) => shared.register(rules.redis, service, &instance).await.map_err(|away| self.refuse(away))?,
            None => Put::Full,
        };
        if self.shared.is_some() && put == Put::Full {
            return Err(RegistryError::Full);
        }
        let now = Instant::now();
        let own = self.change(|book| {
            let own = match self.shared {
                Some(_) => {
                    book.insert(service, Entry { expires: now + instance.ttl, instance });
                    put
                }
                None => {
                    book.expire(now);
                    book.put(service, instance, now)
                }
            };
            book.get(service, id).cloned().map(|entry| (own, id, entry))
        });
        match own {
            Some((put, id, entry)) if put != Put::Full => {
                if put == Put::New {
                    tracing::info!(service, %id, url, weight = entry.instance.weight, "an instance was registered");
                }
                Ok((put, id, entry))
            }
            _ => Err(RegistryError::Full),
        }
    }

    /// A sign of life of an instance.
    ///
    /// # Errors
    /// [`RegistryError::UnknownService`], [`RegistryError::UnknownInstance`], [`RegistryError::Away`].
    pub async fn renew(&self, service: &str, id: InstanceId, change: Change) -> Result<Entry, RegistryError> {
        let rules = self.rules_of_change(service)?;
        let now = Instant::now();
        let renewed = match &self.shared {
            Some(shared) => {
                let renewed = shared.renew(rules.redis, service, id, change, rules.allow.as_deref()).await;
                let renewed = renewed.map_err(|away| self.refuse(away))?;
                self.change(|book| match &renewed {
                    Some(entry) => book.insert(service, entry.clone()),
                    None => drop(book.remove(service, id)),
                });
                renewed
            }
            None => self.change(|book| {
                book.expire(now);
                book.renew(service, id, change, now).cloned()
            }),
        };
        renewed.ok_or(RegistryError::UnknownInstance)
    }

    /// Forgets an instance: it gets no further requests; those that it has finish.
    ///
    /// # Errors
    /// As [`Registry::renew`].
    pub async fn deregister(&self, service: &str, id: InstanceId) -> Result<(), RegistryError> {
        let rules = self.rules_of_change(service)?;
        let was_shared = match &self.shared {
            Some(shared) => shared.deregister(rules.redis, service, id).await.map_err(|away| self.refuse(away))?,
            None => false,
        };
        let was_known = self.change(|book| {
            if self.shared.is_none() {
                book.expire(Instant::now());
            }
            book.remove(service, id)
        });
        match was_shared || self.shared.is_none() && was_known {
            true => {
                tracing::info!(service, %id, "an instance was deregistered");
                Ok(())
            }
            false => Err(RegistryError::UnknownInstance),
        }
    }

    /// Who is registered with `service`.
    ///
    /// # Errors
    /// [`RegistryError::UnknownService`].
    pub fn list(&self, service: &str) -> Result<Listing, RegistryError> {
        self.rules(service)?;
        let now = Instant::now();
        let state = self.state();
        // Without Redis nobody is there whose time is over; with it, that is for Redis to say.
        let entries = state.book.of(service).filter(|(_, entry)| self.shared.is_some() || entry.expires > now);
        let entries = entries.map(|(id, entry)| (id, entry.clone())).collect();
        Ok(Listing { stale: state.stale, entries })
    }

    /// Takes out who gives no sign of life, and learns what other gateways changed, for as long as the process runs.
    pub async fn keep(self: Arc<Self>) {
        if self.shared.is_some() {
            tokio::spawn(Arc::clone(&self).listen());
        }
        loop {
            match &self.shared {
                Some(shared) => self.read(shared).await,
                None => self.expire(),
            }
            sleep(LOOK_APART).await;
            tokio::select! {
                () = sleep(self.pause()) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Wakes [`Registry::keep`] whenever a gateway has changed something. Without, the change is seen at the next look.
    async fn listen(self: Arc<Self>) {
        let Some(shared) = &self.shared else { return };
        loop {
            if let Ok(notices) = shared.notices(self.redis()).await {
                // What was said before somebody listened.
                self.wake.notify_one();
                let mut notices = std::pin::pin!(notices);
                while notices.next().await.is_some() {
                    self.wake.notify_one();
                }
                // It may be back, and empty, before it is asked the next time.
                self.note(&Away::Lost);
                self.wake.notify_one();
            }
            sleep(TRY_EVERY).await;
        }
    }

    /// How long there is nothing to do unless somebody says so.
    fn pause(&self) -> Duration {
        let state = self.state();
        let most = match (&self.shared, state.stale) {
            (Some(_), true) => return TRY_EVERY,
            (Some(_), false) => READ_EVERY,
            (None, _) => Duration::from_secs(3_600),
        };
        let next = state.book.next_expiry().map(|expiry| expiry.saturating_duration_since(Instant::now()));
        next.map_or(most, |next| next.min(most))
    }

    fn expire(&self) {
        let over = {
            let mut state = self.state();
            let over = state.book.expire(Instant::now());
            self.publisher.set_registered(state.book.registered());
            over
        };
        for (service, id) in over {
            tracing::info!(service, %id, "an instance gave no sign of life; it is forgotten");
        }
    }

    /// Brings the book in line with Redis.
    async fn read(&self, shared: &Shared) {
        let before = self.state().changes;
        let (services, allow) = self.publisher.read(|ingredients| {
            let config = &ingredients.config;
            (names_of(config), config.discovery.allow.clone())
        });
        let mut read = shared.read(self.redis(), &services, allow.as_deref()).await;
        if let Ok(found) = &read
            && self.restore(shared, found).await
        {
            read = shared.read(self.redis(), &services, allow.as_deref()).await;
        }
        match read {
            Ok(found) => self.adopt(found, before),
            Err(away) => self.note(&away),
        }
    }

    /// After Redis was away: brings back whom it has lost meanwhile. Returns whether there was anybody.
    async fn restore(&self, shared: &Shared, found: &Book) -> bool {
        let lost: Vec<(String, Instance)> = {
            let state = self.state();
            if !state.stale {
                return false;
            }
            let lost = state.book.all().filter(|(service, id, _)| found.get(service, *id).is_none());
            lost.map(|(service, _, entry)| (service.to_owned(), entry.instance.clone())).collect()
        };
        for (service, instance) in &lost {
            if let Err(error) = shared.restore(self.redis(), service, instance).await {
                tracing::debug!(%error, "an instance could not be brought back");
            }
        }
        !lost.is_empty()
    }

    fn adopt(&self, found: Book, before: u64) {
        let mut state = self.state();
        if state.stale {
            state.stale = false;
            tracing::info!("Redis answers again; registered instances are up to date");
        }
        if state.changes != before {
            // Something was changed here since it was asked.
            drop(state);
            return self.wake.notify_one();
        }
        for (service, id, _) in state.book.all().filter(|(service, id, _)| found.get(service, *id).is_none()) {
            tracing::info!(service, %id, "an instance is no longer registered");
        }
        state.book = found;
        self.publisher.set_registered(state.book.registered());
    }

    /// Changes the book and publishes what has changed in it.
    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state.book);
        // Under the lock, so that the last word published is the last one said.
        if self.publisher.set_registered(state.book.registered()).is_some() {
            state.changes += 1;
        }
        drop(state);
        if self.shared.is_none() {
            self.wake.notify_one();
        }
        result
    }

    /// Notes that Redis is away, and says so once.
    fn note(&self, away: &Away) {
        let mut state = self.state();
        if !state.stale {
            state.stale = true;
            let known = state.book.all().count();
            tracing::warn!(error = %away, known, "Redis does not answer; the instances known last stay in use, stale");
        }
    }

    /// A change that Redis did not take.
    fn refuse(&self, away: Away) -> RegistryError {
        match away.is_answer() {
            true => tracing::warn!(error = %away, "Redis refuses a change of the registered instances"),
            false => self.note(&away),
        }
        self.wake.notify_one();
        away.into()
    }

    fn rules(&self, service: &str) -> Result<Rules, RegistryError> {
        self.publisher.read(|ingredients| {
            let config = &ingredients.config;
            if !config.services.iter().any(|known| known.name == service) {
                return Err(RegistryError::UnknownService);
            }
            let redis = build::redis_address(config, &ingredients.resolved);
            let dns_servers = config.discovery.dns_server.clone();
            Ok(Rules { allow: config.discovery.allow.clone(), redis, dns_servers })
        })
    }

    /// The same, for a change: until what Redis lost is brought back, it does not know whom a change is about.
    fn rules_of_change(&self, service: &str) -> Result<Rules, RegistryError> {
        let rules = self.rules(service)?;
        if self.state().stale {
            self.wake.notify_one();
            return Err(RegistryError::Away(Away::Lost));
        }
        Ok(rules)
    }

    fn redis(&self) -> Option<Address> {
        self.publisher.read(|ingredients| build::redis_address(&ingredients.config, &ingredients.resolved))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
