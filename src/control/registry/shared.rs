//! The registry of all gateways that share a Redis: `{prefix}:registry:{service}` holds a service's instances, and expires
//! with the last of them. Every change that balancing must know is told on the channel `{prefix}:registry`.
//!
//! What comes from Redis was written by another gateway at best: it is validated like what comes from a client.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    RedisResult, Value,
};
use tokio::time::timeout;

use super::book::{Book, Entry, INSTANCES_MAX, Put};
use super::instance::{Change, Instance, InstanceId};
use super::validate;
use crate::control::config::{Allowed, Redis};
use crate::snapshot::Address;

/// How long connecting, or an answer, may take. Nobody's request waits for it, an operator's does.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How often a connection on which nothing is heard is asked for an answer.
const PING_EVERY: Duration = Duration::from_secs(2);

/// How far Redis's clock may have been set back: what it has may end so much later than a new one.
const SET_BACK: Duration = Duration::from_secs(60);

const SCRIPT: &str = include_str!("registry.lua");

/// Why Redis was of no use.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// It is there, but not what it has of one service.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Away {
    /// Whether Redis is there, and refuses: it is full, read-only, or does not let us.
    pub fn is_answer(&self) -> bool {
        match self {
            Away::Redis(error) => error.code().is_some() || error.kind() == ErrorKind::AuthenticationFailed,
            Away::Unreadable(_) => true,
            Away::Address | Away::Lost | Away::Timeout | Away::Answer => false,
        }
    }

    /// Why nothing can be changed, and what to do, for whoever asked for a change. What Redis itself says is for the log.
    pub fn advice(&self) -> String {
        match self {
            Away::Unreadable(unreadable) => {
                format!("Instances of this service cannot be changed: {unreadable}. {}.", unreadable.remedy())
            }
            Away::Redis(error) if self.is_answer() => format!(
                "Redis refuses ({}), so nothing can be changed. The gateway's log has what it says; try again when that is mended.",
                error.code().unwrap_or("the gateway's credentials")
            ),
            _ => "The registry is not available, so nothing can be changed. Try again later.".to_owned(),
        }
    }
}

/// The key of one service cannot be read, while Redis is well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Redis key {key} cannot be read: {why}")]
pub struct Unreadable {
    /// The key.
    pub key: String,
    /// What Redis says, its code first.
    pub why: String,
}

impl Unreadable {
    /// What an operator is to do, a sentence without its end.
    pub fn remedy(&self) -> &'static str {
        match self.why.starts_with("NOPERM") {
            true => "Let the gateway's user of Redis read and write the keys of redis.prefix (ACL SETUSER)",
            false => "Delete the key (DEL), or set another redis.prefix; the instances are then brought back",
        }
    }
}

/// What Redis has.
#[derive(Debug, Default)]
pub struct Reading {
    /// Who is registered.
    pub book: Book,
    /// Who was deregistered not long ago.
    pub gone: BTreeSet<(String, InstanceId)>,
    /// The services of which nothing is known, though there may be instances.
    pub unreadable: BTreeMap<String, Unreadable>,
}

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

/// What a field of a service's hash says.
#[derive(Debug, PartialEq, Eq)]
enum Field {
    /// It is registered.
    Live(Entry),
    /// It was deregistered.
    Gone,
}

impl Reading {
    /// Takes the hash of a service: of those instances that may be registered here, [`INSTANCES_MAX`] at most.
    fn take(
        &mut self,
        service: &str,
        fields: &BTreeMap<Vec<u8>, Vec<u8>>,
        now: u64,
        at: Instant,
        allow: Option<&[Allowed]>,
    ) {
        let mut live = 0;
        for (id, text) in fields {
            match read_field(service, id, text, now, at, allow) {
                Some((_, Field::Live(entry))) if live < INSTANCES_MAX => {
                    live += 1;
                    self.book.insert(service, entry);
                }
                Some((id, Field::Gone)) => drop(self.gone.insert((service.to_owned(), id))),
                Some((_, Field::Live(_))) | None => {}
            }
        }
    }
}

/// Reads the field `id`, which Redis had when its clock showed `now` and ours `at`. `None` for what is over, may not be
/// registered here, or was written by no gateway.
fn read_field(
    service: &str,
    id: &[u8],
    text: &[u8],
    now: u64,
    at: Instant,
    allow: Option<&[Allowed]>,
) -> Option<(InstanceId, Field)> {
    let (id, text) = (str::from_utf8(id).ok()?.parse().ok()?, str::from_utf8(text).ok()?);
    let (expires, rest) = text.split_once(' ')?;
    let left = Duration::from_millis(expires.parse::<u64>().ok()?.checked_sub(now).filter(|left| *left > 0)?);
    if left > *validate::TTLS.end() + SET_BACK {
        return None;
    }
    if rest == "gone" {
        return Some((id, Field::Gone));
    }
    let instance = read_instance(rest, allow)?;
    let expires = at + left.min(*validate::TTLS.end());
    (InstanceId::of(service, &instance.url) == id).then_some((id, Field::Live(Entry { instance, expires })))
}

/// Reads `<ttl> <weight> <url>`.
fn read_instance(text: &str, allow: Option<&[Allowed]>) -> Option<Instance> {
    let mut words = text.splitn(3, ' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let ttl = validate::ttl(Duration::from_millis(number()?)).ok()?;
    let weight = validate::weight(number()?).ok()?;
    let url = validate::url(words.next()?, allow).ok()?;
    Some(Instance { url, weight, ttl })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_endpoint;

    /// `expected`: the milliseconds left and the URL, or `gone`.
    fn check(text: &[u8], expected: Option<&str>) {
        let at = Instant::now();
        // As who wrote it would name it.
        let url =
            text.splitn(4, |byte| *byte == b' ').nth(3).and_then(|url| parse_endpoint(str::from_utf8(url).ok()?).ok());
        let id = url.map_or_else(|| "0123456789abcdef".to_owned(), |url| InstanceId::of("sms", &url).to_string());
        let shown = read_field("sms", id.as_bytes(), text, 1_000, at, None).map(|(_, field)| match field {
            Field::Live(entry) => format!("{} {}", entry.left(at).as_millis(), entry.instance.url),
            Field::Gone => "gone".to_owned(),
        });
        assert_eq!(shown.as_deref(), expected, "{}", text.escape_ascii());
    }

    #[test]
    fn what_redis_has_is_not_believed() {
        check(b"3000 30000 1 http://10.0.0.1:9001", Some("2000 http://10.0.0.1:9001"));
        check(b"86401000 30000 1 http://a", Some("86400000 http://a"));
        // Its clock was set back a little.
        check(b"86461000 30000 1 http://a", Some("86400000 http://a"));
        check(b"2000 gone", Some("gone"));
        for text in [
            &b""[..],
            b"1000 30000 1 http://a",
            b"999 30000 1 http://a",
            b"86461001 30000 1 http://a",
            b"99999999999999 30000 1 http://a",
            b"1000 gone",
            b"9223372036854775807 gone",
            b"2000 gone ",
            b"gone",
            b"2000 4999 1 http://a",
            b"2000 30000 0 http://a",
            b"2000 30000 1001 http://a",
            b"2000 30000 1 http://169.254.169.254",
            b"2000 30000 1 unix:/run/app.sock",
            b"2000 30000 1 http://a/x",
            b"2000 30000 1 http://\xff",
            b"2000 30000 1",
            b"-1 30000 1 http://a",
            b"99999999999999999999999 30000 1 http://a",
            b"\xff",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_field_has_the_name_of_its_instance() {
        let id = InstanceId::of("sms", &parse_endpoint("http://a").expect("a URL")).to_string();
        let read = |service: &str, id: &[u8]| {
            read_field(service, id, b"2000 30000 1 http://a", 1_000, Instant::now(), None).is_some()
        };
        assert!(read("sms", id.as_bytes()));
        for (service, id) in [("llm", id.as_bytes()), ("sms", b"0123456789abcdef"), ("sms", b"\xff"), ("sms", b"")] {
            assert!(!read(service, id), "{service} {}", id.escape_ascii());
        }
    }

    #[test]
    fn a_service_has_a_maximum() {
        let fields = (1..=INSTANCES_MAX + 1).map(|port| {
            let url = format!("http://a:{port}");
            let id = InstanceId::of("sms", &parse_endpoint(&url).expect("a URL")).to_string();
            (id.into_bytes(), format!("2000 30000 1 {url}").into_bytes())
        });
        let mut reading = Reading::default();
        reading.take("sms", &fields.collect(), 1_000, Instant::now(), None);
        assert_eq!(reading.book.all().count(), INSTANCES_MAX);
    }
}
