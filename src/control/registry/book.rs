//! Who is registered, as this process knows it: pure, handed `now`.
//!
//! Without Redis the book is the truth. With it, the book is a copy: then only what Redis says takes anybody out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::instance::{Change, Instance, InstanceId, Registered};

/// The most instances of a service.
pub const INSTANCES_MAX: usize = 256;

/// A registered instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub instance: Instance,
    /// Without another sign of life it is forgotten then.
    pub expires: Instant,
}

impl Entry {
    /// What is left of its time at `now`.
    pub fn left(&self, now: Instant) -> Duration {
        self.expires.saturating_duration_since(now)
    }
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was not there before.
    New,
    /// It was, and its time begins anew.
    Known,
    /// The service has [`INSTANCES_MAX`] others.
    Full,
}

/// The instances of every service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book(BTreeMap<String, BTreeMap<InstanceId, Entry>>);

impl Book {
    /// Takes an instance whose time begins `now`.
    pub fn put(&mut self, service: &str, instance: Instance, now: Instant) -> Put {
        let id = InstanceId::of(service, &instance.url);
        let entries = self.0.entry(service.to_owned()).or_default();
        let is_known = entries.contains_key(&id);
        if !is_known && entries.len() >= INSTANCES_MAX {
            return Put::Full;
        }
        entries.insert(id, Entry { expires: now + instance.ttl, instance });
        if is_known { Put::Known } else { Put::New }
    }

    /// Takes an entry as it is.
    pub fn insert(&mut self, service: &str, entry: Entry) {
        let id = InstanceId::of(service, &entry.instance.url);
        self.0.entry(service.to_owned()).or_default().insert(id, entry);
    }

    /// Takes the instances of `service` as `other` has them.
    pub fn keep(&mut self, service: &str, other: &Book) {
        if let Some(entries) = other.0.get(service) {
            self.0.insert(service.to_owned(), entries.clone());
        }
    }

    /// A sign of life. `None`: it is not there.
    pub fn renew(&mut self, service: &str, id: InstanceId, change: Change, now: Instant) -> Option<&Entry> {
        let entry = self.0.get_mut(service)?.get_mut(&id)?;
        entry.instance.weight = change.weight.unwrap_or(entry.instance.weight);
        entry.instance.ttl = change.ttl.unwrap_or(entry.instance.ttl);
        entry.expires = now + entry.instance.ttl;
        Some(entry)
    }

    /// Forgets an instance; whether it was there.
    pub fn remove(&mut self, service: &str, id: InstanceId) -> bool {
        self.0.get_mut(service).is_some_and(|entries| entries.remove(&id).is_some())
    }

    /// Forgets those whose time is over. Returns them.
    pub fn expire(&mut self, now: Instant) -> Vec<(String, InstanceId)> {
        let mut over = Vec::new();
        for (service, entries) in &mut self.0 {
            entries.retain(|id, entry| {
                let stays = entry.expires > now;
                if !stays {
                    over.push((service.clone(), *id));
                }
                stays
            });
        }
        self.0.retain(|_, entries| !entries.is_empty());
        over
    }

    /// When the next one's time is over.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.0.values().flat_map(BTreeMap::values).map(|entry| entry.expires).min()
    }

    /// An instance of `service`.
    pub fn get(&self, service: &str, id: InstanceId) -> Option<&Entry> {
        self.0.get(service)?.get(&id)
    }

    /// Those of `service`, in the order of their identities.
    pub fn of(&self, service: &str) -> impl Iterator<Item = (InstanceId, &Entry)> {
        self.0.get(service).into_iter().flatten().map(|(id, entry)| (*id, entry))
    }

    /// Everybody.
    pub fn all(&self) -> impl Iterator<Item = (&str, InstanceId, &Entry)> {
        self.0
            .iter()
            .flat_map(|(service, entries)| entries.iter().map(move |(id, entry)| (service.as_str(), *id, entry)))
    }

    /// Whom requests are sent to.
    pub fn registered(&self) -> Registered {
        let mut registered = Registered::default();
        self.all().for_each(|(service, _, entry)| registered.push(service, &entry.instance));
        registered
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::config::parse_endpoint;

    fn instance(port: u16, ttl: u64) -> Instance {
        let url = parse_endpoint(&format!("http://10.0.0.1:{port}")).expect("a URL");
        Instance { url, weight: 1, ttl: Duration::from_secs(ttl) }
    }

    fn id(port: u16) -> InstanceId {
        InstanceId::of("sms", &instance(port, 5).url)
    }

    #[test]
    fn a_life() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut book = Book::default();
        assert_eq!(book.put("sms", instance(1, 10), at(0)), Put::New);
        assert_eq!(book.put("sms", instance(1, 20), at(5)), Put::Known);
        assert_eq!(book.next_expiry(), Some(at(25)));
        let change = Change { weight: Some(7), ttl: None };
        assert_eq!(book.renew("sms", id(1), change, at(10)).map(|entry| entry.instance.weight), Some(7));
        assert_eq!(book.registered().of("sms")[0].weight, 7);
        let change = Change { weight: None, ttl: Some(Duration::from_secs(5)) };
        assert_eq!(book.renew("sms", id(1), change, at(11)).map(|entry| entry.expires), Some(at(16)));
        assert_eq!(book.get("sms", id(1)).map(|entry| entry.left(at(12)).as_secs()), Some(4));
        assert_eq!(book.renew("sms", id(2), change, at(11)), None);
        assert_eq!(book.renew("llm", id(1), change, at(11)), None);
        assert!(book.expire(at(15)).is_empty());
        assert_eq!(book.expire(at(16)), [("sms".to_owned(), id(1))]);
        assert_eq!((book.next_expiry(), &book), (None, &Book::default()));
        book.put("sms", instance(1, 10), at(20));
        assert!(book.remove("sms", id(1)) && !book.remove("sms", id(1)) && !book.remove("llm", id(1)));
    }

    #[test]
    fn a_service_has_a_maximum() {
        let now = Instant::now();
        let mut book = Book::default();
        for port in 1..=INSTANCES_MAX as u16 {
            assert_eq!(book.put("sms", instance(port, 5), now), Put::New);
        }
        assert_eq!(book.put("sms", instance(1_000, 5), now), Put::Full);
        assert_eq!(book.put("sms", instance(1, 5), now), Put::Known);
        assert_eq!(book.put("llm", instance(1_000, 5), now), Put::New);
        assert_eq!(book.of("sms").count(), INSTANCES_MAX);
    }

    proptest! {
        /// Against the last sign of life of each, kept in a list.
        #[test]
        fn who_is_there_gave_a_sign_of_life(steps in prop::collection::vec((0..4_u8, 1..6_u16, 0..5_u64), 1..60)) {
            let start = Instant::now();
            let (mut book, mut seconds) = (Book::default(), 0);
            let mut alive = [None; 6];
            for (what, port, pause) in steps {
                seconds += pause;
                let now = start + Duration::from_secs(seconds);
                book.expire(now);
                alive.iter_mut().for_each(|until| *until = until.filter(|until| *until > seconds));
                let until = &mut alive[usize::from(port)];
                match what {
                    0 => {
                        let expected = if until.is_some() { Put::Known } else { Put::New };
                        prop_assert_eq!(book.put("sms", instance(port, 5), now), expected);
                        *until = Some(seconds + 5);
                    }
                    1 => {
                        let renewed = book.renew("sms", id(port), Change::default(), now).is_some();
                        prop_assert_eq!(renewed, until.is_some());
                        *until = until.map(|_| seconds + 5);
                    }
                    2 => prop_assert_eq!(book.remove("sms", id(port)), until.take().is_some()),
                    _ => {}
                }
                prop_assert_eq!(book.of("sms").count(), alive.iter().flatten().count());
            }
        }
    }
}
