//! Whom a limit counts, and under which key.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::traffic::window::{Limit, LimitKey};

/// Whom a request counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity<'a> {
    /// The subject of a verified token.
    User(&'a [u8]),
    /// The name of a verified API key.
    ApiKey(&'a [u8]),
    /// The client's address: IPv4 alone, IPv6 by its network, since a client commands a whole one.
    Ip(IpNet),
}

impl Identity<'_> {
    /// The identity of an address. IPv6 is cut to `ipv6_prefix` bits, 64 by default, at most 128; an IPv4 address mapped into
    /// IPv6 is an IPv4 address.
    pub fn ip(address: IpAddr, ipv6_prefix: u8) -> Identity<'static> {
        let network = match address.to_canonical() {
            IpAddr::V4(address) => IpNet::from(IpAddr::V4(address)),
            IpAddr::V6(address) => {
                let prefix = ipv6_prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                let masked = IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask));
                IpNet::new(masked, prefix).expect("at most 128 bits")
            }
        };
        Identity::Ip(network)
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Identity::User(_) => Kind::User,
            Identity::ApiKey(_) => Kind::ApiKey,
            Identity::Ip(_) => Kind::Ip,
        }
    }
}

/// The kind of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    User,
    ApiKey,
    Ip,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Kind; 3] = [Kind::User, Kind::ApiKey, Kind::Ip];

    /// What metrics and Redis call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::ApiKey => "api_key",
            Kind::Ip => "ip",
        }
    }
}

/// Makes keys that no client can make collide: two SipHashes under random keys of their own, 128 bits together.
///
/// All workers of a process must share one, cloned: the ledger in memory counts by these keys.
#[derive(Debug, Clone)]
pub struct KeyHasher([RandomState; 2]);

impl KeyHasher {
    /// A hasher under the keys of `states`, which must be two distinct ones.
    pub fn new(states: [RandomState; 2]) -> KeyHasher {
        KeyHasher(states)
    }

    /// The key of `identity` under the limit that the process knows as `id`. Windows of different lengths are counted apart:
    /// after a reload, or when an API key's own limit changes, what was counted in slots of another length says nothing.
    pub fn key(&self, id: u32, limit: &Limit, identity: &Identity<'_>) -> LimitKey {
        let [upper, lower] = self.0.each_ref().map(|state| {
            let mut hasher = state.build_hasher();
            hasher.write_u32(id);
            hasher.write_u64(limit.slot_us());
            match identity {
                Identity::User(name) => write(&mut hasher, 0, name),
                Identity::ApiKey(name) => write(&mut hasher, 1, name),
                Identity::Ip(IpNet::V4(network)) => write(&mut hasher, 2, &network.addr().octets()),
                Identity::Ip(IpNet::V6(network)) => write(&mut hasher, 3, &network.addr().octets()),
            }
            hasher.finish()
        });
        LimitKey(u128::from(upper) << 64 | u128::from(lower))
    }
}

fn write(hasher: &mut impl Hasher, kind: u8, name: &[u8]) {
    hasher.write_u8(kind);
    hasher.write(name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn addresses() {
        let check = |address: &str, prefix, expected: &str| {
            let identity = Identity::ip(address.parse().unwrap(), prefix);
            assert_eq!(identity, Identity::Ip(expected.parse().unwrap()), "{address}");
        };
        check("192.0.2.7", 64, "192.0.2.7/32");
        check("::ffff:192.0.2.7", 64, "192.0.2.7/32");
        check("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64");
        check("2001:db8:1:2:3:4:5:6", 56, "2001:db8:1::/56");
        check("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6/128");
        check("2001:db8::1", 0, "::/0");
        check("2001:db8::1", 255, "2001:db8::1/128");
    }

    #[test]
    fn keys_differ_by_limit_kind_and_identity() {
        let hasher = KeyHasher::new([RandomState::new(), RandomState::new()]);
        let limit = Limit::new(10, Duration::from_secs(60));
        let longer = Limit::new(10, Duration::from_secs(61));
        let v4 = [192, 0, 2, 7];
        let identities = [
            Identity::User(b"a"),
            Identity::ApiKey(b"a"),
            Identity::User(b""),
            Identity::User(&v4),
            Identity::ip(v4.into(), 64),
            Identity::ip("2001:db8::1".parse().unwrap(), 64),
            Identity::ip("2001:db8:0:1::1".parse().unwrap(), 64),
        ];
        let keys: HashSet<_> = identities
            .iter()
            .flat_map(|who| [(1, &limit), (2, &limit), (1, &longer)].map(|(id, limit)| hasher.key(id, limit, who)))
            .collect();
        assert_eq!(keys.len(), 3 * identities.len());
        let [one, another] = [hasher.clone(), hasher.clone()];
        assert_eq!(one.key(1, &limit, &identities[0]), another.key(1, &Limit::new(20, limit.window()), &identities[0]));
        let neighbour = Identity::ip("2001:db8::ffff".parse().unwrap(), 64);
        assert_eq!(hasher.key(1, &limit, &identities[5]), hasher.key(1, &limit, &neighbour));
    }
}
