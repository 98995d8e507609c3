//! What a registered instance is.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use crate::control::config::{EndpointSpec, EndpointUrl};

/// An instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Where it is, in the one spelling that [`validate::url`](super::validate::url) gives it.
    pub url: EndpointUrl,
    /// Its share of the requests relative to its siblings', 1 to 1,000.
    pub weight: u16,
    /// How long after a sign of life it is forgotten, 5 s to 24 h.
    pub ttl: Duration,
}

/// What a heartbeat changes besides the expiry; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// The weight from now on.
    pub weight: Option<u16>,
    /// The time to live from now on.
    pub ttl: Option<Duration>,
}

/// Names an instance among those of its service: the beginning of a hash of both, so that every gateway gives the same
/// instance the same one. It is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(u64);

impl InstanceId {
    /// The name of the instance of `service` at `url`.
    pub fn of(service: &str, url: &EndpointUrl) -> InstanceId {
        let hash = digest(&SHA256, format!("{service}\0{url}").as_bytes());
        InstanceId(u64::from_be_bytes(*hash.as_ref().first_chunk().expect("32 bytes hold 8")))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for InstanceId {
    type Err = ();

    /// Reads what `Display` writes, and nothing else.
    fn from_str(text: &str) -> Result<InstanceId, ()> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.len() == 16 && text.bytes().all(is_digit) {
            true => u64::from_str_radix(text, 16).map(InstanceId).map_err(|_| ()),
            false => Err(()),
        }
    }
}

/// The registered instances that requests go to, by service: what a snapshot is built of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registered(BTreeMap<String, Vec<EndpointSpec>>);

impl Registered {
    /// Those of `service`, in the order of their identities.
    pub fn of(&self, service: &str) -> &[EndpointSpec] {
        self.0.get(service).map_or(&[], Vec::as_slice)
    }

    /// Takes one more.
    pub(super) fn push(&mut self, service: &str, instance: &Instance) {
        let spec = EndpointSpec { url: instance.url.clone(), weight: instance.weight };
        self.0.entry(service.to_owned()).or_default().push(spec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_endpoint;

    #[test]
    fn identities() {
        let url = |text: &str| parse_endpoint(text).expect("a URL");
        let id = InstanceId::of("sms", &url("http://10.0.0.1:9001"));
        // `printf 'sms\0http://10.0.0.1:9001' | sha256sum`
        assert_eq!(id.to_string(), "e64061a0c97675b0");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, InstanceId::of("llm", &url("http://10.0.0.1:9001")));
        assert_ne!(id, InstanceId::of("sms", &url("http://10.0.0.1:9002")));
        for text in ["", "0", "00000000000000000", "000000000000000G", "000000000000000A", "+00000000000000f", "é"] {
            assert_eq!(text.parse::<InstanceId>(), Err(()), "{text}");
        }
    }
}
