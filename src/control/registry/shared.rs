//! The registry of all gateways that share a Redis: `{prefix}:registry:{service}` holds a service's instances, and expires
//! with the last of them. Every change that balancing must know is told on the channel `{prefix}:registry`.
//!
//! What comes from Redis was written by another gateway at best: it is validated like what comes from a client.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError};
use tokio::time::timeout;

use super::book::{Book, Entry, INSTANCES_MAX, Put};
use super::instance::{Change, Instance, InstanceId};
use super::validate;
use crate::control::config::{Allowed, Redis};
use crate::snapshot::Address;

/// How long connecting, or an answer, may take. Nobody's request waits for it, an operator's does.
const TIMEOUT: Duration = Duration::from_secs(1);

const SCRIPT: &str = include_str!("registry.lua");

/// Why Redis was of no use.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// Its name does not resolve.
    #[error("its address is not known")]
    Address,
    /// It was, and whether it is back is not known yet.
    #[error("the connection was lost")]
    Lost,
    /// It did not answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It cannot be reached, or refuses.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// It answered what nobody understands.
    #[error("an unexpected answer")]
    Answer,
}

impl Away {
    /// Whether Redis is there, and refuses: it is full, read-only, or does not let us.
    pub fn is_answer(&self) -> bool {
        matches!(self, Away::Redis(error) if error.code().is_some())
    }
}

/// The registry in Redis.
#[derive(Debug)]
pub struct Shared {
    settings: Redis,
    connection: Mutex<Option<(Address, MultiplexedConnection)>>,
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
        Ok((result == "known").then(|| read_entry(&entry, now, Instant::now(), allow)).flatten())
    }

    /// Forgets an instance; whether it was there.
    ///
    /// # Errors
    /// As [`Shared::register`].
    pub async fn deregister(&self, at: Option<Address>, service: &str, id: InstanceId) -> Result<bool, Away> {
        let step = Step { name: "deregister", id, ttl: None, weight: None, url: "" };
        Ok(self.step(at, service, &step).await?.0 == "known")
    }

    async fn step(&self, at: Option<Address>, service: &str, step: &Step<'_>) -> Result<(String, u64, String), Away> {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(self.key(service)).arg(self.channel()).arg(service).arg(INSTANCES_MAX);
        command.arg(step.name).arg(step.id.to_string());
        command.arg(step.ttl.map_or_else(String::new, |ttl| ttl.as_millis().to_string()));
        command.arg(step.weight.map_or_else(String::new, |weight| weight.to_string())).arg(step.url);
        let mut connection = self.connect(at).await?;
        let (result, now, entry): (String, String, String) = self.kept(command.query_async(&mut connection).await)?;
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
    ) -> Result<Book, Away> {
        let mut connection = self.connect(at).await?;
        let mut commands = redis::pipe();
        commands.cmd("TIME");
        for service in services {
            commands.cmd("HGETALL").arg(self.key(service));
        }
        let asked = Instant::now();
        let answers: Vec<redis::Value> = self.kept(commands.query_async(&mut connection).await)?;
        let mut answers = answers.into_iter();
        let time = answers.next().ok_or(Away::Answer)?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).map_err(RedisError::from)?;
        let now = seconds * 1_000 + micros / 1_000;
        let mut book = Book::default();
        for (service, answer) in services.iter().zip(answers) {
            let entries: HashMap<String, String> = redis::from_redis_value(answer).map_err(RedisError::from)?;
            for (id, text) in entries {
                let Some(entry) = read_entry(&text, now, asked, allow) else { continue };
                if InstanceId::of(service, &entry.instance.url).to_string() == id {
                    book.insert(service, entry);
                }
            }
        }
        Ok(book)
    }

    /// Yields whenever another gateway, or this one, has changed something, until the connection ends.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn notices(&self, at: Option<Address>) -> Result<impl Stream<Item = ()> + use<>, Away> {
        let client = self.client(&at.ok_or(Away::Address)?)?;
        let mut connection = timeout(TIMEOUT, client.get_async_pubsub()).await.map_err(|_| Away::Timeout)??;
        timeout(TIMEOUT, connection.subscribe(self.channel())).await.map_err(|_| Away::Timeout)??;
        Ok(connection.into_on_message().map(drop))
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

/// Reads `<expires> <ttl> <weight> <url>`, which Redis had when its clock showed `now` and ours `at`. `None` for what is
/// over, was deregistered, or may not be registered here.
fn read_entry(text: &str, now: u64, at: Instant, allow: Option<&[Allowed]>) -> Option<Entry> {
    let mut words = text.splitn(4, ' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let left = Duration::from_millis(number()?.checked_sub(now).filter(|left| *left > 0)?);
    let ttl = validate::ttl(Duration::from_millis(number()?)).ok()?;
    let weight = validate::weight(number()?).ok()?;
    let url = validate::url(words.next()?, allow).ok()?;
    Some(Entry { instance: Instance { url, weight, ttl }, expires: at + left.min(*validate::TTLS.end()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_has_is_not_believed() {
        let at = Instant::now();
        let check = |text: &str, expected: Option<(u64, &str)>| {
            let entry = read_entry(text, 1_000, at, None);
            let shown = entry.map(|entry| (entry.left(at).as_millis() as u64, entry.instance.url.to_string()));
            assert_eq!(shown, expected.map(|(left, url)| (left, url.to_owned())), "{text}");
        };
        check("3000 30000 1 http://10.0.0.1:9001", Some((2_000, "http://10.0.0.1:9001")));
        check("99999999999999 30000 1 http://a", Some((86_400_000, "http://a")));
        for text in [
            "",
            "1000 30000 1 http://a",
            "999 30000 1 http://a",
            "2000 gone",
            "2000 4999 1 http://a",
            "2000 30000 0 http://a",
            "2000 30000 1001 http://a",
            "2000 30000 1 http://169.254.169.254",
            "2000 30000 1 unix:/run/app.sock",
            "2000 30000 1 http://a/x",
            "2000 30000 1",
            "-1 30000 1 http://a",
            "99999999999999999999999 30000 1 http://a",
        ] {
            check(text, None);
        }
    }
}
