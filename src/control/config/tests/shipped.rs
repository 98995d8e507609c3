//! The list of keys, config.toml and .env.example say the same as the code.

use super::*;

/// A key that is in the list and that nothing reads would be taken without a word.
#[test]
fn every_known_key_is_read() {
    for key in KEYS {
        let path = key.replace('*', "sms");
        let text = match path.strip_prefix("services.sms.") {
            Some("prefix") => "[services.sms]\nendpoints = [\"http://a\"]\nprefix = { x = 1979-05-27 }".to_owned(),
            Some("endpoints") => "[services.sms]\nprefix = \"/a\"\nendpoints = { x = 1979-05-27 }".to_owned(),
            Some(own) => format!("{SMS}{own} = {{ x = 1979-05-27 }}"),
            None => format!("{path} = {{ x = 1979-05-27 }}"),
        };
        let environment = if *key == "auth.jwt.secret" { Vec::new() } else { pairs(&[SECRET]) };
        let errors = Config::from_toml(&text, "c.toml", &environment, &[]).expect_err(key);
        assert_eq!(errors.0.len(), 1, "{key}: {errors}");
        assert_eq!(errors.0[0].key, path, "{errors}");
        assert!(errors.0[0].problem.starts_with("must be "), "{errors}");
    }
}

const REFERENCE: &str = include_str!("../../../../config.toml");

/// The reference with the settings that it shows commented out.
fn reference_in_full() -> String {
    let line =
        |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n";
    REFERENCE.lines().map(line).collect()
}

#[test]
fn the_reference_is_valid_and_shows_the_defaults() {
    // The files that it names as examples are not there.
    let in_full = reference_in_full();
    let in_full: String =
        in_full.lines().filter(|line| !line.contains("_file = ")).map(|line| format!("{line}\n")).collect();
    for text in [REFERENCE, &in_full] {
        let config = good(text);
        let names: Vec<(&str, &str)> = config.services.iter().map(|s| (s.name.as_str(), s.prefix.as_str())).collect();
        assert_eq!(names, [("auth", "/api/v1/auth"), ("llm", "/api/v1/llm"), ("sms", "/api/v1/sms")]);
        let Config { redis, auth, admin, .. } = nothing_set();
        let discovery = Discovery { allow: None, ..config.discovery };
        let tracing = Tracing { authorization: None, ..config.tracing };
        let origin = Config::BUILT_IN.to_owned();
        let rest = Config { origin, services: Vec::new(), redis, auth, admin, discovery, tracing, ..config };
        assert_eq!(rest, nothing_set());
    }
    let auth = &good(REFERENCE).services[0];
    let defaults = good("[services.auth]\nprefix = \"/\"\nendpoints = [\"http://a\"]");
    assert_eq!(auth.load_balancing, defaults.services[0].load_balancing);
}

#[test]
fn the_reference_shows_every_key() {
    let table = value::parse(&reference_in_full(), "config.toml").expect("valid");
    let mut shown = Vec::new();
    collect(&table, "", &mut shown);
    for key in KEYS {
        assert!(shown.iter().any(|path| path == key), "config.toml does not show {key}");
    }
}

fn collect(table: &value::Table, path: &str, shown: &mut Vec<String>) {
    for (name, node) in table {
        let name = if path == "services." { "*" } else { name };
        match &node.value {
            value::Value::Table(below) => collect(below, &format!("{path}{name}."), shown),
            _ => shown.push(format!("{path}{name}")),
        }
    }
}

#[test]
fn the_example_environment_shows_the_defaults() {
    let example = include_str!("../../../../.env.example");
    let settings = example.lines().filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='));
    let (files, values): (Vec<_>, Vec<_>) = settings.partition(|(name, _)| name.ends_with("_FILE"));
    assert_eq!(files, [("JWT_SECRET_KEY_FILE", "/run/secrets/jwt")]);
    for (name, _) in overlay::NAMED {
        assert!(values.iter().any(|(shown, _)| shown == name), ".env.example does not show {name}");
    }
    // By default there is no Redis: this one is an example.
    let values: Vec<_> = values.into_iter().filter(|(name, _)| *name != "REDIS_URL").collect();
    let config = Config::from_toml("", Config::BUILT_IN, &pairs(&values), &[]).expect("valid");
    assert_eq!(config, Config::default());
}
