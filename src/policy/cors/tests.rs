//! The Fetch standard's cases.

use proptest::prelude::*;

use super::*;

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

fn rules() -> CorsRules {
    let origins = ["https://app.example.com", "https://*.dev.example.com", "http://localhost:3000", "null"];
    CorsRules {
        origins: Some(origins.iter().map(|text| OriginPattern::parse(text).expect("a pattern")).collect()),
        methods: texts(&["PUT", "PATCH"]),
        headers: texts(&["Authorization", "X-One"]),
        expose: texts(&["X-Request-Id"]),
        credentials: true,
        max_age: 600,
        private_network: false,
    }
}

fn any() -> CorsRules {
    CorsRules { origins: None, credentials: false, ..rules() }
}

fn answer(rules: CorsRules, method: Method, fields: &CorsFields<'_>) -> (CorsVerdict, String) {
    let mut out = Vec::new();
    let verdict = Cors::new(rules).apply(method, fields, &mut out);
    (verdict, String::from_utf8(out).expect("ASCII"))
}

fn from(origin: &str) -> CorsFields<'_> {
    CorsFields { origin: Some(origin.as_bytes()), ..CorsFields::default() }
}

fn preflight<'a>(origin: &'a str, method: &'a str, headers: &'a str) -> CorsFields<'a> {
    CorsFields {
        request_method: Some(method.as_bytes()),
        request_headers: Some(headers.as_bytes()).filter(|names| !names.is_empty()),
        ..from(origin)
    }
}

#[test]
fn origins() {
    let check = |pattern: &str, origin: &str, expected| {
        let parsed = OriginPattern::parse(pattern).expect("a pattern");
        assert_eq!(parsed.matches(origin.as_bytes()), expected, "{pattern} {origin}");
    };
    check("https://Example.com", "https://example.com", true);
    check("https://example.com", "http://example.com", false);
    check("https://example.com", "https://example.com.evil.org", false);
    check("https://example.com", "https://example.com:8443", false);
    check("https://example.com:8443", "https://example.com:8443", true);
    check("http://[::1]:3000", "http://[::1]:3000", true);
    check("null", "null", true);
    let below = "https://*.example.com";
    check(below, "https://a.example.com", true);
    check(below, "https://a.b.example.com", true);
    for evil in [
        "https://example.com",
        "https://.example.com",
        "https://a..example.com",
        "https://evilexample.com",
        "https://a.example.com.evil.org",
        "https://a.example.com:444",
        "http://a.example.com",
        "https://evil.org/.example.com",
        "https://evil.org?.example.com",
        "https://a@b.example.com",
        "null",
        "",
    ] {
        check(below, evil, false);
    }
    check("https://*.example.com:444", "https://a.example.com:444", true);
}

#[test]
fn what_is_no_pattern() {
    use OriginError::{DefaultPort, Shape, Wildcard};
    let check = |text: &str, expected| assert_eq!(OriginPattern::parse(text), Err(expected), "{text}");
    for text in ["", "example.com", "https://", "https://a/", "https://a/b", "https://a b", "https://a:x", "://a"] {
        check(text, Shape);
    }
    for text in ["https://*", "https://a.*.com", "https://*a.com", "https://*.*.com", "https://a*"] {
        check(text, Wildcard);
    }
    check("https://a:443", DefaultPort);
    check("http://a:80", DefaultPort);
}

#[test]
fn actual_requests() {
    let check = |rules: CorsRules, fields: &CorsFields<'_>, expected: &str| {
        assert_eq!(answer(rules, Method::Get, fields), (CorsVerdict::Actual, expected.to_owned()), "{fields:?}");
    };
    let named = |origin: &str| {
        format!(
            "Vary: Origin\r\nAccess-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n\
             Access-Control-Expose-Headers: X-Request-Id\r\n"
        )
    };
    for origin in ["https://app.example.com", "https://x.dev.example.com", "http://localhost:3000", "null"] {
        check(rules(), &from(origin), &named(origin));
    }
    check(rules(), &from("https://evil.org"), "Vary: Origin\r\n");
    check(rules(), &CorsFields::default(), "Vary: Origin\r\n");
    let twice = CorsFields { repeated: true, ..from("https://app.example.com") };
    check(rules(), &twice, "Vary: Origin\r\n");
    let open = "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: X-Request-Id\r\n";
    check(any(), &from("https://evil.org"), open);
    check(any(), &CorsFields::default(), "");
    // An OPTIONS request that asks for nothing is one like any other.
    let (verdict, _) = answer(rules(), Method::Options, &from("https://app.example.com"));
    assert_eq!(verdict, CorsVerdict::Actual);
}

#[test]
fn preflights() {
    let check = |rules: CorsRules, fields: &CorsFields<'_>, allowed: &[&str]| {
        let (verdict, text) = answer(rules, Method::Options, fields);
        assert_eq!(verdict, CorsVerdict::Preflight);
        let (vary, rest) = text.split_once("\r\n").expect("a line");
        assert!(vary.starts_with("Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers"));
        assert_eq!(rest.lines().collect::<Vec<_>>(), allowed, "{fields:?}");
    };
    let app = "https://app.example.com";
    let yes = [
        "Access-Control-Allow-Origin: https://app.example.com",
        "Access-Control-Allow-Credentials: true",
        "Access-Control-Allow-Methods: PUT, PATCH",
        "Access-Control-Allow-Headers: Authorization, X-One",
        "Access-Control-Max-Age: 600",
    ];
    for (method, headers) in
        [("PUT", ""), ("PATCH", "x-one"), ("GET", "authorization"), ("POST", "X-ONE, Authorization"), ("HEAD", "")]
    {
        check(rules(), &preflight(app, method, headers), &yes);
    }
    for (origin, method, headers) in [
        ("https://evil.org", "PUT", ""),
        (app, "DELETE", ""),
        // Methods are case-sensitive.
        (app, "put", ""),
        (app, "PUT", "x-two"),
        (app, "PUT", "x-one,"),
        (app, "PUT", "x-one, x two"),
        (app, "", ""),
    ] {
        check(rules(), &preflight(origin, method, headers), &[]);
    }
    // Wildcards: said back where credentials are allowed, since `*` means nothing there.
    let wild = |credentials| CorsRules { methods: texts(&["*"]), headers: texts(&["*"]), credentials, ..rules() };
    check(
        wild(true),
        &preflight(app, "DELETE", "x-any,authorization"),
        &[
            yes[0],
            yes[1],
            "Access-Control-Allow-Methods: DELETE",
            "Access-Control-Allow-Headers: x-any,authorization",
            yes[4],
        ],
    );
    check(
        wild(false),
        &preflight(app, "DELETE", "authorization"),
        &[yes[0], "Access-Control-Allow-Methods: *", "Access-Control-Allow-Headers: authorization", yes[4]],
    );
    check(any(), &preflight(app, "PUT", ""), &["Access-Control-Allow-Origin: *", yes[2], yes[3], yes[4]]);
    // A page of a public network asks for a private one.
    let private = CorsFields { request_private_network: Some(b"true"), ..preflight(app, "PUT", "") };
    check(rules(), &private, &yes);
    let open = CorsRules { private_network: true, ..rules() };
    check(open, &private, &[&yes[..], &["Access-Control-Allow-Private-Network: true"]].concat());
}

proptest! {
    #[test]
    fn nothing_breaks_a_line_and_nobody_is_let_in(
        origin in "[ -~]{0,60}", method in "[ -~]{0,20}", headers in "[ -~\\t]{0,60}", repeated: bool, is_options: bool,
    ) {
        let fields = CorsFields { repeated, ..preflight(&origin, &method, &headers) };
        let (_, text) = answer(rules(), if is_options { Method::Options } else { Method::Get }, &fields);
        let known = rules().origins.expect("some").iter().any(|pattern| pattern.matches(origin.as_bytes()));
        prop_assert!(text.is_empty() || text.ends_with("\r\n"));
        for line in text.trim_end_matches("\r\n").split("\r\n").filter(|line| !line.is_empty()) {
            let (name, _) = line.split_once(": ").expect("a field");
            prop_assert!(is_token(name.as_bytes()));
            prop_assert!(known || name == "Vary", "{line}");
        }
    }
}
