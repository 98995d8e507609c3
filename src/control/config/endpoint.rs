//! The URL of an endpoint.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::{EndpointUrl, route};

/// The longest path of a Unix socket: `sun_path` less its final NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Reads `http://host[:port]`, `srv+http://name` or `unix:/path`.
pub(super) fn url(text: &str) -> Result<EndpointUrl, String> {
    let (scheme, rest) = text.split_once(':').ok_or("must be a URL, http://host:port or unix:/path")?;
    match scheme.to_ascii_lowercase().as_str() {
        "http" => http(rest.strip_prefix("//").ok_or("must be a URL, http://host:port")?),
        "srv+http" => srv(rest.strip_prefix("//").ok_or("must be a URL, srv+http://_service._tcp.name")?),
        "unix" => unix(rest),
        "https" => Err("TLS to backends is not supported yet; use http:// or unix:".to_owned()),
        _ if !text.contains("://") => Err("must be a URL, http://host:port or unix:/path".to_owned()),
        _ => Err(format!("has the unknown scheme {scheme:?}; http://, srv+http:// and unix: are supported")),
    }
}

fn unix(path: &str) -> Result<EndpointUrl, String> {
    if !path.starts_with('/') {
        return Err("must name an absolute path, as in unix:/run/app.sock".to_owned());
    }
    // `unix:///run/app.sock` is the same.
    let path = format!("/{}", path.trim_start_matches('/'));
    if path.ends_with('/') || path.contains('\0') {
        return Err("must name a socket, as in unix:/run/app.sock".to_owned());
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return Err(format!("must have a path of at most {SOCKET_PATH_BYTES_MAX} bytes"));
    }
    Ok(EndpointUrl::Unix(PathBuf::from(path)))
}

fn http(rest: &str) -> Result<EndpointUrl, String> {
    authority(bare_authority(rest)?, 80)
}

fn srv(rest: &str) -> Result<EndpointUrl, String> {
    let name = bare_authority(rest)?.to_ascii_lowercase();
    if name.contains(':') {
        return Err("must have no port: the SRV records name it".to_owned());
    }
    route::check_name(name.strip_suffix('.').unwrap_or(&name))?;
    Ok(EndpointUrl::Srv { name })
}

/// The authority of a URL that has nothing else.
fn bare_authority(rest: &str) -> Result<&str, String> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if authority.contains('@') {
        return Err("must not have credentials".to_owned());
    }
    if tail.contains('#') {
        return Err("must not have a fragment".to_owned());
    }
    if tail.contains('?') {
        return Err("must not have a query".to_owned());
    }
    if tail.len() > 1 {
        return Err("must not have a path: requests are sent to the path that is left after the prefix".to_owned());
    }
    Ok(authority)
}

/// Reads `host[:port]`, a name or an address.
pub(super) fn authority(authority: &str, default_port: u16) -> Result<EndpointUrl, String> {
    let authority = authority.to_ascii_lowercase();
    let (host, port) = split_port(&authority, default_port)?;
    let address = match host.strip_prefix('[') {
        Some(v6) => {
            let v6 = v6.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok());
            Some(IpAddr::V6(v6.ok_or("must have an IPv6 address in the brackets")?))
        }
        None => host.parse().ok().map(IpAddr::V4),
    };
    match address {
        Some(ip) => Ok(EndpointUrl::Address { address: SocketAddr::new(ip, port), authority }),
        None => {
            route::check_name(host.strip_suffix('.').unwrap_or(host))?;
            Ok(EndpointUrl::Name { host: host.to_owned(), port, authority })
        }
    }
}

/// The host, with the brackets of an IPv6 address, and the port, the default where there is none.
fn split_port(authority: &str, default: u16) -> Result<(&str, u16), String> {
    let host_end = authority.rfind(']').map_or(0, |index| index + 1);
    let Some(colon) = authority[host_end..].find(':').map(|index| host_end + index) else {
        return Ok((authority, default));
    };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    if port.contains(':') {
        return Err("must have an IPv6 address in brackets, as in http://[::1]:9001".to_owned());
    }
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port > 0 => Ok((host, port)),
        _ => Err("must have a port from 1 to 65535".to_owned()),
    }
}

/// `value` without what stands before an `@`: a URL with credentials is not repeated in an error.
pub(super) fn mask(value: &str) -> String {
    match (value.find("://"), value.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}…{}", &value[..scheme + 3], &value[at..]),
        _ => value.to_owned(),
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointUrl::Address { authority, .. } | EndpointUrl::Name { authority, .. } => {
                write!(f, "http://{authority}")
            }
            EndpointUrl::Srv { name } => write!(f, "srv+http://{name}"),
            EndpointUrl::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good() {
        let address = |authority: &str, address: &str| EndpointUrl::Address {
            authority: authority.to_owned(),
            address: address.parse().unwrap(),
        };
        let name = |authority: &str, host: &str, port| EndpointUrl::Name {
            authority: authority.to_owned(),
            host: host.to_owned(),
            port,
        };
        let srv = |name: &str| EndpointUrl::Srv { name: name.to_owned() };
        for (input, expected) in [
            ("http://127.0.0.1:9001", address("127.0.0.1:9001", "127.0.0.1:9001")),
            ("http://127.0.0.1", address("127.0.0.1", "127.0.0.1:80")),
            ("HTTP://127.0.0.1:9001/", address("127.0.0.1:9001", "127.0.0.1:9001")),
            ("http://[::1]:9001", address("[::1]:9001", "[::1]:9001")),
            ("http://[2001:DB8::1]", address("[2001:db8::1]", "[2001:db8::1]:80")),
            ("http://Backend.internal:9001", name("backend.internal:9001", "backend.internal", 9001)),
            ("http://my_app", name("my_app", "my_app", 80)),
            ("http://a.example.:81", name("a.example.:81", "a.example.", 81)),
            ("srv+http://_SMS._tcp.example", srv("_sms._tcp.example")),
            ("srv+http://sms.service.consul./", srv("sms.service.consul.")),
            ("unix:/run/app.sock", EndpointUrl::Unix("/run/app.sock".into())),
            ("unix:///run/app.sock", EndpointUrl::Unix("/run/app.sock".into())),
        ] {
            assert_eq!(url(input), Ok(expected), "{input:?}");
        }
    }

    #[test]
    fn bad() {
        for (input, expected) in [
            ("", "must be a URL"),
            ("127.0.0.1:9001", "must be a URL"),
            ("localhost", "must be a URL"),
            ("http:127.0.0.1", "must be a URL"),
            ("https://a:1", "TLS to backends is not supported yet"),
            ("ftp://a:1", "unknown scheme \"ftp\""),
            ("http://u:p@a:1", "credentials"),
            ("http://a:1/x", "path"),
            ("http://a:1//", "path"),
            ("http://a:1?x", "query"),
            ("http://a:1/?x", "query"),
            ("http://a:1#x", "fragment"),
            ("http://", "host name"),
            ("http://:80", "host name"),
            ("http://a:", "port"),
            ("http://a:0", "port"),
            ("http://a:+1", "port"),
            ("http://a:65536", "port"),
            ("http://::1:80", "brackets"),
            ("http://[::1", "IPv6 address in brackets"),
            ("http://[::1]x:80", "IPv6 address in the brackets"),
            ("http://[fe80::1%eth0]:80", "IPv6 address in the brackets"),
            ("http://127.1:80", "last label"),
            ("http://999.0.0.1:80", "last label"),
            ("http://a b:80", "host name"),
            ("http://é:80", "host name"),
            ("srv+http:_a._tcp.b", "must be a URL"),
            ("srv+http://_a._tcp.b:80", "no port"),
            ("srv+http://[::1]", "no port"),
            ("srv+http://127.0.0.1", "last label"),
            ("srv+http://u@_a._tcp.b", "credentials"),
            ("srv+http://_a._tcp.b/x", "path"),
            ("srv+http://", "host name"),
            ("srv+https://_a._tcp.b", "unknown scheme"),
            ("unix:run/app.sock", "absolute path"),
            ("unix:", "absolute path"),
            ("unix:/", "must name a socket"),
        ] {
            let problem = url(input).expect_err(input);
            assert!(problem.contains(expected), "{input:?}: {problem}");
        }
        assert!(url(&format!("unix:/{}", "a".repeat(107))).unwrap_err().contains("107"));
    }

    #[test]
    fn credentials_are_masked() {
        for (input, expected) in
            [("\"http://user:pass@a:1\"", "\"http://…@a:1\""), ("\"http://a:1\"", "\"http://a:1\""), ("a@b", "a@b")]
        {
            assert_eq!(mask(input), expected);
        }
    }
}
