//! Who may pass, how often, and from which pages: what is written is what holds.

use crate::policy::auth::keys::Algorithm as Signature;
use crate::policy::auth::{KeyHash, Mode, OwnLimit};
use crate::policy::cors::OriginPattern;
use crate::snapshot::{OnError, RateLimitKey};

use super::*;

/// The hash of a key of that number.
fn hash(number: usize) -> String {
    KeyHash::of(format!("key-{number}").as_bytes()).to_string()
}

#[test]
fn tokens() {
    let config = good(
        r#"
        [auth.jwt]
        algorithms = ["HS256", "RS256", "EdDSA"]
        jwks_url = "https://issuer.example/jwks?a=b"
        jwks_refresh = "10s"
        issuer = "https://issuer.example"
        audience = ["a", "b"]
        leeway = 0
        required_claims = ["exp", "jti"]
        "#,
    );
    let auth = &config.auth;
    assert_eq!(auth.algorithms, [Signature::HS256, Signature::RS256, Signature::EdDSA]);
    assert_eq!(auth.secret.as_ref().map(|secret| secret.expose()), Some(SECRET.1));
    assert_eq!((auth.keys.len(), auth.jwks_url.as_deref()), (1, Some("https://issuer.example/jwks?a=b")));
    assert_eq!((auth.jwks_refresh.as_secs(), auth.rules.leeway), (10, 0));
    assert_eq!(auth.rules.issuers, ["https://issuer.example"]);
    assert_eq!(auth.rules.audiences, ["a", "b"]);
    assert_eq!(auth.rules.required, ["exp", "jti"]);

    let config = good("");
    assert_eq!((config.auth.jwks_refresh.as_secs(), config.auth.rules.leeway), (300, 30));
    assert_eq!(config.auth.algorithms, [Signature::HS256]);
    assert_eq!(config.auth.rules.required, ["exp"]);
    // From the environment an issuer is one too, and a list of them is as everywhere.
    let config = parse("", &[("RINGWAY_AUTH__JWT__ISSUER", "https://a"), ("RINGWAY_AUTH__JWT__AUDIENCE", "a,b")]);
    let rules = config.expect("valid").auth.rules;
    assert_eq!((rules.issuers.len(), rules.audiences.len()), (1, 2));
}

#[test]
fn api_keys() {
    let config = good(&format!(
        r#"
        [[auth.api_keys]]
        name = "billing"
        hash = "{}"
        [[auth.api_keys]]
        name = "reports"
        hash = "{}"
        scopes = ["read", "sms:send"]
        enabled = false
        expires = 2030-01-31T01:00:00+01:00
        rate_limit = {{ requests = 5, window = "1s" }}
        [[auth.api_keys]]
        name = "reports"
        hash = "{}"
        expires = "2030-01-31T00:00:00Z"
        rate_limit = {{ requests = 5, window = 1 }}
        "#,
        hash(1),
        hash(2),
        hash(3),
    ));
    let [billing, reports, rotated] = config.auth.api_keys.as_slice() else { panic!("three keys") };
    assert_eq!((&*billing.name, billing.hash.to_string(), billing.enabled), ("billing", hash(1), true));
    assert_eq!((billing.scopes.len(), billing.expires, billing.rate_limit), (0, None, None));
    assert_eq!((&*reports.name, reports.enabled, reports.expires), ("reports", false, Some(1_896_048_000)));
    assert_eq!(reports.scopes, ["read", "sms:send"]);
    assert_eq!(reports.rate_limit, Some(OwnLimit { requests: 5, window: Duration::from_secs(1) }));
    assert_eq!(rotated.expires, reports.expires);
    assert_eq!(rotated.rate_limit, reports.rate_limit);
}

#[test]
fn many_api_keys() {
    let entry = |index| format!("[[auth.api_keys]]\nname = \"key-{index}\"\nhash = \"{}\"\n", hash(index));
    let text: String = (0..5_000).map(entry).collect();
    assert_eq!(good(&text).auth.api_keys.len(), 5_000);
}

#[test]
fn redis() {
    let check = |url: &str, expected: (&str, &str, Option<&str>, u32)| {
        let config = good(&format!("redis.url = {url:?}"));
        let server = config.redis.server.expect(url);
        let password = server.password.as_ref().map(|password| password.expose());
        let address = server.address.to_string();
        let address = address.strip_prefix("http://").unwrap_or(&address);
        assert_eq!((address, server.username.as_str(), password, server.database), expected, "{url}");
    };
    check("redis://localhost:6379/0", ("localhost:6379", "", None, 0));
    check("redis://Redis.internal", ("redis.internal", "", None, 0));
    check("redis://127.0.0.1:1/15", ("127.0.0.1:1", "", None, 15));
    check("redis://[::1]:1/", ("[::1]:1", "", None, 0));
    check("redis://:p@localhost", ("localhost", "", Some("p"), 0));
    check("redis://u:p@localhost/2", ("localhost", "u", Some("p"), 2));
    check("redis://u%40x:p%3A%2f%25%c3%a9@localhost", ("localhost", "u@x", Some("p:/%é"), 0));
    check("redis://u:p:q@r@localhost", ("localhost", "u", Some("p:q@r"), 0));
    check("unix:/run/redis.sock", ("unix:/run/redis.sock", "", None, 0));
    let port = |url: &str| match good(&format!("redis.url = {url:?}")).redis.server.map(|server| server.address) {
        Some(EndpointUrl::Name { port, .. }) => Some(port),
        Some(EndpointUrl::Address { address, .. }) => Some(address.port()),
        _ => None,
    };
    assert_eq!((port("redis://a"), port("redis://[::1]"), port("redis://a:1")), (Some(6379), Some(6379), Some(1)));

    let environment = [("REDIS_URL", "redis://a"), ("RINGWAY_REDIS__PREFIX", "x.y"), ("RINGWAY_REDIS__TIMEOUT", "5")];
    let config = parse("redis = { url = \"redis://b\", on_error = \"allow\" }", &environment).expect("valid").redis;
    assert_eq!(config.server.map(|server| server.address.to_string()).as_deref(), Some("http://a"));
    assert_eq!((config.prefix.as_str(), config.timeout.as_secs(), config.on_error), ("x.y", 5, OnError::Allow));
    let config = good("").redis;
    assert_eq!((config.server, config.prefix.as_str(), config.timeout.as_millis(), config.on_error), {
        (None, "ringway", 50, OnError::Local)
    });
}

/// The limits of the service `sms`: name, requests, window in milliseconds, whether by IP.
fn limits(config: &Config) -> Vec<(&str, u32, u128, bool)> {
    let limits = config.services[0].rate_limits.iter();
    limits
        .map(|spec| {
            (spec.name.as_str(), spec.limit.requests(), spec.limit.window().as_millis(), spec.key == RateLimitKey::Ip)
        })
        .collect()
}

#[test]
fn rate_limits() {
    let check = |lines: &str, environment: &[(&str, &str)], expected: &[(&str, u32, u128, bool)]| {
        let config = parse(&format!("{SMS}{lines}"), environment).unwrap_or_else(|errors| panic!("{lines}\n{errors}"));
        assert_eq!(limits(&config), expected, "{lines} {environment:?}");
    };
    check("", &[], &[("default", 100, 60_000, false)]);
    let environment = [("RATE_LIMIT_REQUESTS", "7"), ("RATE_LIMIT_WINDOW", "30")];
    check("", &environment, &[("default", 7, 30_000, false)]);
    check("[rate_limit]\nrequests = 5", &environment, &[("default", 7, 30_000, false)]);
    // Key by key, on and off too.
    check("rate_limit.requests = 1000000000", &environment, &[("default", 1_000_000_000, 30_000, false)]);
    check("rate_limit = { window = \"24h\", key = \"ip\" }", &[], &[("default", 100, 86_400_000, true)]);
    check("[rate_limit]\nenabled = false", &[], &[]);
    check("rate_limit.enabled = true\n[rate_limit]\nenabled = false", &[], &[("default", 100, 60_000, false)]);
    check("rate_limit.enabled = false", &[], &[]);
    // Further ones, which stand by themselves.
    check(
        "rate_limits = [{ requests = 10, window = 1, key = \"ip\" }, { requests = 1000, window = \"1h\", name = \"hourly\" }]",
        &[],
        &[("default", 100, 60_000, false), ("10-in-1s", 10, 1_000, true), ("hourly", 1_000, 3_600_000, false)],
    );
    check("rate_limit.enabled = false\nrate_limits = [{ requests = 1 }]", &[], &[("1-in-60s", 1, 60_000, false)]);

    let config = good("[rate_limit]\nipv6_prefix = 56\nmemory_keys = 1000");
    assert_eq!((config.ipv6_prefix, config.memory_keys), (56, 1_000));
    assert_eq!(good("").ipv6_prefix, 64);
}

#[test]
fn services() {
    let service = |lines: &str| good(&format!("{SMS}{lines}")).services.remove(0);
    let sms = service("");
    assert_eq!((sms.auth, sms.required_scopes.len(), sms.forward_credentials), (Mode::Required, 0, true));
    assert_eq!((sms.pipelining, service("pipelining = 16").pipelining), (1, 16));
    let sms = service("auth = \"optional\"\nforward_credentials = false\nrequired_scopes = [\"a\", \"b\"]");
    assert_eq!((sms.auth, sms.forward_credentials), (Mode::Optional, false));
    assert_eq!(sms.required_scopes, [(MethodSet::ALL, vec!["a".to_owned(), "b".to_owned()])]);
    let sms = service("required_scopes = { POST = [\"w\"], GET = [] }");
    let one = |method| MethodSet::EMPTY.with(method);
    let read = one(Method::Get).with(Method::Head);
    assert_eq!(sms.required_scopes, [(read, vec![]), (one(Method::Post), vec!["w".to_owned()])]);
    let sms = service("required_scopes = { GET = [\"r\"], HEAD = [] }");
    assert_eq!(sms.required_scopes, [(one(Method::Get), vec!["r".to_owned()]), (one(Method::Head), vec![])]);
}

#[test]
fn cors() {
    let config = good(&format!(
        r#"
        [cors]
        enabled = true
        allow_origins = ["https://a.com", "https://*.b.com", "null"]
        allow_methods = ["PUT"]
        allow_headers = ["X-A"]
        expose_headers = []
        allow_credentials = true
        max_age = "1h"
        private_network = true
        {SMS}
        [services.sms.cors]
        allow_origins = ["*"]
        allow_credentials = false
        [services.off]
        prefix = "/off"
        endpoints = ["http://a"]
        cors.enabled = false
        "#
    ));
    let rules = &config.cors.rules;
    assert_eq!(rules.allow_origins.len(), 3);
    assert_eq!(rules.allow_origins.first(), OriginPattern::parse("https://a.com").as_ref().ok());
    assert_eq!(
        (rules.allow_methods.join(","), rules.allow_headers.join(","), rules.expose_headers.len()),
        ("PUT".into(), "X-A".into(), 0)
    );
    assert_eq!((rules.allow_credentials, rules.max_age, rules.private_network), (true, 3_600, true));
    let [off, sms] = config.services.as_slice() else { panic!("two services") };
    assert!(!off.cors.enabled && sms.cors.enabled && config.cors.enabled);
    assert_eq!(
        (sms.cors.rules.allow_origins.iter().all(OriginPattern::is_any), sms.cors.rules.allow_credentials),
        (true, false)
    );
    assert_eq!((&sms.cors.rules.allow_methods, sms.cors.rules.max_age), (&rules.allow_methods, 3_600));
    let defaults = good("").cors;
    assert_eq!((defaults.enabled, defaults.rules.max_age, defaults.rules.private_network), (false, 600, false));
}
