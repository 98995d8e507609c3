//! The set of origins that a request's `Origin` is looked up in.

use super::origin::{Kind, ORIGIN_BYTES_MAX, OriginPattern, is_name};
use crate::traffic::host;

/// A set of origins. A look-up allocates nothing and takes two binary searches, or one a dot of the host.
#[derive(Debug)]
pub(super) struct Origins {
    any: bool,
    null: bool,
    exact: Box<[Box<[u8]>]>,
    wildcard: Box<[Wildcard]>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wildcard {
    /// What follows the `*.`, port included.
    parent: Box<[u8]>,
    scheme: Box<[u8]>,
}

impl Origins {
    pub(super) fn new(patterns: &[OriginPattern]) -> Origins {
        let mut exact: Vec<Box<[u8]>> = Vec::new();
        let mut wildcard = Vec::new();
        for pattern in patterns {
            match &pattern.0 {
                Kind::Any | Kind::Null => {}
                Kind::Exact(origin) => exact.push(origin.as_bytes().into()),
                Kind::Subdomains { scheme, parent } => {
                    wildcard.push(Wildcard { parent: parent.as_bytes().into(), scheme: scheme.as_bytes().into() });
                }
            }
        }
        exact.sort_unstable();
        wildcard.sort_unstable();
        Origins {
            any: patterns.iter().any(OriginPattern::is_any),
            null: patterns.iter().any(OriginPattern::is_null),
            exact: exact.into(),
            wildcard: wildcard.into(),
        }
    }

    /// Whether the set holds every origin, so that a request's own need not be looked at.
    pub(super) fn is_any(&self) -> bool {
        self.any
    }

    /// Whether `origin`, an `Origin` field's value as it came, is in the set. Then it is printable ASCII without spaces.
    ///
    /// Scheme and host are compared without regard to case; `null` is not, as in the Fetch standard's CORS check.
    pub(super) fn contains(&self, origin: &[u8]) -> bool {
        if origin == b"null" {
            return self.null;
        }
        let mut buffer = [0; ORIGIN_BYTES_MAX];
        let Some(lowered) = buffer.get_mut(..origin.len()) else { return false };
        lowered.copy_from_slice(origin);
        lowered.make_ascii_lowercase();
        let lowered = &*lowered;
        self.exact.binary_search_by(|candidate| (**candidate).cmp(lowered)).is_ok() || self.has_parent_of(lowered)
    }

    fn has_parent_of(&self, origin: &[u8]) -> bool {
        if self.wildcard.is_empty() {
            return false;
        }
        let Some(colon) = memchr::memchr(b':', origin) else { return false };
        let (scheme, rest) = origin.split_at(colon);
        let Some(authority) = rest.strip_prefix(b"://") else { return false };
        let name = memchr::memchr(b':', authority).map_or(authority, |colon| &authority[..colon]);
        // The labels in front of the parent are the one part of an origin that no pattern spells out. Each parent is looked
        // up with all that follows it: the port, and whatever else a hostile origin holds there.
        is_name(name)
            && host::parents(name).any(|parent| self.has_wildcard(&authority[name.len() - parent.len()..], scheme))
    }

    fn has_wildcard(&self, parent: &[u8], scheme: &[u8]) -> bool {
        self.wildcard.binary_search_by(|known| (&*known.parent, &*known.scheme).cmp(&(parent, scheme))).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> OriginPattern {
        OriginPattern::parse(text).expect(text)
    }

    fn set(patterns: &[&str]) -> Origins {
        Origins::new(&patterns.iter().map(|text| parse(text)).collect::<Vec<_>>())
    }

    #[test]
    fn exact_origins() {
        let origins =
            set(&["https://example.com", "https://example.com:8443", "http://localhost:3000", "http://[::1]:3000"]);
        let check =
            |origin: &str, expected: bool| assert_eq!(origins.contains(origin.as_bytes()), expected, "{origin}");
        check("https://example.com", true);
        check("HTTPS://EXAMPLE.com", true);
        check("https://example.com:8443", true);
        check("http://localhost:3000", true);
        check("http://[::1]:3000", true);
        check("http://example.com", false);
        check("https://example.com:443", false);
        check("https://example.com:84430", false);
        check("https://example.com:", false);
        check("https://example.com/", false);
        check("https://example.com.", false);
        check("https://example.com.evil.org", false);
        check("https://evilexample.com", false);
        check("https://a.example.com", false);
        check("https://example.com https://example.com", false);
        check("https://example.com, https://example.com", false);
        check("https://example.com\0", false);
        check("example.com", false);
        check("null", false);
        check("", false);
        check("*", false);
        check(&format!("https://{}", "a".repeat(100_000)), false);
    }

    #[test]
    fn subdomains_of_any_depth_on_the_very_port() {
        let origins = set(&["https://*.example.com", "http://*.localhost:3000", "https://*.b.example.org"]);
        let check =
            |origin: &str, expected: bool| assert_eq!(origins.contains(origin.as_bytes()), expected, "{origin}");
        check("https://a.example.com", true);
        check("https://A.Example.COM", true);
        check("https://a.b.c.example.com", true);
        check("https://*.example.com", false);
        check("https://_dmarc.xn--bcher-kva.example.com", true);
        check("http://a.localhost:3000", true);
        check("https://a.b.example.org", true);
        check("https://example.com", false);
        check("https://.example.com", false);
        check("https://a..example.com", false);
        check("https://.a.example.com", false);
        check("http://a.example.com", false);
        check("https://a.example.com:444", false);
        check("https://a.example.com:443", false);
        check("https://a.example.com:", false);
        check("https://a.example.com.", false);
        check("http://a.localhost", false);
        check("http://a.localhost:30000", false);
        check("http://a:1.localhost:3000", false);
        check("https://a.localhost:3000", false);
        check("https://a.c.example.org", false);
        check("https://b.example.org", false);
        check("https://evilexample.com", false);
        check("https://a.example.com.evil.org", false);
        check("https://evil.org/.example.com", false);
        check("https://evil.org#.example.com", false);
        check("https://evil.org?.example.com", false);
        check("https://evil.org\\.example.com", false);
        check("https://evil.org:80.example.com", false);
        check("https://evil.org:.example.com", false);
        check("https://a.example.com:443.example.com", false);
        check("https://evil.org@a.example.com", false);
        check("https://evil.org%00.example.com", false);
        check("https://evil.org\r\nX: .example.com", false);
        check("https://evil.org .example.com", false);
        check("https://é.example.com", false);
        check("https:a.example.com", false);
        check("xhttps://a.example.com", false);
        check("a.example.com", false);
        check("null", false);
        check(&format!("https://{}.example.com", "a".repeat(63)), true);
        check(&format!("https://{}.example.com", "a".repeat(64)), false);
        check(&format!("https://{}example.com", "a.".repeat(121)), true);
        check(&format!("https://{}example.com", "a.".repeat(122)), false);
    }

    #[test]
    fn null_is_an_origin_of_its_own() {
        assert!(set(&["null"]).contains(b"null"));
        assert!(!set(&["null"]).contains(b"NULL"));
        assert!(!set(&["null"]).contains(b"http://null"));
        assert!(!set(&["http://null"]).contains(b"null"));
    }
}
