//! Tokens made by hand, by keys made for the test, and what becomes of them.

mod key_sets;
mod tokens;
mod verdicts;

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use aws_lc_rs::{encoding, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::keys::{Algorithm, KeySet};

const NOW: u64 = 1_700_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const ALL: [Algorithm; 12] = {
    use Algorithm::*;
    [HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA]
};

/// The issuer.
struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(Issuer::new);
/// Another one, whom nobody trusts.
static STRANGER: LazyLock<Issuer> = LazyLock::new(Issuer::new);

impl Issuer {
    fn new() -> Issuer {
        Issuer {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            p256: EcdsaKeyPair::generate(&sig::ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            p384: EcdsaKeyPair::generate(&sig::ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"),
            ed: Ed25519KeyPair::generate().expect("a key"),
        }
    }

    fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let mac = |algorithm| hmac::sign(&hmac::Key::new(algorithm, SECRET), message).as_ref().to_vec();
        let rsa = |encoding: &'static dyn sig::RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(encoding, &random, message, &mut signature).expect("signed");
            signature
        };
        match algorithm {
            Algorithm::HS256 => mac(hmac::HMAC_SHA256),
            Algorithm::HS384 => mac(hmac::HMAC_SHA384),
            Algorithm::HS512 => mac(hmac::HMAC_SHA512),
            Algorithm::RS256 => rsa(&sig::RSA_PKCS1_SHA256),
            Algorithm::RS384 => rsa(&sig::RSA_PKCS1_SHA384),
            Algorithm::RS512 => rsa(&sig::RSA_PKCS1_SHA512),
            Algorithm::PS256 => rsa(&sig::RSA_PSS_SHA256),
            Algorithm::PS384 => rsa(&sig::RSA_PSS_SHA384),
            Algorithm::PS512 => rsa(&sig::RSA_PSS_SHA512),
            Algorithm::ES256 => self.p256.sign(&random, message).expect("signed").as_ref().to_vec(),
            Algorithm::ES384 => self.p384.sign(&random, message).expect("signed").as_ref().to_vec(),
            Algorithm::EdDSA => self.ed.sign(message).as_ref().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// A token with this header and these claims, whatever they say, signed with `algorithm`.
    fn token(&self, algorithm: Algorithm, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        format!("{message}.{}", encode(self.sign(algorithm, message.as_bytes())))
    }

    fn pem(&self, algorithm: Algorithm) -> String {
        let der = match algorithm {
            Algorithm::ES256 => x509(self.p256.public_key()),
            Algorithm::ES384 => x509(self.p384.public_key()),
            Algorithm::EdDSA => x509(self.ed.public_key()),
            _ => x509(self.rsa.public_key()),
        };
        pem("PUBLIC KEY", &der)
    }

    /// The JWK of the key for `algorithm`, without `alg`, `use` and `kid`.
    fn jwk(&self, algorithm: Algorithm) -> Value {
        let ec = |curve: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            json!({ "kty": "EC", "crv": curve, "x": encode(x), "y": encode(y) })
        };
        match algorithm {
            Algorithm::ES256 => ec("P-256", self.p256.public_key().as_ref()),
            Algorithm::ES384 => ec("P-384", self.p384.public_key().as_ref()),
            Algorithm::EdDSA => json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(self.ed.public_key()) }),
            _ => {
                let parts = sig::RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
                json!({ "kty": "RSA", "n": encode(parts.n), "e": encode(parts.e) })
            }
        }
    }
}

fn x509(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    let der: encoding::PublicKeyX509Der<'static> = key.as_der().expect("DER");
    der.as_ref().to_vec()
}

fn pem(tag: &str, der: &[u8]) -> String {
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", STANDARD.encode(der))
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A JWK with further members.
fn with(mut jwk: Value, members: Value) -> Value {
    let (Value::Object(jwk_members), Value::Object(members)) = (&mut jwk, members) else { panic!("objects") };
    jwk_members.extend(members);
    jwk
}

fn header(algorithm: Algorithm) -> String {
    json!({ "alg": format!("{algorithm:?}"), "typ": "JWT" }).to_string()
}

fn claims() -> String {
    json!({ "sub": "user-1", "exp": NOW + 60, "scope": "sms llm" }).to_string()
}

/// The keys for `algorithm` alone, without a `kid`.
fn keys(algorithm: Algorithm) -> KeySet {
    let made = match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => KeySet::from_secret(SECRET, &[algorithm]),
        _ => KeySet::from_pem(ISSUER.pem(algorithm).as_bytes(), &[algorithm]),
    };
    made.expect("keys")
}
