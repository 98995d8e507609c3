//! Whole lines, read back by a JSON parser.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A request that got everywhere.
const FULL: AccessRecord<'_> = AccessRecord {
    unix_ms: 1_769_903_999_123,
    request_id: b"0af7651916cd43dd",
    trace_id: b"4bf92f3577b34da6a3ce929d0e0e4736",
    worker: 3,
    client: Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7))),
    method: b"POST",
    path: b"/api/v1/sms/send?to=1&token=s3cret",
    route: "/api/v1/sms",
    service: "sms",
    instance: "127.0.0.1:9001",
    status: 202,
    duration: Duration::from_nanos(12_345_678),
    upstream: Some(Duration::from_micros(9_001)),
    bytes_in: 512,
    bytes_out: 2_048,
    auth: "jwt",
    user: "alice",
    rate_limited: false,
    retries: 1,
    tried: &[
        Try { instance: "10.0.0.1:80", error: "upstream_closed" },
        Try { instance: "10.0.0.2:80", error: "upstream_timeout" },
    ],
    breaker: "closed",
    error: Some("none"),
};

/// A request of which not even the first line could be read.
const BARE: AccessRecord<'_> = AccessRecord {
    unix_ms: 0,
    request_id: b"",
    trace_id: b"",
    worker: 0,
    client: None,
    method: b"",
    path: b"",
    route: "",
    service: "",
    instance: "",
    status: 400,
    duration: Duration::ZERO,
    upstream: None,
    bytes_in: 0,
    bytes_out: 0,
    auth: "",
    user: "",
    rate_limited: false,
    retries: 0,
    tried: &[],
    breaker: "",
    error: None,
};

fn line(record: &AccessRecord<'_>, format: LogFormat) -> String {
    let mut out = Vec::new();
    render(record, format, &["token".into(), "password".into()], &mut Clock::new(), &mut out);
    String::from_utf8(out).expect("lines are UTF-8")
}

fn parsed(record: &AccessRecord<'_>) -> Value {
    serde_json::from_str(&line(record, LogFormat::Json)).expect("lines are JSON")
}

#[test]
fn a_full_json_line() {
    assert_eq!(
        line(&FULL, LogFormat::Json),
        concat!(
            r#"{"ts":"2026-01-31T23:59:59.123Z","level":"info","request_id":"0af7651916cd43dd","#,
            r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","worker":3,"client":"203.0.113.7","method":"POST","#,
            r#""path":"/api/v1/sms/send?to=1&token=***","route":"/api/v1/sms","service":"sms","#,
            r#""instance":"127.0.0.1:9001","status":202,"duration_ms":12.345,"upstream_ms":9.001,"#,
            r#""bytes_in":512,"bytes_out":2048,"auth":"jwt","user":"alice","rate_limited":false,"retries":1,"#,
            r#""tried":"10.0.0.1:80=upstream_closed 10.0.0.2:80=upstream_timeout","#,
            r#""breaker":"closed","error":"none"}"#,
            "\n"
        )
    );
}

#[test]
fn a_full_text_line() {
    assert_eq!(
        line(&FULL, LogFormat::Text),
        concat!(
            "ts=2026-01-31T23:59:59.123Z level=info request_id=0af7651916cd43dd ",
            "trace_id=4bf92f3577b34da6a3ce929d0e0e4736 worker=3 client=203.0.113.7 method=POST ",
            r#"path="/api/v1/sms/send?to=1&token=***" route=/api/v1/sms service=sms "#,
            "instance=127.0.0.1:9001 status=202 duration_ms=12.345 upstream_ms=9.001 ",
            "bytes_in=512 bytes_out=2048 auth=jwt user=alice rate_limited=false retries=1 ",
            "tried=\"10.0.0.1:80=upstream_closed 10.0.0.2:80=upstream_timeout\" ",
            "breaker=closed error=none\n"
        )
    );
}

#[test]
fn what_is_not_known_is_left_out() {
    assert_eq!(
        line(&BARE, LogFormat::Json),
        concat!(
            r#"{"ts":"1970-01-01T00:00:00.000Z","level":"warn","worker":0,"status":400,"duration_ms":0.000,"#,
            r#""bytes_in":0,"bytes_out":0,"rate_limited":false,"retries":0}"#,
            "\n"
        )
    );
    assert_eq!(
        line(&BARE, LogFormat::Text),
        "ts=1970-01-01T00:00:00.000Z level=warn worker=0 status=400 duration_ms=0.000 bytes_in=0 bytes_out=0 \
         rate_limited=false retries=0\n"
    );
}

#[test]
fn levels() {
    for (status, level) in
        [(101, "info"), (200, "info"), (399, "info"), (400, "warn"), (499, "warn"), (500, "error"), (599, "error")]
    {
        assert_eq!(parsed(&AccessRecord { status, ..BARE })["level"], level, "{status}");
    }
}

#[test]
fn clients() {
    for (client, expected) in [
        (IpAddr::V4(Ipv4Addr::new(0, 10, 200, 255)), "0.10.200.255"),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), "::1"),
        (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), "2001:db8::1"),
        (IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped()), "192.0.2.1"),
    ] {
        assert_eq!(parsed(&AccessRecord { client: Some(client), ..BARE })["client"], expected);
    }
}

#[test]
fn durations() {
    for (duration, expected) in [
        (Duration::from_nanos(999), "0.000"),
        (Duration::from_micros(1), "0.001"),
        (Duration::from_micros(12_030), "12.030"),
        (Duration::from_secs(3_600), "3600000.000"),
        (Duration::MAX, "18446744073709551.615"),
    ] {
        let line = line(&AccessRecord { duration, ..BARE }, LogFormat::Text);
        assert!(line.contains(&format!(" duration_ms={expected} ")), "{line}");
    }
}

#[test]
fn hostile_bytes() {
    let check = |path: &[u8], json: &str, text: &str| {
        let record = AccessRecord { path, ..BARE };
        let actual = line(&record, LogFormat::Json);
        assert!(actual.contains(&format!(r#","path":{json},"#)), "{actual}");
        let actual = line(&record, LogFormat::Text);
        assert!(actual.contains(&format!(" path={text} ")), "{actual}");
    };
    check(b"/a", r#""/a""#, "/a");
    check(b"/a b", r#""/a b""#, r#""/a b""#);
    check(b"/\"\\", r#""/\"\\""#, r#""/\"\\""#);
    check(b"/\r\n{\"ts\":1}", r#""/\r\n{\"ts\":1}""#, r#""/\r\n{\"ts\":1}""#);
    check(b"/ status=200", r#""/ status=200""#, r#""/ status=200""#);
    check(b"/\x00\x1b[2J\x7f\t", r#""/\u0000\u001b[2J\u007f\t""#, r#""/\u0000\u001b[2J\u007f\t""#);
    check("/é€🦀".as_bytes(), r#""/é€🦀""#, r#""/é€🦀""#);
    check(
        "/\u{85}\u{9b}\u{2028}\u{2029}".as_bytes(),
        r#""/\u0085\u009b\u2028\u2029""#,
        r#""/\u0085\u009b\u2028\u2029""#,
    );
    check(b"/\xff\xc3/\xe2\x82", "\"/\u{fffd}\u{fffd}/\u{fffd}\"", "\"/\u{fffd}\u{fffd}/\u{fffd}\"");
}

#[test]
fn long_values_are_cut_and_marked() {
    let long = vec![b'a'; PATH_MAX + 1];
    let path = |path| parsed(&AccessRecord { path, ..BARE })["path"].as_str().expect("a string").to_owned();
    assert_eq!(path(&long[..PATH_MAX]), "a".repeat(PATH_MAX));
    assert_eq!(path(&long), "a".repeat(PATH_MAX) + "…");
    let method = |method| parsed(&AccessRecord { method, ..BARE })["method"].as_str().expect("a string").to_owned();
    assert_eq!(method(&long[..FIELD_MAX]), "a".repeat(FIELD_MAX));
    assert_eq!(method(&long[..FIELD_MAX + 1]), "a".repeat(FIELD_MAX) + "…");
    let text = |path| line(&AccessRecord { path, ..BARE }, LogFormat::Text);
    assert!(text(&long[..PATH_MAX]).contains(&format!(" path={} ", "a".repeat(PATH_MAX))));
    assert!(text(&long).contains(&format!(" path=\"{}…\" ", "a".repeat(PATH_MAX))), "what is cut has quotes");
}

#[test]
fn a_secret_is_masked_wherever_the_cut_falls() {
    for padding in PATH_MAX - 20..PATH_MAX + 2 {
        let path = format!("/{}?password=SECRET&a=b", "a".repeat(padding));
        let line = line(&AccessRecord { path: path.as_bytes(), ..BARE }, LogFormat::Json);
        assert!(!line.contains('S'), "{padding}");
    }
}

#[test]
fn rendering_appends_and_a_warm_buffer_does_not_grow() {
    let mut out = Vec::with_capacity(1_024);
    let (mut clock, capacity) = (Clock::new(), out.capacity());
    for _ in 0..10 {
        out.clear();
        out.extend_from_slice(b"before\n");
        render(&FULL, LogFormat::Json, &["token".into()], &mut clock, &mut out);
        assert!(out.starts_with(b"before\n{"));
        assert_eq!(out.capacity(), capacity);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_line_is_one_line_that_reads_back(
        bytes in proptest::array::uniform4(proptest::collection::vec(any::<u8>(), 0..80)),
        texts in proptest::array::uniform4(".{0,40}|[\\x00-\\xff]{0,40}"),
        words in proptest::array::uniform3(proptest::sample::select(&["", "jwt", "half_open", "upstream_closed"][..])),
        numbers in any::<(u64, u64, u64, u32, u16, usize)>(),
        client in any::<Option<IpAddr>>(),
        durations in any::<(Duration, Option<Duration>)>(),
    ) {
        let [request_id, trace_id, method, path] = &bytes;
        let [route, service, instance, user] = &texts;
        let [auth, breaker, error] = words;
        let (unix_ms, bytes_in, bytes_out, retries, status, worker) = numbers;
        let record = AccessRecord {
            unix_ms, request_id, trace_id, worker, client, method, path, route, service, instance, status,
            duration: durations.0, upstream: durations.1, bytes_in, bytes_out, auth, user,
            rate_limited: unix_ms % 2 == 0, retries, tried: &[], breaker, error: Some(error),
        };
        let json = line(&record, LogFormat::Json);
        prop_assert_eq!(json.find(|character: char| character.is_control()), Some(json.len() - 1));
        prop_assert!(json.ends_with('\n'));
        let value: Value = serde_json::from_str(&json).unwrap();
        let shown = |bytes: &[u8]| match String::from_utf8_lossy(bytes) {
            empty if empty.is_empty() => Value::Null,
            text => json!(text),
        };
        for (key, bytes) in ["request_id", "trace_id", "method"].into_iter().zip(&bytes) {
            prop_assert_eq!(&value[key], &shown(bytes));
        }
        if !path.contains(&b'?') {
            prop_assert_eq!(&value["path"], &shown(path));
        }
        let texts = texts.iter().map(String::as_str).chain(words);
        for (key, text) in ["route", "service", "instance", "user", "auth", "breaker", "error"].into_iter().zip(texts) {
            prop_assert_eq!(&value[key], &shown(text.as_bytes()));
        }
        prop_assert_eq!(&value["status"], status);
        prop_assert_eq!(&value["bytes_in"], bytes_in);
        prop_assert_eq!(&value["bytes_out"], bytes_out);
        prop_assert_eq!(&value["client"], &client.map_or(Value::Null, |ip| json!(ip.to_canonical().to_string())));
        prop_assert_eq!(value["upstream_ms"].is_null(), record.upstream.is_none());

        let text = line(&record, LogFormat::Text);
        prop_assert_eq!(text.find(|character: char| character.is_control()), Some(text.len() - 1));
    }
}
