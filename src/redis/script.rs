//! The ledger in Redis, as text: the script, its key, its arguments and its answer. No connection.
//!
//! `EVALSHA <sha1> 1 <key> <arguments…>`, with `SCRIPT LOAD` when the server does not know the script (NOSCRIPT). It needs
//! Redis 6.2 and works on one key, so that Redis Cluster finds its shard. It writes: a read-only replica and a full memory
//! answer with an error and have changed nothing. The answer is one bulk string, read here without allocating.

use std::io::Write;
use std::time::Duration;

use aws_lc_rs::digest;

use crate::policy::rate_limit::identity::Identity;
use crate::traffic::window::{Grant, Limit, Order};

/// The script.
pub const ACQUIRE: &str = include_str!("acquire.lua");

/// The longest identity that stands in a key as it is, in bytes.
pub const IDENTITY_MAX: usize = 64;

/// The longest key, given a prefix and a limit's name of at most [`IDENTITY_MAX`] bytes each.
pub const KEY_MAX: usize = 3 * IDENTITY_MAX + ":rl:{:1234567890ms:api_key:}".len();

/// What `EVALSHA` calls the script: its SHA-1 in lower-case hexadecimal.
pub fn sha1() -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, ACQUIRE.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Appends the key of an identity under a limit, `{prefix}:rl:{<name>:<window>ms:<kind>:<identity>}`, the last braces in the
/// key themselves: its hash tag. A name or identity that is long or holds other bytes than letters, digits and `._-@:/+=`
/// is replaced by `#` and 128 bits of its SHA-256 in hexadecimal, which no other can imitate.
///
/// The prefix is the configuration's, which allows it no braces.
pub fn push_key(prefix: &[u8], name: &[u8], limit: &Limit, identity: &Identity<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    out.extend_from_slice(b":rl:{");
    push_plain(name, out);
    write_to(out, format_args!(":{}ms:{}:", limit.window().as_millis(), identity.kind().as_str()));
    match identity {
        Identity::User(name) | Identity::ApiKey(name) => push_plain(name, out),
        Identity::Ip(network) => write_to(out, format_args!("{network}")),
    }
    out.push(b'}');
}

/// The arguments behind the key, each sent in decimal.
pub fn arguments(limit: &Limit, order: &Order) -> [u64; 7] {
    [
        u64::from(limit.requests()),
        limit.slot_us(),
        u64::from(order.waiting),
        u64::from(order.ahead),
        order.report.slot,
        u64::from(order.report.unused),
        u64::from(order.report.settled),
    ]
}

/// Reads the script's answer; `None` when it is anything else.
pub fn parse(answer: &[u8]) -> Option<Grant> {
    let mut fields = answer.split(|&byte| byte == b' ').map(decimal);
    let mut next = || fields.next().flatten();
    let grant = Grant {
        granted: u32::try_from(next()?).ok()?,
        remaining: u32::try_from(next()?).ok()?,
        reset_after: Duration::from_micros(next()?),
        valid_for: Duration::from_micros(next()?),
        slot: next()?,
    };
    fields.next().is_none().then_some(grant)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, &byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn push_plain(text: &[u8], out: &mut Vec<u8>) {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-@:/+=".contains(byte);
    if text.len() <= IDENTITY_MAX && text.iter().all(is_plain) {
        out.extend_from_slice(text);
        return;
    }
    let digest = digest::digest(&digest::SHA256, text);
    out.push(b'#');
    for byte in &digest.as_ref()[..16] {
        write_to(out, format_args!("{byte:02x}"));
    }
}

fn write_to(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a vector takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys() {
        let limit = Limit::new(100, Duration::from_secs(60));
        let check = |identity: Identity<'_>, expected: &str| {
            let mut out = Vec::new();
            push_key(b"ringway", b"sms", &limit, &identity, &mut out);
            assert_eq!(String::from_utf8(out).expect("ASCII"), expected);
        };
        check(Identity::User(b"alice@example.com"), "ringway:rl:{sms:60000ms:user:alice@example.com}");
        check(Identity::ApiKey(b"billing"), "ringway:rl:{sms:60000ms:api_key:billing}");
        check(Identity::User(b""), "ringway:rl:{sms:60000ms:user:}");
        check(Identity::ip("192.0.2.7".parse().unwrap(), 64), "ringway:rl:{sms:60000ms:ip:192.0.2.7/32}");
        check(Identity::ip("2001:db8:0:7::1".parse().unwrap(), 64), "ringway:rl:{sms:60000ms:ip:2001:db8:0:7::/64}");
        check(Identity::User(b"a}b"), "ringway:rl:{sms:60000ms:user:#538c54fe17b56e2f2b4753732e0de804}");
        let long = [b'x'; 10_000];
        check(Identity::User(&long), "ringway:rl:{sms:60000ms:user:#e4ee97ec252749d2096447e849628d0d}");
    }

    #[test]
    fn answers() {
        let check = |answer: &str, expected: Option<(u32, u32, u64, u64, u64)>| {
            let read = parse(answer.as_bytes()).map(|grant| {
                let [reset, valid] = [grant.reset_after, grant.valid_for].map(|time| time.as_micros() as u64);
                (grant.granted, grant.remaining, reset, valid, grant.slot)
            });
            assert_eq!(read, expected, "{answer}");
        };
        check("1 99 60468750 468750 3733333333", Some((1, 99, 60_468_750, 468_750, 3_733_333_333)));
        check("0 0 0 0 0", Some((0, 0, 0, 0, 0)));
        for refused in
            ["", " ", "1 2 3 4", "1 2 3 4 5 6", "1 2 3 4 5 ", "-1 2 3 4 5", "1 2 3 4 1e9", "4294967296 0 0 0 0"]
        {
            check(refused, None);
        }
    }

    proptest! {
        #[test]
        fn a_key_is_bounded_and_has_one_hash_tag(name in "[ -~]{0,200}", bytes in proptest::collection::vec(0u8.., 0..300)) {
            let limit = Limit::new(1, Limit::WINDOW_MAX);
            let mut out = Vec::new();
            push_key(&[b'p'; IDENTITY_MAX], name.as_bytes(), &limit, &Identity::ApiKey(&bytes), &mut out);
            prop_assert!(out.len() <= KEY_MAX, "{}", out.len());
            prop_assert_eq!(out.iter().filter(|byte| b"{}".contains(byte)).count(), 2);
            prop_assert_eq!(out.last(), Some(&b'}'));
            prop_assert!(out.is_ascii());
        }

        #[test]
        fn no_bytes_panic(answer in proptest::collection::vec(0u8.., 0..100)) {
            let _ = parse(&answer);
        }
    }
}
