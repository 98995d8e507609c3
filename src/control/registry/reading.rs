//! What Redis has of the registered instances, as one look at all shows it: pure. None of it is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::away::Unreadable;
use super::book::{Book, Entry, INSTANCES_MAX};
use super::instance::{Instance, InstanceId};
use super::validate;
use crate::control::config::Allowed;

/// How far Redis's clock may have been set back: what it has may end so much later than a new one.
const SET_BACK: Duration = Duration::from_secs(60);

/// What Redis has.
#[derive(Debug, Default)]
pub struct Reading {
    /// Who is registered.
    pub book: Book,
    /// Who was deregistered not long ago.
    pub gone: BTreeSet<(String, InstanceId)>,
    /// The services of which nothing is known, though there may be instances.
    pub unreadable: BTreeMap<String, Unreadable>,
}

/// What a field of a service's hash says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// It is registered.
    Live(Entry),
    /// It was deregistered.
    Gone,
}

impl Reading {
    /// Takes the hash of a service: of those instances that may be registered here, [`INSTANCES_MAX`] at most.
    pub(super) fn take(
        &mut self,
        service: &str,
        fields: &BTreeMap<Vec<u8>, Vec<u8>>,
        now: u64,
        at: Instant,
        allow: Option<&[Allowed]>,
    ) {
        let mut live = 0;
        for (id, text) in fields {
            match read_field(service, id, text, now, at, allow) {
                Some((_, Field::Live(entry))) if live < INSTANCES_MAX => {
                    live += 1;
                    self.book.insert(service, entry);
                }
                Some((id, Field::Gone)) => drop(self.gone.insert((service.to_owned(), id))),
                Some((_, Field::Live(_))) | None => {}
            }
        }
    }
}

/// Reads the field `id`, which Redis had when its clock showed `now` and ours `at`. `None` for what is over, may not be
/// registered here, or was written by no gateway.
pub(super) fn read_field(
    service: &str,
    id: &[u8],
    text: &[u8],
    now: u64,
    at: Instant,
    allow: Option<&[Allowed]>,
) -> Option<(InstanceId, Field)> {
    let (id, text) = (str::from_utf8(id).ok()?.parse().ok()?, str::from_utf8(text).ok()?);
    let (expires, rest) = text.split_once(' ')?;
    let left = Duration::from_millis(expires.parse::<u64>().ok()?.checked_sub(now).filter(|left| *left > 0)?);
    if left > *validate::TTLS.end() + SET_BACK {
        return None;
    }
    if rest == "gone" {
        return Some((id, Field::Gone));
    }
    let instance = read_instance(rest, allow)?;
    let expires = at + left.min(*validate::TTLS.end());
    (InstanceId::of(service, &instance.url) == id).then_some((id, Field::Live(Entry { instance, expires })))
}

/// Reads `<ttl> <weight> <url>`.
fn read_instance(text: &str, allow: Option<&[Allowed]>) -> Option<Instance> {
    let mut words = text.splitn(3, ' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let ttl = validate::ttl(Duration::from_millis(number()?)).ok()?;
    let weight = validate::weight(number()?).ok()?;
    let url = validate::url(words.next()?, allow).ok()?;
    Some(Instance { url, weight, ttl })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_endpoint;

    /// `expected`: the milliseconds left and the URL, or `gone`.
    fn check(text: &[u8], expected: Option<&str>) {
        let at = Instant::now();
        // As who wrote it would name it.
        let url =
            text.splitn(4, |byte| *byte == b' ').nth(3).and_then(|url| parse_endpoint(str::from_utf8(url).ok()?).ok());
        let id = url.map_or_else(|| "0123456789abcdef".to_owned(), |url| InstanceId::of("sms", &url).to_string());
        let shown = read_field("sms", id.as_bytes(), text, 1_000, at, None).map(|(_, field)| match field {
            Field::Live(entry) => format!("{} {}", entry.left(at).as_millis(), entry.instance.url),
            Field::Gone => "gone".to_owned(),
        });
        assert_eq!(shown.as_deref(), expected, "{}", text.escape_ascii());
    }

    #[test]
    fn what_redis_has_is_not_believed() {
        check(b"3000 30000 1 http://10.0.0.1:9001", Some("2000 http://10.0.0.1:9001"));
        check(b"86401000 30000 1 http://a", Some("86400000 http://a"));
        // Its clock was set back a little.
        check(b"86461000 30000 1 http://a", Some("86400000 http://a"));
        check(b"2000 gone", Some("gone"));
        for text in [
            &b""[..],
            b"1000 30000 1 http://a",
            b"999 30000 1 http://a",
            b"86461001 30000 1 http://a",
            b"99999999999999 30000 1 http://a",
            b"1000 gone",
            b"9223372036854775807 gone",
            b"2000 gone ",
            b"gone",
            b"2000 4999 1 http://a",
            b"2000 30000 0 http://a",
            b"2000 30000 1001 http://a",
            b"2000 30000 1 http://169.254.169.254",
            b"2000 30000 1 unix:/run/app.sock",
            b"2000 30000 1 http://a/x",
            b"2000 30000 1 http://\xff",
            b"2000 30000 1",
            b"-1 30000 1 http://a",
            b"99999999999999999999999 30000 1 http://a",
            b"\xff",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_field_has_the_name_of_its_instance() {
        let id = InstanceId::of("sms", &parse_endpoint("http://a").expect("a URL")).to_string();
        let read = |service: &str, id: &[u8]| {
            read_field(service, id, b"2000 30000 1 http://a", 1_000, Instant::now(), None).is_some()
        };
        assert!(read("sms", id.as_bytes()));
        for (service, id) in [("llm", id.as_bytes()), ("sms", b"0123456789abcdef"), ("sms", b"\xff"), ("sms", b"")] {
            assert!(!read(service, id), "{service} {}", id.escape_ascii());
        }
    }

    #[test]
    fn a_service_has_a_maximum() {
        let fields = (1..=INSTANCES_MAX + 1).map(|port| {
            let url = format!("http://a:{port}");
            let id = InstanceId::of("sms", &parse_endpoint(&url).expect("a URL")).to_string();
            (id.into_bytes(), format!("2000 30000 1 {url}").into_bytes())
        });
        let mut reading = Reading::default();
        reading.take("sms", &fields.collect(), 1_000, Instant::now(), None);
        assert_eq!(reading.book.all().count(), INSTANCES_MAX);
    }
}
