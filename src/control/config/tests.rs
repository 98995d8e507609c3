//! The configuration as a whole: what is refused and how that reads, what holds over what, and that the shipped files are
//! true.

mod hostile;
mod policies;
mod policies_refused;
mod refused;
mod shipped;
mod sources;
mod summary;

use std::time::Duration;

use crate::http::method::{Method, MethodSet};
use crate::snapshot::LogFormat;
use crate::traffic::balance::Algorithm;

use super::*;

/// A service that is valid, to add to.
const SMS: &str = "[services.sms]\nprefix = \"/sms\"\nendpoints = [\"http://127.0.0.1:9001\"]\n";

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    // Without a key no service can ask for credentials, which is the default.
    let environment = [&[SECRET], environment].concat();
    Config::from_toml(text, "c.toml", &pairs(&environment), &[])
}

/// 32 bytes.
const SECRET: (&str, &str) = ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef");

/// The configuration of an empty file, with the secret that [`parse`] knows.
fn nothing_set() -> Config {
    Config { origin: Config::BUILT_IN.to_owned(), ..good("") }
}

fn good(text: &str) -> Config {
    parse(text, &[]).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// Whether reading `text` gives exactly the errors `expected`, one a line.
fn check(text: &str, expected: &str) {
    check_with(text, &[], expected);
}

fn check_with(text: &str, environment: &[(&str, &str)], expected: &str) {
    let actual = parse(text, environment).expect_err(text).to_string();
    assert_eq!(actual, expected, "for:\n{text}\n{environment:?}");
}

#[test]
fn what_is_written_is_what_holds() {
    let config = good(
        r#"
        server = { host = "::1", port = 0, workers = 2, pin = false, driver = "epoll", trusted_proxies = ["10.1.2.3/8", "::1", "::ffff:192.0.2.1", "::ffff:172.16.0.0/108", "::/0"] }
        limits = { header_bytes = 4096, body_bytes = 0 }
        timeouts = { connect = 0.5, idle_body = "90s" }
        health = { fall = 7, slow_start = 0 }
        logging = { format = "text", level = "debug", sample = 0, redact = ["Token"] }
        discovery = { dns_refresh = "5s", dns_server = ["10.0.0.2", "[::1]:5353"] }
        [services.z]
        prefix = "/"
        endpoints = ["http://h:1"]
        [services.sms]
        prefix = "/sms/"
        endpoints = [{ url = "http://127.0.0.1:1", weight = 7 }]
        methods = ["GET", "POST"]
        hosts = ["B.com", "a.com", "b.com"]
        load_balancing = "random"
        health_path = "/ready?deep=1"
        health = { interval = "1s", rise = 1, expected_status = [204, "300-302"], panic_threshold = 0.25 }
        limits.requests_in_flight = 3
        timeouts.connect = "1s"
        "#,
    );
    assert_eq!(config.origin, "c.toml");
    assert_eq!(config.server.host.to_string(), "::1");
    assert_eq!((config.server.port, config.server.workers), (0, Workers::Count(2)));
    assert_eq!((config.server.pin, config.server.driver), (false, Driver::Epoll));
    let networks: Vec<String> = config.server.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128", "192.0.2.1/32", "172.16.0.0/12", "::/0"]);
    assert_eq!((config.limits.header_bytes, config.limits.uri_bytes, config.limits.body_bytes), (4_096, 4_096, 0));
    assert_eq!(config.timeouts.connect, Duration::from_millis(500));
    assert_eq!((config.logging.format, config.level, config.logging.sample), (LogFormat::Text, Level::Debug, 0.0));
    assert_eq!(*config.logging.redact, [Box::from("token")]);
    assert_eq!(config.discovery.dns_refresh.as_secs(), 5);
    assert_eq!(config.discovery.dns_server, ["10.0.0.2:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);

    let [sms, z] = config.services.as_slice() else { panic!("two services, by name") };
    assert_eq!((sms.prefix.as_str(), z.prefix.as_str()), ("/sms", "/"));
    assert_eq!(sms.endpoints[0].weight, 7);
    assert_eq!(sms.methods, MethodSet::EMPTY.with(Method::Get).with(Method::Post));
    assert_eq!(sms.hosts, ["a.com", "b.com"]);
    assert_eq!(sms.load_balancing, Algorithm::Random);
    assert_eq!((sms.limits.requests_in_flight, sms.limits.header_bytes), (3, 4_096));
    assert_eq!((sms.timeouts.connect.as_secs(), sms.timeouts.idle_body.as_secs()), (1, 90));
    let crate::snapshot::StatusRange { first, last } = sms.health.expected_status[1];
    assert_eq!((sms.health.path.as_deref(), first, last), (Some("/ready?deep=1"), 300, 302));
    assert_eq!((sms.health.rise, sms.health.fall, sms.health.panic_threshold), (1, 7, 250));
    assert_eq!((sms.health.interval.as_secs(), sms.health.timeout.as_secs()), (1, 1), "what is inherited gives way");
    assert_eq!(sms.health.policy().slow_start, Duration::ZERO);
    assert_eq!((z.health.path.as_deref(), z.health.timeout.as_secs(), z.health.fall), (None, 2, 7));
    assert_eq!((z.methods, &z.limits, &z.timeouts), (MethodSet::ALL, &config.limits, &config.timeouts));
}

#[test]
fn no_file_is_no_service() {
    let config = parse("", &[]).expect("valid");
    assert_eq!(Config { origin: Config::BUILT_IN.to_owned(), ..config }, nothing_set());
    assert!(Config::default().services.is_empty());
}
