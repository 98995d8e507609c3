//! `[auth.jwt]` and `[[auth.api_keys]]`: how clients show who they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::policy::auth::api_key::{ApiKeySpec, ApiKeys, KeyHash};
use crate::policy::auth::identity::{self, AuthMethod, Identity, OwnLimit};
use crate::policy::auth::jwt::Rules;
use crate::policy::auth::keys::{Algorithm, KeyError, KeyKind, KeySet};
use crate::redis::client::Secret;

use super::error::Place;
use super::read::Section;
use super::value::{Node, Value};
use super::{file, units};

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
    /// The files that keys were read from.
    pub files: Vec<PathBuf>,
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

/// The settings of `[auth.jwt]` that bring public keys.
const PUBLIC_KEYS: [&str; 3] = ["public_key_file", "jwks_file", "jwks_url"];

/// Whether `[auth]` names any way to tell who a client is, be it a wrong one.
pub(super) fn is_any_configured(section: Section<'_>) -> bool {
    // What is no table is noted elsewhere.
    let jwt = section.node("jwt").is_some_and(|node| match &node.value {
        Value::Table(jwt) => jwt.contains_key("secret") || PUBLIC_KEYS.iter().any(|&key| jwt.contains_key(key)),
        _ => true,
    });
    jwt || section.node("api_keys").is_some_and(|node| node.list().is_ok_and(|keys| !keys.is_empty()))
}

/// The whole table.
pub(super) fn auth(section: Section<'_>) -> Auth {
    let name = section.path("jwt");
    let jwt = Section::of(&name, section.node("jwt"), section.errors);
    let algorithms = algorithms(jwt);
    let secret = jwt.get("secret", |node| node.text().map(Secret::new));
    let keys = if every_algorithm_has_a_key(jwt, &algorithms) {
        keys(jwt, secret.as_ref(), &algorithms)
    } else {
        KeySet::default()
    };
    Auth {
        keys,
        secret,
        algorithms: algorithms.into_iter().map(|(algorithm, _)| algorithm).collect(),
        jwks_url: jwt.get("jwks_url", |node| plain_url(node.text()?)),
        jwks_refresh: jwt.read("jwks_refresh", SECOND * 300, |node| node.duration(SECOND * 10..=SECOND * 86_400)),
        rules: Rules {
            issuers: words(jwt, "issuer"),
            audiences: words(jwt, "audience"),
            leeway: jwt.read("leeway", SECOND * 30, |node| node.duration(Duration::ZERO..=SECOND * 300)).as_secs(),
            required: jwt.list("required_claims", 0..=32, word).map_or_else(
                || Rules::default().required,
                |claims| claims.into_iter().map(|(claim, _)| claim).collect(),
            ),
        },
        api_keys: api_keys(section),
        files: ["public_key_file", "jwks_file"]
            .iter()
            .filter_map(|key| jwt.node(key)?.text().ok().map(PathBuf::from))
            .collect(),
    }
}
/// The keys that are known without asking anyone.
fn keys(jwt: Section<'_>, secret: Option<&Secret>, algorithms: &[(Algorithm, Node)]) -> KeySet {
    let algorithms: Vec<Algorithm> = algorithms.iter().map(|&(algorithm, _)| algorithm).collect();
    let text = |error: KeyError| error.to_string();
    let read = |node: &Node| file::read(Path::new(node.text()?), KEY_FILE_BYTES_MAX);
    let secret = secret.and_then(|secret| {
        jwt.get("secret", |_| KeySet::from_secret(secret.expose().as_bytes(), &algorithms).map_err(text))
    });
    let pem = jwt.get("public_key_file", |node| KeySet::from_pem(&read(node)?, &algorithms).map_err(text));
    let jwks = jwt.get("jwks_file", |node| Ok(KeySet::from_jwks(&read(node)?, &algorithms).map_err(text)?.0));
    [secret, pem, jwks].into_iter().flatten().fold(KeySet::default(), KeySet::and)
}

/// `HS256` and its kin need the secret, the others a public key. With no key at all nobody has a token, which is for the
/// services to mind.
fn every_algorithm_has_a_key(jwt: Section<'_>, algorithms: &[(Algorithm, Node)]) -> bool {
    let public = PUBLIC_KEYS.iter().find_map(|key| jwt.node(key));
    let has_secret = jwt.node("secret").is_some();
    if public.is_none() && !has_secret {
        return true;
    }
    // None is left where all were wrong.
    let mut all_have = !algorithms.is_empty();
    for (index, (algorithm, node)) in algorithms.iter().enumerate() {
        let is_hmac = KeyKind::Secret.algorithms().contains(algorithm);
        let problem = match (is_hmac, has_secret, public) {
            (true, true, _) | (false, _, Some(_)) => continue,
            (true, false, _) => "needs auth.jwt.secret (JWT_SECRET_KEY), which is not set",
            (false, _, None) => "needs auth.jwt.public_key_file, jwks_file or jwks_url, none of which is set",
        };
        all_have = false;
        match (jwt.node("algorithms"), public) {
            (None, Some(public)) => {
                let problem = "those of the public key, such as [\"RS256\"]; the default, HS256, needs a secret";
                jwt.missing("algorithms", &public.key, problem);
            }
            _ => jwt.errors.reject(&format!("{}[{index}]", jwt.path("algorithms")), node, problem),
        }
    }
    all_have
}

/// Each with where it was written, which for the default is nowhere.
fn algorithms(jwt: Section<'_>) -> Vec<(Algorithm, Node)> {
    let default = || vec![(Algorithm::HS256, Node::raw("HS256", Place::CommandLine, false))];
    jwt.list("algorithms", 1..=ALGORITHMS.len(), |node| node.choice(&ALGORITHMS)).unwrap_or_else(default)
}

/// Credentials in the address would be written down wherever it is.
pub(super) fn plain_url(text: &str) -> Result<String, String> {
    let problem = "must be a URL, https://… or http://…";
    let url = reqwest::Url::parse(text).map_err(|error| format!("{problem}: {error}"))?;
    match url.scheme() {
        "https" | "http" if !url.username().is_empty() || url.password().is_some() => {
            Err("must not have credentials".to_owned())
        }
        "https" | "http" if url.fragment().is_some() => Err("must not have a fragment".to_owned()),
        "https" | "http" => Ok(text.to_owned()),
        _ => Err(problem.to_owned()),
    }
}

/// A string or an array of them.
fn words(section: Section<'_>, key: &str) -> Vec<String> {
    if let Some(Value::Text(_)) = section.node(key).map(|node| &node.value) {
        return section.get(key, word).into_iter().collect();
    }
    let words = section.list(key, 0..=32, word).unwrap_or_default();
    words.into_iter().map(|(word, _)| word).collect()
}

fn word(node: &Node) -> Result<String, String> {
    match node.text()? {
        "" => Err("must not be empty".to_owned()),
        text => Ok(text.to_owned()),
    }
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
    let mut taken = HashMap::new();
    let mut limits: HashMap<Box<str>, (Option<OwnLimit>, Place)> = HashMap::new();
    let mut distinct = Vec::new();
    for (index, (spec, node)) in specs.unwrap_or_default().into_iter().enumerate() {
        let Some(spec) = spec else { continue };
        let path = format!("{}[{index}]", section.path("api_keys"));
        let scopes = spec.scopes.iter().map(String::as_str);
        if let Err(error) = Identity::new(AuthMethod::ApiKey, &spec.name, scopes, spec.expires, spec.rate_limit) {
            section.errors.reject(&path, &node, error.to_string());
        } else if let Some(earlier) = taken.insert(spec.hash.to_string(), node.place.clone()) {
            section.errors.reject(&format!("{path}.hash"), &node, format!("is the hash of the key at {earlier} too"));
        } else {
            // They are one client, whose requests are counted together.
            let (limit, earlier) =
                limits.entry(spec.name.clone()).or_insert_with(|| (spec.rate_limit, node.place.clone()));
            if *limit != spec.rate_limit {
                let problem = format!(
                    "the API keys of one name are one client and have one rate limit; the key of {:?} at {earlier} has another",
                    spec.name
                );
                section.errors.reject(&format!("{path}.rate_limit"), &node, problem);
            }
            distinct.push(spec);
        }
    }
    // Two keys may agree in the part of their hashes that they are found by.
    if let (Err(error), Some(node)) = (ApiKeys::new(distinct.clone()), section.node("api_keys")) {
        section.errors.reject(&section.path("api_keys"), node, error.to_string());
    }
    distinct
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
