//! Who is it, and may it: one verdict on the credential of a request.
//!
//! [`Presented`] reads what the client offers, [`Authenticator`] tells who that is, [`RequiredScopes`] whether that is
//! enough for the service and method, and [`AuthError`] what to answer if not. An [`Authenticator`] is immutable and shared
//! by all workers; what a worker remembers is its own [`Cache`]. The time is handed in, in Unix seconds.
//!
//! Per request and warm, nothing here allocates. What is verified is never logged: errors carry no part of a credential,
//! and no type that holds one shows it.

pub mod api_key;
pub mod cache;
pub mod credentials;
pub mod identity;
pub mod jwt;
pub mod keys;
pub mod mint;

use std::rc::Rc;

pub use api_key::{ApiKeyError, ApiKeySpec, ApiKeys, KeyHash};
pub use cache::Cache;
pub use credentials::{Malformed, Presented};
pub use identity::{AuthMethod, Identity, OwnLimit};
pub use jwt::{Rules, TokenError};
pub use keys::{Algorithm, KeySet};

use crate::http::headers::push_field;
use crate::http::method::{Method, MethodSet};
use crate::http::problem::Problem;

/// Chooses the cryptography behind signatures, for the process; further calls change nothing. `main` calls it first: left
/// to itself, `jsonwebtoken` guesses from its features, and panics at the first token when a dependency turns on another.
pub fn install() {
    // An error says that one is installed already: by an earlier call, since nobody else does it.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}

/// `services.<name>.auth`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// A request without a good credential is refused.
    #[default]
    Required,
    /// A request without a credential passes as anonymous; one with a bad credential is refused.
    Optional,
    /// Credentials are the backend's matter: not looked at, and nobody is identified.
    None,
}

/// Knows every credential that is good.
#[derive(Debug, Default)]
pub struct Authenticator {
    /// Changes whenever anything below does, and is never used again: what workers remember ends with it.
    pub version: u64,
    /// What tokens are signed with.
    pub keys: KeySet,
    /// What tokens must say.
    pub rules: Rules,
    /// The API keys.
    pub api_keys: ApiKeys,
    /// Whether the keys of the configured issuer have never come: that a token's key is unknown says nothing then.
    pub awaits_issuer: bool,
}

impl Authenticator {
    /// Tells who presents `presented` at `now`, in Unix seconds; `None` for an anonymous client where that is allowed.
    ///
    /// # Errors
    /// What is wrong with the credential, or that there is none where one is required.
    pub fn verify(
        &self,
        mode: Mode,
        presented: Presented<'_>,
        cache: &mut Cache,
        now: u64,
    ) -> Result<Option<Rc<Identity>>, AuthError<'static>> {
        match (mode, presented) {
            (Mode::None, _) | (Mode::Optional, Presented::None) => Ok(None),
            (Mode::Required, Presented::None) => Err(AuthError::Missing),
            (_, Presented::Malformed(why)) => Err(AuthError::Malformed(why)),
            (_, Presented::Bearer(token)) => self.token(token, cache, now).map(Some).map_err(AuthError::Token),
            (_, Presented::ApiKey(key)) => self.api_key(key, cache, now).map(Some).map_err(AuthError::ApiKey),
        }
    }

    /// Who presents a credential that this worker has verified before, and that still holds: no signature is checked.
    pub fn recall(&self, presented: Presented<'_>, cache: &mut Cache, now: u64) -> Option<Rc<Identity>> {
        let Presented::Bearer(token) = presented else { return None };
        cache.enter(self.version);
        let tag = cache.tag(token);
        cache.get(tag, now)
    }

    fn token(&self, token: &[u8], cache: &mut Cache, now: u64) -> Result<Rc<Identity>, TokenError> {
        cache.enter(self.version);
        let tag = cache.tag(token);
        if let Some(identity) = cache.get(tag, now) {
            return Ok(identity);
        }
        let identity = Rc::new(jwt::verify(&self.keys, &self.rules, token, now)?);
        cache.insert(tag, Rc::clone(&identity), now);
        Ok(identity)
    }

    fn api_key(&self, key: &[u8], cache: &mut Cache, now: u64) -> Result<Rc<Identity>, ApiKeyError> {
        cache.enter(self.version);
        let (index, identity) = self.api_keys.find(key, now)?;
        Ok(cache.owner(index, || identity.clone()))
    }
}

/// `services.<name>.required_scopes`: which scopes a client needs for which methods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequiredScopes(Box<[Requirement]>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    methods: MethodSet,
    /// Separated by single spaces, as a challenge lists them.
    scopes: Box<str>,
}

impl RequiredScopes {
    /// Each method needs all the scopes of every pair that has it. Scopes must satisfy [`identity::is_scope`].
    pub fn new<'s>(rules: impl IntoIterator<Item = (MethodSet, &'s [String])>) -> RequiredScopes {
        let requirement =
            |(methods, scopes): (MethodSet, &[String])| Requirement { methods, scopes: scopes.join(" ").into() };
        RequiredScopes(rules.into_iter().map(requirement).filter(|rule| !rule.scopes.is_empty()).collect())
    }

    /// Whether `identity` may use `method`.
    ///
    /// # Errors
    /// [`AuthError::InsufficientScope`], or [`AuthError::Missing`] for an anonymous client.
    pub fn check(&self, method: Method, identity: Option<&Identity>) -> Result<(), AuthError<'_>> {
        for rule in self.0.iter().filter(|rule| rule.methods.contains(method)) {
            let identity = identity.ok_or(AuthError::Missing)?;
            if !rule.scopes.split(' ').all(|scope| identity.has_scope(scope)) {
                return Err(AuthError::InsufficientScope(&rule.scopes));
            }
        }
        Ok(())
    }
}

/// Why a request does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthError<'s> {
    /// No credential, and one is required: 401.
    Missing,
    /// Credentials that are not even tried: 400.
    Malformed(Malformed),
    /// A token that is refused: 401.
    Token(TokenError),
    /// An API key that is refused: 401.
    ApiKey(ApiKeyError),
    /// A good credential that is not enough, and the scopes that would be: 403.
    InsufficientScope(&'s str),
}

impl AuthError<'_> {
    /// What the client is answered with, together with [`AuthError::push_challenge`].
    pub const fn problem(self) -> Problem {
        let (status, reason, detail) = match self {
            AuthError::Missing => {
                (401, "credentials_missing", "A bearer token in Authorization or a key in X-API-Key is required.")
            }
            AuthError::Malformed(Malformed::Several) => {
                (400, "credentials_several", "Send one credential: a bearer token or an API key, and once.")
            }
            AuthError::Malformed(Malformed::Authorization) => {
                (400, "credentials_malformed", "Authorization is malformed; expected a bearer token.")
            }
            AuthError::Malformed(Malformed::ApiKey) => (400, "credentials_malformed", "X-API-Key is malformed."),
            AuthError::Token(error) => (401, error.reason(), error.detail()),
            AuthError::ApiKey(error) => (401, error.reason(), error.detail()),
            AuthError::InsufficientScope(_) => {
                (403, "insufficient_scope", "The credential is good, and lacks a scope that this needs.")
            }
        };
        Problem::new(status, reason, detail)
    }

    /// Appends `WWW-Authenticate` as a whole line (RFC 6750, section 3). There is no `error` where no token was shown.
    pub fn push_challenge(self, out: &mut Vec<u8>) {
        let error = match self {
            AuthError::Missing | AuthError::ApiKey(_) => {
                return push_field(b"WWW-Authenticate", b"Bearer realm=\"ringway\"", out);
            }
            AuthError::Malformed(_) => "invalid_request",
            AuthError::Token(_) => "invalid_token",
            AuthError::InsufficientScope(_) => "insufficient_scope",
        };
        let mut push = |text: &str| out.extend_from_slice(text.as_bytes());
        push("WWW-Authenticate: Bearer realm=\"ringway\", error=\"");
        push(error);
        push("\", error_description=\"");
        push(self.problem().detail);
        if let AuthError::InsufficientScope(scopes) = self {
            push("\", scope=\"");
            push(scopes);
        }
        push("\"\r\n");
    }

    /// Whether fetching the issuer's keys anew might help, the control plane willing.
    pub const fn is_unknown_key(self) -> bool {
        matches!(self, AuthError::Token(TokenError::UnknownKey))
    }
}

#[cfg(test)]
mod tests;
