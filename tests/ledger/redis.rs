//! A redis-server of the test's own, and just enough of a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringway::redis::script;
use ringway::traffic::window::{Grant, Limit, LimitKey, Order};

use crate::port::free_port;

pub struct RedisLedger {
    server: Child,
    connection: BufReader<TcpStream>,
    sha1: String,
}

impl RedisLedger {
    /// Starts a server that keeps nothing on disk, and loads the script.
    pub fn start() -> RedisLedger {
        let port = free_port();
        let server = Command::new("redis-server")
            .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian package redis-server)");
        let deadline = Instant::now() + Duration::from_secs(20);
        let connection = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        connection.set_nodelay(true).expect("a TCP socket");
        let mut redis = RedisLedger { server, connection: BufReader::new(connection), sha1: script::sha1() };
        let sha1 = redis.call(&["SCRIPT", "LOAD", script::ACQUIRE]);
        assert_eq!(sha1, redis.sha1, "Redis names the script as we do");
        redis
    }

    /// An order at the time of Redis's own clock.
    pub fn acquire_now(&mut self, key: &str, limit: &Limit, order: &Order) -> Grant {
        self.evaluate(key, limit, order, None)
    }

    /// Sends a command and reads its answer, a simple string, an integer or a bulk string.
    pub fn call(&mut self, words: &[&str]) -> String {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.connection.get_mut().write_all(bytes.as_bytes()).expect("a server that reads");
        let mut line = String::new();
        self.connection.read_line(&mut line).expect("an answer");
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" | ":" => rest.to_owned(),
            "$" => {
                let length: usize = rest.parse().expect("a length");
                let mut answer = vec![0; length + 2];
                self.connection.read_exact(&mut answer).expect("a whole answer");
                answer.truncate(length);
                String::from_utf8(answer).expect("UTF-8")
            }
            _ => panic!("{words:?}: {line}"),
        }
    }

    pub fn number(&mut self, words: &[&str]) -> i64 {
        self.call(words).parse().expect("a number")
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

impl Drop for RedisLedger {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
