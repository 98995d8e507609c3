//! The keys that tokens are verified with, each pinned to its algorithms.
//!
//! A token's header only selects among what a key was pinned to when it was configured, never what a key is used for: an
//! RSA public key is not reachable by `HS256`, since no key made of it is pinned to that (RFC 8725, section 3.1). Keys
//! inside or pointed to by a token (`jwk`, `jku`, `x5c`, `x5u`) are ignored.
//!
//! Every key is checked when it is read: strength, curve, point on the curve. A weak or broken one stops the start instead
//! of refusing tokens later.

mod jwks;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
pub use jsonwebtoken::Algorithm;
use jsonwebtoken::{AlgorithmFamily, DecodingKey, DecodingKeyKind};

pub use self::jwks::{JWKS_BYTES_MAX, JWKS_KEYS_MAX, SkipReason, Skipped};
use super::jwt::TokenError;

/// The most keys that one token is tried with: what a bad signature may cost.
pub const TRIES_MAX: usize = 8;

/// Verification keys.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: Vec<VerificationKey>,
}

/// One key and what it may verify.
#[derive(Debug, Clone)]
struct VerificationKey {
    kid: Option<Box<str>>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// What an operator's key is refused for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// RFC 7518, section 3.2.
    #[error("the secret has {bytes} bytes, {algorithm:?} needs at least {least}")]
    SecretTooShort {
        /// How long it is.
        bytes: usize,
        /// For which algorithm that is too short.
        algorithm: Algorithm,
        /// How long it would have to be.
        least: usize,
    },
    /// Nothing could ever be verified with it.
    #[error("{kind} verifies {fits:?}, none of which is among the allowed algorithms {allowed:?}")]
    NoAlgorithm {
        /// What was given.
        kind: KeyKind,
        /// What it could verify.
        fits: &'static [Algorithm],
        /// What the configuration allows.
        allowed: Vec<Algorithm>,
    },
    /// No block that begins with `-----BEGIN`.
    #[error("no PEM block found, expected -----BEGIN PUBLIC KEY-----")]
    NotPem,
    /// It belongs to the issuer alone.
    #[error("this is a private key; a gateway needs the public key only")]
    PrivateKey,
    /// A certificate, an encrypted key, or anything else.
    #[error("PEM block {0:?} is not supported, expected PUBLIC KEY or RSA PUBLIC KEY")]
    PemBlock(String),
    /// Undecodable, of another type or curve, or not a valid point.
    #[error("not a valid public key of a supported type: RSA, EC on P-256 or P-384, Ed25519")]
    Invalid,
    /// NIST SP 800-131A; RFC 7518, section 3.3.
    #[error("the RSA key has {0} bits, expected 2048 to 8192")]
    RsaSize(usize),
    /// Not JSON, no `keys` array, or too long.
    #[error("not a JWK Set: {0}")]
    Jwks(String),
    /// A JWK Set in which nothing is usable.
    #[error("no usable key among the {} of the JWK Set{}", .0.len(), jwks::listed(.0))]
    NoUsableKey(Vec<Skipped>),
}

/// The type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// A secret shared with the issuer.
    Secret,
    /// RSA.
    Rsa,
    /// Elliptic curve P-256.
    P256,
    /// Elliptic curve P-384.
    P384,
    /// Edwards curve 25519.
    Ed25519,
}

impl std::fmt::Display for KeyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KeyKind::Secret => "a shared secret",
            KeyKind::Rsa => "an RSA key",
            KeyKind::P256 => "a P-256 key",
            KeyKind::P384 => "a P-384 key",
            KeyKind::Ed25519 => "an Ed25519 key",
        })
    }
}

impl KeyKind {
    /// What such a key can verify.
    pub const fn algorithms(self) -> &'static [Algorithm] {
        use Algorithm::*;
        match self {
            KeyKind::Secret => &[HS256, HS384, HS512],
            KeyKind::Rsa => &[RS256, RS384, RS512, PS256, PS384, PS512],
            KeyKind::P256 => &[ES256],
            KeyKind::P384 => &[ES384],
            KeyKind::Ed25519 => &[EdDSA],
        }
    }
}

impl KeySet {
    /// A secret shared with the issuer, for those of `allowed` that are HMACs.
    ///
    /// # Errors
    /// When the secret is shorter than the hash of one of them, or none of them is an HMAC.
    pub fn from_secret(secret: &[u8], allowed: &[Algorithm]) -> Result<KeySet, KeyError> {
        let algorithms = pin(KeyKind::Secret, allowed)?;
        for &algorithm in &algorithms {
            let least = secret_length_min(algorithm);
            if secret.len() < least {
                return Err(KeyError::SecretTooShort { bytes: secret.len(), algorithm, least });
            }
        }
        Ok(KeySet { keys: vec![VerificationKey { kid: None, algorithms, key: DecodingKey::from_secret(secret) }] })
    }

    /// The public keys of a PEM file, each for those of `allowed` that its type and curve fit. They have no `kid`: a token
    /// that names one is tried with them all the same.
    ///
    /// # Errors
    /// When there is none, or one of them is private, of another type, weak, broken, or fits nothing in `allowed`.
    pub fn from_pem(text: &[u8], allowed: &[Algorithm]) -> Result<KeySet, KeyError> {
        let text = std::str::from_utf8(text).map_err(|_| KeyError::NotPem)?;
        let mut keys = Vec::new();
        for (at, _) in text.match_indices("-----BEGIN ") {
            let block = &text[at..];
            let tag = block["-----BEGIN ".len()..].split("-----").next().unwrap_or_default();
            let end_line = format!("-----END {tag}-----");
            let end = block.find(&end_line).ok_or(KeyError::Invalid)? + end_line.len();
            let (key, kind) = match tag {
                "PUBLIC KEY" | "RSA PUBLIC KEY" => read_pem(&block.as_bytes()[..end])?,
                tag if tag.ends_with("PRIVATE KEY") => return Err(KeyError::PrivateKey),
                tag => return Err(KeyError::PemBlock(tag.chars().take(40).collect())),
            };
            keys.push(VerificationKey { kid: None, algorithms: pin(kind, allowed)?, key });
        }
        if keys.is_empty() { Err(KeyError::NotPem) } else { Ok(KeySet { keys }) }
    }

    /// The public keys of a JWK Set (RFC 7517, section 5), each for its `alg`, or else for those of `allowed` that its type
    /// and curve fit. What cannot be used is skipped and reported.
    ///
    /// # Errors
    /// When `text` is no JWK Set, longer than [`JWKS_BYTES_MAX`], or no key in it is usable: a set that was fetched must
    /// not replace the last good one then.
    pub fn from_jwks(text: &[u8], allowed: &[Algorithm]) -> Result<(KeySet, Vec<Skipped>), KeyError> {
        jwks::read(text, allowed)
    }

    /// These keys and those of `other`.
    #[must_use]
    pub fn and(mut self, other: KeySet) -> KeySet {
        self.keys.extend(other.keys);
        self
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none, so that every token is refused.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Verifies `signature`, base64url, over `message` with the keys that `kid` and `algorithm` select.
    ///
    /// A `kid` that some key has selects the keys that have it. One that no key has, and none at all, select the keys
    /// without one and all keys, respectively; at most [`TRIES_MAX`] are tried.
    ///
    /// # Errors
    /// [`TokenError::Algorithm`] when the selected keys are pinned to others, [`TokenError::UnknownKey`] when there is
    /// nothing to try, or what there was failed while another key may be the one meant; [`TokenError::Signature`].
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &str,
    ) -> Result<(), TokenError> {
        let is_known = kid.is_some_and(|kid| self.keys.iter().any(|key| key.kid.as_deref() == Some(kid)));
        let is_selected = |key: &&VerificationKey| match (kid, &key.kid) {
            (None, _) => true,
            (Some(_), None) => !is_known,
            (Some(wanted), Some(own)) => wanted == &**own,
        };
        let fits = |key: &&VerificationKey| key.algorithms.contains(&algorithm);
        let mut is_tried = false;
        for key in self.keys.iter().filter(is_selected).filter(fits).take(TRIES_MAX) {
            is_tried = true;
            if jsonwebtoken::crypto::verify(signature, message, &key.key, algorithm).unwrap_or(false) {
                return Ok(());
            }
        }
        Err(match is_tried {
            _ if self.is_empty() || kid.is_some() && !is_known && self.has_kids() => TokenError::UnknownKey,
            true => TokenError::Signature,
            false => TokenError::Algorithm,
        })
    }

    fn has_kids(&self) -> bool {
        self.keys.iter().any(|key| key.kid.is_some())
    }
}

/// The fewest bytes of a secret for an HMAC: its hash's output (RFC 7518, section 3.2).
pub(super) fn secret_length_min(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 32,
    }
}

/// Those of `allowed` that a key of this kind can verify.
fn pin(kind: KeyKind, allowed: &[Algorithm]) -> Result<Vec<Algorithm>, KeyError> {
    let fits = kind.algorithms();
    let pinned: Vec<_> = fits.iter().copied().filter(|algorithm| allowed.contains(algorithm)).collect();
    if pinned.is_empty() {
        return Err(KeyError::NoAlgorithm { kind, fits, allowed: allowed.to_vec() });
    }
    Ok(pinned)
}

/// One block, whose text tells its type only inside.
fn read_pem(block: &[u8]) -> Result<(DecodingKey, KeyKind), KeyError> {
    if let Ok(key) = DecodingKey::from_ed_pem(block) {
        return ed25519(raw(&key)?);
    }
    if let Ok(key) = DecodingKey::from_ec_pem(block) {
        return elliptic(raw(&key)?);
    }
    let key = DecodingKey::from_rsa_pem(block).map_err(|_| KeyError::Invalid)?;
    let public = aws_lc_rs::rsa::PublicKey::from_der(raw(&key)?).map_err(|_| KeyError::Invalid)?;
    let parts = RsaPublicKeyComponents::<Vec<u8>>::from(&public);
    rsa(&parts.n, &parts.e)
}

fn raw(key: &DecodingKey) -> Result<&[u8], KeyError> {
    match (key.family(), key.kind()) {
        (AlgorithmFamily::Hmac, _) | (_, DecodingKeyKind::RsaModulusExponent { .. }) => Err(KeyError::Invalid),
        (_, DecodingKeyKind::SecretOrDer(bytes)) => Ok(bytes),
    }
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<(DecodingKey, KeyKind), KeyError> {
    let significant = |bytes: &[u8]| bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
    let (n, e) = (&modulus[significant(modulus)..], &exponent[significant(exponent)..]);
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !(2_048..=8_192).contains(&bits) {
        return Err(KeyError::RsaSize(bits));
    }
    // With an exponent of 1 a message is its own signature. The parser lets that pass, and an even number too.
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last & 1 == 1);
    if e == [1] || !is_odd(e) || !is_odd(n) {
        return Err(KeyError::Invalid);
    }
    let parsed = RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256);
    parsed.map_err(|_| KeyError::Invalid)?;
    Ok((DecodingKey::from_rsa_raw_components(n, e), KeyKind::Rsa))
}

/// An uncompressed point.
fn elliptic(point: &[u8]) -> Result<(DecodingKey, KeyKind), KeyError> {
    let (curve, kind): (&'static dyn VerificationAlgorithm, _) = match point.len() {
        65 => (&ECDSA_P256_SHA256_FIXED, KeyKind::P256),
        97 => (&ECDSA_P384_SHA384_FIXED, KeyKind::P384),
        _ => return Err(KeyError::Invalid),
    };
    ParsedPublicKey::new(curve, point).map_err(|_| KeyError::Invalid)?;
    Ok((DecodingKey::from_ec_der(point), kind))
}

fn ed25519(key: &[u8]) -> Result<(DecodingKey, KeyKind), KeyError> {
    if key.len() != 32 {
        return Err(KeyError::Invalid);
    }
    ParsedPublicKey::new(&ED25519, key).map_err(|_| KeyError::Invalid)?;
    Ok((DecodingKey::from_ed_der(key), KeyKind::Ed25519))
}
