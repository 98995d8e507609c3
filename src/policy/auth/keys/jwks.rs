//! JWK Sets (RFC 7517, section 5; RFC 7518, section 6; RFC 8037, section 2).
//!
//! An issuer publishes what it likes; a key that is not for us must not make the others unusable. So each one is read by
//! itself, and skipped with a reason when it is of another type, another use, weak or broken. A symmetric or private key
//! in a published set is a leak, and is not used.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Algorithm, KeyError, KeySet, VerificationKey, ed25519, elliptic, pin, rsa};

/// The longest document, in bytes.
pub const JWKS_BYTES_MAX: usize = 1 << 20;

/// The most keys that are taken from a document.
pub const JWKS_KEYS_MAX: usize = 64;

/// A key of a set that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its place in the set, from 0.
    pub position: usize,
    /// Its `kid`, cut to 64 characters.
    pub kid: Option<String>,
    /// Why.
    pub reason: SkipReason,
}

/// Why a key of a set is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// `kty` or `crv` is none of RSA, EC on P-256 and P-384, OKP on Ed25519.
    #[error("its type or curve is not supported")]
    Type,
    /// `use` is not `sig`, or `key_ops` is without `verify`.
    #[error("it is not for verifying signatures")]
    Use,
    /// `alg` is unknown, not allowed, or not of the key's type; or nothing allowed is of the key's type.
    #[error("its algorithm is not allowed here, or not that of its type")]
    Algorithm,
    /// A secret in public.
    #[error("it is a symmetric or private key, which does not belong into a published set")]
    Secret,
    /// RSA below 2,048 or above 8,192 bits, a point off the curve, a member that is missing or no base64url.
    #[error("it is malformed or too weak")]
    Invalid,
    /// An earlier key has its `kid`, and one of its algorithms.
    #[error("an earlier key has the same kid and algorithm")]
    Duplicate,
    /// [`JWKS_KEYS_MAX`] were taken already.
    #[error("there are too many keys")]
    TooMany,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key {} ({:?}): {}", self.position, self.kid.as_deref().unwrap_or("no kid"), self.reason)
    }
}

pub(super) fn listed(skipped: &[Skipped]) -> String {
    skipped.iter().take(4).map(|skipped| format!("; {skipped}")).collect()
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
    k: Option<IgnoredAny>,
}

pub(super) fn read(text: &[u8], allowed: &[Algorithm]) -> Result<(KeySet, Vec<Skipped>), KeyError> {
    if text.len() > JWKS_BYTES_MAX {
        return Err(KeyError::Jwks(format!("it is longer than {JWKS_BYTES_MAX} bytes")));
    }
    let is_object = text.trim_ascii_start().starts_with(b"{");
    let document: Document = match serde_json::from_slice(text) {
        Ok(document) if is_object => document,
        Ok(_) => return Err(KeyError::Jwks("it is no JSON object".into())),
        Err(error) => return Err(KeyError::Jwks(error.to_string())),
    };
    let mut set = KeySet::default();
    let mut skipped = Vec::new();
    for (position, jwk) in document.keys.iter().enumerate() {
        let kid = jwk.get("kid").and_then(|kid| kid.as_str());
        let reason = match key(jwk, allowed) {
            _ if set.len() == JWKS_KEYS_MAX => SkipReason::TooMany,
            Ok(key) if is_duplicate(&set, &key) => SkipReason::Duplicate,
            Ok(key) => {
                set.keys.push(key);
                continue;
            }
            Err(reason) => reason,
        };
        skipped.push(Skipped { position, kid: kid.map(|kid| kid.chars().take(64).collect()), reason });
    }
    if set.is_empty() { Err(KeyError::NoUsableKey(skipped)) } else { Ok((set, skipped)) }
}

/// Keys of different types may share a `kid` (RFC 7517, section 4.5).
fn is_duplicate(set: &KeySet, key: &VerificationKey) -> bool {
    let overlaps = |other: &VerificationKey| other.algorithms.iter().any(|one| key.algorithms.contains(one));
    key.kid.is_some() && set.keys.iter().any(|other| other.kid == key.kid && overlaps(other))
}

fn key(jwk: &serde_json::Value, allowed: &[Algorithm]) -> Result<VerificationKey, SkipReason> {
    let jwk = Jwk::deserialize(jwk).map_err(|_| SkipReason::Invalid)?;
    if jwk.kty == "oct" || jwk.d.is_some() || jwk.k.is_some() {
        return Err(SkipReason::Secret);
    }
    let verifies = |operations: &Vec<String>| operations.iter().any(|operation| operation == "verify");
    if jwk.usage.is_some_and(|usage| usage != "sig") || jwk.key_ops.as_ref().is_some_and(|ops| !verifies(ops)) {
        return Err(SkipReason::Use);
    }
    let coordinate = |value: &Option<String>, length: usize| {
        bytes(value).ok().filter(|bytes| bytes.len() == length).ok_or(SkipReason::Invalid)
    };
    let point = |length| Ok([vec![4], coordinate(&jwk.x, length)?, coordinate(&jwk.y, length)?].concat());
    let (key, kind) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => rsa(&bytes(&jwk.n)?, &bytes(&jwk.e)?),
        ("EC", Some("P-256")) => elliptic(&point(32)?),
        ("EC", Some("P-384")) => elliptic(&point(48)?),
        ("OKP", Some("Ed25519")) => ed25519(&coordinate(&jwk.x, 32)?),
        _ => return Err(SkipReason::Type),
    }
    .map_err(|_| SkipReason::Invalid)?;
    let mut algorithms = pin(kind, allowed).map_err(|_| SkipReason::Algorithm)?;
    if let Some(alg) = &jwk.alg {
        let alg = super::super::jwt::algorithm(alg);
        algorithms.retain(|&algorithm| Some(algorithm) == alg);
    }
    if algorithms.is_empty() {
        return Err(SkipReason::Algorithm);
    }
    Ok(VerificationKey { kid: jwk.kid.map(Into::into), algorithms, key })
}

fn bytes(value: &Option<String>) -> Result<Vec<u8>, SkipReason> {
    let text = value.as_deref().ok_or(SkipReason::Invalid)?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| SkipReason::Invalid)
}
