//! What it costs to know who a client is: `cargo bench --bench auth`.

mod support;

use std::hint::black_box;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use criterion::{Criterion, criterion_group, criterion_main};
use ringway::policy::auth::{Algorithm, KeySet, Mode, Presented, jwt};

use support::NOW;
use support::auth::{self, api_key, authenticator, cache, token};

fn tokens(c: &mut Criterion) {
    let cold = token("user-1");
    let length = cold.len();
    c.bench_function(&format!("warm HS256 token of {length} bytes, header to identity"), |b| {
        b.iter(&mut auth::warm_token())
    });
    c.bench_function("cold HS256 token", |b| b.iter(&mut auth::cold_token()));
    c.bench_function("forged HS256 token", |b| b.iter(&mut auth::forged_token()));

    let authenticator = authenticator(0);
    let mut cache = cache();
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
    c.bench_function("an API key that is nobody's", |b| b.iter(&mut auth::unknown_key()));
    for count in [1, 10_000] {
        c.bench_function(&format!("one API key among {count}"), |b| b.iter(&mut auth::known_key(count)));
        let (authenticator, mut cache) = (authenticator(count), cache());
        let keys: Vec<String> = (0..count).map(api_key).collect();
        let mut next = 0;
        c.bench_function(&format!("every API key of {count} in turn"), |b| {
            b.iter(|| {
                next = (next + 1) % count;
                let presented = Presented::read(None, Some(black_box(keys[next].as_bytes())), false);
                authenticator.verify(Mode::Required, presented, &mut cache, NOW).expect("good")
            });
        });
    }
}

criterion_group!(benches, tokens, api_keys);
criterion_main!(benches);
