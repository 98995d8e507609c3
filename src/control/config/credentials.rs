//! `[auth.jwt]` and `[[auth.api_keys]]`: how clients show who they are.

use std::path::Path;
use std::time::Duration;

use crate::policy::auth::api_key::{ApiKeySpec, ApiKeys, KeyHash};
use crate::policy::auth::identity::{self, OwnLimit};
use crate::policy::auth::jwt::Rules;
use crate::policy::auth::keys::{Algorithm, KeyError, KeySet};
use crate::redis::client::Secret;

use super::error::ConfigError;
use super::read::Section;
use super::units;
use super::value::{Node, Value};

const SECOND: Duration = Duration::from_secs(1);

/// The largest key file, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// The keys of an API key.
const API_KEY_KEYS: &[&str] = &["name", "hash", "scopes", "enabled", "expires", "rate_limit"];

const API_KEYS_MAX: usize = 100_000;

const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// `[auth]`
#[derive(Debug, Clone, Default)]
pub struct Auth {
    /// What tokens are signed with, as far as that is known without asking anyone.
    pub keys: KeySet,
    /// The shared secret, for `ringway token`.
    pub secret: Option<Secret>,
    /// The algorithms that tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// Where the issuer publishes its keys.
    pub jwks_url: Option<String>,
    /// How often they are fetched again, 10 s to 24 h.
    pub jwks_refresh: Duration,
    /// What tokens must say.
    pub rules: Rules,
    /// The API keys.
    pub api_keys: Vec<ApiKeySpec>,
}

/// Compares the settings; keys follow from them, and from files.
impl PartialEq for Auth {
    fn eq(&self, other: &Auth) -> bool {
        let names = |auth: &Auth| auth.api_keys.iter().map(|key| key.name.clone()).collect::<Vec<_>>();
        self.secret == other.secret
            && self.algorithms == other.algorithms
            && self.jwks_url == other.jwks_url
            && self.jwks_refresh == other.jwks_refresh
            && self.rules == other.rules
            && names(self) == names(other)
    }
}

impl Auth {
    /// Whether any client can show who it is.
    pub fn knows_anybody(&self) -> bool {
        !self.keys.is_empty() || self.jwks_url.is_some() || !self.api_keys.is_empty()
    }
}

/// The whole table.
pub(super) fn auth(section: Section<'_>) -> Auth {
    let name = section.path("jwt");
    let jwt = Section::of(&name, section.node("jwt"), section.errors);
    let algorithms = algorithms(jwt);
    let secret = secret(jwt, "secret");
    let mut keys = KeySet::default();
    let mut take = |key: &str, read: Option<Result<KeySet, KeyError>>| match read {
        Some(Ok(set)) => keys = std::mem::take(&mut keys).and(set),
        Some(Err(error)) => reject_quietly(jwt, key, error.to_string()),
        None => {}
    };
    take("secret", secret.as_ref().map(|secret| KeySet::from_secret(secret.expose().as_bytes(), &algorithms)));
    let pem = jwt.get("public_key_file", |node| read_file(node.text()?));
    take("public_key_file", pem.map(|pem| KeySet::from_pem(&pem, &algorithms)));
    let jwks = jwt.get("jwks_file", |node| read_file(node.text()?));
    take("jwks_file", jwks.map(|jwks| KeySet::from_jwks(&jwks, &algorithms).map(|(keys, _)| keys)));
    Auth {
        keys,
        secret,
        algorithms,
        jwks_url: jwt.get("jwks_url", |node| {
            let url = node.text()?;
            let is_url =
                ["http://", "https://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme));
            if is_url { Ok(url.to_owned()) } else { Err("must be a URL, https://… or http://…".to_owned()) }
        }),
        jwks_refresh: jwt.read("jwks_refresh", SECOND * 300, |node| node.duration(SECOND * 10..=SECOND * 86_400)),
        rules: Rules {
            issuers: words(jwt, "issuer"),
            audiences: words(jwt, "audience"),
            leeway: jwt.read("leeway", SECOND * 30, |node| node.duration(Duration::ZERO..=SECOND * 300)).as_secs(),
            required: jwt.list("required_claims", 0..=32, |node| node.text().map(str::to_owned)).map_or_else(
                || Rules::default().required,
                |claims| claims.into_iter().map(|(claim, _)| claim).collect(),
            ),
        },
        api_keys: api_keys(section),
    }
}

/// A value that is not repeated in errors.
pub(super) fn secret(section: Section<'_>, key: &str) -> Option<Secret> {
    let node = section.node(key)?;
    match node.text() {
        Ok(text) => Some(Secret::new(text)),
        Err(problem) => {
            reject_quietly(section, key, problem);
            None
        }
    }
}

fn reject_quietly(section: Section<'_>, key: &str, problem: String) {
    let Some(node) = section.node(key) else { return };
    section.errors.push(ConfigError { place: node.place.clone(), key: section.path(key), value: None, problem });
}

fn algorithms(jwt: Section<'_>) -> Vec<Algorithm> {
    let algorithms = jwt.list("algorithms", 1..=ALGORITHMS.len(), |node| node.choice(&ALGORITHMS));
    algorithms.map_or_else(|| vec![Algorithm::HS256], |list| list.into_iter().map(|(algorithm, _)| algorithm).collect())
}

/// A string or an array of them.
fn words(section: Section<'_>, key: &str) -> Vec<String> {
    if let Some(Value::Text(text)) = section.node(key).map(|node| &node.value) {
        return vec![text.clone()];
    }
    let words = section.list(key, 0..=32, |node| node.text().map(str::to_owned)).unwrap_or_default();
    words.into_iter().map(|(word, _)| word).collect()
}

fn read_file(path: &str) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("cannot be read: {error}");
    let size = std::fs::metadata(Path::new(path)).map_err(fail)?.len();
    if size > KEY_FILE_BYTES_MAX {
        return Err(format!("has {size} bytes; a key file may have {KEY_FILE_BYTES_MAX}"));
    }
    std::fs::read(path).map_err(fail)
}

fn api_keys(section: Section<'_>) -> Vec<ApiKeySpec> {
    let mut index = 0;
    let specs = section.list("api_keys", 0..=API_KEYS_MAX, |node| {
        let path = format!("{}[{index}]", section.path("api_keys"));
        index += 1;
        if !matches!(node.value, Value::Table(_)) {
            return Err("must be a table, { name = \"…\", hash = \"…\" }".to_owned());
        }
        super::services::check_keys(section, &path, node, API_KEY_KEYS);
        Ok(api_key(Section::of(&path, Some(node), section.errors), node))
    });
    let specs: Vec<ApiKeySpec> = specs.unwrap_or_default().into_iter().filter_map(|(spec, _)| spec).collect();
    if let Err(error) = ApiKeys::new(specs.clone()) {
        reject_quietly(section, "api_keys", error.to_string());
    }
    specs
}

/// `None` when what is wrong has been noted.
fn api_key(own: Section<'_>, node: &Node) -> Option<ApiKeySpec> {
    for (key, problem) in
        [("name", "whose key it is"), ("hash", "what `ringway hash-key` prints for the key, \"sha256:…\"")]
    {
        if own.node(key).is_none() {
            own.missing(key, &node.place, problem);
        }
    }
    let scopes = own.list("scopes", 0..=identity::SCOPES_MAX, scope).unwrap_or_default();
    let name = own.get("name", |node| node.text().map(Box::<str>::from));
    let hash = own.get("hash", |node| node.text()?.parse::<KeyHash>().map_err(|error| error.to_string()));
    Some(ApiKeySpec {
        name: name?,
        hash: hash?,
        scopes: scopes.into_iter().map(|(scope, _)| scope).collect(),
        enabled: own.read("enabled", true, Node::boolean),
        expires: own.get("expires", |node| {
            let text = if let Value::Datetime = node.value { node.text.as_deref() } else { node.text().ok() };
            text.and_then(units::parse_time).ok_or_else(|| "must be a time such as \"2027-01-31T00:00:00Z\"".to_owned())
        }),
        rate_limit: own.node("rate_limit").map(|node| {
            let path = own.path("rate_limit");
            let limit = Section::of(&path, Some(node), own.errors);
            super::services::check_keys(own, &path, node, &["requests", "window"]);
            OwnLimit {
                requests: super::limits::requests(limit, 100),
                window: super::limits::window(limit, SECOND * 60),
            }
        }),
    })
}

/// A scope, as a token or a key may have it.
pub(super) fn scope(node: &Node) -> Result<String, String> {
    let text = node.text()?;
    match identity::is_scope(text) {
        true => Ok(text.to_owned()),
        false => Err("must be a scope: visible ASCII without spaces, quotation marks and backslashes".to_owned()),
    }
}
