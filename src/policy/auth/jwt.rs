//! JSON Web Tokens (RFC 7519), signed ones in compact form (RFC 7515, section 7.1), after RFC 8725's best practices.
//!
//! `jsonwebtoken` verifies signatures and nothing else here. It takes its time from the system's clock, lets `iss` and
//! `aud` pass when they are absent, parses `crit` without minding it, and reads claims twice: so header and claims are
//! read here, with `now` handed in. The order: size, form, header, key and algorithm, signature, and only then the claims.
//!
//! What is refused beyond a bad signature:
//! - `crit` of any content, since no extension is understood (RFC 7515, section 4.1.11), and `b64`, `enc`, `zip`, and a
//!   `cty` of `JWT`: unencoded, encrypted, compressed and nested tokens.
//! - A `typ` other than `JWT` and `at+jwt` (RFC 9068), where there is one: a logout token or a proof of possession is no
//!   access token (RFC 8725, section 3.11).
//! - A claim or parameter that comes twice, or is of the wrong type.
//! - An `aud` that names others, and any `aud` at all while no audience is configured: RFC 7519, section 4.1.3 says that
//!   who does not find itself in it must refuse.
//! - A `sub` that is absent or could not stand in a header: limits and logs go by it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeOwned, Error, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::credentials::TOKEN_MAX;
use super::identity::{AuthMethod, Identity};
use super::keys::{Algorithm, KeySet};

/// What the claims of a token must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// `iss` must be one of them; none: any, and its absence, will do.
    pub issuers: Vec<String>,
    /// `aud` must hold one of them; none: there must be no `aud`.
    pub audiences: Vec<String>,
    /// By how many seconds the issuer's clock may differ from ours, for `exp`, `nbf` and `iat`.
    pub leeway: u64,
    /// Claims that must be there and not null, `exp` unless told otherwise: without it a token would be good forever.
    /// `sub` always must, and `iss` and `aud` where they are checked.
    pub required: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { issuers: Vec::new(), audiences: Vec::new(), leeway: 30, required: vec!["exp".into()] }
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Not three parts of base64url, not JSON objects in them, too long, or of a kind that is not taken.
    Malformed,
    /// `alg` is unknown, `none`, or not what the key is for.
    Algorithm,
    /// No key has its `kid`. A set that was fetched may have been replaced since: one more fetch may help.
    UnknownKey,
    /// Not the issuer's signature.
    Signature,
    /// A claim is missing, of the wrong type, repeated, or cannot be used.
    Claims,
    /// `exp` lies behind.
    Expired,
    /// `nbf` or `iat` lies ahead.
    NotYetValid,
    /// Another `iss`.
    Issuer,
    /// Another `aud`.
    Audience,
}

impl TokenError {
    /// Every one of them.
    pub const ALL: [TokenError; 9] = [
        TokenError::Malformed,
        TokenError::Algorithm,
        TokenError::UnknownKey,
        TokenError::Signature,
        TokenError::Claims,
        TokenError::Expired,
        TokenError::NotYetValid,
        TokenError::Issuer,
        TokenError::Audience,
    ];

    /// The stable word for machines.
    pub const fn reason(self) -> &'static str {
        match self {
            TokenError::Malformed => "token_malformed",
            TokenError::Algorithm => "token_algorithm",
            TokenError::UnknownKey => "token_key_unknown",
            TokenError::Signature => "token_signature",
            TokenError::Claims => "token_claims",
            TokenError::Expired => "token_expired",
            TokenError::NotYetValid => "token_not_yet_valid",
            TokenError::Issuer => "token_issuer",
            TokenError::Audience => "token_audience",
        }
    }

    /// The sentence for people.
    pub const fn detail(self) -> &'static str {
        match self {
            TokenError::Malformed => "The token is malformed, or of a kind that is not accepted.",
            TokenError::Algorithm => "The token is signed with an algorithm that is not accepted.",
            TokenError::UnknownKey => "The token is signed with a key that is not known.",
            TokenError::Signature => "The signature of the token is wrong.",
            TokenError::Claims => "A claim of the token is missing or cannot be used.",
            TokenError::Expired => "The token has expired.",
            TokenError::NotYetValid => "The token is not valid yet.",
            TokenError::Issuer => "The token was issued by someone who is not accepted.",
            TokenError::Audience => "The token is meant for another audience.",
        }
    }
}

/// Verifies a token at `now`, in Unix seconds.
///
/// # Errors
/// The first reason, in the order of the checks.
pub fn verify(keys: &KeySet, rules: &Rules, token: &[u8], now: u64) -> Result<Identity, TokenError> {
    if token.len() > TOKEN_MAX {
        return Err(TokenError::Malformed);
    }
    let token = std::str::from_utf8(token).map_err(|_| TokenError::Malformed)?;
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
    if claims.contains('.') {
        return Err(TokenError::Malformed);
    }
    let header: Header = json(&decoded(header)?).map_err(|_| TokenError::Malformed)?;
    header.check()?;
    // The error is the same as for any other nonsense, rather than that of a wrong signature.
    decoded(signature)?;
    let algorithm = algorithm(&header.alg).ok_or(TokenError::Algorithm)?;
    keys.verify(header.kid.as_deref(), algorithm, message.as_bytes(), signature)?;
    let payload = decoded(claims)?;
    let claims: Claims = json(&payload)?;
    claims.check(rules, &payload, now)?;
    claims.identity(rules)
}

/// The algorithm of that name; `Ed25519` is what RFC 9864 calls EdDSA on that curve.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    if name == "Ed25519" { Some(Algorithm::EdDSA) } else { name.parse().ok() }
}

fn decoded(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)
}

/// Reads a JSON object. A derived reader takes an array for a struct too, which no token may be.
fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T, TokenError> {
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(TokenError::Malformed);
    }
    serde_json::from_slice(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => TokenError::Claims,
        _ => TokenError::Malformed,
    })
}

/// A JOSE header. Parameters that only describe a key (`jwk`, `jku`, `x5c` …) are ignored, whatever they say.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    cty: Option<String>,
    #[serde(default)]
    crit: Seen,
    #[serde(default)]
    b64: Seen,
    #[serde(default)]
    enc: Seen,
    #[serde(default)]
    zip: Seen,
}

impl Header {
    fn check(&self) -> Result<(), TokenError> {
        let is_unsupported = self.crit.0 || self.b64.0 || self.enc.0 || self.zip.0;
        // "application/" may be left out of a media type here (RFC 7515, section 4.1.9).
        let is_one_of = |value: &str, types: &[&str]| {
            let prefix = value.get(..12).filter(|prefix| prefix.eq_ignore_ascii_case("application/"));
            let short = &value[prefix.map_or(0, str::len)..];
            types.iter().any(|one| short.eq_ignore_ascii_case(one))
        };
        let is_other_type = self.typ.as_deref().is_some_and(|typ| !is_one_of(typ, &["JWT", "at+jwt"]));
        let is_nested = self.cty.as_deref().is_some_and(|cty| is_one_of(cty, &["JWT"]));
        if is_unsupported || is_other_type || is_nested { Err(TokenError::Malformed) } else { Ok(()) }
    }
}

/// Whether a parameter is there, even as null.
#[derive(Default)]
struct Seen(bool);

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Seen(true))
    }
}

/// The claims that the gateway reads (RFC 7519, section 4.1; RFC 8693, section 4.2 for `scope`).
#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<OneOrMany>,
    exp: Option<Seconds>,
    nbf: Option<Seconds>,
    iat: Option<Seconds>,
    scope: Option<OneOrMany>,
    scp: Option<OneOrMany>,
    scopes: Option<OneOrMany>,
}

impl Claims {
    fn check(&self, rules: &Rules, payload: &[u8], now: u64) -> Result<(), TokenError> {
        let lies_ahead = |at: &Seconds| at.0 > now.saturating_add(rules.leeway);
        if self.exp.as_ref().is_some_and(|exp| now >= exp.0.saturating_add(rules.leeway)) {
            return Err(TokenError::Expired);
        }
        if self.nbf.as_ref().is_some_and(lies_ahead) || self.iat.as_ref().is_some_and(lies_ahead) {
            return Err(TokenError::NotYetValid);
        }
        let is_issuer = |issuer: &String| self.iss.as_ref() == Some(issuer);
        if !rules.issuers.is_empty() && !rules.issuers.iter().any(is_issuer) {
            return Err(TokenError::Issuer);
        }
        let is_ours =
            |audiences: &OneOrMany| audiences.iter().any(|one| rules.audiences.iter().any(|ours| ours == one));
        if !self.aud.as_ref().map_or(rules.audiences.is_empty(), is_ours) {
            return Err(TokenError::Audience);
        }
        if rules.required.iter().any(|name| name != "exp") || self.exp.is_none() {
            let present: BTreeMap<String, Option<IgnoredAny>> = json(payload)?;
            if rules.required.iter().any(|name| !matches!(present.get(name), Some(Some(_)))) {
                return Err(TokenError::Claims);
            }
        }
        Ok(())
    }

    /// `scope` counts before `scp` and `scopes`, each a string of words or an array of them.
    fn identity(&self, rules: &Rules) -> Result<Identity, TokenError> {
        let subject = self.sub.as_deref().ok_or(TokenError::Claims)?;
        let scopes = self.scope.as_ref().or(self.scp.as_ref()).or(self.scopes.as_ref());
        let words = scopes.into_iter().flat_map(OneOrMany::words);
        let expires = self.exp.as_ref().map(|exp| exp.0.saturating_add(rules.leeway));
        Identity::new(AuthMethod::Jwt, subject, words, expires, None).map_err(|_| TokenError::Claims)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn iter(&self) -> impl Iterator<Item = &str> {
        let all = match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        };
        all.iter().map(String::as_str)
    }

    /// The words of a string; the elements of an array as they are, so that one with a space in it is refused.
    fn words(&self) -> impl Iterator<Item = &str> {
        let is_list = matches!(self, OneOrMany::Many(_));
        self.iter().flat_map(move |text| text.split(move |c| c == ' ' && !is_list)).filter(|word| !word.is_empty())
    }
}

/// A `NumericDate` (RFC 7519, section 2): seconds since 1970, of which fractions are cut off. Negative ones and those that
/// do not fit are no time that a token could be meant for.
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds since 1970")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Seconds, E> {
                Ok(Seconds(value))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Seconds, E> {
                let range = 0.0..9_007_199_254_740_992.0; // 2^53: exact
                if range.contains(&value) { Ok(Seconds(value as u64)) } else { Err(E::custom("out of range")) }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
