//! Properties, and a browser's side of the protocol to hold the answers against.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a browser reads in an answer.
struct Answer(BTreeMap<String, String>);

impl Answer {
    /// Reads the lines, each of which must be whole, well-formed, known and alone of its name.
    fn read(lines: &[u8]) -> Answer {
        let text = std::str::from_utf8(lines).expect("ASCII");
        assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?}");
        let mut fields = BTreeMap::new();
        for line in text.split_terminator("\r\n") {
            let (name, value) = line.split_once(": ").expect("a field");
            assert!(is_cors_response_header(name.as_bytes()) || name == "Vary", "{line:?}");
            assert!(value.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
            assert!(!value.is_empty() && value.trim() == value, "{line:?}");
            assert_eq!(fields.insert(name.to_ascii_lowercase(), value.to_owned()), None, "{line:?}: twice");
        }
        Answer(fields)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn list(&self, name: &str) -> Vec<&str> {
        self.get(name).map(|value| value.split(',').map(str::trim).collect()).unwrap_or_default()
    }

    /// Fetch standard, "CORS check".
    fn check(&self, origin: &str, with_credentials: bool) -> bool {
        match self.get("access-control-allow-origin") {
            Some("*") if !with_credentials => true,
            Some(allowed) if allowed == origin => {
                !with_credentials || self.get("access-control-allow-credentials") == Some("true")
            }
            _ => false,
        }
    }

    /// Fetch standard, "CORS-preflight fetch", from step 7 on.
    fn check_preflight(&self, asked: &Asked, with_credentials: bool) -> bool {
        if !self.check(&asked.origin, with_credentials) {
            return false;
        }
        let methods = self.list("access-control-allow-methods");
        let headers = self.list("access-control-allow-headers");
        let is_listed = |name: &str| headers.iter().any(|known| known.eq_ignore_ascii_case(name));
        let method_passes = methods.contains(&&*asked.method)
            || ["GET", "HEAD", "POST"].contains(&&*asked.method)
            || (!with_credentials && methods.contains(&"*"));
        method_passes
            && asked.headers.iter().all(|name| {
                let by_wildcard =
                    !with_credentials && headers.contains(&"*") && !name.eq_ignore_ascii_case("authorization");
                is_listed(name) || by_wildcard
            })
            && (!asked.private_network || self.get("access-control-allow-private-network") == Some("true"))
    }
}

/// What a page wants to send.
#[derive(Debug)]
struct Asked {
    origin: String,
    method: String,
    headers: Vec<String>,
    private_network: bool,
}

const ORIGINS: [&str; 7] = [
    APP,
    "https://a.example.org",
    "https://a.example.org:444",
    "https://example.org",
    "http://localhost:3000",
    "null",
    "https://evil.org",
];

fn some(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    proptest::sample::subsequence(texts, 0..=texts.len()).prop_map(|texts| strings(&texts))
}

fn any_rules() -> impl Strategy<Value = CorsRules> {
    let patterns = some(&["*", "null", APP, "https://*.example.org", "http://localhost:3000"]);
    let methods = some(&["*", "GET", "PUT", "PATCH"]);
    let headers = some(&["*", "Authorization", "Content-Type", "X-A"]);
    (patterns, methods, headers, some(&["X-Request-Id", "ETag"]), any::<[bool; 2]>(), 0..=MAX_AGE_MAX).prop_map(
        |(
            mut patterns,
            allow_methods,
            allow_headers,
            expose_headers,
            [allow_credentials, private_network],
            max_age,
        )| {
            patterns.retain(|pattern| !(allow_credentials && pattern == "*"));
            CorsRules {
                allow_origins: origins(&patterns.iter().map(String::as_str).collect::<Vec<_>>()),
                allow_methods,
                allow_headers,
                expose_headers,
                allow_credentials,
                max_age,
                private_network,
            }
        },
    )
}

fn asked() -> impl Strategy<Value = Asked> {
    let origin = proptest::sample::select(&ORIGINS[..]).prop_map(str::to_owned);
    let method = proptest::sample::select(&["GET", "POST", "PUT", "PATCH", "patch"][..]).prop_map(str::to_owned);
    let headers = some(&["authorization", "content-type", "x-a", "x-b"]);
    (origin, method, headers, any::<bool>()).prop_map(|(origin, method, headers, private_network)| Asked {
        origin,
        method,
        headers,
        private_network,
    })
}

/// Bytes that come near to what is expected.
fn near(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let text = proptest::sample::select(texts).prop_map(|text| text.as_bytes().to_vec());
    let bytes = proptest::collection::vec(any::<u8>(), 0..8);
    let odd = (text.clone(), any::<prop::sample::Index>(), bytes.clone()).prop_map(|(mut text, at, bytes)| {
        let at = at.index(text.len() + 1);
        text.splice(at..at, bytes);
        text
    });
    prop_oneof![text, odd, bytes]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The verdict is the browser's, for pages that send credentials where these are allowed, and for pages that do not.
    #[test]
    fn a_browser_comes_to_the_same_verdict(rules in any_rules(), asked in asked()) {
        let headers = asked.headers.join(",");
        let request = CorsRequest {
            origin: Line::One(asked.origin.as_bytes()),
            private_network: asked.private_network,
            ..preflight(&asked.method, &headers)
        };
        let cors = Cors::new(&rules).expect("good rules");
        let mut out = Vec::new();
        let allowed = cors.render(&request, &mut out) == CorsVerdict::Preflight(Ok(()));
        let answer = Answer::read(&out);
        prop_assert_eq!(answer.check_preflight(&asked, false), allowed);
        prop_assert_eq!(answer.check_preflight(&asked, true), allowed && rules.allow_credentials);

        out.clear();
        let actual = CorsRequest { origin: request.origin, ..CorsRequest::default() };
        let allowed = cors.render(&actual, &mut out) == ALLOWED;
        let answer = Answer::read(&out);
        prop_assert_eq!(answer.check(&asked.origin, false), allowed);
        prop_assert_eq!(answer.check(&asked.origin, true), allowed && rules.allow_credentials);
    }

    /// Whatever comes: whole lines, nothing for a refused origin, and `Vary` wherever another origin gets another answer.
    #[test]
    fn nothing_forges_a_line(
        rules in any_rules(),
        options in any::<bool>(),
        fields in proptest::collection::vec(prop_oneof![
            near(&ORIGINS).prop_map(|value| ("Origin", value)),
            near(&["PUT", "GET", "patch"]).prop_map(|value| ("Access-Control-Request-Method", value)),
            near(&["x-a,x-b", "content-type, x-a", "authorization"])
                .prop_map(|value| ("access-control-request-headers", value)),
            near(&["true"]).prop_map(|value| ("Access-Control-Request-Private-Network", value)),
        ], 0..6),
    ) {
        let method = if options { Method::Options } else { Method::Get };
        let request = CorsRequest::read(method, fields.iter().map(|(name, value)| (name.as_bytes(), &value[..])));
        let cors = Cors::new(&rules).expect("good rules");
        let mut out = Vec::new();
        let verdict = cors.render(&request, &mut out);
        let answer = Answer::read(&out);
        let refused = matches!(
            verdict, CorsVerdict::Actual { allowed: false } | CorsVerdict::Preflight(Err(CorsRefusal::Origin)));
        if refused {
            prop_assert!(answer.0.keys().eq(["vary"]), "{:?}", answer.0);
        }
        let any = rules.allow_origins.iter().any(OriginPattern::is_any);
        prop_assert_eq!(answer.get("vary").is_some(), options || !any);
        prop_assert_eq!(matches!(verdict, CorsVerdict::Preflight(_)), request.is_preflight());
    }

    /// What a pattern is written as is read as the same again, and a browser's own origin matches its pattern.
    #[test]
    fn origins_are_read_as_they_are_written(text in "(https?|HTTP|app)://(\\*\\.)?[a-zA-Z0-9._:\\[\\]-]{1,20}(:[0-9]{1,6})?") {
        if let Ok(pattern) = OriginPattern::parse(&text) {
            let written = pattern.to_string();
            prop_assert_eq!(OriginPattern::parse(&written), Ok(pattern.clone()));
            let rules = CorsRules { allow_origins: vec![pattern], ..rules() };
            let origin = written.replace('*', "a.b");
            let request = CorsRequest { origin: Line::One(origin.as_bytes()), ..CorsRequest::default() };
            prop_assert_eq!(render(&rules, &request).0, ALLOWED);
        }
    }
}
