//! Whether an instance would be the gateway itself: then requests would go round, each through hundreds of connections, until
//! a head has grown too large.
//!
//! This sees the plain mistake, the gateway's own address and port. It does not see a way back over another machine, a
//! translated address or a name that stands for something else later; such a loop ends where the `Via` field (RFC 9110,
//! section 7.6.3) has grown past `limits.header_bytes`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Whether who connects to `to` reaches the listener at `listening`.
pub fn is_own(listening: SocketAddr, to: SocketAddr) -> bool {
    let (own, ip) = (listening.ip().to_canonical(), to.ip().to_canonical());
    to.port() == listening.port()
        && match own {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4() && is_of_this_machine(ip),
            // It takes both.
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_of_this_machine(ip),
            own => own == ip,
        }
}

/// Asks the kernel from where it would send to `ip`: to an own address, from that same one. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any = if ip.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        // The port does not matter, but must not be 0.
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    ip.is_loopback() || source().is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses() {
        let check = |listening: &str, to: &str, expected: bool| {
            let address = |text: &str| text.parse().expect("an address");
            assert_eq!(is_own(address(listening), address(to)), expected, "{listening} {to}");
        };
        for to in ["127.0.0.1:80", "127.9.9.9:80", "[::ffff:127.0.0.1]:80"] {
            check("0.0.0.0:80", to, true);
            check("[::]:80", to, true);
        }
        check("[::]:80", "[::1]:80", true);
        check("0.0.0.0:80", "[::1]:80", false);
        check("127.0.0.1:80", "127.0.0.1:80", true);
        check("10.0.0.1:80", "10.0.0.1:80", true);
        check("[::ffff:10.0.0.1]:80", "10.0.0.1:80", true);
        check("127.0.0.1:80", "127.0.0.2:80", false);
        for listening in ["0.0.0.0:80", "[::]:80", "127.0.0.1:80"] {
            for to in ["127.0.0.1:81", "192.0.2.1:80", "[2001:db8::1]:80"] {
                check(listening, to, false);
            }
        }
    }
}
