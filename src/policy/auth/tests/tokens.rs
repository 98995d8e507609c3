use proptest::prelude::*;

use TokenError::{Audience, Claims, Expired, Issuer, Malformed, NotYetValid, Signature};

use super::*;
use crate::policy::auth::credentials::TOKEN_MAX;
use crate::policy::auth::identity::Identity;
use crate::policy::auth::install;
use crate::policy::auth::jwt::{self, Rules, TokenError};
use crate::policy::auth::mint::{Mint, mint};

fn verify(keys: &KeySet, rules: &Rules, token: &str) -> Result<Identity, TokenError> {
    jwt::verify(keys, rules, token.as_bytes(), NOW)
}

#[test]
fn every_algorithm_with_its_own_key_and_no_other() {
    for signed in ALL {
        let token = ISSUER.token(signed, &header(signed), &claims());
        let strange = STRANGER.token(signed, &header(signed), &claims());
        for expected in ALL {
            let keys = keys(expected);
            let verified = verify(&keys, &Rules::default(), &token);
            if signed == expected {
                assert_eq!(verified.expect("good").subject(), "user-1", "{signed:?}");
                if !matches!(signed, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
                    assert_eq!(verify(&keys, &Rules::default(), &strange), Err(Signature), "{signed:?}");
                }
            } else {
                assert_eq!(verified, Err(TokenError::Algorithm), "{signed:?} {expected:?}");
            }
            // The header says what the key is for, and the signature is of another kind.
            if signed != expected {
                let lying = ISSUER.token(signed, &header(expected), &claims());
                assert_eq!(verify(&keys, &Rules::default(), &lying), Err(Signature), "{signed:?} {expected:?}");
            }
        }
    }
}

#[test]
fn a_public_key_is_no_secret() {
    let pem = ISSUER.pem(Algorithm::RS256);
    let keys = KeySet::from_pem(pem.as_bytes(), &ALL).expect("keys");
    let message = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(claims()));
    for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &x509(ISSUER.rsa.public_key())] {
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
        assert_eq!(verify(&keys, &Rules::default(), &format!("{message}.{}", encode(mac))), Err(TokenError::Algorithm));
        // Nor when there is a secret besides.
        let both = keys.clone().and(KeySet::from_secret(SECRET, &ALL).expect("keys"));
        assert_eq!(verify(&both, &Rules::default(), &format!("{message}.{}", encode(mac))), Err(Signature));
    }
}

#[test]
fn hostile_headers() {
    let check = |header: &str, expected: Result<(), TokenError>| {
        let token = ISSUER.token(Algorithm::HS256, header, &claims());
        let verified = verify(&keys(Algorithm::HS256), &Rules::default(), &token);
        assert_eq!(verified.map(|_| ()), expected, "{header}");
    };
    check(r#"{"alg":"HS256"}"#, Ok(()));
    check(r#" {"alg":"HS256","typ":"JWT"} "#, Ok(()));
    check(r#"{"alg":"HS256","typ":"jwt"}"#, Ok(()));
    check(r#"{"alg":"HS256","typ":"at+jwt"}"#, Ok(()));
    check(r#"{"alg":"HS256","typ":"application/AT+JWT"}"#, Ok(()));
    check(r#"{"alg":"HS256","kid":"whatever"}"#, Ok(()));
    check(r#"{"alg":"HS256","jku":"https://evil.example/keys","x5c":5,"jwk":{"kty":"oct","k":"AA"}}"#, Ok(()));
    for alg in ["none", "None", "NONE", "", "hs256", "HS256 ", "HS1", "ES512", "ES256K", "RSA1_5", "dir", "RS256"] {
        check(&json!({ "alg": alg }).to_string(), Err(TokenError::Algorithm));
    }
    for header in [
        "",
        "{",
        "null",
        "\"HS256\"",
        "[]",
        r#"["HS256",null,null,null,null,null,null,null]"#,
        "{}",
        r#"{"typ":"JWT"}"#,
        r#"{"alg":null}"#,
        r#"{"alg":256}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":"HS256","kid":1}"#,
        r#"{"alg":"HS256","kid":"a","kid":"b"}"#,
        r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","crit":null}"#,
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":"HS256","b64":true}"#,
        r#"{"alg":"HS256","enc":"A128GCM"}"#,
        r#"{"alg":"HS256","zip":"DEF"}"#,
        r#"{"alg":"HS256","cty":"JWT"}"#,
        r#"{"alg":"HS256","cty":"application/jwt"}"#,
        r#"{"alg":"HS256","typ":"logout+jwt"}"#,
        r#"{"alg":"HS256","typ":"dpop+jwt"}"#,
        r#"{"alg":"HS256","typ":"JOSE+JSON"}"#,
        r#"{"alg":"HS256","typ":"application/é"}"#,
        r#"{"alg":"HS256","typ":""}"#,
        r#"{"alg":"HS256","typ":1}"#,
        r#"{"alg":"HS256"} x"#,
        r#"{"alg":"HS256",}"#,
        &"[".repeat(3_000),
        &format!(r#"{{"alg":"HS256","x":{}}}"#, "[".repeat(1_000)),
    ] {
        check(header, Err(Malformed));
    }
}

#[test]
fn hostile_shapes() {
    let keys = keys(Algorithm::HS256);
    let good = ISSUER.token(Algorithm::HS256, &header(Algorithm::HS256), &claims());
    let [head, body, mac]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().expect("three");
    let check = |token: &str, expected: TokenError| {
        assert_eq!(verify(&keys, &Rules::default(), token), Err(expected), "{token}");
    };
    assert!(verify(&keys, &Rules::default(), &good).is_ok());
    check("", Malformed);
    check(".", Malformed);
    check("..", Malformed);
    check("...", Malformed);
    check("....", Malformed);
    check(head, Malformed);
    check(&format!("{head}.{body}"), Malformed);
    check(&format!("{head}.{body}."), Signature);
    check(&format!(".{body}.{mac}"), Malformed);
    check(&format!("{head}..{mac}"), Signature);
    check(&format!("{good}."), Malformed);
    check(&format!("{good}.{mac}.{mac}"), Malformed);
    check(&format!("{head}.{body}.{mac}="), Malformed);
    check(&format!("{head}=.{body}.{mac}"), Malformed);
    check(&format!(" {good}"), Malformed);
    check(&format!("{good}\n"), Malformed);
    check(&format!("{head}.{body}.{}", &mac[..mac.len() - 3]), Signature);
    check(&format!("{head}.{body}.{mac}AAAA"), Signature);
    check(&format!("{head}.{body}.{}+/", &mac[..mac.len() - 2]), Malformed);
    check(&format!("é{good}"), Malformed);
    check(&good.replace('.', "\0"), Malformed);
    let unsigned = encode(r#"{"alg":"none"}"#);
    check(&format!("{unsigned}.{body}."), TokenError::Algorithm);
    check(&format!("{unsigned}.{body}.{mac}"), TokenError::Algorithm);
    let other = encode(json!({ "sub": "admin", "exp": NOW + 60 }).to_string());
    check(&format!("{head}.{other}.{mac}"), Signature);
    // A JSON serialisation, a JWE of five parts, a token in a token.
    check(&format!(r#"{{"protected":"{head}","payload":"{body}","signature":"{mac}"}}"#), Malformed);
    check("eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..aaaa.bbbb.cccc", Malformed);
    check(&ISSUER.token(Algorithm::HS256, r#"{"alg":"HS256"}"#, &good), Malformed);
    // The last character of an HMAC-SHA-256 has two bits to spare, which must be zero: one token, one spelling.
    let last = mac.as_bytes()[mac.len() - 1];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let index = alphabet.iter().position(|&byte| byte == last).expect("base64url");
    let twin = char::from(alphabet[index ^ 1]);
    check(&format!("{head}.{body}.{}{twin}", &mac[..mac.len() - 1]), Malformed);
    // Size.
    let long = json!({ "sub": "user-1", "exp": NOW + 60, "pad": "a".repeat(TOKEN_MAX) }).to_string();
    check(&ISSUER.token(Algorithm::HS256, &header(Algorithm::HS256), &long), Malformed);
}

#[test]
fn hostile_claims() {
    let check_with = |rules: &Rules, claims: Value, expected: Result<(), TokenError>| {
        let claims = claims.as_str().map_or(claims.to_string(), str::to_owned);
        let token = ISSUER.token(Algorithm::HS256, r#"{"alg":"HS256"}"#, &claims);
        let verified = verify(&keys(Algorithm::HS256), rules, &token);
        assert_eq!(verified.map(|_| ()), expected, "{claims} {rules:?}");
    };
    let check = |claims: Value, expected| check_with(&Rules { leeway: 10, ..Rules::default() }, claims, expected);
    let later = NOW + 60;

    // Time.
    check(json!({ "sub": "u", "exp": later }), Ok(()));
    check(json!({ "sub": "u", "exp": NOW }), Ok(()));
    check(json!({ "sub": "u", "exp": NOW - 9 }), Ok(()));
    check(json!({ "sub": "u", "exp": NOW - 10 }), Err(Expired));
    check(json!({ "sub": "u", "exp": 0 }), Err(Expired));
    check(json!({ "sub": "u", "exp": NOW as f64 + 0.5 }), Ok(()));
    check(json!({ "sub": "u", "exp": NOW as f64 - 10.5 }), Err(Expired));
    check(json!({ "sub": "u", "exp": u64::MAX }), Ok(()));
    check(json!({ "sub": "u", "exp": later, "nbf": NOW, "iat": NOW }), Ok(()));
    check(json!({ "sub": "u", "exp": later, "nbf": NOW + 10 }), Ok(()));
    check(json!({ "sub": "u", "exp": later, "nbf": NOW + 11 }), Err(NotYetValid));
    check(json!({ "sub": "u", "exp": later, "iat": NOW + 11 }), Err(NotYetValid));
    check(json!({ "sub": "u", "exp": later, "nbf": u64::MAX }), Err(NotYetValid));
    for time in ["-1", "1e300", "\"1700000060\"", "true", "[1700000060]", "{}", "18446744073709551616", "1e400"] {
        for name in ["nbf", "iat", "exp"] {
            let rest = if name == "exp" { String::new() } else { format!(r#","exp":{later}"#) };
            let text = format!(r#"{{"sub":"u","{name}":{time}{rest}}}"#);
            let refused = if time == "1e400" { Malformed } else { Claims };
            check(Value::String(text), Err(refused));
        }
    }

    // What must be there.
    check(json!({ "sub": "u" }), Err(Claims));
    check(json!({ "sub": "u", "exp": null }), Err(Claims));
    check(json!({ "exp": later }), Err(Claims));
    check(json!({ "sub": null, "exp": later }), Err(Claims));
    check(json!({ "sub": 5, "exp": later }), Err(Claims));
    for sub in ["", "a b", "a\r\nX-Admin: 1", "\u{0}", "é", &"a".repeat(257)] {
        check(json!({ "sub": sub, "exp": later }), Err(Claims));
    }
    for text in [
        format!(r#"{{"sub":"u","exp":{later},"exp":{later}}}"#),
        format!(r#"{{"sub":"u","sub":"admin","exp":{later}}}"#),
        format!(r#"{{"sub":"u","\u0073ub":"admin","exp":{later}}}"#),
    ] {
        check(Value::String(text), Err(Claims));
    }
    for text in ["", "{", "null", "5", "\"u\"", "[]", r#"[null,"u",null,1700000060]"#, "{}{}", "\u{feff}{}"] {
        check(Value::String(text.into()), Err(Malformed));
    }

    // Scopes.
    check(json!({ "sub": "u", "exp": later, "scope": 5 }), Err(Claims));
    check(json!({ "sub": "u", "exp": later, "scp": [5] }), Err(Claims));
    check(json!({ "sub": "u", "exp": later, "scp": ["a b"] }), Err(Claims));
    check(json!({ "sub": "u", "exp": later, "scp": ["a\u{0}b"] }), Err(Claims));
    check(json!({ "sub": "u", "exp": later, "scope": "a\nb" }), Err(Claims));
    check(json!({ "sub": "u", "exp": later, "scope": "a ".repeat(65) }), Err(Claims));

    // Issuer, audience, further claims.
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let issued = Rules { issuers: words(&["https://id", "https://id2"]), ..Rules::default() };
    let iss = |iss: Value| json!({ "sub": "u", "exp": later, "iss": iss });
    check_with(&issued, iss(json!("https://id")), Ok(()));
    check_with(&issued, iss(json!("https://id2")), Ok(()));
    check_with(&issued, iss(json!("https://id/")), Err(Issuer));
    check_with(&issued, iss(json!("HTTPS://ID")), Err(Issuer));
    check_with(&issued, iss(json!(null)), Err(Issuer));
    check_with(&issued, iss(json!(["https://id"])), Err(Claims));
    check_with(&issued, json!({ "sub": "u", "exp": later }), Err(Issuer));
    check(iss(json!("anyone")), Ok(()));
    let meant = Rules { audiences: words(&["api", "api2"]), ..Rules::default() };
    let aud = |aud: Value| json!({ "sub": "u", "exp": later, "aud": aud });
    check_with(&meant, aud(json!("api")), Ok(()));
    check_with(&meant, aud(json!(["other", "api2"])), Ok(()));
    check_with(&meant, aud(json!("API")), Err(Audience));
    check_with(&meant, aud(json!([])), Err(Audience));
    check_with(&meant, aud(json!(["other"])), Err(Audience));
    check_with(&meant, aud(json!(null)), Err(Audience));
    check_with(&meant, aud(json!({ "api": 1 })), Err(Claims));
    check_with(&meant, json!({ "sub": "u", "exp": later }), Err(Audience));
    check(aud(json!("api")), Err(Audience));
    let tenants = Rules { required: words(&["sub", "tenant"]), ..Rules::default() };
    check_with(&tenants, json!({ "sub": "u", "tenant": "t" }), Ok(()));
    check_with(&tenants, json!({ "sub": "u", "tenant": false }), Ok(()));
    check_with(&tenants, json!({ "sub": "u", "tenant": null }), Err(Claims));
    check_with(&tenants, json!({ "sub": "u" }), Err(Claims));
    check_with(&tenants, json!({ "sub": "u", "tenant": "t", "exp": 5 }), Err(Expired));
    let none = Rules { required: Vec::new(), ..Rules::default() };
    check_with(&none, json!({ "sub": "u" }), Ok(()));
    check_with(&none, json!({}), Err(Claims));
}

#[test]
fn what_becomes_of_good_claims() {
    let check = |claims: Value, scopes: &str, expires: Option<u64>| {
        let rules = Rules { required: Vec::new(), leeway: 7, ..Rules::default() };
        let token = ISSUER.token(Algorithm::HS256, r#"{"alg":"HS256"}"#, &claims.to_string());
        let identity = verify(&keys(Algorithm::HS256), &rules, &token).expect("good");
        assert_eq!((identity.scopes(), identity.expires()), (scopes, expires), "{claims}");
    };
    check(json!({ "sub": "u" }), "", None);
    check(json!({ "sub": "u", "exp": NOW }), "", Some(NOW + 7));
    check(json!({ "sub": "u", "scope": "" }), "", None);
    check(json!({ "sub": "u", "scope": " a  b " }), "a b", None);
    check(json!({ "sub": "u", "scp": ["a", "b"] }), "a b", None);
    check(json!({ "sub": "u", "scp": "a b" }), "a b", None);
    check(json!({ "sub": "u", "scopes": ["a:b"] }), "a:b", None);
    check(json!({ "sub": "u", "scope": "a", "scp": ["b"], "scopes": "c" }), "a", None);
}

#[test]
fn minted_tokens_are_good() {
    install();
    install();
    let scopes = ["sms".to_owned(), "llm".to_owned()];
    let order = Mint { subject: "dev", scopes: &scopes, lifetime: 60, issuer: Some("us"), audience: Some("api") };
    let rules = Rules { issuers: vec!["us".into()], audiences: vec!["api".into()], leeway: 0, ..Rules::default() };
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let token = mint(&order, SECRET, algorithm, NOW).expect("signed");
        let at = |now| jwt::verify(&keys(algorithm), &rules, token.as_bytes(), now);
        let identity = at(NOW + 59).expect("good");
        assert_eq!((identity.subject(), identity.scopes()), ("dev", "sms llm"));
        assert_eq!(at(NOW + 60), Err(Expired));
        assert_eq!(at(NOW - 1), Err(NotYetValid));
    }
    assert!(mint(&order, &SECRET[..31], Algorithm::HS256, NOW).is_err());
    assert!(mint(&order, SECRET, Algorithm::RS256, NOW).is_err());
}

fn everything() -> KeySet {
    KeySet::from_secret(SECRET, &ALL)
        .and_then(|keys| Ok(keys.and(KeySet::from_pem(ISSUER.pem(Algorithm::ES256).as_bytes(), &ALL)?)))
        .and_then(|keys| Ok(keys.and(KeySet::from_pem(ISSUER.pem(Algorithm::EdDSA).as_bytes(), &ALL)?)))
        .expect("keys")
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_pass(token: Vec<u8>) {
        prop_assert!(jwt::verify(&everything(), &Rules::default(), &token, NOW).is_err());
    }

    #[test]
    fn arbitrary_parts_never_pass(header: String, claims: String, mac: Vec<u8>, with_alg in 0..4usize) {
        let header = match with_alg {
            0 => header,
            index => {
                let alg = ["HS256", "ES256", "EdDSA"][index - 1];
                json!({ "alg": alg, "kid": header }).to_string()
            }
        };
        let token = format!("{}.{}.{}", encode(header), encode(claims), encode(mac));
        prop_assert!(jwt::verify(&everything(), &Rules::default(), token.as_bytes(), NOW).is_err());
    }

    #[test]
    fn signed_nonsense_never_panics(header: String, claims: String) {
        let token = ISSUER.token(Algorithm::HS256, &header, &claims);
        prop_assert!(jwt::verify(&everything(), &Rules::default(), token.as_bytes(), NOW).is_err());
        let token = ISSUER.token(Algorithm::HS256, r#"{"alg":"HS256"}"#, &claims);
        prop_assert!(jwt::verify(&everything(), &Rules::default(), token.as_bytes(), NOW).is_err());
    }

    /// One token, one spelling: no bit of it may be flipped.
    #[test]
    fn a_changed_token_never_passes(at: prop::sample::Index, bit in 0..8u32) {
        let mut token = ISSUER.token(Algorithm::HS256, r#"{"alg":"HS256"}"#, &claims()).into_bytes();
        let at = at.index(token.len());
        token[at] ^= 1 << bit;
        prop_assert!(jwt::verify(&everything(), &Rules::default(), &token, NOW).is_err());
    }
}
