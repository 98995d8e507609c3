//! Prefixes and host patterns.

/// What the gateway answers itself, and all that is below it.
const OWN_PATHS: [&str; 7] = ["/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/dashboard"];
const OWN_API: &str = "/api/v1/services";

/// The longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 1_024;

/// Checks and normalises a prefix, so that it equals what a normalised request path begins with.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("must begin with \"/\"".to_owned());
    }
    if text.len() > PREFIX_BYTES_MAX {
        return Err(format!("must be at most {PREFIX_BYTES_MAX} bytes long"));
    }
    let prefix = escapes(text.strip_suffix('/').unwrap_or(text))?;
    for segment in prefix.split('/').skip(1) {
        match segment {
            "" => return Err("must not have an empty segment, \"//\"".to_owned()),
            "." | ".." => return Err("must not have a \".\" or \"..\" segment".to_owned()),
            _ => {}
        }
    }
    if let Some(own) = OWN_PATHS.iter().chain([&OWN_API]).find(|own| is_below(&prefix, own)) {
        return Err(format!("is taken: the gateway itself answers {own} and what is below it"));
    }
    Ok(if prefix.is_empty() { "/".to_owned() } else { prefix })
}

fn is_below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Checks the characters of a path (RFC 3986, section 3.3) and brings its escapes to upper case (section 6.2.2.1).
fn escapes(text: &str) -> Result<String, String> {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '%' => {
                let digits: String = rest.by_ref().take(2).collect();
                normal.push('%');
                normal.push_str(&escape(&digits)?);
            }
            '?' | '#' => return Err(format!("must not have a {c:?}: it is a path only")),
            _ if c.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:@".contains(c) => normal.push(c),
            _ => return Err(format!("must not have the character {c:?}; write it percent-encoded, in UTF-8")),
        }
    }
    Ok(normal)
}

fn escape(digits: &str) -> Result<String, String> {
    let byte = match digits.len() {
        2 if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u8::from_str_radix(digits, 16).ok(),
        _ => None,
    };
    let byte = byte.ok_or_else(|| format!("must have two hexadecimal digits after \"%\", not {digits:?}"))?;
    match char::from(byte) {
        c if c.is_ascii_alphanumeric() || "-._~".contains(c) => Err(format!("must have \"{c}\" instead of %{digits}")),
        '/' | '\\' => Err("must not have an encoded slash".to_owned()),
        c if c.is_ascii_control() => Err("must not have an encoded control character".to_owned()),
        _ => Ok(digits.to_ascii_uppercase()),
    }
}

/// Checks a host pattern, a name, an address or `*.` and a name, and brings it to lower case.
pub(super) fn host(text: &str) -> Result<String, String> {
    let host = text.to_ascii_lowercase();
    if host == "*" {
        return Err("matches every host; leave `hosts` out instead".to_owned());
    }
    if is_address(&host) {
        return Ok(host);
    }
    let name = host.strip_prefix("*.").unwrap_or(&host);
    if name.contains('*') {
        return Err("may have \"*\" as the whole first label only, as in \"*.example.com\"".to_owned());
    }
    if name.contains(':') {
        return Err("must not have a port: a host is matched whatever the port".to_owned());
    }
    check_name(name)?;
    Ok(host)
}

/// An IPv4 address, or an IPv6 one in brackets, as in the `Host` header.
fn is_address(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    v6.is_some_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok()) || host.parse::<std::net::Ipv4Addr>().is_ok()
}

/// Checks a name of the DNS (RFC 1123, section 2.1), with the `_` that container networks use.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.is_empty() || name.len() > 253 || !name.split('.').all(label) {
        return Err("must have a host name: labels of letters, digits, \"-\" and \"_\", joined by dots".to_owned());
    }
    // `127.1` and `999.0.0.1` are read as addresses by some, as names by others.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err("is neither an IP address nor a host name: a name's last label must not be a number".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(actual: Result<String, String>, expected: Result<&str, &str>, input: &str) {
        match (actual, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{input:?}"),
            (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{input:?}: {actual}"),
            (actual, expected) => panic!("{input:?}: {actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn prefixes() {
        let good = [
            ("/", "/"),
            ("/api", "/api"),
            ("/api/", "/api"),
            ("/api/v1/sms", "/api/v1/sms"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a:b@c,d;e=f", "/a:b@c,d;e=f"),
            ("/api/v1/servicesx", "/api/v1/servicesx"),
            ("/healthy", "/healthy"),
            ("/api/v1", "/api/v1"),
        ];
        for (input, expected) in good {
            check(prefix(input), Ok(expected), input);
        }
        let bad = [
            ("", "begin with"),
            ("api", "begin with"),
            ("/a//b", "empty segment"),
            ("//", "empty segment"),
            ("/a/./b", "\"..\" segment"),
            ("/..", "\"..\" segment"),
            ("/a?b", "'?'"),
            ("/a#b", "'#'"),
            ("/%41", "\"A\" instead of %41"),
            ("/%2e%2e", "\".\" instead of %2e"),
            ("/a%2Fb", "encoded slash"),
            ("/a%5cb", "encoded slash"),
            ("/a%00", "control character"),
            ("/a%4", "two hexadecimal digits"),
            ("/a%+1", "two hexadecimal digits"),
            ("/a%é1", "two hexadecimal digits"),
            ("/é", "percent-encoded"),
            ("/a b", "percent-encoded"),
            ("/a\\b", "percent-encoded"),
            ("/health", "answers /health"),
            ("/health/x", "answers /health"),
            ("/livez", "is taken"),
            ("/readyz/", "is taken"),
            ("/metrics", "is taken"),
            ("/docs/x", "is taken"),
            ("/openapi.json", "is taken"),
            ("/dashboard", "is taken"),
            ("/api/v1/services", "is taken"),
            ("/api/v1/services/sms", "is taken"),
        ];
        for (input, expected) in bad {
            check(prefix(input), Err(expected), input);
        }
        check(prefix(&format!("/{}", "a".repeat(1_024))), Err("at most 1024"), "long");
    }

    #[test]
    fn hosts() {
        let good = [
            ("example.com", "example.com"),
            ("EXAMPLE.com", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("my_app", "my_app"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
        ];
        for (input, expected) in good {
            check(host(input), Ok(expected), input);
        }
        let bad = [
            ("", "host name"),
            ("*", "leave `hosts` out"),
            ("*.*.com", "whole first label"),
            ("a*.com", "whole first label"),
            ("example.com:80", "port"),
            ("example..com", "host name"),
            ("exa mple.com", "host name"),
            ("é.com", "host name"),
            ("1.2.3", "last label"),
            ("*.", "host name"),
        ];
        for (input, expected) in bad {
            check(host(input), Err(expected), input);
        }
    }
}
