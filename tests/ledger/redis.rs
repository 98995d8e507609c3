//! A ledger in a redis-server of the test's own.

use std::time::{Duration, Instant};

use ringway::redis::script;
use ringway::traffic::window::{Grant, Limit, LimitKey, Order};

use crate::server::{RedisConnection, RedisServer};

pub struct RedisLedger {
    connection: RedisConnection,
    sha1: String,
    _server: RedisServer,
}

impl RedisLedger {
    /// Starts a server, and loads the script.
    pub fn start() -> RedisLedger {
        let server = RedisServer::start(&[]);
        let mut redis = RedisLedger { connection: server.connect(), sha1: script::sha1(), _server: server };
        let sha1 = redis.call(&["SCRIPT", "LOAD", script::ACQUIRE]);
        assert_eq!(sha1, redis.sha1, "Redis names the script as we do");
        redis
    }

    /// An order at the time of Redis's own clock.
    pub fn acquire_now(&mut self, key: &str, limit: &Limit, order: &Order) -> Grant {
        self.evaluate(key, limit, order, None)
    }

    fn call(&mut self, words: &[&str]) -> String {
        let reply = self.connection.command(words);
        assert!(!reply.is_empty() && !reply.starts_with('-'), "{words:?}: {reply}");
        reply
    }

    pub fn number(&mut self, words: &[&str]) -> i64 {
        let reply = self.call(words);
        reply.strip_prefix(':').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{words:?}: {reply}"))
    }

    /// How many commands ran, those of scripts included.
    pub fn commands_processed(&mut self) -> i64 {
        let stats = self.call(&["INFO", "commandstats"]);
        let calls =
            stats.lines().filter_map(|line| line.split_once("calls=")?.1.split(',').next()?.parse::<i64>().ok());
        calls.sum()
    }

    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut RedisLedger) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn evaluate(&mut self, key: &str, limit: &Limit, order: &Order, now_us: Option<u64>) -> Grant {
        let numbers = script::arguments(limit, order).into_iter().chain(now_us).map(|number| number.to_string());
        let numbers: Vec<String> = numbers.collect();
        let sha1 = self.sha1.clone();
        let mut words = vec!["EVALSHA", &sha1, "1", key];
        words.extend(numbers.iter().map(String::as_str));
        let answer = self.call(&words);
        script::parse(answer.as_bytes()).unwrap_or_else(|| panic!("{answer}"))
    }
}

impl super::Ledger for RedisLedger {
    fn acquire(&mut self, key: LimitKey, limit: &Limit, order: &Order, now_us: u64) -> Grant {
        self.evaluate(&format!("test:rl:{{{:032x}}}", key.0), limit, order, Some(now_us))
    }
}
