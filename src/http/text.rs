//! Numbers and addresses as text, in heads and in the log.

use std::io::Write;
use std::net::IpAddr;

/// Appends `value` in decimal.
pub fn push_decimal(value: u64, out: &mut Vec<u8>) {
    // Many are counts of what is rare.
    match value {
        0..10 => out.push(b'0' + value as u8),
        _ => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
    }
}

/// Appends an address: `127.0.0.1`, or as RFC 5952 has it, without brackets.
pub fn push_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            // Digits end to end, then cut: an address is written for each request, and its longest form is 15 bytes.
            let mut text = [0; 16];
            let mut at = 0;
            for octet in address.octets() {
                let (digits, length) = &OCTETS[usize::from(octet)];
                text[at..at + 4].copy_from_slice(digits);
                at += length;
            }
            out.extend_from_slice(&text[..at - 1]);
        }
        IpAddr::V6(address) => write!(out, "{address}").expect("a vector takes every write"),
    }
}

/// Each octet in decimal with a dot behind it, and how many bytes that is.
const OCTETS: [([u8; 4], usize); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let [hundreds, tens, ones] =
            [b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8];
        octets[octet] = match octet {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        octet += 1;
    }
    octets
};

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn numbers() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            let mut out = b"x".to_vec();
            push_decimal(number, &mut out);
            assert_eq!(out, format!("x{number}").as_bytes());
        }
    }

    #[test]
    fn addresses() {
        let check = |address: IpAddr| {
            let mut out = b"x".to_vec();
            push_address(address, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("x{address}"));
        };
        for octet in 0..=255 {
            check(Ipv4Addr::new(octet, 255 - octet, octet, octet).into());
        }
        for text in ["::", "::1", "2001:db8::7", "::ffff:192.0.2.1", "1:2:3:4:5:6:7:8"] {
            check(text.parse().expect("an address"));
        }
    }
}
