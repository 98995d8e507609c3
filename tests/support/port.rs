//! A port for a server that is started in a moment, or again.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Below those that the kernel deals out (`ip_local_port_range` in ip(7)), so that nobody is dealt it meanwhile, and above those
/// that browsers refuse.
const RANGE: std::ops::Range<u16> = 11_000..32_768;

/// A port of loopback that is free for TCP and UDP.
pub fn free_port() -> u16 {
    let is_free = |&port: &u16| {
        let address = (Ipv4Addr::LOCALHOST, port);
        TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
    };
    (0..1_000).map(|_| fastrand::u16(RANGE)).find(is_free).expect("a free port")
}
