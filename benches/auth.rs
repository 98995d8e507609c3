//! What it costs to know who a client is: `cargo bench --bench auth`.

use std::hint::black_box;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use criterion::{Criterion, criterion_group, criterion_main};
use ringway::policy::auth::mint::{Mint, mint};
use ringway::policy::auth::{
    self, Algorithm, ApiKeySpec, ApiKeys, Authenticator, Cache, KeyHash, KeySet, Mode, Presented, jwt,
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_700_000_000;

fn token(subject: &str) -> String {
    let scopes = ["sms:send".to_owned(), "llm:chat".to_owned()];
    let order =
        Mint { subject, scopes: &scopes, lifetime: 3_600, issuer: Some("https://id.example.com"), audience: None };
    mint(&order, SECRET, Algorithm::HS256, NOW).expect("signed")
}

fn authenticator(api_keys: usize) -> Authenticator {
    let spec = |number: usize| ApiKeySpec {
        name: format!("owner-{number}").into(),
        hash: KeyHash::of(format!("rw_0123456789abcdef-{number:06}").as_bytes()),
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

fn tokens(c: &mut Criterion) {
    auth::install();
    let authenticator = authenticator(0);
    let header = format!("Bearer {}", token("user-1"));
    let mut cache = Cache::new(4_096, [7; 16]);
    let length = header.len() - "Bearer ".len();
    c.bench_function(&format!("warm HS256 token of {length} bytes, header to identity"), |b| {
        b.iter(|| {
            let presented = Presented::read(Some(black_box(header.as_bytes())), None, false);
            authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect("good")
        });
    });

    // As many users as the cache remembers, in turn: their sets are not in the processor's first cache.
    let many: Vec<String> = (0..3_000).map(|number| token(&format!("user-{number}"))).collect();
    let mut next = 0;
    c.bench_function("warm HS256 token, 3,000 users in turn", |b| {
        b.iter(|| {
            next = (next + 1) % many.len();
            let presented = Presented::Bearer(many[next].as_bytes());
            authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect("good")
        });
    });

    let cold = token("user-1");
    c.bench_function("cold HS256 token", |b| {
        b.iter(|| {
            jwt::verify(&authenticator.keys, &authenticator.rules, black_box(cold.as_bytes()), NOW).expect("good")
        });
    });
    let forged = format!("{}AAAA", &cold[..cold.len() - 4]);
    c.bench_function("forged HS256 token", |b| {
        b.iter(|| jwt::verify(&authenticator.keys, &authenticator.rules, black_box(forged.as_bytes()), NOW).err());
    });

    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let der = pair.public_key().as_der().expect("DER");
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref()));
    let keys = KeySet::from_pem(pem.as_bytes(), &[Algorithm::ES256]).expect("a key");
    let claims = cold.split('.').nth(1).expect("claims");
    let message = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#));
    let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
    let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
    c.bench_function("cold ES256 token", |b| {
        b.iter(|| jwt::verify(&keys, &authenticator.rules, black_box(signed.as_bytes()), NOW).expect("good"));
    });

    // What the cache would cost with the library's keyed hash in place of SipHash.
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
    c.bench_function(&format!("for comparison: HMAC-SHA-256 of {length} bytes"), |b| {
        b.iter(|| hmac::sign(&key, black_box(cold.as_bytes())));
    });
}

fn api_keys(c: &mut Criterion) {
    for count in [1, 10_000] {
        let authenticator = authenticator(count);
        let mut cache = Cache::new(4_096, [7; 16]);
        let keys: Vec<String> = (0..count).map(|number| format!("rw_0123456789abcdef-{number:06}")).collect();
        let presented = |number: usize| Presented::read(None, Some(black_box(keys[number].as_bytes())), false);
        c.bench_function(&format!("one API key among {count}"), |b| {
            let chosen = presented(count / 2);
            b.iter(|| authenticator.verify(Mode::Required, black_box(chosen), &mut cache, NOW).expect("good"));
        });
        let mut next = 0;
        c.bench_function(&format!("every API key of {count} in turn"), |b| {
            b.iter(|| {
                next = (next + 1) % count;
                authenticator.verify(Mode::Required, presented(next), &mut cache, NOW).expect("good")
            });
        });
    }
}

criterion_group!(benches, tokens, api_keys);
criterion_main!(benches);
