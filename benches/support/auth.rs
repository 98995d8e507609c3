//! Who is it: tokens and API keys.

use std::hint::black_box;

use ringway::policy::auth::mint::{Mint, mint};
use ringway::policy::auth::{
    self, Algorithm, ApiKeySpec, ApiKeys, Authenticator, Cache, KeyHash, KeySet, Mode, Presented,
};

use super::{NOW, Work, work};

/// What tokens are signed with.
pub const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A token of `subject`, good for an hour from [`NOW`].
pub fn token(subject: &str) -> String {
    let scopes = ["sms:send".to_owned(), "llm:chat".to_owned()];
    let order =
        Mint { subject, scopes: &scopes, lifetime: 3_600, issuer: Some("https://id.example.com"), audience: None };
    auth::install();
    mint(&order, SECRET, Algorithm::HS256, NOW).expect("signed")
}

/// The same with another signature.
pub fn forged(token: &str) -> String {
    format!("{}AAAA", &token[..token.len() - 4])
}

/// The API key of owner `number`.
pub fn api_key(number: usize) -> String {
    format!("rw_0123456789abcdef-{number:06}")
}

/// Knows [`SECRET`] and so many API keys.
pub fn authenticator(api_keys: usize) -> Authenticator {
    let spec = |number: usize| ApiKeySpec {
        name: format!("owner-{number}").into(),
        hash: KeyHash::of(api_key(number).as_bytes()),
        scopes: vec!["sms:send".into()],
        enabled: true,
        expires: None,
        rate_limit: None,
    };
    Authenticator {
        version: 1,
        keys: KeySet::from_secret(SECRET, &[Algorithm::HS256]).expect("keys"),
        api_keys: ApiKeys::new((0..api_keys).map(spec).collect()).expect("keys"),
        ..Authenticator::default()
    }
}

/// A worker's memory of tokens.
pub fn cache() -> Cache {
    Cache::new(4_096, [7; 16])
}

/// A token that was verified before, from the header to the identity.
pub fn warm_token() -> Work {
    let (authenticator, mut cache) = (authenticator(0), cache());
    let header = format!("Bearer {}", token("user-1"));
    work(move || {
        let presented = Presented::read(Some(black_box(header.as_bytes())), None, false);
        authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect("good")
    })
}

/// A token that nobody has seen, from the header to the identity: its signature and claims are checked, and it is remembered.
pub fn cold_token() -> Work {
    let turns = [authenticator(0), Authenticator { version: 2, ..authenticator(0) }];
    // Of the least size, since another version has it forget everything first.
    let mut cache = Cache::new(0, [7; 16]);
    let header = format!("Bearer {}", token("user-1"));
    let mut turn = 0;
    work(move || {
        turn = 1 - turn;
        let presented = Presented::read(Some(black_box(header.as_bytes())), None, false);
        turns[turn].verify(Mode::Required, presented, &mut cache, NOW).expect("good")
    })
}

/// A token with a bad signature is refused, which is not remembered.
pub fn forged_token() -> Work {
    let (authenticator, mut cache) = (authenticator(0), cache());
    let forged = forged(&token("user-1"));
    work(move || {
        let presented = Presented::Bearer(black_box(forged.as_bytes()));
        authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect_err("forged")
    })
}

/// One API key among `count`.
pub fn known_key(count: usize) -> Work {
    let (authenticator, mut cache) = (authenticator(count), cache());
    let key = api_key(count / 2);
    work(move || {
        let presented = Presented::read(None, Some(black_box(key.as_bytes())), false);
        authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect("good")
    })
}

/// An API key that is nobody's.
pub fn unknown_key() -> Work {
    let (authenticator, mut cache) = (authenticator(100), cache());
    let key = api_key(100);
    work(move || {
        let presented = Presented::read(None, Some(black_box(key.as_bytes())), false);
        authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect_err("nobody's")
    })
}
