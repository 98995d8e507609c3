//! Origins as an operator writes them.
//!
//! An origin is a scheme, a host and a port, written as browsers serialise it (RFC 6454, section 6.2): in lower case,
//! without a default port, without path or trailing slash. A pattern that no browser could ever send is an error that
//! says what to write instead, not a line that silently never matches.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::traffic::host::NAME_MAX;

/// The longest scheme that a pattern may have, in bytes.
const SCHEME_BYTES_MAX: usize = 32;

/// The longest origin that can match, in bytes: scheme, `://`, host, and a colon with five digits.
pub const ORIGIN_BYTES_MAX: usize = SCHEME_BYTES_MAX + 3 + NAME_MAX + 6;

/// Which origins one entry of `allow_origins` stands for.
///
/// [`fmt::Display`] writes it as browsers would: what [`OriginPattern::parse`] understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPattern(pub(super) Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Null,
    Exact(Box<str>),
    /// `parent` carries the port, if there is one.
    Subdomains {
        scheme: Box<str>,
        parent: Box<str>,
    },
}

/// Why an entry of `allow_origins` is refused; the text tells what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum OriginError {
    #[error("must be an origin such as \"https://app.example.com\", or \"https://*.example.com\", \"*\" or \"null\"")]
    Form,
    #[error("must begin with a scheme: write \"https://{0}\", or \"http://{0}\"")]
    NoScheme(String),
    #[error(
        "must begin with a scheme of letters, digits, \"+\", \"-\" and \".\", at most {SCHEME_BYTES_MAX} bytes long, \
         such as \"https\""
    )]
    Scheme,
    #[error("must end behind the host or its port, since an origin has no path: write \"{0}\"")]
    Path(String),
    #[error("must not have a user name: write the host right behind \"://\"")]
    UserInfo,
    #[error(
        "may have \"*\" as the host's whole first label only, as in \"https://*.example.com\"; \"*\" alone is any origin"
    )]
    Wildcard,
    #[error("must have a port from 1 to 65535, or none for the scheme's own; list each port in an entry of its own")]
    Port,
    #[error("must be in ASCII: write a name in another script in its \"xn--\" form, as browsers send it")]
    NotAscii,
    #[error("must have an IPv6 address in brackets, as in \"http://[::1]:3000\"")]
    Ipv6,
    #[error(
        "must have a host: labels of 1 to 63 letters, digits, \"-\" and \"_\", joined by dots, at most {NAME_MAX} bytes \
         together; or an IP address of four numbers"
    )]
    Host,
}

impl OriginPattern {
    /// Reads an entry of `allow_origins`:
    ///
    /// - `https://app.example.com`, `http://localhost:3000`, `http://[::1]:3000`: this origin. A scheme's default port may
    ///   be written, and changes nothing.
    /// - `https://*.example.com`, `https://*.example.com:8443`: any subdomain, of any depth, on that very port; not
    ///   `https://example.com` itself.
    /// - `*`: any origin, `null` too.
    /// - `null`: the origin of pages that have none: files, `data:` URLs, sandboxed frames. Any site can make such a frame,
    ///   so that this lets in every site that tries.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub fn parse(text: &str) -> Result<OriginPattern, OriginError> {
        match text {
            "" => return Err(OriginError::Form),
            "*" => return Ok(OriginPattern(Kind::Any)),
            "null" => return Ok(OriginPattern(Kind::Null)),
            _ if !text.is_ascii() => return Err(OriginError::NotAscii),
            _ if text.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) => {
                return Err(OriginError::Form);
            }
            _ => {}
        }
        let text = text.to_ascii_lowercase();
        let Some((scheme, rest)) = text.split_once("://") else {
            let is_near = text == "null" || text.contains(":/");
            return Err(if is_near { OriginError::Form } else { OriginError::NoScheme(text) });
        };
        check_scheme(scheme)?;
        if let Some(end) = rest.find(['/', '?', '#', '\\']) {
            return Err(OriginError::Path(format!("{scheme}://{}", &rest[..end])));
        }
        if rest.contains('@') {
            return Err(OriginError::UserInfo);
        }
        let (host, port) = split_port(rest)?;
        let port = port.map(|digits| port_of(scheme, digits)).transpose()?.unwrap_or_default();
        let parent = host.strip_prefix("*.");
        if parent.unwrap_or(host).contains('*') {
            return Err(OriginError::Wildcard);
        }
        Ok(OriginPattern(match parent {
            Some(parent) if is_name(parent.as_bytes()) && !ends_in_number(parent) => {
                Kind::Subdomains { scheme: scheme.into(), parent: format!("{parent}{port}").into() }
            }
            Some(_) => return Err(OriginError::Host),
            None => Kind::Exact(format!("{scheme}://{}{port}", canonical_host(host)?).into()),
        }))
    }

    /// Whether it is `*`.
    pub fn is_any(&self) -> bool {
        self.0 == Kind::Any
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.0 == Kind::Null
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Any => f.write_str("*"),
            Kind::Null => f.write_str("null"),
            Kind::Exact(origin) => f.write_str(origin),
            Kind::Subdomains { scheme, parent } => write!(f, "{scheme}://*.{parent}"),
        }
    }
}

/// RFC 3986, section 3.1. Any scheme, since embedded web views have their own (`capacitor://localhost`).
fn check_scheme(scheme: &str) -> Result<(), OriginError> {
    let is_good = scheme.len() <= SCHEME_BYTES_MAX
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if is_good { Ok(()) } else { Err(OriginError::Scheme) }
}

/// The host, brackets included, and what stands behind its colon.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), OriginError> {
    if authority.starts_with('[') {
        let (_, port) = authority.split_once(']').ok_or(OriginError::Ipv6)?;
        let host = &authority[..authority.len() - port.len()];
        return match port.strip_prefix(':') {
            None if !port.is_empty() => Err(OriginError::Ipv6),
            port => Ok((host, port)),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(OriginError::Ipv6),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

/// The port as it stands in an origin, its colon included: nothing for the scheme's default.
fn port_of(scheme: &str, digits: &str) -> Result<String, OriginError> {
    let port = match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse::<u16>().unwrap_or(0),
        false => 0,
    };
    match (scheme, port) {
        (_, 0) => Err(OriginError::Port),
        ("http", 80) | ("https", 443) => Ok(String::new()),
        _ => Ok(format!(":{port}")),
    }
}

fn canonical_host(host: &str) -> Result<String, OriginError> {
    if let Some(text) = host.strip_prefix('[') {
        let address = text.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok()).ok_or(OriginError::Ipv6)?;
        return Ok(match address.to_ipv4_mapped() {
            // Browsers write the last four bytes in hexadecimal here too (URL standard, "IPv6 serializer").
            Some(_) => format!("[::ffff:{:x}:{:x}]", address.segments()[6], address.segments()[7]),
            None => format!("[{address}]"),
        });
    }
    let is_good = match ends_in_number(host) {
        true => host.parse::<Ipv4Addr>().is_ok(),
        false => is_name(host.as_bytes()),
    };
    if is_good { Ok(host.to_owned()) } else { Err(OriginError::Host) }
}

/// Browsers take such a host for an IPv4 address (URL standard, "ends in a number").
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(last) || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A name of the DNS (RFC 1123, section 2.1), with the `_` that URLs may have.
pub(super) fn is_name(name: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= NAME_MAX && name.split(|&byte| byte == b'.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> OriginPattern {
        OriginPattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn patterns_as_browsers_would_write_them() {
        let check = |text: &str, expected: &str| {
            assert_eq!(parse(text).to_string(), expected, "{text}");
            assert_eq!(parse(expected), parse(text), "{text}: written again");
        };
        check("*", "*");
        check("null", "null");
        check("https://example.com", "https://example.com");
        check("HTTPS://App.Example.COM", "https://app.example.com");
        check("https://example.com:443", "https://example.com");
        check("https://example.com:0443", "https://example.com");
        check("https://example.com:80", "https://example.com:80");
        check("http://example.com:80", "http://example.com");
        check("http://localhost:3000", "http://localhost:3000");
        check("http://my_app:65535", "http://my_app:65535");
        check("http://127.0.0.1:8080", "http://127.0.0.1:8080");
        check("http://[::1]:3000", "http://[::1]:3000");
        check("http://[2001:DB8:0:0:0:0:0:1]", "http://[2001:db8::1]");
        check("http://[::ffff:192.0.2.1]", "http://[::ffff:c000:201]");
        check("https://*.Example.com", "https://*.example.com");
        check("https://*.example.com:443", "https://*.example.com");
        check("https://*.example.com:8443", "https://*.example.com:8443");
        check("http://*.localhost:3000", "http://*.localhost:3000");
        check("https://xn--bcher-kva.example", "https://xn--bcher-kva.example");
        check("capacitor://localhost", "capacitor://localhost");
        check("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop");
    }

    #[test]
    fn refused_patterns_are_told_what_to_write() {
        let check = |text: &str, expected: &str| {
            let error = OriginPattern::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        };
        check("", "such as \"https://app.example.com\"");
        check(" https://example.com", "must be an origin");
        check("https://example.com\r\nX: y", "must be an origin");
        check("example.com", "write \"https://example.com\"");
        check("example.com:8080", "write \"https://example.com:8080\"");
        check("*.example.com", "write \"https://*.example.com\"");
        check("NULL", "or \"null\"");
        check("https:/example.com", "must be an origin");
        check("://example.com", "scheme of letters");
        check("1ttp://example.com", "scheme of letters");
        check("http*://example.com", "scheme of letters");
        check(&format!("{}://a", "a".repeat(33)), "at most 32 bytes");
        check("https://Example.com/", "write \"https://example.com\"");
        check("https://example.com:8443/app?x#y", "write \"https://example.com:8443\"");
        check("https://user@example.com", "user name");
        check("https://*", "\"*\" alone is any origin");
        check("https://*.*.example.com", "whole first label");
        check("https://api.*.example.com", "whole first label");
        check("https://*example.com", "whole first label");
        check("https://example.com:*", "list each port");
        for port in ["", "0", "65536", "+80", "8a", "99999999999999999999"] {
            check(&format!("https://example.com:{port}"), "from 1 to 65535");
        }
        check("https://bücher.example", "xn--");
        check("http://::1", "in brackets");
        check("http://[::1", "in brackets");
        check("http://[::1]3000", "in brackets");
        check("http://[1.2.3.4]", "in brackets");
        check("http://[::1%25eth0]", "in brackets");
        check("file://", "must have a host");
        check("https://", "must have a host");
        check("https://.example.com", "must have a host");
        check("https://example..com", "must have a host");
        check("https://example.com.", "must have a host");
        check("https://*.", "must have a host");
        check("https://exa%6Dple.com", "must have a host");
        check("http://1.2.3", "must have a host");
        check("http://256.0.0.1", "must have a host");
        check("http://a.0x7f", "must have a host");
        check("http://*.0.0.1", "must have a host");
        check(&format!("https://{}.com", "a".repeat(64)), "must have a host");
        check(&format!("https://{}com", "a.".repeat(126)), "at most 253 bytes");
    }
}
