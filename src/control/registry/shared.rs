//! The registry of all gateways that share a Redis: `{prefix}:registry:{service}` holds a service's instances, and expires
//! with the last of them. Every change that balancing must know is told on the channel `{prefix}:registry`.
//!
//! What comes from Redis was written by another gateway at best: it is validated like what comes from a client.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError, RedisResult,
    Value,
};
use tokio::time::timeout;

use super::away::{Away, Unreadable};
use super::book::{Entry, INSTANCES_MAX, Put};
use super::instance::{Change, Instance, InstanceId};
use super::reading::{Field, Reading, read_field};
use crate::control::config::{Allowed, Redis};
use crate::snapshot::Address;

/// How long connecting, or an answer, may take. Nobody's request waits for it, an operator's does.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// How often a connection on which nothing is heard is asked for an answer.
const PING_EVERY: Duration = Duration::from_secs(2);

const SCRIPT: &str = include_str!("registry.lua");

/// The registry in Redis.
#[derive(Debug)]
pub struct Shared {
    settings: Redis,
    connection: Mutex<Option<(Address, MultiplexedConnection)>>,
}

/// What gateways tell each other.
pub struct Notices {
    sink: PubSubSink,
    messages: PubSubStream,
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

impl Notices {
    /// Waits until another gateway, or this one, has changed something. `None`: the connection has ended, or is dead
    /// without having ended, as when the way to Redis is cut.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            if let Ok(message) = timeout(PING_EVERY, self.messages.next()).await {
                return message.map(drop);
            }
            let pong = timeout(TIMEOUT, self.sink.ping::<Value>()).await;
            pong.ok()?.ok()?;
        }
    }
}

/// What a step in the life of an instance needs to know.
#[derive(Debug)]
struct Step<'a> {
    name: &'static str,
    id: InstanceId,
    ttl: Option<Duration>,
    weight: Option<u16>,
    url: &'a str,
}

impl Shared {
    /// The registry in the Redis that `settings` name.
    pub fn new(settings: Redis) -> Shared {
        Shared { settings, connection: Mutex::new(None) }
    }

    /// Registers an instance, for every gateway.
    ///
    /// # Errors
    /// Redis is away; it may have taken it all the same.
    pub async fn register(&self, at: Option<Address>, service: &str, instance: &Instance) -> Result<Put, Away> {
        match self.put(at, "register", service, instance).await?.as_str() {
            "new" => Ok(Put::New),
            "known" => Ok(Put::Known),
            "full" => Ok(Put::Full),
            _ => Err(Away::Answer),
        }
    }

    /// Brings an instance back that Redis has lost or forgotten, unless it was deregistered.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn restore(&self, at: Option<Address>, service: &str, instance: &Instance) -> Result<(), Away> {
        self.put(at, "restore", service, instance).await.map(drop)
    }

    async fn put(
        &self,
        at: Option<Address>,
        name: &'static str,
        service: &str,
        instance: &Instance,
    ) -> Result<String, Away> {
        let id = InstanceId::of(service, &instance.url);
        let url = instance.url.to_string();
        let step = Step { name, id, ttl: Some(instance.ttl), weight: Some(instance.weight), url: &url };
        Ok(self.step(at, service, &step).await?.0)
    }

    /// A sign of life. `None`: it is not there. What it was changed to otherwise.
    ///
    /// # Errors
    /// As [`Shared::register`].
    pub async fn renew(
        &self,
        at: Option<Address>,
        service: &str,
        id: InstanceId,
        change: Change,
        allow: Option<&[Allowed]>,
    ) -> Result<Option<Entry>, Away> {
        let step = Step { name: "renew", id, ttl: change.ttl, weight: change.weight, url: "" };
        let (result, now, entry) = self.step(at, service, &step).await?;
        match (result.as_str(), read_field(service, id.to_string().as_bytes(), &entry, now, Instant::now(), allow)) {
            ("known", Some((_, Field::Live(entry)))) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }

    /// Forgets an instance; whether it was there.
    ///
    /// # Errors
    /// As [`Shared::register`].
    pub async fn deregister(&self, at: Option<Address>, service: &str, id: InstanceId) -> Result<bool, Away> {
        let step = Step { name: "deregister", id, ttl: None, weight: None, url: "" };
        Ok(self.step(at, service, &step).await?.0 == "known")
    }

    /// Whether anything can be written: instances whose signs of life Redis refuses are not to be forgotten for that.
    ///
    /// # Errors
    /// As [`Shared::register`].
    pub async fn try_writing(&self, at: Option<Address>, service: &str) -> Result<(), Away> {
        self.script(at, service, ["try", "", "", "", ""].map(str::to_owned)).await.map(drop)
    }

    async fn step(&self, at: Option<Address>, service: &str, step: &Step<'_>) -> Result<(String, u64, Vec<u8>), Away> {
        let ttl = step.ttl.map_or_else(String::new, |ttl| ttl.as_millis().to_string());
        let weight = step.weight.map_or_else(String::new, |weight| weight.to_string());
        self.script(at, service, [step.name.to_owned(), step.id.to_string(), ttl, weight, step.url.to_owned()]).await
    }

    async fn script(
        &self,
        at: Option<Address>,
        service: &str,
        args: [String; 5],
    ) -> Result<(String, u64, Vec<u8>), Away> {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(self.key(service)).arg(self.channel()).arg(service).arg(INSTANCES_MAX);
        command.arg(&args);
        let mut connection = self.connect(at).await?;
        let (result, now, entry): (String, String, Vec<u8>) = self.kept(command.query_async(&mut connection).await)?;
        if result == "unreadable" {
            let why = String::from_utf8_lossy(&entry).into_owned();
            return Err(Unreadable { key: self.key(service), why }.into());
        }
        Ok((result, now.parse().map_err(|_| Away::Answer)?, entry))
    }

    /// Who is registered with `services`.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn read(
        &self,
        at: Option<Address>,
        services: &[String],
        allow: Option<&[Allowed]>,
    ) -> Result<Reading, Away> {
        let mut connection = self.connect(at).await?;
        let mut commands = redis::pipe();
        // One service's key may hold anything: its error is its own.
        commands.ignore_errors().cmd("TIME");
        for service in services {
            commands.cmd("HGETALL").arg(self.key(service));
        }
        let asked = Instant::now();
        let answers: Vec<RedisResult<Value>> = self.kept(commands.query_async(&mut connection).await)?;
        let mut answers = answers.into_iter();
        let time = answers.next().ok_or(Away::Answer)??;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).map_err(RedisError::from)?;
        let now = seconds * 1_000 + micros / 1_000;
        let mut reading = Reading::default();
        for (service, answer) in services.iter().zip(answers) {
            match answer {
                Ok(fields) => {
                    let fields = redis::from_redis_value(fields).map_err(RedisError::from)?;
                    reading.take(service, &fields, now, asked, allow);
                }
                // These say something of the key; others, of Redis as a whole.
                Err(error) => match error.code() {
                    Some(code @ ("WRONGTYPE" | "NOPERM")) => {
                        let why = format!("{code} {}", error.detail().unwrap_or_default());
                        reading.unreadable.insert(service.clone(), Unreadable { key: self.key(service), why });
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(reading)
    }

    /// Listens to what gateways change.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn notices(&self, at: Option<Address>) -> Result<Notices, Away> {
        let client = self.client(&at.ok_or(Away::Address)?)?;
        let mut connection = timeout(TIMEOUT, client.get_async_pubsub()).await.map_err(|_| Away::Timeout)??;
        timeout(TIMEOUT, connection.subscribe(self.channel())).await.map_err(|_| Away::Timeout)??;
        let (sink, messages) = connection.split();
        Ok(Notices { sink, messages })
    }

    async fn connect(&self, at: Option<Address>) -> Result<MultiplexedConnection, Away> {
        let address = at.ok_or(Away::Address)?;
        if let Some((known, connection)) = &*self.connection.lock().unwrap_or_else(PoisonError::into_inner)
            && *known == address
        {
            return Ok(connection.clone());
        }
        let settings =
            AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
        let connecting = self.client(&address)?;
        let connecting = connecting.get_multiplexed_async_connection_with_config(&settings);
        let connection = timeout(TIMEOUT, connecting).await.map_err(|_| Away::Timeout)??;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some((address, connection.clone()));
        Ok(connection)
    }

    /// Gives up the connection on which something went wrong that is no answer: a new one is no worse.
    fn kept<T>(&self, result: Result<T, RedisError>) -> Result<T, Away> {
        let result = result.map_err(Away::from);
        if result.as_ref().is_err_and(|away| !away.is_answer()) {
            *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    fn client(&self, address: &Address) -> Result<Client, Away> {
        let address = match address {
            Address::Tcp(address) => ConnectionAddr::Tcp(address.ip().to_string(), address.port()),
            Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let server = self.settings.server.as_ref().ok_or(Away::Address)?;
        let mut settings = RedisConnectionInfo::default().set_db(i64::from(server.database)).set_skip_set_lib_name();
        if !server.username.is_empty() {
            settings = settings.set_username(&server.username);
        }
        if let Some(password) = &server.password {
            settings = settings.set_password(password.expose());
        }
        Ok(Client::open(address.into_connection_info()?.set_redis_settings(settings))?)
    }

    fn key(&self, service: &str) -> String {
        format!("{}:registry:{service}", self.settings.prefix)
    }

    fn channel(&self) -> String {
        format!("{}:registry", self.settings.prefix)
    }
}
