//! Tokens of our own, for `ringway token` and the demo: signed with the configured secret, as an issuer would.

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use super::keys::{Algorithm, KeyError, KeyKind, KeySet};

/// What a minted token says.
#[derive(Debug, Clone, Copy)]
pub struct Mint<'a> {
    /// `sub`.
    pub subject: &'a str,
    /// `scope`; left out when there is none.
    pub scopes: &'a [String],
    /// How long it is good for, in seconds.
    pub lifetime: u64,
    /// `iss`.
    pub issuer: Option<&'a str>,
    /// `aud`.
    pub audience: Option<&'a str>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Signs a token at `now`, in Unix seconds, with HS256, HS384 or HS512.
///
/// # Errors
/// When `algorithm` is none of them, or `secret` is too short for it.
pub fn mint(mint: &Mint<'_>, secret: &[u8], algorithm: Algorithm, now: u64) -> Result<String, KeyError> {
    KeySet::from_secret(secret, &[algorithm])?;
    let claims = Claims {
        sub: mint.subject,
        iat: now,
        exp: now.saturating_add(mint.lifetime),
        iss: mint.issuer,
        aud: mint.audience,
        scope: (!mint.scopes.is_empty()).then(|| mint.scopes.join(" ")),
    };
    let unfit =
        KeyError::NoAlgorithm { kind: KeyKind::Secret, fits: KeyKind::Secret.algorithms(), allowed: vec![algorithm] };
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(secret)).map_err(|_| unfit)
}
