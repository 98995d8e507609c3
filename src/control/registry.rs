//! Instances that register themselves while the gateway runs, and stay as long as they give signs of life.
//!
//! Without Redis they are this process's. With it ([`shared`]) every gateway that shares it has the same: each learns of a
//! change by a notice, reads all of them again every [`READ_EVERY`](upkeep::READ_EVERY) whatever happens, and asks Redis,
//! whose clock alone decides, before it forgets anybody. While Redis is away, or takes no changes, the last ones known stay
//! in use, and nothing can be changed. Instances whose signs of life could not arrive meanwhile, or that Redis has lost, are
//! brought back for one more time to live; those that were deregistered are not. The same holds for a single service whose
//! key in Redis cannot be read, while the others are well.

pub mod away;
pub mod book;
pub mod instance;
mod own;
pub mod reading;
pub mod shared;
pub mod upkeep;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::away::{Away, Unreadable};
use self::book::{Book, Entry, INSTANCES_MAX, Put};
use self::instance::{Change, Instance, InstanceId};
use self::shared::Shared;
use self::validate::Refused;
use super::build;
use super::config::{Allowed, Config, EndpointUrl};
use super::publisher::Publisher;
use super::resolve::{self, Resolved};
use crate::policy::auth::api_key::KeyHash;
use crate::snapshot::Address;

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
    /// Counts how often that was noted: a look at Redis from before says nothing of it.
    noted: u64,
    /// The services of which the book may be out of date, because their own keys cannot be read.
    unreadable: BTreeMap<String, Unreadable>,
    /// While Redis is read, what was changed here since: of that, what was read is not newer.
    touched: Option<BTreeSet<(String, InstanceId)>>,
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
        let state =
            Mutex::new(State { book: known, stale: None, noted: 0, unreadable: BTreeMap::new(), touched: None });
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

    /// A change of `service` that Redis did not take.
    fn refuse(&self, service: &str, away: Away) -> RegistryError {
        match &away {
            Away::Unreadable(unreadable) => self.state().note_unreadable(service, unreadable.clone()),
            _ if away.is_answer() => {
                tracing::warn!(service, error = %away, "Redis refuses a change of the registered instances");
            }
            _ => self.note(&away),
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
