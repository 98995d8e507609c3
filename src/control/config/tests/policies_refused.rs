//! Who may pass, how often, and from which pages: what is refused, and that no error shows what is secret.

use super::*;

const HASH: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// Each text has exactly one error, which begins so. `HASH` stands for one; there is a secret.
fn check_each(cases: &[(&str, &str)]) {
    for (text, start) in cases {
        let text = text.replace("HASH", HASH);
        let message = parse(&text, &[]).expect_err(&text).to_string();
        assert!(message.starts_with(start), "{text}\n{message}\n{start}");
        assert_eq!(message.lines().count(), 1, "{text}\n{message}");
    }
}

#[test]
fn tokens() {
    check_each(&[
        ("auth.jwt.algorithms = []", "c.toml:1:23: auth.jwt.algorithms = []: must have 1 to 12 elements"),
        (
            "auth.jwt.algorithms = [\"none\"]",
            "c.toml:1:24: auth.jwt.algorithms[0] = \"none\": must be one of \"HS256\",",
        ),
        ("auth.jwt.algorithms = [\"hs256\"]", "c.toml:1:24: auth.jwt.algorithms[0] = \"hs256\": must be one of"),
        (
            "auth.jwt.jwks_refresh = \"9s\"",
            "c.toml:1:25: auth.jwt.jwks_refresh = \"9s\": must be a duration from 10s to 24h",
        ),
        ("auth.jwt.leeway = \"6m\"", "c.toml:1:19: auth.jwt.leeway = \"6m\": must be a duration from 0s to 5m"),
        ("auth.jwt.issuer = \"\"", "c.toml:1:19: auth.jwt.issuer = \"\": must not be empty"),
        ("auth.jwt.issuer = 1", "c.toml:1:19: auth.jwt.issuer = 1: must be an array"),
        ("auth.jwt.audience = [\"a\", \"\"]", "c.toml:1:27: auth.jwt.audience[1] = \"\": must not be empty"),
        ("auth.jwt.required_claims = [\"\"]", "c.toml:1:29: auth.jwt.required_claims[0] = \"\": must not be empty"),
        ("auth.jwt.jwks_uri = \"\"", "c.toml:1:10: auth.jwt.jwks_uri: unknown key; did you mean `auth.jwt.jwks_url`?"),
    ]);
    let public = |line: &str| format!("[auth.jwt]\nalgorithms = [\"HS256\", \"EdDSA\"]\n{line}");
    check_each(&[
        (
            &public("jwks_url = \"issuer.example\""),
            "c.toml:3:12: auth.jwt.jwks_url = \"issuer.example\": must be a URL, https://… or",
        ),
        (
            &public("jwks_url = \"ftp://a/b\""),
            "c.toml:3:12: auth.jwt.jwks_url = \"ftp://a/b\": must be a URL, https://… or",
        ),
        (&public("jwks_url = \"https://\""), "c.toml:3:12: auth.jwt.jwks_url = \"https://\": must be a URL"),
        (
            &public("jwks_url = \"https://u:hunter2@a/b\""),
            "c.toml:3:12: auth.jwt.jwks_url = \"https://…@a/b\": must not have cred",
        ),
        (
            &public("jwks_url = \"https://a/b#c\""),
            "c.toml:3:12: auth.jwt.jwks_url = \"https://a/b#c\": must not have a frag",
        ),
        (
            &public("jwks_file = \"/nonexistent\""),
            "c.toml:3:13: auth.jwt.jwks_file = \"/nonexistent\": cannot be read: No such",
        ),
        (
            &public("jwks_file = \"/dev/zero\""),
            "c.toml:3:13: auth.jwt.jwks_file = \"/dev/zero\": is longer than 1048576 bytes",
        ),
        (&public("jwks_file = \"/dev/null\""), "c.toml:3:13: auth.jwt.jwks_file = \"/dev/null\": "),
        (
            &public("public_key_file = \"/dev/null\""),
            "c.toml:3:19: auth.jwt.public_key_file = \"/dev/null\": no PEM block found",
        ),
    ]);
}

#[test]
fn every_algorithm_needs_a_key() {
    let check = |text: &str, expected: &str| {
        let actual = Config::from_toml(text, "c.toml", &[], &[]).expect_err(text).to_string();
        assert_eq!(actual, expected, "{text}");
    };
    check("[auth.jwt]\nalgorithms = [\"RS256\", \"HS384\"]\njwks_url = \"https://a\"", {
        "c.toml:2:24: auth.jwt.algorithms[1] = \"HS384\": needs auth.jwt.secret (JWT_SECRET_KEY), which is not set"
    });
    check("[auth.jwt]\njwks_url = \"https://a\"", {
        "c.toml:2:1: auth.jwt.algorithms: missing: those of the public key, such as [\"RS256\"]; the default, HS256, needs a secret"
    });
    check("[auth.jwt]\nsecret = \"hunter2\"\nalgorithms = [\"RS256\"]", {
        "c.toml:3:15: auth.jwt.algorithms[0] = \"RS256\": needs auth.jwt.public_key_file, jwks_file or jwks_url, \
         none of which is set"
    });
    // With no key at all nobody has a token; whether anybody needs one is the services' matter.
    assert!(Config::from_toml("auth.jwt.algorithms = [\"RS256\"]", "c.toml", &[], &[]).is_ok());
}

#[test]
fn secrets_are_long_enough_and_never_shown() {
    let secret = |algorithms: &str, length: usize| {
        let text = format!("[auth.jwt]\nalgorithms = {algorithms}\nsecret = \"{}\"", "x".repeat(length));
        Config::from_toml(&text, "c.toml", &[], &[]).map(|_| ()).map_err(|errors| errors.to_string())
    };
    let place = "c.toml:3:10: auth.jwt.secret: ";
    for (algorithms, length, least) in
        [("[\"HS256\"]", 31, 32), ("[\"HS384\"]", 47, 48), ("[\"HS256\", \"HS512\"]", 63, 64), ("[\"HS256\"]", 0, 32)]
    {
        let name = if least == 32 {
            "HS256"
        } else if least == 48 {
            "HS384"
        } else {
            "HS512"
        };
        let expected = format!("{place}the secret has {length} bytes, {name} needs at least {least}");
        assert_eq!(secret(algorithms, length), Err(expected));
        assert_eq!(secret(algorithms, least), Ok(()));
    }
    // Wherever it stands, and whatever else is wrong.
    for text in [
        "auth.jwt.secret = \"hunter2\"",
        "auth.jwt.secret = [\"hunter2\"]",
        "auth.jwt.secret = { x = \"hunter2\" }",
        "auth.jwt = \"hunter2\"",
        "auth.jwt = [\"hunter2\"]",
        "auth = \"hunter2\"",
        "auth.api_keys = \"hunter2\"",
        "auth.api_keys = [\"hunter2\"]",
        "auth.api_keys = [{ name = \"a\", hash = \"hunter2\" }]",
        "auth.api_keys = [{ name = \"a\", key = \"hunter2\" }]",
        "redis.url = \"hunter2\"",
        "redis.url = \"redis:hunter2@a\"",
        "redis.url = \"redis://hunter2@a\"",
        "redis.url = \"rediss://:hunter2@a\"",
        "redis.url = \"redis://:hunter2@a:x\"",
        "redis.url = \"redis://:hunter2@a/x\"",
        "redis.url = \"redis://:hunter2%@a\"",
        "redis = \"redis://:hunter2@a\"",
    ] {
        let message = Config::from_toml(text, "c.toml", &[], &[]).expect_err(text).to_string();
        assert!(!message.contains("hunter2"), "{text}\n{message}");
    }
    for (name, value) in [
        ("JWT_SECRET_KEY", "hunter2"),
        ("REDIS_URL", "redis:hunter2@a"),
        ("RINGWAY_AUTH__API_KEYS", "hunter2"),
        ("RINGWAY_AUTH__API_KEYS", "[{ name = \"\", hash = \"hunter2\" }]"),
    ] {
        let message = Config::from_toml("", "c.toml", &pairs(&[(name, value)]), &[]).expect_err(name).to_string();
        assert!(message.contains(name) && !message.contains("hunter2"), "{name}\n{message}");
    }
}

#[test]
fn a_service_that_asks_for_what_cannot_be_checked() {
    let check = |text: &str, expected: &str| {
        let actual = Config::from_toml(text, "c.toml", &[], &[]).expect_err(text).to_string();
        assert!(actual.starts_with(expected) && actual.lines().count() == 1, "{text}\n{actual}");
    };
    check(SMS, "c.toml:1:11: services.sms.auth = \"required\": clients must show who they are, and there is no key to");
    check(&format!("{SMS}auth = \"required\""), "c.toml:4:8: services.sms.auth = \"required\": clients must show who");
    check(
        &format!("auth.api_keys = []\n{SMS}"),
        "c.toml:2:11: services.sms.auth = \"required\": clients must show who",
    );
    // What is wrong with the key is said once, not for each service again.
    check(
        &format!("auth.jwt.secret = \"short\"\n{SMS}"),
        "c.toml:1:19: auth.jwt.secret: the secret has 5 bytes, HS256",
    );
    for text in [
        format!("{SMS}auth = \"none\""),
        format!("{SMS}auth = \"optional\""),
        format!("{SMS}[[auth.api_keys]]\nname = \"a\"\nhash = \"{HASH}\""),
        format!("{SMS}[auth.jwt]\njwks_url = \"https://a\"\nalgorithms = [\"ES256\"]"),
    ] {
        assert!(Config::from_toml(&text, "c.toml", &[], &[]).is_ok(), "{text}");
    }
    let sms = |line: &str| format!("{SMS}{line}");
    check_each(&[
        (
            &sms("auth = \"maybe\""),
            "c.toml:4:8: services.sms.auth = \"maybe\": must be one of \"required\", \"optional\", \"none\"",
        ),
        (&sms("auth = false"), "c.toml:4:8: services.sms.auth = false: must be one of"),
        (
            &sms("required_scopes = [\"a b\"]"),
            "c.toml:4:20: services.sms.required_scopes[0] = \"a b\": must be a scope",
        ),
        (&sms("required_scopes = \"a\""), "c.toml:4:19: services.sms.required_scopes = \"a\": must be an array"),
        (
            &sms("required_scopes = { get = [\"a\"] }"),
            "c.toml:4:19: services.sms.required_scopes: must be an array of scopes, or a table",
        ),
        (
            &sms("required_scopes = { GET = [1] }"),
            "c.toml:4:28: services.sms.required_scopes.GET[0] = 1: must be a string",
        ),
        (
            &sms("auth = \"none\"\nrequired_scopes = [\"a\"]"),
            "c.toml:5:19: services.sms.required_scopes = [\"a\"]: nobody has scopes",
        ),
        (&sms("forward_credentials = 1"), "c.toml:4:23: services.sms.forward_credentials = 1: must be true or false"),
        (&sms("pipelining = 0"), "c.toml:4:14: services.sms.pipelining = 0: must be a whole number from 1 to 16"),
        (&sms("pipelining = 17"), "c.toml:4:14: services.sms.pipelining = 17: must be a whole number from 1 to 16"),
    ]);
}

#[test]
fn api_keys() {
    let key = |line: &str| format!("[[auth.api_keys]]\nname = \"a\"\nhash = \"HASH\"\n{line}");
    check_each(&[
        (
            "[[auth.api_keys]]\nname = \"a\"",
            "c.toml:1:1: auth.api_keys[0].hash: missing: what `ringway hash-key` prints",
        ),
        ("[[auth.api_keys]]\nhash = \"HASH\"", "c.toml:1:1: auth.api_keys[0].name: missing: whose key it is"),
        (
            "[[auth.api_keys]]\nname = \"a\"\nhash = \"HASH0\"",
            "c.toml:3:8: auth.api_keys[0].hash: expected sha256: and 64 hex",
        ),
        ("[[auth.api_keys]]\nname = \"a b\"\nhash = \"HASH\"", "c.toml:1:1: auth.api_keys[0]: a name must be 1 to "),
        (&key("scopes = [\"a b\"]"), "c.toml:4:11: auth.api_keys[0].scopes[0] = \"a b\": must be a scope"),
        (&key("scope = []"), "c.toml:4:1: auth.api_keys[0].scope: unknown key; did you mean `scopes`?"),
        (&key("enabled = 1"), "c.toml:4:11: auth.api_keys[0].enabled = 1: must be true or false"),
        (&key("expires = 2030-01-31"), "c.toml:4:11: auth.api_keys[0].expires = 2030-01-31: must be a time such as"),
        (
            &key("expires = 2030-01-31T00:00:00"),
            "c.toml:4:11: auth.api_keys[0].expires = 2030-01-31T00:00:00: must be a",
        ),
        (&key("expires = \"soon\""), "c.toml:4:11: auth.api_keys[0].expires = \"soon\": must be a time such as"),
        (
            &key("rate_limit = { requests = 0 }"),
            "c.toml:4:27: auth.api_keys[0].rate_limit.requests = 0: must be a whole",
        ),
        (
            &key("rate_limit = { key = \"ip\" }"),
            "c.toml:4:16: auth.api_keys[0].rate_limit.key: unknown key; did you mean",
        ),
        (
            &key("[[auth.api_keys]]\nname = \"b\"\nhash = \"HASH\""),
            "c.toml:4:1: auth.api_keys[1].hash: is the hash of the key at c.toml:1:1 too",
        ),
        (
            &key(&format!(
                "rate_limit.requests = 5\n[[auth.api_keys]]\nname = \"a\"\nhash = \"sha256:{}\"",
                "0".repeat(64)
            )),
            "c.toml:5:1: auth.api_keys[1].rate_limit: the API keys of one name are one client and have one rate limit; the key \
             of \"a\" at c.toml:1:1 has another",
        ),
    ]);
}

#[test]
fn redis() {
    check_each(&[
        ("redis.url = 1", "c.toml:1:13: redis.url: must be a string"),
        (
            "redis.url = \"localhost:6379\"",
            "c.toml:1:13: redis.url: must be a URL, redis://[user:password@]host:port/0 or unix:",
        ),
        ("redis.url = \"rediss://a\"", "c.toml:1:13: redis.url: TLS to Redis is not supported yet; use redis://"),
        ("redis.url = \"redis://\"", "c.toml:1:13: redis.url: must have a host name"),
        ("redis.url = \"redis://a:0\"", "c.toml:1:13: redis.url: must have a port from 1 to 65535"),
        ("redis.url = \"redis://a/x\"", "c.toml:1:13: redis.url: must name its database by a number"),
        ("redis.url = \"redis://a/0?x=1\"", "c.toml:1:13: redis.url: must name its database by a number"),
        ("redis.url = \"redis://u@a\"", "c.toml:1:13: redis.url: must have a \":\" before the password"),
        ("redis.url = \"redis://u:%4@a\"", "c.toml:1:13: redis.url: must have user and password percent-encoded"),
        ("redis.url = \"redis://u:%ff@a\"", "c.toml:1:13: redis.url: must have user and password percent-encoded"),
        ("redis.prefix = \"\"", "c.toml:1:16: redis.prefix = \"\": must be 1 to 64 letters"),
        ("redis.prefix = \"a{b}\"", "c.toml:1:16: redis.prefix = \"a{b}\": must be 1 to 64 letters"),
        ("redis.timeout = \"6s\"", "c.toml:1:17: redis.timeout = \"6s\": must be a duration from 1ms to 5s"),
        ("redis.timeout = 0", "c.toml:1:17: redis.timeout = 0: must be a duration from 1ms to 5s"),
        (
            "redis.on_error = \"fail\"",
            "c.toml:1:18: redis.on_error = \"fail\": must be one of \"local\", \"allow\", \"deny\"",
        ),
    ]);
}

#[test]
fn rate_limits() {
    let sms = |line: &str| format!("{SMS}{line}");
    let nine = format!("{SMS}rate_limits = [{}]", "{},".repeat(9));
    check_each(&[
        (
            "rate_limit.requests = 0",
            "c.toml:1:23: rate_limit.requests = 0: must be a whole number from 1 to 1000000000",
        ),
        ("rate_limit.requests = 1000000001", "c.toml:1:23: rate_limit.requests = 1000000001: must be a whole number"),
        (
            "rate_limit.window = \"999ms\"",
            "c.toml:1:21: rate_limit.window = \"999ms\": must be a duration from 1s to 24h",
        ),
        ("rate_limit.key = \"user\"", "c.toml:1:18: rate_limit.key = \"user\": must be one of \"identity\", \"ip\""),
        (
            "rate_limit.ipv6_prefix = 31",
            "c.toml:1:26: rate_limit.ipv6_prefix = 31: must be a whole number from 32 to 128",
        ),
        ("rate_limit.memory_keys = 1", "c.toml:1:26: rate_limit.memory_keys = 1: must be a whole number from"),
        (&sms("rate_limit.ipv6_prefix = 64"), "c.toml:4:12: services.sms.rate_limit.ipv6_prefix: unknown key"),
        (
            &sms("rate_limit.requests = -1"),
            "c.toml:4:23: services.sms.rate_limit.requests = -1: must be a whole number",
        ),
        (&sms("rate_limits = [1]"), "c.toml:4:16: services.sms.rate_limits[0] = 1: must be a table"),
        (
            &sms("rate_limits = [{ window = 0 }]"),
            "c.toml:4:27: services.sms.rate_limits[0].window = 0: must be a duration",
        ),
        (&sms("rate_limits = [{ period = 1 }]"), "c.toml:4:18: services.sms.rate_limits[0].period: unknown key"),
        (
            &sms("rate_limits = [{ name = \"a b\" }]"),
            "c.toml:4:25: services.sms.rate_limits[0].name = \"a b\": must be 1 to 64",
        ),
        (
            &sms("rate_limits = [{ name = \"own\" }]"),
            "c.toml:4:25: services.sms.rate_limits[0].name = \"own\": is what API keys' own limits are called",
        ),
        (
            &sms("rate_limits = [{ name = \"default\" }]"),
            "c.toml:4:16: services.sms.rate_limits: two limits of a service",
        ),
        (
            &sms("rate_limits = [{ requests = 1 }, { requests = 1 }]"),
            "c.toml:4:34: services.sms.rate_limits: two limits of a",
        ),
        (&nine, "c.toml:4:15: services.sms.rate_limits = "),
    ]);
    check_with("", &[("RATE_LIMIT_REQUESTS", "many")], {
        "environment variable RATE_LIMIT_REQUESTS: rate_limit.requests = \"many\": must be a whole number from 1 to 1000000000"
    });
}

#[test]
fn cors() {
    let both = "browsers would refuse every answer";
    let needs = "needs allow_origins, the pages that may ask";
    for (lines, place, problem) in [
        ("allow_credentials = true\nallow_origins = [\"*\"]", ":3:17: cors.allow_origins = [\"*\"]: ", both),
        ("enabled = true", ":2:11: cors.enabled = true: ", needs),
        ("enabled = true\nallow_origins = []", ":2:11: cors.enabled = true: ", needs),
        ("enabled = true\nallow_origins = [\"a.com\"]", ":3:18: cors.allow_origins[0] = \"a.com\": ", ""),
        ("allow_origins = [\"https://a.com/\"]", ":2:18: cors.allow_origins[0] = \"https://a.com/\": ", ""),
        ("allow_origins = [\"https://a*.com\"]", ":2:18: cors.allow_origins[0] = \"https://a*.com\": ", ""),
        ("allow_methods = [\"G T\"]", ":2:17: cors.allow_methods = [\"G T\"]: ", "is none"),
        ("allow_headers = [\"\"]", ":2:17: cors.allow_headers = [\"\"]: ", "is none"),
        ("expose_headers = [\"a:\"]", ":2:18: cors.expose_headers = [\"a:\"]: ", "is none"),
        ("max_age = \"25h\"", ":2:11: cors.max_age = \"25h\": ", "must be a duration from 0s to 24h"),
        ("origins = []", ":2:1: cors.origins: ", "unknown key"),
    ] {
        let message = parse(&format!("[cors]\n{lines}"), &[]).expect_err(lines).to_string();
        assert!(message.contains(problem), "{lines}\n{message}");
        assert!(message.starts_with(&format!("c.toml{place}")) && message.lines().count() == 1, "{lines}\n{message}");
    }
    // What a service has from the global table is said there; what it adds, at the service.
    let global = "[cors]\nallow_credentials = true\nallow_origins = [\"https://a.com\"]\n";
    check_each(&[
        (
            &format!("{SMS}cors.allow_origins = [\"*\"]\n{global}"),
            "c.toml:4:22: services.sms.cors.allow_origins = [\"*\"]: must not have \"*\"",
        ),
        (&format!("{SMS}cors.enabled = true"), "c.toml:4:16: services.sms.cors.enabled = true: needs allow_origins"),
        (
            &format!("{SMS}cors.max_age = 1\n[cors]\nenabled = true"),
            "c.toml:6:11: cors.enabled = true: needs allow_origins",
        ),
    ]);
    assert!(parse(&format!("{SMS}cors.enabled = true\n{global}"), &[]).is_ok());
}
