use std::rc::Rc;

use super::*;
use crate::http::method::{Method, MethodSet};
use crate::policy::auth::{
    ApiKeyError, ApiKeySpec, ApiKeys, AuthError, Authenticator, Cache, Identity, KeyHash, Malformed, Mode, Presented,
    RequiredScopes, Rules, TokenError,
};

fn authenticator(version: u64) -> Authenticator {
    let spec = |name: &str, key: &[u8]| ApiKeySpec {
        name: name.into(),
        hash: KeyHash::of(key),
        scopes: vec!["sms".into()],
        enabled: true,
        expires: Some(NOW + 60),
        rate_limit: None,
    };
    let api_keys = ApiKeys::new(vec![spec("acme", b"key-a"), spec("other", b"key-b")]).expect("keys");
    let rules = Rules { leeway: 0, ..Rules::default() };
    Authenticator { version, keys: keys(Algorithm::HS256), rules, api_keys, awaits_issuer: false }
}

fn token(number: u64, lifetime: u64) -> String {
    let claims = json!({ "sub": format!("user-{number}"), "exp": NOW + lifetime }).to_string();
    ISSUER.token(Algorithm::HS256, r#"{"alg":"HS256"}"#, &claims)
}

#[test]
fn modes() {
    let good = token(1, 60);
    let cases = [
        (Presented::None, Err(AuthError::Missing), Ok(None)),
        (Presented::Bearer(good.as_bytes()), Ok(Some("user-1")), Ok(Some("user-1"))),
        (Presented::ApiKey(b"key-a"), Ok(Some("acme")), Ok(Some("acme"))),
        (
            Presented::Bearer(b"a.b.c"),
            Err(AuthError::Token(TokenError::Malformed)),
            Err(AuthError::Token(TokenError::Malformed)),
        ),
        (
            Presented::ApiKey(b"key-c"),
            Err(AuthError::ApiKey(ApiKeyError::Unknown)),
            Err(AuthError::ApiKey(ApiKeyError::Unknown)),
        ),
        (
            Presented::Malformed(Malformed::Several),
            Err(AuthError::Malformed(Malformed::Several)),
            Err(AuthError::Malformed(Malformed::Several)),
        ),
    ];
    let mut cache = Cache::new(16, [7; 16]);
    for (presented, required, optional) in cases {
        for (mode, expected) in [(Mode::Required, required), (Mode::Optional, optional), (Mode::None, Ok(None))] {
            let verified = authenticator(1).verify(mode, presented, &mut cache, NOW);
            let subject = verified.as_ref().map(|who| who.as_ref().map(|who| who.subject())).map_err(|&error| error);
            assert_eq!(subject, expected, "{mode:?} {presented:?}");
        }
    }
}

#[test]
fn what_is_remembered_and_for_how_long() {
    let mut cache = Cache::new(64, [7; 16]);
    let good = token(1, 60);
    let presented = Presented::Bearer(good.as_bytes());
    let ask = |cache: &mut Cache, version, now| {
        authenticator(version).verify(Mode::Required, presented, cache, now).map(|who| who.expect("required"))
    };
    let first = ask(&mut cache, 1, NOW).expect("good");
    let second = ask(&mut cache, 1, NOW + 59).expect("good");
    assert!(Rc::ptr_eq(&first, &second), "remembered");
    assert_eq!(cache.len(), 1);
    assert_eq!(ask(&mut cache, 1, NOW + 60).err(), Some(AuthError::Token(TokenError::Expired)));
    assert!(cache.is_empty(), "it ends with its token");

    let first = ask(&mut cache, 1, NOW).expect("good");
    let second = ask(&mut cache, 2, NOW).expect("good");
    assert!(!Rc::ptr_eq(&first, &second), "forgotten with a new version");
    let rotated = Authenticator { version: 3, keys: KeySet::default(), ..authenticator(3) };
    let refused = rotated.verify(Mode::Required, presented, &mut cache, NOW).err();
    assert_eq!(refused, Some(AuthError::Token(TokenError::UnknownKey)), "the key is gone, and so is what it verified");
    assert!(refused.is_some_and(AuthError::is_unknown_key));

    let mut bad = good.clone();
    bad.pop();
    bad.push('*');
    assert!(authenticator(3).verify(Mode::Required, Presented::Bearer(bad.as_bytes()), &mut cache, NOW).is_err());
    assert!(cache.is_empty(), "refusals are not remembered");
}

#[test]
fn api_keys_share_one_identity_a_key() {
    let mut cache = Cache::new(64, [7; 16]);
    let ask = |cache: &mut Cache, version, key, now| {
        authenticator(version)
            .verify(Mode::Required, Presented::ApiKey(key), cache, now)
            .map(|who| who.expect("required"))
    };
    let first = ask(&mut cache, 1, b"key-b", NOW).expect("good");
    assert!(Rc::ptr_eq(&first, &ask(&mut cache, 1, b"key-b", NOW).expect("good")));
    assert_eq!(ask(&mut cache, 1, b"key-a", NOW).expect("good").subject(), "acme");
    assert!(!Rc::ptr_eq(&first, &ask(&mut cache, 2, b"key-b", NOW).expect("good")));
    assert_eq!(ask(&mut cache, 2, b"key-b", NOW + 60).err(), Some(AuthError::ApiKey(ApiKeyError::Expired)));
}

#[test]
fn a_full_cache_stays_as_large_as_it_is() {
    let identity = |number: u64| {
        let made = Identity::new(crate::policy::auth::AuthMethod::Jwt, &number.to_string(), [], Some(number), None);
        Rc::new(made.expect("fine"))
    };
    let mut cache = Cache::new(64, [9; 16]);
    for number in 1_000..11_000 {
        let tag = cache.tag(&number.to_string().into_bytes());
        assert_eq!(cache.get(tag, 0), None);
        cache.insert(tag, identity(number), 0);
        assert_eq!(cache.get(tag, 0).expect("just remembered").subject(), number.to_string());
        assert!(cache.len() <= 64);
    }
    assert_eq!(cache.len(), 64);
    // What is over makes place first.
    let (now, mut kept) = (10_999, 0);
    for number in 20_000..20_016u64 {
        let tag = cache.tag(&number.to_string().into_bytes());
        cache.insert(tag, identity(number), now);
    }
    for number in 20_000..20_016u64 {
        let tag = cache.tag(&number.to_string().into_bytes());
        kept += usize::from(cache.get(tag, now).is_some());
    }
    assert!(kept >= 12, "{kept} of 16 new ones in 64 free places");
}

#[test]
fn what_is_used_stays() {
    let identity = Rc::new(Identity::new(crate::policy::auth::AuthMethod::Jwt, "u", [], None, None).expect("fine"));
    let mut cache = Cache::new(4, [9; 16]);
    let hot = cache.tag(b"hot");
    cache.insert(hot, Rc::clone(&identity), 0);
    for number in 0..1_000u32 {
        assert!(cache.get(hot, 0).is_some(), "after {number} others");
        let cold = cache.tag(&number.to_le_bytes());
        cache.insert(cold, Rc::clone(&identity), 0);
    }
}

#[test]
fn scopes_by_method() {
    let identity = |scopes: &[&str]| {
        Identity::new(crate::policy::auth::AuthMethod::Jwt, "u", scopes.iter().copied(), None, None).expect("fine")
    };
    let read = ["sms:read".to_owned()];
    let write = ["sms:write".to_owned(), "paid".to_owned()];
    let any = MethodSet::ALL;
    let post = MethodSet::EMPTY.with(Method::Post);
    let rules = RequiredScopes::new([(any, &read[..]), (post, &write[..]), (any, &[][..])]);
    let check = |method, scopes: Option<&[&str]>, expected: Result<(), AuthError<'_>>| {
        assert_eq!(rules.check(method, scopes.map(identity).as_ref()), expected, "{method:?} {scopes:?}");
    };
    check(Method::Get, Some(&["sms:read"]), Ok(()));
    check(Method::Get, Some(&["x", "sms:read", "y"]), Ok(()));
    check(Method::Get, Some(&["sms"]), Err(AuthError::InsufficientScope("sms:read")));
    check(Method::Get, Some(&[]), Err(AuthError::InsufficientScope("sms:read")));
    check(Method::Get, None, Err(AuthError::Missing));
    check(Method::Other, None, Err(AuthError::Missing));
    check(Method::Post, Some(&["sms:read"]), Err(AuthError::InsufficientScope("sms:write paid")));
    check(Method::Post, Some(&["sms:read", "paid"]), Err(AuthError::InsufficientScope("sms:write paid")));
    check(Method::Post, Some(&["paid", "sms:write", "sms:read"]), Ok(()));
    assert_eq!(RequiredScopes::default().check(Method::Get, None), Ok(()));
    assert_eq!(RequiredScopes::new([(any, &[][..])]), RequiredScopes::default());
}

#[test]
fn what_clients_are_told() {
    let check = |error: AuthError<'_>, status: u16, reason: &str, expected: &str| {
        let problem = error.problem();
        let mut line = Vec::new();
        error.push_challenge(&mut line);
        let line = String::from_utf8(line).expect("ASCII");
        assert_eq!((problem.status, problem.reason), (status, reason));
        assert_eq!(line, format!("WWW-Authenticate: Bearer realm=\"ringway\"{expected}\r\n"));
        // RFC 6750, section 3: what may stand between the quotation marks.
        assert!(problem.detail.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b"\"\\".contains(&byte)));
    };
    check(AuthError::Missing, 401, "credentials_missing", "");
    check(AuthError::ApiKey(ApiKeyError::Unknown), 401, "api_key_unknown", "");
    check(
        AuthError::Malformed(Malformed::Several),
        400,
        "credentials_several",
        ", error=\"invalid_request\", error_description=\"Send one credential: a bearer token or an API key, and once.\"",
    );
    check(
        AuthError::InsufficientScope("sms:write paid"),
        403,
        "insufficient_scope",
        ", error=\"insufficient_scope\", error_description=\"The credential is good, and lacks a scope that this \
         needs.\", scope=\"sms:write paid\"",
    );
    for error in TokenError::ALL {
        let expected = format!(", error=\"invalid_token\", error_description=\"{}\"", error.detail());
        check(AuthError::Token(error), 401, error.reason(), &expected);
    }
    for error in ApiKeyError::ALL {
        check(AuthError::ApiKey(error), 401, error.reason(), "");
    }
    for malformed in [Malformed::Authorization, Malformed::ApiKey] {
        assert_eq!(AuthError::Malformed(malformed).problem().status, 400);
    }
}
