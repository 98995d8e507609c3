//! What is refused: every message with its place, all of them at once.

use super::*;

#[test]
fn one_value_out_of_its_range() {
    let whole = |low, high| format!("must be a whole number from {low} to {high}");
    let cases = [
        ("[server]\nport = 70000", "c.toml:2:8: server.port = 70000", whole("0", "65535")),
        ("[server]\nport = -1", "c.toml:2:8: server.port = -1", whole("0", "65535")),
        ("[server]\nport = \"80\"", "c.toml:2:8: server.port = \"80\"", whole("0", "65535")),
        ("server.port = 99999999999999999999999999999999999999999", "", whole("0", "65535")),
        ("[server]\n  backlog = 0", "c.toml:2:13: server.backlog = 0", whole("1", "65535")),
        ("[server]\nmax_connections_per_worker = 1e3", "", whole("1", "1000000")),
        ("[server]\nhost = \"localhost\"", "c.toml:2:8: server.host = \"localhost\"", "must be an IP address".into()),
        ("[server]\nhost = 1", "c.toml:2:8: server.host = 1", "must be a string".into()),
        ("[server]\nworkers = 0", "", "must be \"auto\" or a whole number from 1 to 1024".into()),
        ("[server]\nworkers = \"many\"", "", "must be \"auto\" or a whole number from 1 to 1024".into()),
        ("[server]\npin = 1", "c.toml:2:7: server.pin = 1", "must be true or false".into()),
        ("[server]\ndriver = \"kqueue\"", "", "must be one of \"auto\", \"io_uring\", \"epoll\"".into()),
        ("[server]\ndrain_timeout = \"2h\"", "", "must be a duration from 0s to 1h".into()),
        ("[server]\ndrain_delay = -1", "", "must be a duration from 0s to 10m".into()),
        ("[server]\ndrain_delay = nan", "", "must be a duration from 0s to 10m".into()),
        ("[server]\ndrain_delay = 2020-01-01", "", "must be a duration from 0s to 10m".into()),
        ("server.trusted_proxies = [\"a\"]", "c.toml:1:27: server.trusted_proxies[0]", "must be a network".into()),
        ("server.trusted_proxies = \"10.0.0.0/8\"", "", "must be an array".into()),
        ("[limits]\nheader_bytes = 512", "", "must be a number of bytes from 1KiB to 64KiB".into()),
        ("[limits]\nheader_bytes = \"16KB\"", "", "such as 4096, \"16KiB\" or \"10MiB\"".into()),
        ("[limits]\nheader_count = 7", "", whole("8", "256")),
        (
            "[limits]\nuri_bytes = \"32KiB\"",
            "c.toml:2:13: limits.uri_bytes",
            "must be at most header_bytes, 16KiB".into(),
        ),
        ("[limits]\nbody_bytes = -1", "", "must be a number of bytes from 0B to ".into()),
        ("[limits]\nrequests_in_flight = 0", "", whole("1", "1000000")),
        ("[timeouts]\nheader_read = 0", "", "must be a duration from 10ms to 10m".into()),
        ("[timeouts]\nkeepalive_idle = \"25h\"", "", "must be a duration from 10ms to 24h".into()),
        ("[timeouts]\nconnect = \"5 s\"", "c.toml:2:11: timeouts.connect = \"5 s\"", "duration from 10ms to 5m".into()),
        ("[timeouts]\nresponse_header = true", "", "must be a duration".into()),
        ("[timeouts]\nidle_body = \"1ms\"", "", "must be a duration from 10ms to 24h".into()),
        ("[metrics]\nenabled = \"true\"", "", "must be true or false".into()),
        ("[metrics]\nbuckets = []", "", "must have 1 to 24 elements, it has 0".into()),
        (
            "[metrics]\nbuckets = [1, 2, 2]",
            "c.toml:2:18: metrics.buckets[2] = 2",
            "greater than the bound before".into(),
        ),
        ("[metrics]\nbuckets = [0]", "c.toml:2:12: metrics.buckets[0] = 0", "must be a positive number".into()),
        ("[metrics]\nbuckets = [inf]", "", "must be a positive number".into()),
        ("[metrics]\nmax_series = 1", "", whole("100", "1000000")),
        ("[logging]\nformat = \"xml\"", "", "must be one of \"json\", \"text\"".into()),
        ("[logging]\nlevel = \"INFO\"", "", "must be one of \"error\", \"warn\", \"info\", \"debug\"".into()),
        ("[logging]\nsample = 1.5", "c.toml:2:10: logging.sample = 1.5", "must be a number from 0.0 to 1.0".into()),
        ("[logging]\nredact = [1]", "c.toml:2:11: logging.redact[0] = 1", "must be a string".into()),
        ("[discovery]\ndns_refresh = \"100ms\"", "", "must be a duration from 1s to 24h".into()),
        ("[discovery]\ndns_server = \"10.0.0.2\"", "", "must be an array".into()),
        ("[discovery]\ndns_server = [\"dns.example\"]", "", "must be the address of a DNS server".into()),
        ("[discovery]\ndns_server = [\"10.0.0.2:0\"]", "", "must be the address of a DNS server".into()),
        ("server = 5", "c.toml:1:10: server = 5", "must be a table, [server]".into()),
        ("services = []", "c.toml:1:12: services = []", "must be a table, [services]".into()),
        ("services.sms = 1", "c.toml:1:16: services.sms = 1", "must be a table, [services.sms]".into()),
    ];
    for (text, start, problem) in cases {
        let errors = parse(text, &[]).expect_err(text);
        let message = errors.to_string();
        assert_eq!(errors.0.len(), 1, "{text}: {message}");
        assert!(message.starts_with(start), "{text}: {message}");
        assert!(message.contains(&problem), "{text}: {message}");
    }
}

#[test]
fn a_service_that_is_wrong() {
    let cases = [
        ("prefix = \"sms\"", "c.toml:3:10: services.sms.prefix = \"sms\": must begin with \"/\""),
        (
            "prefix = \"/metrics\"",
            "c.toml:3:10: services.sms.prefix = \"/metrics\": is taken: the gateway itself answers",
        ),
        ("endpoints = []", "c.toml:3:13: services.sms.endpoints = []: must have 1 to 256 elements, it has 0"),
        ("endpoints = \"http://a\"", "c.toml:3:13: services.sms.endpoints = \"http://a\": must be an array"),
        ("endpoints = [1]", "c.toml:3:14: services.sms.endpoints[0] = 1: must be a URL or a table"),
        (
            "endpoints = [\"http://a\", \"https://b\"]",
            "c.toml:3:26: services.sms.endpoints[1] = \"https://b\": TLS to backends is not supported yet",
        ),
        (
            "endpoints = [\"http://a\", \"http://A/\"]",
            "c.toml:3:26: services.sms.endpoints[1] = \"http://A/\": is there twice",
        ),
        (
            "endpoints = [\"http://u:pw@a\"]",
            "c.toml:3:14: services.sms.endpoints[0] = \"http://…@a\": must not have cred",
        ),
        (
            "endpoints = [{ url = \"http://a\", weight = 0 }]",
            "c.toml:3:43: services.sms.endpoints[0].weight = 0: must be a",
        ),
        (
            "endpoints = [{ url = \"srv+http://_a._tcp.b\", weight = 2 }]",
            "c.toml:3:55: services.sms.endpoints[0].weight = 2: is what the SRV records say; remove it",
        ),
        ("endpoints = [{ url = \"x\" }]", "c.toml:3:22: services.sms.endpoints[0].url = \"x\": must be a URL"),
        ("endpoints = [{ weight = 1 }]", "c.toml:3:14: services.sms.endpoints[0].url: missing: where the endpoint is"),
        (
            "endpoints = [{ url = \"http://a\", wieght = 1 }]",
            "c.toml:3:34: services.sms.endpoints[0].wieght: unknown key; did you mean `weight`?",
        ),
        ("health_path = \"health\"", "c.toml:3:15: services.sms.health_path = \"health\": must begin with \"/\""),
        ("health_path = \"/a b\"", "c.toml:3:15: services.sms.health_path = \"/a b\": must be visible ASCII"),
        ("health.fall = 0", "c.toml:3:15: services.sms.health.fall = 0: must be a whole number from 1 to 100"),
        (
            "health.interval = \"0.5s\"",
            "c.toml:3:19: services.sms.health.interval = \"0.5s\": must be a duration from 1s",
        ),
        (
            "health = { interval = \"5s\", timeout = \"6s\" }",
            "c.toml:3:39: services.sms.health.timeout = \"6s\": must not be longer than the interval",
        ),
        (
            "health.panic_threshold = 50",
            "c.toml:3:26: services.sms.health.panic_threshold = 50: must be a number from 0.0 to 1.0",
        ),
        (
            "health.expected_status = [200, \"399-300\"]",
            "c.toml:3:32: services.sms.health.expected_status[1] = \"399-300\": must be a status from 200 to 599",
        ),
        (
            "health.expected_status = [100]",
            "c.toml:3:27: services.sms.health.expected_status[0] = 100: must be a status",
        ),
        ("methods = []", "c.toml:3:11: services.sms.methods = []: must have 1 to 10 elements"),
        (
            "methods = [\"get\"]",
            "c.toml:3:12: services.sms.methods[0] = \"get\": unknown method; did you mean \"GET\"?",
        ),
        ("methods = [\"CONNECT\"]", "c.toml:3:12: services.sms.methods[0] = \"CONNECT\": CONNECT is not supported"),
        ("methods = [\"OTHER\"]", "c.toml:3:12: services.sms.methods[0] = \"OTHER\": unknown method"),
        ("hosts = [\"a.com:80\"]", "c.toml:3:10: services.sms.hosts[0] = \"a.com:80\": must not have a port"),
        (
            "load_balancing = \"rr\"",
            "c.toml:3:18: services.sms.load_balancing = \"rr\": must be one of \"round_robin\"",
        ),
        ("limits.body_bytes = \"x\"", "c.toml:3:21: services.sms.limits.body_bytes = \"x\": must be a number of bytes"),
        ("timeouts.connect = 0", "c.toml:3:20: services.sms.timeouts.connect = 0: must be a duration"),
        ("timeouts = 0", "c.toml:3:12: services.sms.timeouts = 0: must be a table, [services.sms.timeouts]"),
        ("helth_path = \"/\"", "c.toml:3:1: services.sms.helth_path: unknown key; did you mean `services.sms."),
    ];
    for (line, start) in cases {
        // The line that is tried stands in for the one of the same key.
        let rest: String = ["prefix = \"/sms\"", "endpoints = [\"http://127.0.0.1\"]"]
            .iter()
            .filter(|own| line.split(' ').next() != own.split(' ').next())
            .map(|own| format!("{own}\n"))
            .collect();
        let text = format!("[services]\n[services.sms]\n{line}\n{rest}");
        let message = parse(&text, &[]).expect_err(line).to_string();
        assert!(message.starts_with(start), "{text}\n{message}");
        assert_eq!(message.lines().count(), 1, "{text}\n{message}");
    }
    let rest = "prefix = \"/x\"\nendpoints = [\"http://a\"]";
    for name in ["Upper", "a.b", "", "é", &"a".repeat(65)] {
        let message = parse(&format!("[services.{name:?}]\n{rest}"), &[]).expect_err(name).to_string();
        assert!(message.starts_with("c.toml:1:11: services."), "{message}");
        assert!(
            message.ends_with("a service's name must be 1 to 64 characters of a-z, 0-9, \"_\" and \"-\""),
            "{message}"
        );
    }
    check(&format!("[services.management]\n{rest}"), {
        "c.toml:1:11: services.management: the name of the gateway's own service; choose another"
    });
    check(
        "[services.sms]",
        "c.toml:1:11: services.sms.prefix: missing: the path that the service is reached under, such as \"/api/v1/sms\"\n\
         c.toml:1:11: services.sms.endpoints: missing: where the service is, such as [\"http://127.0.0.1:9001\"]",
    );
}

#[test]
fn syntax_errors_have_a_place() {
    check("[server\nport = 1\n", "c.toml:1:8: unclosed table, expected `]`");
    check("[server]\nport = 1\nport = 2\n", "c.toml:3:1: duplicate key");
    let both = parse("a = \n[server]\nport 1\n", &[]).expect_err("syntax").to_string();
    assert!(both.lines().next().is_some_and(|line| line.starts_with("c.toml:1:5: ")), "{both}");
    assert!(both.lines().any(|line| line.starts_with("c.toml:3:")), "{both}");
    // Columns count characters, and lines may end in CR LF.
    check("server.trusted_proxies = [\"::\", \"é\", 1]", {
        "c.toml:1:33: server.trusted_proxies[1] = \"é\": must be a network such as \"10.0.0.0/8\" or \"fd00::/8\", \
         or an IP address\n\
         c.toml:1:38: server.trusted_proxies[2] = 1: must be a string"
    });
    check("[server]\r\nhost = \"é\"\r\nport = -1\r\n", {
        "c.toml:2:8: server.host = \"é\": must be an IP address, such as \"0.0.0.0\", \"127.0.0.1\" or \"::\"\n\
         c.toml:3:8: server.port = -1: must be a whole number from 0 to 65535"
    });
    check("server.x.\"é\" = {}", "c.toml:1:8: server.x: unknown table; did you mean `server.pin`?");
}

#[test]
fn unknown_keys_name_the_nearest() {
    check("[servr]\nport = 1", "c.toml:1:2: servr: unknown table; did you mean `server`?");
    check("[server]\nprot = 1", "c.toml:2:1: server.prot: unknown key; did you mean `server.port`?");
    check("port = 1", "c.toml:1:1: port: unknown key; did you mean `server.port`?");
    check(
        "[server]\nheader_read = 1",
        "c.toml:2:1: server.header_read: unknown key; did you mean `timeouts.header_read`?",
    );
    check_with("", &[("RINGWAY_SERVER__PROT", "1")], {
        "environment variable RINGWAY_SERVER__PROT: server.prot: unknown key; did you mean RINGWAY_SERVER__PORT?"
    });
    check_with("", &[("RINGWAY_SERVER_PORT", "1")], {
        "environment variable RINGWAY_SERVER_PORT: server_port: unknown key; did you mean RINGWAY_SERVER__PORT?"
    });
    check_with(SMS, &[("RINGWAY_SERVICES__SMS__PREFX", "1")], {
        "environment variable RINGWAY_SERVICES__SMS__PREFX: services.sms.prefx: unknown key; \
         did you mean RINGWAY_SERVICES__SMS__PREFIX?"
    });
    let errors = Config::from_toml("", "c.toml", &[], &pairs(&[("server.hots", "::")])).expect_err("unknown");
    assert_eq!(errors.to_string(), "command line: server.hots: unknown key; did you mean `server.host`?");
}

#[test]
fn all_errors_at_once_in_order() {
    let text = "[server]\nport = 70000\nbaklog = 1\n\n[limits]\nheader_count = 1\n\n[services.a]\nprefix = \"x\"\nendpoints = [\"https://b\"]\n";
    let environment = [("RINGWAY_NOPE__X", "1"), ("METRICS_ENABLED", "perhaps"), SECRET];
    let errors = Config::from_toml(text, "c.toml", &pairs(&environment), &pairs(&[("timeouts.connect", "x")]));
    let expected = [
        "c.toml:2:8: server.port = 70000: ",
        "c.toml:3:1: server.baklog: ",
        "c.toml:6:16: limits.header_count = 1: ",
        "c.toml:9:10: services.a.prefix = \"x\": ",
        "c.toml:10:14: services.a.endpoints[0] = \"https://b\": ",
        "environment variable METRICS_ENABLED: metrics.enabled = \"perhaps\": must be true or false",
        "environment variable RINGWAY_NOPE__X: nope.x: unknown key; ",
        "command line: timeouts.connect = \"x\": ",
    ];
    let message = errors.expect_err("everything is wrong").to_string();
    assert_eq!(message.lines().count(), expected.len(), "{message}");
    for (line, start) in message.lines().zip(expected) {
        assert!(line.starts_with(start), "{line:?} does not begin with {start:?}");
    }
}

#[test]
fn services_with_one_prefix() {
    let two = |a: &str, b: &str| {
        format!("[services.a]\n{a}\nendpoints = [\"http://a\"]\n[services.b]\n{b}\nendpoints = [\"http://a\"]\n")
    };
    check(&two("prefix = \"/x\"", "prefix = \"/x/\""), {
        "c.toml:5:10: services.b.prefix = \"/x/\": services \"a\" (c.toml:2:10) and \"b\" have the same prefix; \
         each must have its own"
    });
    let hosts = |hosts: &str| format!("prefix = \"/x\"\nhosts = {hosts}");
    check(&two(&hosts("[\"a.com\", \"b.com\"]"), &hosts("[\"B.com\"]")), {
        "c.toml:6:10: services.b.prefix = \"/x\": services \"a\" (c.toml:2:10) and \"b\" have the same prefix \
         on host b.com; each must have its own"
    });
    for (a, b) in [
        (hosts("[\"a.com\"]"), hosts("[\"b.com\"]")),
        (hosts("[\"a.com\"]"), hosts("[\"*.com\"]")),
        (hosts("[\"a.com\"]"), hosts("[]")),
        ("prefix = \"/x\"".to_owned(), "prefix = \"/x/y\"".to_owned()),
    ] {
        assert_eq!(good(&two(&a, &b)).services.len(), 2);
    }
}
