//! Which instances may be registered: pure.
//!
//! A gateway that sends requests wherever it is told to is a way into places that only the gateway reaches: metadata
//! services of clouds, link-local neighbours. Such addresses are refused, in every spelling, and names that stand for them
//! too; since names change what they stand for, each address is looked at again whenever a snapshot is built.
//!
//! `discovery.allow` replaces this rule by the operator's own: what it names is allowed, nothing else is. A name that it
//! allows may still not stand for an address of the first rule, unless a network of the list has that as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use crate::control::config::{Allowed, EndpointUrl, parse_endpoint};
use crate::snapshot::Address;

/// Shares of the requests.
pub const WEIGHTS: RangeInclusive<u64> = 1..=1_000;

/// Times to live.
pub const TTLS: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(86_400);

/// The time to live of an instance that asks for none.
pub const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// The longest URL, in bytes: a name of the DNS has 253.
const URL_BYTES_MAX: usize = 512;

/// Why an instance is refused; each is answered with 422.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a URL of an endpoint.
    #[error("The url {0}.")]
    Url(String),
    /// At an address where no backend is.
    #[error("The url leads to {0}, {1}; discovery.allow of the gateway's configuration can allow it.")]
    Forbidden(IpAddr, &'static str),
    /// Not in `discovery.allow`.
    #[error("The url leads to {0}, which discovery.allow of the gateway's configuration does not name.")]
    NotAllowed(String),
    /// It is the gateway.
    #[error(
        "The url leads to {0}, where this gateway itself takes requests: they would go round. Register the backend's address."
    )]
    Own(SocketAddr),
    /// Nobody knows its name.
    #[error("The url's name {0} does not resolve.")]
    Unresolved(String),
    /// Out of range.
    #[error("The weight must be a whole number from 1 to 1000.")]
    Weight,
    /// Out of range.
    #[error("The ttl must be a duration from 5 s to 24 h: a number of seconds, or a text such as \"30s\".")]
    Ttl,
}

impl Refused {
    /// The stable word for machines.
    pub const fn reason(&self) -> &'static str {
        match self {
            Refused::Url(_) => "instance_url_malformed",
            Refused::Forbidden(..) => "instance_address_forbidden",
            Refused::NotAllowed(_) => "instance_not_allowed",
            Refused::Own(_) => "instance_is_the_gateway",
            Refused::Unresolved(_) => "instance_name_unresolved",
            Refused::Weight => "instance_weight_invalid",
            Refused::Ttl => "instance_ttl_invalid",
        }
    }
}

/// Reads the URL of an instance. Equal places come out equal, however they are written. What a name stands for is not
/// looked at, see [`addresses`].
///
/// # Errors
/// [`Refused::Url`], [`Refused::Forbidden`], [`Refused::NotAllowed`].
pub fn url(text: &str, allow: Option<&[Allowed]>) -> Result<EndpointUrl, Refused> {
    if text.len() > URL_BYTES_MAX {
        return Err(Refused::Url(format!("must have at most {URL_BYTES_MAX} bytes")));
    }
    let scheme = text.split(':').next().unwrap_or_default().to_ascii_lowercase();
    if scheme != "http" && scheme != "unix" {
        return Err(Refused::Url("must be http://host:port".to_owned()));
    }
    let url = parse_endpoint(text).map_err(Refused::Url)?;
    match url {
        EndpointUrl::Address { address, .. } => {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            ip(address.ip(), false, allow)?;
            let authority = if address.port() == 80 { bracketed(address.ip()) } else { address.to_string() };
            Ok(EndpointUrl::Address { authority, address })
        }
        EndpointUrl::Name { host, port, .. } => {
            let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
            if is_odd_number(&host) {
                return Err(Refused::Url("must not write an address in an unusual way".to_owned()));
            }
            // Any network may turn out to have its addresses.
            let may_be = |entry: &Allowed| matches!(entry, Allowed::Network(_)) || names(entry, &host);
            if allow.is_some_and(|entries| !entries.iter().any(may_be)) {
                return Err(Refused::NotAllowed(host));
            }
            let authority = if port == 80 { host.clone() } else { format!("{host}:{port}") };
            Ok(EndpointUrl::Name { authority, host, port })
        }
        EndpointUrl::Srv { .. } => Err(Refused::Url("must be http://host:port".to_owned())),
        EndpointUrl::Unix(path) => match socket(&path, allow) {
            // As the list spells it: `/run/./app.sock` is the same.
            Some(path) => Ok(EndpointUrl::Unix(path.to_owned())),
            None => Err(Refused::NotAllowed(format!("unix:{}", path.display()))),
        },
    }
}

/// Whether `host` may stand for these `addresses`.
///
/// # Errors
/// [`Refused::Unresolved`] when there is none, else for the first that may not be.
pub fn addresses(host: &str, addresses: &[IpAddr], allow: Option<&[Allowed]>) -> Result<(), Refused> {
    if addresses.is_empty() {
        return Err(Refused::Unresolved(host.to_owned()));
    }
    let is_named = is_named(host, allow);
    addresses.iter().try_for_each(|address| ip(*address, is_named, allow))
}

/// Whether requests to the instance at `url` may be sent to `address`, which is where it is at this moment, by rules that
/// may be others than when it registered.
pub fn permits(url: &EndpointUrl, address: &Address, allow: Option<&[Allowed]>) -> bool {
    match (address, url) {
        (Address::Tcp(address), EndpointUrl::Name { host, .. }) => {
            ip(address.ip(), is_named(host, allow), allow).is_ok()
        }
        (Address::Tcp(address), _) => ip(address.ip(), false, allow).is_ok(),
        (Address::Unix(path), _) => socket(path, allow).is_some(),
    }
}

/// Reads a weight.
///
/// # Errors
/// [`Refused::Weight`].
pub fn weight(weight: u64) -> Result<u16, Refused> {
    match WEIGHTS.contains(&weight) {
        true => Ok(weight as u16),
        false => Err(Refused::Weight),
    }
}

/// Checks a time to live.
///
/// # Errors
/// [`Refused::Ttl`].
pub fn ttl(ttl: Duration) -> Result<Duration, Refused> {
    match TTLS.contains(&ttl) {
        true => Ok(ttl),
        false => Err(Refused::Ttl),
    }
}

/// `is_named`: the list allows the name that stands for `address`.
fn ip(address: IpAddr, is_named: bool, allow: Option<&[Allowed]>) -> Result<(), Refused> {
    let address = address.to_canonical();
    let is_in = |entry: &Allowed| matches!(entry, Allowed::Network(network) if network.contains(&address));
    if allow.is_some_and(|entries| entries.iter().any(is_in)) {
        return Ok(());
    }
    if allow.is_some() && !is_named {
        return Err(Refused::NotAllowed(address.to_string()));
    }
    match forbidden(address) {
        Some(what) => Err(Refused::Forbidden(address, what)),
        None => Ok(()),
    }
}

/// The socket of the list that `path` names.
fn socket<'a>(path: &Path, allow: Option<&'a [Allowed]>) -> Option<&'a Path> {
    allow?.iter().find_map(|entry| match entry {
        Allowed::Unix(allowed) if allowed == path => Some(allowed.as_path()),
        _ => None,
    })
}

fn is_named(host: &str, allow: Option<&[Allowed]>) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    allow.is_some_and(|entries| entries.iter().any(|entry| names(entry, host)))
}

fn names(entry: &Allowed, host: &str) -> bool {
    match entry {
        Allowed::Name(name) => name == host,
        Allowed::Below(parent) => host.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.')),
        Allowed::Network(_) | Allowed::Unix(_) => false,
    }
}

/// What an address is where no backend is. An IPv6 address that carries an IPv4 one is judged by that.
fn forbidden(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => forbidden_v6(address).or_else(|| carried(address).and_then(forbidden_v4)),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        // "This network" (RFC 1122, section 3.2.1.3); Linux takes 0.0.0.0 for itself.
        [0, ..] => Some("an unspecified address"),
        [169, 254, 169, 254] | [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => {
            Some("the metadata service of a cloud")
        }
        [169, 254, ..] => Some("a link-local address"),
        [224..=239, ..] => Some("a multicast address"),
        [255, 255, 255, 255] => Some("the broadcast address"),
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn forbidden_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => Some("the metadata service of a cloud"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        _ => None,
    }
}

/// The IPv4 address within an IPv6 one: mapped and compatible (RFC 4291, section 2.5.5), translated (RFC 2765, section 2.1),
/// behind NAT64 (RFC 6052, section 2.1; RFC 8215), 6to4 (RFC 3056, section 2), Teredo (RFC 4380, section 4), ISATAP (RFC 5214,
/// section 6.1).
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => Some(v4(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(v4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => Some(v4(high, low)),
        [0x2001, 0, _, _, _, _, high, low] => Some(v4(!high, !low)),
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// Whether resolvers read `host` as an IPv4 address though it has not the usual form: `0xa9fea9fe`, `127.0x1`
/// (inet_aton(3)).
fn is_odd_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    last.strip_prefix("0x").is_some_and(is_hex) || last.bytes().all(|byte| byte.is_ascii_digit())
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(entries: &[&str]) -> Vec<Allowed> {
        let read = |entry: &&str| match entry.strip_prefix("*.") {
            Some(parent) => Allowed::Below(parent.to_owned()),
            None if entry.starts_with('/') => Allowed::Unix(entry.into()),
            None => entry.parse().map_or_else(|_| Allowed::Name((*entry).to_owned()), Allowed::Network),
        };
        entries.iter().map(read).collect()
    }

    fn check(input: &str, allow: Option<&[&str]>, expected: Result<&str, &str>) {
        let allow = allow.map(list);
        let read = url(input, allow.as_deref());
        let shown = read.as_ref().map(ToString::to_string).map_err(Refused::reason);
        assert_eq!(shown, expected.map(str::to_owned), "{input} {allow:?}: {read:?}");
    }

    #[test]
    fn one_spelling_for_one_place() {
        for (input, expected) in [
            ("http://10.0.0.1:9001", "http://10.0.0.1:9001"),
            ("HTTP://10.0.0.1:9001/", "http://10.0.0.1:9001"),
            ("http://10.0.0.1:80", "http://10.0.0.1"),
            ("http://10.0.0.1", "http://10.0.0.1"),
            ("http://[2001:DB8:0::1]:81", "http://[2001:db8::1]:81"),
            ("http://[2001:db8::1]:80", "http://[2001:db8::1]"),
            ("http://[::ffff:10.0.0.1]:9001", "http://10.0.0.1:9001"),
            ("http://Backend.Internal.:9001", "http://backend.internal:9001"),
            ("http://backend:80/", "http://backend"),
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ] {
            check(input, None, Ok(expected));
        }
    }

    #[test]
    fn what_is_no_url_of_an_instance() {
        for input in [
            "",
            "10.0.0.1:9001",
            "https://10.0.0.1",
            "ftp://10.0.0.1",
            "srv+http://_a._tcp.b",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "http://u:p@10.0.0.1",
            "http://u@10.0.0.1",
            "http://10.0.0.1@169.254.169.254",
            "http://10.0.0.1/x",
            "http://10.0.0.1?x",
            "http://10.0.0.1#x",
            "http://10.0.0.1:0",
            "http://10.0.0.1:65536",
            "http://10.0.0.1:",
            "http://",
            "http://:80",
            "http://a b",
            "http://a\r\nX: y",
            "http://\u{ff11}.2.3.4",
            "http://169.254.169\u{3002}254",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://0xA9FEA9FE:80",
            "http://0x",
            "http://169.254.0xa9fe",
            "http://0251.0376.0251.0376",
            "http://169.254.43518",
            "http://169.254.169.254.",
            "http://127.1",
            "http://[fe80::1%25eth0]",
            "http://[::1",
            "http:169.254.169.254",
            "http:/10.0.0.1",
            "http:\\\\10.0.0.1",
            " http://10.0.0.1",
        ] {
            check(input, None, Err("instance_url_malformed"));
        }
        check(&format!("http://{}", "a.".repeat(300)), None, Err("instance_url_malformed"));
    }

    #[test]
    fn where_no_backend_is() {
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "[::]",
            "[fe80::1]",
            "[febf::1]",
            "[fd00:ec2::254]",
            "[FD00:0EC2:0:0:0:0:0:254]",
            "[ff02::1]",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[::169.254.169.254]",
            "[64:ff9b::169.254.169.254]",
            "[2002:a9fe:a9fe::1]",
            "[64:ff9b:1::a9fe:a9fe]",
            "[::ffff:0:169.254.169.254]",
            "[2001:0:1:2:3:4:5601:5601]",
            "[2001:db8::5efe:a9fe:a9fe]",
            "[fd00:ec2::23]",
            "240.0.0.1",
            "255.255.255.254",
            "[::ffff:0.0.0.0]",
            "[::ffff:255.255.255.255]",
        ] {
            check(&format!("http://{host}:9001"), None, Err("instance_address_forbidden"));
        }
        for host in ["169.253.1.1", "100.100.100.201", "[::1]", "[fec0::1]", "[2002:a00:1::]", "10.255.255.255"] {
            let url = format!("http://{host}:9001");
            check(&url, None, Ok(&url));
        }
        check("unix:/run/app.sock", None, Err("instance_not_allowed"));
    }

    #[test]
    fn the_list_is_all_that_is_allowed() {
        let allow = Some(&["10.0.0.0/8", "169.254.7.0/24", "backend", "*.svc.local", "/run/app.sock"][..]);
        for url in [
            "http://10.9.9.9",
            "http://169.254.7.7",
            "http://backend",
            "http://a.svc.local",
            "http://a.b.svc.local:1",
            // What it stands for is looked at when that is known.
            "http://other",
            "unix:/run/app.sock",
        ] {
            check(url, allow, Ok(url));
        }
        check("http://[::ffff:10.0.0.1]", allow, Ok("http://10.0.0.1"));
        for url in ["unix:/run/./app.sock", "unix:/run//app.sock", "unix:///run/app.sock", "unix:/run/app.sock/."] {
            check(url, allow, Ok("unix:/run/app.sock"));
        }
        check("http://BACKEND.", allow, Ok("http://backend"));
        for url in ["http://11.0.0.1", "http://169.254.169.254", "http://127.0.0.1", "unix:/run/app.sock/../x"] {
            check(url, allow, Err("instance_not_allowed"));
        }
        let names = Some(&["backend", "*.svc.local"][..]);
        for url in ["http://other", "http://svc.local", "http://xsvc.local", "http://10.0.0.1", "http://a.backend"] {
            check(url, names, Err("instance_not_allowed"));
        }
        check("http://10.0.0.1", Some(&[]), Err("instance_not_allowed"));
    }

    #[test]
    fn what_names_may_stand_for() {
        let check = |host: &str, ips: &[&str], allow: Option<&[&str]>, expected: Result<(), &str>| {
            let found: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
            let allow = allow.map(list);
            let result = addresses(host, &found, allow.as_deref());
            assert_eq!(result.as_ref().err().map(Refused::reason), expected.err(), "{host} {ips:?}");
            let url = EndpointUrl::Name { authority: host.to_owned(), host: host.to_owned(), port: 80 };
            let permitted = found
                .iter()
                .all(|address| permits(&url, &Address::Tcp(SocketAddr::new(*address, 80)), allow.as_deref()));
            assert_eq!(permitted && !found.is_empty(), expected.is_ok(), "{host} {ips:?}");
        };
        check("a", &["10.0.0.1", "::1"], None, Ok(()));
        check("a", &[], None, Err("instance_name_unresolved"));
        check("a", &["10.0.0.1", "169.254.169.254"], None, Err("instance_address_forbidden"));
        check("a", &["::ffff:169.254.169.254"], None, Err("instance_address_forbidden"));
        check("a", &["11.0.0.1"], Some(&["a"]), Ok(()));
        check("b", &["11.0.0.1"], Some(&["a"]), Err("instance_not_allowed"));
        check("b", &["10.0.0.1"], Some(&["a", "10.0.0.0/8"]), Ok(()));
        // A name that is trusted may be taken over; the metadata service stays out of reach.
        check("a", &["169.254.169.254"], Some(&["a"]), Err("instance_address_forbidden"));
        check("a", &["169.254.169.254"], Some(&["a", "169.254.0.0/16"]), Ok(()));
    }

    #[test]
    fn ranges() {
        assert_eq!((weight(1), weight(1_000)), (Ok(1), Ok(1_000)));
        assert_eq!(
            (weight(0), weight(1_001), weight(65_537)),
            (Err(Refused::Weight), Err(Refused::Weight), Err(Refused::Weight))
        );
        let seconds = Duration::from_secs;
        assert_eq!((ttl(seconds(5)), ttl(seconds(86_400))), (Ok(seconds(5)), Ok(seconds(86_400))));
        assert_eq!((ttl(seconds(4)), ttl(seconds(86_401))), (Err(Refused::Ttl), Err(Refused::Ttl)));
    }

    proptest! {
        #[test]
        fn what_was_taken_is_taken_again_the_same(text in "(?i)http://[a-z0-9.:\\[\\]x@/-]{1,24}|\\PC{0,20}") {
            if let Ok(first) = url(&text, None) {
                prop_assert_eq!(url(&first.to_string(), None), Ok(first));
            }
        }

        #[test]
        fn no_spelling_hides_an_address(bits in any::<u32>(), form in 0..4_u8) {
            let v4 = Ipv4Addr::from(bits);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (bits >> 16, bits & 0xffff);
            let text = match form {
                0 => format!("http://{a}.{b}.{c}.{d}"),
                1 => format!("http://[::ffff:{v4}]"),
                2 => format!("http://[64:ff9b::{high:x}:{low:x}]"),
                _ => format!("http://[2002:{high:x}:{low:x}::]"),
            };
            prop_assert_eq!(url(&text, None).is_ok(), forbidden_v4(v4).is_none());
        }
    }
}
