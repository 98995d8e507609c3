//! The Fetch standard's cases, one by one.

mod properties;

use super::*;

const APP: &str = "https://app.example.com";

/// One page's origin, some methods and headers.
fn rules() -> CorsRules {
    CorsRules {
        allow_origins: origins(&[APP, "https://*.example.org", "http://localhost:3000"]),
        allow_methods: strings(&["GET", "PUT", "DELETE"]),
        allow_headers: strings(&["Content-Type", "X-API-Key", "Authorization"]),
        expose_headers: strings(&["X-Request-Id", "Retry-After"]),
        allow_credentials: false,
        max_age: 600,
        private_network: false,
    }
}

fn origins(patterns: &[&str]) -> Vec<OriginPattern> {
    patterns.iter().map(|text| OriginPattern::parse(text).expect(text)).collect()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// `*` wherever it is allowed.
fn wildcards(allow_credentials: bool) -> CorsRules {
    CorsRules {
        allow_origins: origins(if allow_credentials { &[APP] } else { &["*"] }),
        allow_methods: strings(&["*"]),
        allow_headers: strings(&["*"]),
        expose_headers: strings(if allow_credentials { &[] } else { &["*"] }),
        allow_credentials,
        ..rules()
    }
}

/// A request with these fields, written `Name: value`.
fn request<'a>(method: Method, fields: &[&'a str]) -> CorsRequest<'a> {
    CorsRequest::read(
        method,
        fields.iter().map(|field| {
            let (name, value) = field.split_once(':').expect("a colon");
            (name.as_bytes(), value.as_bytes())
        }),
    )
}

fn render(rules: &CorsRules, request: &CorsRequest<'_>) -> (CorsVerdict, String) {
    let mut out = Vec::new();
    let verdict = Cors::new(rules).expect("good rules").render(request, &mut out);
    (verdict, String::from_utf8(out).expect("ASCII"))
}

/// The rendered lines must be `expected`, in any order.
#[track_caller]
fn check(rules: &CorsRules, request: &CorsRequest<'_>, verdict: CorsVerdict, expected: &[&str]) {
    let (actual, text) = render(rules, request);
    let mut lines: Vec<&str> = text.split_terminator("\r\n").collect();
    let mut expected = expected.to_vec();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!((actual, lines), (verdict, expected), "{request:?}");
}

const VARY: &str = "Vary: Origin";
const VARY_OPTIONS: &str = "Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
const ALLOW_APP: &str = "Access-Control-Allow-Origin: https://app.example.com";
const ALLOW_ANY: &str = "Access-Control-Allow-Origin: *";
const CREDENTIALS: &str = "Access-Control-Allow-Credentials: true";
const EXPOSED: &str = "Access-Control-Expose-Headers: X-Request-Id, Retry-After";
const METHODS: &str = "Access-Control-Allow-Methods: GET, PUT, DELETE";
const HEADERS: &str = "Access-Control-Allow-Headers: Content-Type, X-API-Key, Authorization";
const MAX_AGE: &str = "Access-Control-Max-Age: 600";

const ALLOWED: CorsVerdict = CorsVerdict::Actual { allowed: true };
const REFUSED: CorsVerdict = CorsVerdict::Actual { allowed: false };

#[test]
fn simple_requests() {
    let rules = rules();
    let get = |fields: &[&'static str]| request(Method::Get, fields);
    check(&rules, &get(&["Accept: */*"]), CorsVerdict::NotCors, &[VARY]);
    check(&rules, &get(&["Origin: https://app.example.com"]), ALLOWED, &[ALLOW_APP, EXPOSED, VARY]);
    check(&rules, &get(&["ORIGIN:https://app.example.com "]), ALLOWED, &[ALLOW_APP, EXPOSED, VARY]);
    for refused in ["Origin: https://evil.org", "Origin: null", "Origin:", "Origin: *", "Origin: https://example.org"] {
        check(&rules, &get(&[refused]), REFUSED, &[VARY]);
    }
    check(&rules, &get(&["Origin: https://app.example.com", "Origin: https://app.example.com"]), REFUSED, &[VARY]);
    // As it came, since a browser compares byte by byte with what it sent.
    let reflected = "Access-Control-Allow-Origin: https://a.b.Example.org";
    check(&rules, &get(&["Origin: https://a.b.Example.org"]), ALLOWED, &[reflected, EXPOSED, VARY]);
    // A preflight's fields mean nothing on other methods.
    let odd = ["Origin: https://app.example.com", "Access-Control-Request-Method: PUT"];
    check(&rules, &get(&odd), ALLOWED, &[ALLOW_APP, EXPOSED, VARY]);
}

#[test]
fn null_only_where_it_is_listed() {
    let listed = CorsRules { allow_origins: origins(&["null"]), ..rules() };
    let null = request(Method::Get, &["Origin: null"]);
    check(&listed, &null, ALLOWED, &["Access-Control-Allow-Origin: null", EXPOSED, VARY]);
    check(&listed, &request(Method::Get, &["Origin: Null"]), REFUSED, &[VARY]);
    check(&rules(), &null, REFUSED, &[VARY]);
}

#[test]
fn nobody_is_allowed_where_nobody_is_listed() {
    let nobody = CorsRules { allow_origins: Vec::new(), ..rules() };
    check(&nobody, &request(Method::Get, &["Origin: https://app.example.com"]), REFUSED, &[VARY]);
}

#[test]
fn any_origin_makes_every_answer_the_same() {
    let any = wildcards(false);
    let lines = [ALLOW_ANY, "Access-Control-Expose-Headers: *"];
    check(&any, &request(Method::Get, &[]), CorsVerdict::NotCors, &lines);
    for origin in ["Origin: https://evil.org", "Origin: null", "Origin: junk", "Origin:"] {
        check(&any, &request(Method::Get, &[origin]), ALLOWED, &lines);
    }
    check(&any, &request(Method::Get, &["Origin: a", "Origin: b"]), ALLOWED, &lines);
}

#[test]
fn credentials() {
    let rules = CorsRules { allow_credentials: true, ..rules() };
    let lines = [ALLOW_APP, CREDENTIALS, EXPOSED, VARY];
    check(&rules, &request(Method::Post, &["Origin: https://app.example.com"]), ALLOWED, &lines);
    check(&rules, &request(Method::Post, &["Origin: https://evil.org"]), REFUSED, &[VARY]);
    check(&rules, &request(Method::Post, &[]), CorsVerdict::NotCors, &[VARY]);
}

/// A preflight from [`APP`], with these fields besides.
fn preflight<'a>(method: &'a str, headers: &'a str) -> CorsRequest<'a> {
    CorsRequest {
        is_options: true,
        origin: Line::One(APP.as_bytes()),
        method: Line::One(method.as_bytes()),
        headers: if headers.is_empty() { Line::Absent } else { Line::One(headers.as_bytes()) },
        private_network: false,
    }
}

#[test]
fn preflights_against_lists() {
    let rules = rules();
    // The lines do not depend on what is asked for.
    let lines = [ALLOW_APP, METHODS, HEADERS, MAX_AGE, VARY_OPTIONS];
    let ok = |method, headers| check(&rules, &preflight(method, headers), CorsVerdict::Preflight(Ok(())), &lines);
    let refused = |method, headers, refusal| {
        check(&rules, &preflight(method, headers), CorsVerdict::Preflight(Err(refusal)), &lines);
    };
    ok("PUT", "");
    ok("DELETE", "content-type");
    ok("PUT", "authorization,content-type,x-api-key");
    ok("PUT", "X-Api-KEY , Content-Type");
    ok("PUT", ",, content-type,");
    for safelisted in ["GET", "HEAD", "POST"] {
        ok(safelisted, "x-api-key");
    }
    for method in ["PATCH", "OPTIONS", "put", "Put", "post", "PUTT", "*"] {
        refused(method, "", CorsRefusal::Method);
    }
    for headers in ["x-other", "content-type,x-other", "*", "x-api-keys", "x-api-ke", "accept", "range"] {
        refused("PUT", headers, CorsRefusal::Headers);
    }
    refused("PATCH", "x-other", CorsRefusal::Method);
}

#[test]
fn content_type_needs_a_permission_when_a_browser_asks_for_it() {
    let none = CorsRules { allow_headers: Vec::new(), ..rules() };
    let lines = [ALLOW_APP, METHODS, MAX_AGE, VARY_OPTIONS];
    check(&none, &preflight("POST", "content-type"), CorsVerdict::Preflight(Err(CorsRefusal::Headers)), &lines);
    check(&none, &preflight("POST", ""), CorsVerdict::Preflight(Ok(())), &lines);
}

#[test]
fn a_lower_case_method_is_another_method() {
    let upper = CorsRules { allow_methods: strings(&["PATCH", "Custom"]), ..rules() };
    let verdict = |method| render(&upper, &preflight(method, "")).0;
    assert_eq!(verdict("PATCH"), CorsVerdict::Preflight(Ok(())));
    assert_eq!(verdict("Custom"), CorsVerdict::Preflight(Ok(())));
    assert_eq!(verdict("patch"), CorsVerdict::Preflight(Err(CorsRefusal::Method)));
    assert_eq!(verdict("CUSTOM"), CorsVerdict::Preflight(Err(CorsRefusal::Method)));
}

#[test]
fn malformed_preflights_are_refused_without_a_list() {
    let many = vec!["content-type"; LIST_MAX + 1].join(",");
    let long = format!("{}content-type", " ".repeat(REQUESTED_BYTES_MAX));
    let long_name = "a".repeat(NAME_BYTES_MAX + 1);
    for rules in [rules(), wildcards(true), wildcards(false)] {
        let refused = |request: &CorsRequest<'_>, refusal, absent: &str| {
            let (verdict, text) = render(&rules, request);
            assert_eq!(verdict, CorsVerdict::Preflight(Err(refusal)), "{request:?}");
            assert!(!text.contains(absent), "{request:?}: {text}");
        };
        for method in ["", "P T", "PUT\r\nX: y", "PUT,GET", "P\u{e9}T", "P\0T", &long_name] {
            refused(&preflight(method, ""), CorsRefusal::Method, "Allow-Methods");
        }
        for headers in ["a b", "a\r\nX: y", "a\0", "a,\u{e9}", "a:b", "a;b", &many, &long, &long_name] {
            refused(&preflight("PUT", headers), CorsRefusal::Headers, "Allow-Headers");
        }
        let several = CorsRequest { method: Line::Several, ..preflight("PUT", "") };
        refused(&several, CorsRefusal::Method, "Allow-Methods");
        let several = CorsRequest { headers: Line::Several, ..preflight("PUT", "") };
        refused(&several, CorsRefusal::Headers, "Allow-Headers");
    }
}

#[test]
fn the_most_that_may_be_asked_for() {
    let headers = vec!["content-type"; LIST_MAX].join(",");
    for rules in [rules(), wildcards(true), wildcards(false)] {
        assert_eq!(render(&rules, &preflight("PUT", &headers)).0, CorsVerdict::Preflight(Ok(())));
    }
}

#[test]
fn preflights_from_refused_origins_are_told_nothing() {
    for private_network in [false, true] {
        let rules = CorsRules { allow_credentials: true, private_network, ..rules() };
        for origin in [Line::One(&b"https://evil.org"[..]), Line::One(b"null"), Line::One(b""), Line::Several] {
            let request = CorsRequest { origin, private_network: true, ..preflight("PUT", "content-type") };
            let (verdict, text) = render(&rules, &request);
            assert_eq!(verdict, CorsVerdict::Preflight(Err(CorsRefusal::Origin)));
            assert!(text.starts_with(VARY_OPTIONS) && text.lines().count() == 1, "{text}");
        }
    }
}

#[test]
fn options_that_are_no_preflight_go_on() {
    let options = |fields: &[&'static str]| request(Method::Options, fields);
    let from_app = "Origin: https://app.example.com";
    check(&rules(), &options(&[]), CorsVerdict::NotCors, &[VARY_OPTIONS]);
    check(&rules(), &options(&["Access-Control-Request-Method: PUT"]), CorsVerdict::NotCors, &[VARY_OPTIONS]);
    check(&rules(), &options(&[from_app]), ALLOWED, &[ALLOW_APP, EXPOSED, VARY_OPTIONS]);
    let headers_only = [from_app, "Access-Control-Request-Headers: a"];
    check(&rules(), &options(&headers_only), ALLOWED, &[ALLOW_APP, EXPOSED, VARY_OPTIONS]);
    let exposed = "Access-Control-Expose-Headers: *";
    check(&wildcards(false), &options(&[from_app]), ALLOWED, &[ALLOW_ANY, exposed, VARY_OPTIONS]);
}

#[test]
fn wildcards_without_credentials() {
    let any = wildcards(false);
    let (methods, headers) = ("Access-Control-Allow-Methods: *", "Access-Control-Allow-Headers: *");
    let lines = [ALLOW_ANY, methods, headers, MAX_AGE, VARY_OPTIONS];
    check(&any, &preflight("patch", "x-a,x-b"), CorsVerdict::Preflight(Ok(())), &lines);
    // The one name that `*` does not stand for.
    let refused = CorsVerdict::Preflight(Err(CorsRefusal::Headers));
    check(&any, &preflight("PUT", "x-a,Authorization"), refused, &lines);
    let listed = CorsRules { allow_headers: strings(&["*", "Authorization"]), ..any };
    let lines = [ALLOW_ANY, methods, "Access-Control-Allow-Headers: *, Authorization", MAX_AGE, VARY_OPTIONS];
    check(&listed, &preflight("PUT", "authorization,x-a"), CorsVerdict::Preflight(Ok(())), &lines);
}

#[test]
fn wildcards_with_credentials_name_what_is_asked_for() {
    let any = wildcards(true);
    let method = "Access-Control-Allow-Methods: PATCH";
    let common = [ALLOW_APP, CREDENTIALS, MAX_AGE, VARY_OPTIONS, method];
    let with = |line: &'static str| [&common[..], &[line]].concat();
    check(&any, &preflight("PATCH", ""), CorsVerdict::Preflight(Ok(())), &common);
    let lines = with("Access-Control-Allow-Headers: x-a,X-B");
    check(&any, &preflight("PATCH", "x-a, ,X-B"), CorsVerdict::Preflight(Ok(())), &lines);
    let refused = CorsVerdict::Preflight(Err(CorsRefusal::Headers));
    check(&any, &preflight("PATCH", "authorization,x-a"), refused, &common);
    let listed = CorsRules { allow_headers: strings(&["*", "Authorization"]), ..any };
    let lines = with("Access-Control-Allow-Headers: authorization,x-a");
    check(&listed, &preflight("PATCH", "authorization,x-a"), CorsVerdict::Preflight(Ok(())), &lines);
}

#[test]
fn private_networks() {
    let fields = [
        "Origin: https://app.example.com",
        "Access-Control-Request-Method: GET",
        "Access-Control-Request-Private-Network: true",
    ];
    let asked = request(Method::Options, &fields);
    assert!(asked.private_network);
    let open = CorsRules { private_network: true, ..rules() };
    let vary = "Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                Access-Control-Request-Private-Network";
    let lines = [ALLOW_APP, METHODS, HEADERS, MAX_AGE, vary];
    let granted = [&lines[..], &["Access-Control-Allow-Private-Network: true"]].concat();
    check(&open, &asked, CorsVerdict::Preflight(Ok(())), &granted);
    check(&open, &preflight("GET", ""), CorsVerdict::Preflight(Ok(())), &lines);
    let lines = [ALLOW_APP, METHODS, HEADERS, MAX_AGE, VARY_OPTIONS];
    check(&rules(), &asked, CorsVerdict::Preflight(Err(CorsRefusal::PrivateNetwork)), &lines);
    assert!(!request(Method::Options, &["Access-Control-Request-Private-Network: false"]).private_network);
    assert!(!request(Method::Get, &["Access-Control-Request-Private-Network: true"]).private_network);
}

#[test]
fn refused_rules_name_their_key() {
    let check = |rules: CorsRules, key: &str, text: &str| {
        let error = Cors::new(&rules).expect_err(text);
        assert_eq!(error.key(), key, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let any = origins(&[APP, "*"]);
    check(CorsRules { allow_origins: any, allow_credentials: true, ..rules() }, "allow_origins", "list the origins");
    let many = vec![OriginPattern::parse(APP).expect(APP); ORIGINS_MAX + 1];
    check(CorsRules { allow_origins: many, ..rules() }, "allow_origins", "at most 1000");
    for (method, text) in [
        ("put", "write \"PUT\""),
        ("patch", "write \"PATCH\""),
        ("Get", "write \"GET\""),
        ("", "is none"),
        ("P T", "\"P T\" is none"),
        ("PUT, GET", "is none"),
        ("PUT\r\nX: y", "\"PUT\\r\\nX: y\" is none"),
    ] {
        check(CorsRules { allow_methods: strings(&["GET", method]), ..rules() }, "allow_methods", text);
    }
    for name in ["", "X Y", "X:", "X\r\nY: z", "caf\u{e9}", &"a".repeat(NAME_BYTES_MAX + 1)] {
        check(CorsRules { allow_headers: strings(&["A", name]), ..rules() }, "allow_headers", "is none");
        check(CorsRules { expose_headers: strings(&["A", name]), ..rules() }, "expose_headers", "is none");
    }
    let many = vec!["A".to_owned(); LIST_MAX + 1];
    check(CorsRules { allow_methods: many.clone(), ..rules() }, "allow_methods", "at most 100");
    check(CorsRules { allow_headers: many.clone(), ..rules() }, "allow_headers", "at most 100");
    check(CorsRules { expose_headers: many, ..rules() }, "expose_headers", "at most 100");
    let exposed = CorsRules { expose_headers: strings(&["*"]), allow_credentials: true, ..rules() };
    check(exposed, "expose_headers", "list the names");
    check(CorsRules { max_age: MAX_AGE_MAX + 1, ..rules() }, "max_age", "86400");
    assert!(Cors::new(&CorsRules { max_age: MAX_AGE_MAX, ..rules() }).is_ok());
}

#[test]
fn headers_that_an_upstream_must_not_set() {
    for name in [
        "Access-Control-Allow-Origin",
        "access-control-allow-credentials",
        "ACCESS-CONTROL-ALLOW-METHODS",
        "Access-Control-Allow-Headers",
        "Access-Control-Allow-Private-Network",
        "Access-Control-Expose-Headers",
        "Access-Control-Max-Age",
    ] {
        assert!(is_cors_response_header(name.as_bytes()), "{name}");
    }
    for name in
        ["", "Vary", "Access-Control", "Timing-Allow-Origin", "Cross-Origin-Resource-Policy", "X-Access-Control-"]
    {
        assert!(!is_cors_response_header(name.as_bytes()), "{name}");
    }
}

#[test]
fn a_warm_render_does_not_grow_its_buffer() {
    let many = vec!["x-a"; LIST_MAX].join(",");
    for rules in [rules(), wildcards(true), wildcards(false)] {
        let cors = Cors::new(&rules).expect("good rules");
        let requests = [
            preflight("PUT", "content-type"),
            preflight("PUT", &many),
            request(Method::Get, &["Origin: https://a.example.org"]),
        ];
        let mut out = Vec::new();
        requests.iter().for_each(|request| _ = cors.render(request, &mut out));
        let (capacity, at) = (out.capacity(), out.as_ptr());
        for _ in 0..1_000 {
            out.clear();
            requests.iter().for_each(|request| _ = cors.render(request, &mut out));
        }
        assert_eq!((out.capacity(), out.as_ptr()), (capacity, at));
    }
}
