//! Instances that register themselves while the gateway runs, and stay as long as they give signs of life.
//!
//! Without Redis they are this process's. With it ([`shared`]) every gateway that shares it has the same: each learns of a
//! change by a notice, reads all of them again every [`READ_EVERY`] whatever happens, and asks Redis, whose clock alone
//! decides, before it forgets anybody. While Redis is away, or takes no changes, the last ones known stay in use, and nothing
//! can be changed. Instances whose signs of life could not arrive meanwhile, or that a restarted Redis has lost, are brought
//! back for one more time to live; those that were deregistered are not. The same holds for a single service whose key in
//! Redis cannot be read, while the others are well.

pub mod book;
pub mod instance;
mod own;
pub mod shared;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep;

use self::book::{Book, Entry, INSTANCES_MAX, Put};
use self::instance::{Change, Instance, InstanceId};
use self::shared::{Away, Reading, Shared, Unreadable};
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
    #[error("{}", .0.advice())]
    Away(#[from] Away),
}

/// The registered instances.
#[derive(Debug)]
pub struct Registry {
    publisher: Arc<Publisher>,
    listening: Option<SocketAddr>,
    shared: Option<Shared>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// Why the book may be out of date, when it may: Redis is away, or takes no changes.
    stale: Option<Away>,
    /// The services of which the book may be out of date, because their own keys cannot be read.
    unreadable: BTreeMap<String, Unreadable>,
    /// While Redis is read, what was changed here since: of that, what was read is not newer.
    touched: Option<BTreeSet<(String, InstanceId)>>,
}

impl State {
    /// Notes that what Redis has of `service` cannot be read, and says so once.
    fn note_unreadable(&mut self, service: &str, unreadable: Unreadable) {
        if !self.unreadable.contains_key(service) {
            let known = self.book.of(service).count();
            tracing::warn!(
                service,
                key = unreadable.key,
                error = unreadable.why,
                known,
                "the registered instances of a service cannot be read; those known last stay in use, stale. {}",
                unreadable.remedy()
            );
            self.unreadable.insert(service.to_owned(), unreadable);
        }
    }
}

/// Who is in the book and not in Redis.
#[derive(Debug, Default)]
struct Missed {
    /// Brought back: Redis has lost them, or has heard no sign of life while nobody could give one.
    restored: Vec<(String, Instance)>,
    /// A service that has one whose time is over.
    forgotten: Option<String>,
}

/// Who is registered with a service.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Whether Redis is away, or has it where it cannot be read, so that this may be out of date.
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
    match shared.read(address, &services, config.discovery.allow.as_deref()).await {
        // What cannot be read, the registry tells as soon as it runs.
        Ok(reading) => reading.book,
        Err(error) if error.is_answer() => {
            tracing::warn!(%error, "Redis answers with an error; registered instances are not known while it does");
            Book::default()
        }
        Err(error) => {
            tracing::warn!(%error, "Redis does not answer; registered instances are not known until it does");
            Book::default()
        }
    }
}

fn names_of(config: &Config) -> Vec<String> {
    config.services.iter().map(|service| service.name.clone()).collect()
}

impl Registry {
    /// A registry that begins with what is `known`, and tells `publisher` of its instances. `listening` is where the gateway
    /// takes requests, which no instance may be.
    pub fn new(publisher: Arc<Publisher>, known: Book, listening: Option<SocketAddr>) -> Registry {
        let redis = publisher.read(|ingredients| ingredients.config.redis.clone());
        let shared = redis.server.is_some().then(|| Shared::new(redis));
        let state = Mutex::new(State { book: known, stale: None, unreadable: BTreeMap::new(), touched: None });
        Registry { publisher, listening, shared, state, wake: Notify::new() }
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
        match &instance.url {
            EndpointUrl::Name { host, port, .. } => {
                let found = resolve::lookup(host, &rules.dns_servers).await.unwrap_or_default();
                validate::addresses(host, &found, rules.allow.as_deref())?;
                found.iter().try_for_each(|ip| self.is_elsewhere(SocketAddr::new(*ip, *port)))?;
            }
            EndpointUrl::Address { address, .. } => self.is_elsewhere(*address)?,
            EndpointUrl::Unix(_) | EndpointUrl::Srv { .. } => {}
        }
        let id = InstanceId::of(service, &instance.url);
        let url = instance.url.to_string();
        let put = match &self.shared {
            Some(shared) => {
                shared.register(rules.redis, service, &instance).await.map_err(|away| self.refuse(service, away))?
            }
            None => Put::Full,
        };
        if self.shared.is_some() && put == Put::Full {
            return Err(RegistryError::Full);
        }
        let now = Instant::now();
        let own = self.change(service, id, |book| {
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

    fn is_elsewhere(&self, address: SocketAddr) -> Result<(), Refused> {
        match self.listening.is_some_and(|listening| own::is_own(listening, address)) {
            true => Err(Refused::Own(address)),
            false => Ok(()),
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
                let renewed = renewed.map_err(|away| self.refuse(service, away))?;
                self.change(service, id, |book| match &renewed {
                    Some(entry) => book.insert(service, entry.clone()),
                    None => drop(book.remove(service, id)),
                });
                renewed
            }
            None => self.change(service, id, |book| {
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
            Some(shared) => {
                shared.deregister(rules.redis, service, id).await.map_err(|away| self.refuse(service, away))?
            }
            None => false,
        };
        let was_known = self.change(service, id, |book| {
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
        let stale = state.stale.is_some() || state.unreadable.contains_key(service);
        Ok(Listing { stale, entries })
    }

    /// Takes out who gives no sign of life, and learns what other gateways changed, for as long as the process runs.
    pub async fn keep(self: Arc<Self>) {
        if self.shared.is_some() {
            tokio::spawn(Arc::clone(&self).listen());
        }
        let mut config_changes = self.publisher.config_changes();
        loop {
            match &self.shared {
                Some(shared) => self.read(shared).await.unwrap_or_else(|away| self.note(away)),
                None => self.expire(),
            }
            sleep(LOOK_APART).await;
            tokio::select! {
                () = sleep(self.pause()) => {}
                () = self.wake.notified() => {}
                // A service that was added may have instances already.
                Ok(()) = config_changes.changed() => {}
            }
        }
    }

    /// Wakes [`Registry::keep`] whenever a gateway has changed something. Without, the change is seen at the next look.
    async fn listen(self: Arc<Self>) {
        let Some(shared) = &self.shared else { return };
        loop {
            if let Ok(mut notices) = shared.notices(self.redis()).await {
                // What was said before somebody listened.
                self.wake.notify_one();
                while notices.next().await.is_some() {
                    self.wake.notify_one();
                }
                // It may be back, and empty, before it is asked the next time.
                self.note(Away::Lost);
                self.wake.notify_one();
            }
            sleep(TRY_EVERY).await;
        }
    }

    /// How long there is nothing to do unless somebody says so.
    fn pause(&self) -> Duration {
        let state = self.state();
        let most = match &self.shared {
            Some(_) if state.stale.is_some() || !state.unreadable.is_empty() => return TRY_EVERY,
            Some(_) => READ_EVERY,
            None => Duration::from_secs(3_600),
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
    async fn read(&self, shared: &Shared) -> Result<(), Away> {
        self.state().touched = Some(BTreeSet::new());
        let (services, allow) = self.publisher.read(|ingredients| {
            let config = &ingredients.config;
            (names_of(config), config.discovery.allow.clone())
        });
        let mut reading = shared.read(self.redis(), &services, allow.as_deref()).await?;
        let missed = self.missed(&reading, &services);
        if !missed.restored.is_empty() {
            for (service, instance) in &missed.restored {
                shared.restore(self.redis(), service, instance).await?;
            }
            reading = shared.read(self.redis(), &services, allow.as_deref()).await?;
        }
        if let Some(service) = &missed.forgotten {
            shared.try_writing(self.redis(), service).await?;
        }
        self.adopt(reading);
        Ok(())
    }

    /// Who of `services` is in the book and not in Redis, though nobody deregistered it.
    fn missed(&self, reading: &Reading, services: &[String]) -> Missed {
        let state = self.state();
        let mut missed = Missed::default();
        for (service, id, entry) in state.book.all() {
            let is_known = reading.book.get(service, id).is_some() || reading.gone.contains(&(service.to_owned(), id));
            let is_read = services.iter().any(|read| read == service) && !reading.unreadable.contains_key(service);
            if is_known || !is_read {
                continue;
            }
            match state.stale.is_some() || state.unreadable.contains_key(service) {
                true => missed.restored.push((service.to_owned(), entry.instance.clone())),
                false => missed.forgotten = Some(service.to_owned()),
            }
        }
        missed
    }

    fn adopt(&self, reading: Reading) {
        let Reading { book: mut found, unreadable, .. } = reading;
        let mut state = self.state();
        if state.stale.take().is_some() {
            tracing::info!("Redis answers again; registered instances are up to date");
        }
        for service in state.unreadable.keys().filter(|service| !unreadable.contains_key(*service)) {
            tracing::info!(service, "the registered instances of a service can be read again");
        }
        state.unreadable.retain(|service, _| unreadable.contains_key(service));
        for (service, why) in unreadable {
            found.keep(&service, &state.book);
            state.note_unreadable(&service, why);
        }
        for (service, id) in state.touched.take().unwrap_or_default() {
            match state.book.get(&service, id) {
                Some(entry) => found.insert(&service, entry.clone()),
                None => drop(found.remove(&service, id)),
            }
        }
        for (service, id, _) in state.book.all().filter(|(service, id, _)| found.get(service, *id).is_none()) {
            tracing::info!(service, %id, "an instance is no longer registered");
        }
        state.book = found;
        self.publisher.set_registered(state.book.registered());
    }

    /// Changes what the book has of an instance, and publishes what has changed.
    fn change<T>(&self, service: &str, id: InstanceId, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state.book);
        // Under the lock, so that the last word published is the last one said.
        self.publisher.set_registered(state.book.registered());
        if let Some(touched) = &mut state.touched {
            touched.insert((service.to_owned(), id));
        }
        drop(state);
        if self.shared.is_none() {
            self.wake.notify_one();
        }
        result
    }

    /// Notes that Redis is away, or refuses, and says so once.
    fn note(&self, away: Away) {
        let mut state = self.state();
        let known = state.book.all().count();
        let before = state.stale.replace(away.clone());
        match (before.map(|before| before.is_answer()), away.is_answer()) {
            (Some(before), now) if before == now => {}
            (_, true) => tracing::warn!(
                error = %away,
                known,
                "Redis answers with an error; the instances known last stay in use, stale, until it takes changes again"
            ),
            (_, false) => tracing::warn!(
                error = %away,
                known,
                "Redis does not answer; the instances known last stay in use, stale"
            ),
        }
    }

    /// A change of `service` that Redis did not take.
    fn refuse(&self, service: &str, away: Away) -> RegistryError {
        match &away {
            Away::Unreadable(unreadable) => self.state().note_unreadable(service, unreadable.clone()),
            _ if away.is_answer() => {
                tracing::warn!(service, error = %away, "Redis refuses a change of the registered instances");
            }
            _ => self.note(away.clone()),
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
        let state = self.state();
        let unreadable = state.unreadable.get(service).cloned().map(Away::from);
        match state.stale.clone().or(unreadable) {
            Some(away) => {
                self.wake.notify_one();
                Err(away.into())
            }
            None => Ok(rules),
        }
    }

    fn redis(&self) -> Option<Address> {
        self.publisher.read(|ingredients| build::redis_address(&ingredients.config, &ingredients.resolved))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
