//! API keys: stored as hashes, found without scanning, compared in constant time.
//!
//! The hash is one SHA-256, neither salted nor slow: that is right for keys of high entropy, which no dictionary holds,
//! and wrong for passwords, which [`hash_key`] therefore tries to keep out by asking for at least [`KEY_MIN`] characters.
//! It lets one hash of what the client sent find its entry among ten thousand as fast as among one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::credentials::{API_KEY_MAX, is_api_key};
use super::identity::{AuthMethod, Identity, IdentityError, OwnLimit};

/// The shortest key that is hashed for a configuration, in characters.
pub const KEY_MIN: usize = 16;

const PREFIX: &str = "sha256:";

/// What the configuration stores of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

impl std::fmt::Display for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for KeyHash {
    type Err = ApiKeyConfigError;

    /// Reads `sha256:` and 64 hexadecimal digits, as [`hash_key`] writes them.
    fn from_str(text: &str) -> Result<KeyHash, ApiKeyConfigError> {
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == 64 && digits.is_ascii());
        let digits = digits.ok_or(ApiKeyConfigError::Hash)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let digit = |index: usize| char::from(pair[index]).to_digit(16).ok_or(ApiKeyConfigError::Hash);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(KeyHash(hash))
    }
}

impl KeyHash {
    /// The hash of a presented key.
    pub fn of(key: &[u8]) -> KeyHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, key).as_ref());
        KeyHash(hash)
    }

    /// Whether the two are equal, in a time that tells nothing of where they differ.
    pub fn matches(&self, other: &KeyHash) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// Its first bytes, uniform by themselves.
    fn prefix(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("32 bytes hold 8"))
    }
}

/// What is wrong with an API key that is to be configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyConfigError {
    /// Not what [`hash_key`] prints.
    #[error("expected sha256: and 64 hexadecimal digits, as `ringway hash-key` prints them")]
    Hash,
    /// The key itself.
    #[error(
        "a key must be {KEY_MIN} to {API_KEY_MAX} visible ASCII characters without spaces, drawn at random: \
         keys are hashed once, so a guessable one would be found"
    )]
    Key,
    /// The owner or the scopes of the key.
    #[error("API key {0:?}: {1}")]
    Identity(Box<str>, IdentityError),
    /// One key, two entries.
    #[error("the API keys {0:?} and {1:?} have the same hash")]
    Duplicate(Box<str>, Box<str>),
}

/// The hash of `key` as it goes into the configuration.
///
/// # Errors
/// [`ApiKeyConfigError::Key`] when it is shorter than [`KEY_MIN`] or could not be sent in a header.
pub fn hash_key(key: &[u8]) -> Result<String, ApiKeyConfigError> {
    if key.len() < KEY_MIN || !is_api_key(key) {
        return Err(ApiKeyConfigError::Key);
    }
    Ok(KeyHash::of(key).to_string())
}

/// A key made of 24 random bytes: `rw_` and 32 characters.
pub fn key_from(random: [u8; 24]) -> String {
    format!("rw_{}", URL_SAFE_NO_PAD.encode(random))
}

/// An entry of `[[auth.api_keys]]`.
#[derive(Debug, Clone)]
pub struct ApiKeySpec {
    /// Its owner, the identity's subject. Several keys may have the same, for rotation: they are one client then.
    pub name: Box<str>,
    /// The key's hash.
    pub hash: KeyHash,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Off: refused.
    pub enabled: bool,
    /// When it ends, in Unix seconds; `None`: never.
    pub expires: Option<u64>,
    /// Its own rate limit, in place of the service's.
    pub rate_limit: Option<OwnLimit>,
}

/// Why an API key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiKeyError {
    /// Nobody's.
    Unknown,
    /// Switched off.
    Disabled,
    /// Its time is over.
    Expired,
}

impl ApiKeyError {
    /// Every one of them.
    pub const ALL: [ApiKeyError; 3] = [ApiKeyError::Unknown, ApiKeyError::Disabled, ApiKeyError::Expired];

    /// The stable word for machines.
    pub const fn reason(self) -> &'static str {
        match self {
            ApiKeyError::Unknown => "api_key_unknown",
            ApiKeyError::Disabled => "api_key_disabled",
            ApiKeyError::Expired => "api_key_expired",
        }
    }

    /// The sentence for people.
    pub const fn detail(self) -> &'static str {
        match self {
            ApiKeyError::Unknown => "The API key is not known.",
            ApiKeyError::Disabled => "The API key is switched off.",
            ApiKeyError::Expired => "The API key has expired.",
        }
    }
}

/// The configured API keys.
#[derive(Debug, Default)]
pub struct ApiKeys {
    entries: Vec<Entry>,
    by_prefix: HashMap<u64, u32, BuildHasherDefault<Uniform>>,
}

#[derive(Debug)]
struct Entry {
    hash: KeyHash,
    enabled: bool,
    identity: Identity,
}

impl ApiKeys {
    /// A table of `specs`.
    ///
    /// # Errors
    /// When two have the same hash, or an owner or scope could not stand in a header.
    pub fn new(specs: Vec<ApiKeySpec>) -> Result<ApiKeys, ApiKeyConfigError> {
        let mut keys = ApiKeys::default();
        for spec in specs {
            let scopes = spec.scopes.iter().map(String::as_str);
            let made = Identity::new(AuthMethod::ApiKey, &spec.name, scopes, spec.expires, spec.rate_limit);
            let identity = made.map_err(|error| ApiKeyConfigError::Identity(spec.name.clone(), error))?;
            let index = keys.entries.len() as u32;
            if let Some(earlier) = keys.by_prefix.insert(spec.hash.prefix(), index) {
                let earlier = keys.entries[earlier as usize].identity.subject().into();
                return Err(ApiKeyConfigError::Duplicate(earlier, spec.name));
            }
            keys.entries.push(Entry { hash: spec.hash, enabled: spec.enabled, identity });
        }
        Ok(keys)
    }

    /// How many keys there are, disabled and expired ones among them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Finds the owner of `key` at `now`, in Unix seconds, with its index.
    ///
    /// # Errors
    /// When it is nobody's, switched off or over.
    pub fn find(&self, key: &[u8], now: u64) -> Result<(usize, &Identity), ApiKeyError> {
        let hash = KeyHash::of(key);
        let index = *self.by_prefix.get(&hash.prefix()).ok_or(ApiKeyError::Unknown)? as usize;
        let entry = &self.entries[index];
        if !entry.hash.matches(&hash) {
            return Err(ApiKeyError::Unknown);
        }
        if !entry.enabled {
            return Err(ApiKeyError::Disabled);
        }
        if entry.identity.is_over(now) {
            return Err(ApiKeyError::Expired);
        }
        Ok((index, &entry.identity))
    }
}

/// Passes on what is uniform already: bytes of a SHA-256 whose input has to be guessed.
#[derive(Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, key: &str) -> ApiKeySpec {
        let hash = KeyHash::of(key.as_bytes());
        ApiKeySpec { name: name.into(), hash, scopes: Vec::new(), enabled: true, expires: None, rate_limit: None }
    }

    #[test]
    fn hashes_are_written_and_read() {
        // `printf %s 0123456789abcdef | sha256sum`
        let expected = "sha256:9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
        assert_eq!(hash_key(b"0123456789abcdef").as_deref(), Ok(expected));
        assert_eq!(expected.parse(), Ok(KeyHash::of(b"0123456789abcdef")));
        assert_eq!(expected.to_uppercase().replace("SHA256", "sha256").parse(), Ok(KeyHash::of(b"0123456789abcdef")));
        for key in [&b"0123456789abcde"[..], b"", b"0123456789 abcdef", b"0123456789abcdef\n", &[b'a'; 257]] {
            assert_eq!(hash_key(key), Err(ApiKeyConfigError::Key), "{key:?}");
        }
        for text in ["", "sha256:", &expected[7..], &expected[..70], &expected.replace('9', "x"), "sha512:00", "é"] {
            assert_eq!(text.parse::<KeyHash>(), Err(ApiKeyConfigError::Hash), "{text}");
        }
        let made = key_from([0xff; 24]);
        assert_eq!(made, "rw_________________________________");
        assert!(hash_key(made.as_bytes()).is_ok());
        assert_eq!(format!("{:?}", KeyHash([0; 32])), "KeyHash(…)");
    }

    #[test]
    fn keys_are_found_by_what_they_are() {
        let limit = Some(OwnLimit { requests: 5, window: std::time::Duration::from_secs(1) });
        let keys = ApiKeys::new(vec![
            ApiKeySpec { scopes: vec!["sms".into(), "llm".into()], rate_limit: limit, ..spec("acme", "key-a") },
            ApiKeySpec { enabled: false, ..spec("off", "key-b") },
            ApiKeySpec { expires: Some(100), ..spec("brief", "key-c") },
            spec("acme", "key-d"),
        ])
        .expect("fine");
        let check = |key: &str, now, expected: Result<&str, ApiKeyError>| {
            let found = keys.find(key.as_bytes(), now).map(|(_, identity)| identity.subject());
            assert_eq!(found, expected, "{key} {now}");
        };
        check("key-a", 0, Ok("acme"));
        check("key-d", u64::MAX, Ok("acme"));
        check("key-b", 0, Err(ApiKeyError::Disabled));
        check("key-c", 99, Ok("brief"));
        check("key-c", 100, Err(ApiKeyError::Expired));
        check("key-e", 0, Err(ApiKeyError::Unknown));
        check("", 0, Err(ApiKeyError::Unknown));
        check("acme", 0, Err(ApiKeyError::Unknown));
        let (index, acme) = keys.find(b"key-a", 0).expect("known");
        assert_eq!((index, acme.scopes(), acme.rate_limit()), (0, "sms llm", limit));
        assert_eq!(ApiKeys::default().find(b"key-a", 0).err(), Some(ApiKeyError::Unknown));
    }

    #[test]
    fn a_prefix_is_not_enough() {
        let mut hash = KeyHash::of(b"key-a");
        hash.0[31] ^= 1;
        let keys = ApiKeys::new(vec![ApiKeySpec { hash, ..spec("acme", "") }]).expect("fine");
        assert_eq!(keys.find(b"key-a", 0).err(), Some(ApiKeyError::Unknown));
    }

    #[test]
    fn what_is_refused_at_the_start() {
        let check = |specs: Vec<ApiKeySpec>, expected: &str| {
            assert_eq!(ApiKeys::new(specs).expect_err("refused").to_string(), expected);
        };
        check(vec![spec("a", "k"), spec("b", "k")], "the API keys \"a\" and \"b\" have the same hash");
        assert!(ApiKeys::new(vec![spec("a b", "k")]).is_err());
        assert!(ApiKeys::new(vec![ApiKeySpec { scopes: vec!["a b".into()], ..spec("a", "k") }]).is_err());
    }

    #[test]
    fn ten_thousand() {
        let specs = (0..10_000).map(|number| spec(&format!("owner-{number}"), &format!("key-{number}"))).collect();
        let keys = ApiKeys::new(specs).expect("fine");
        for number in 0..10_000 {
            let (index, found) = keys.find(format!("key-{number}").as_bytes(), 0).expect("known");
            assert_eq!((index, found.subject()), (number, &*format!("owner-{number}")));
        }
    }
}
