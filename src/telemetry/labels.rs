//! Names behind the small numbers that the counters are kept by. The control plane writes and reads them; workers never do.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::snapshot::{EndpointId, RouteId, ServiceId};

/// How many endpoints are remembered, those that no snapshot names any more among them: when there are more, these go first,
/// however lately they left.
pub const ENDPOINTS_MAX: usize = 65_536;

/// How long an endpoint that no snapshot names any more is remembered, so that one that comes back goes on where it was.
pub const REMEMBERED: Duration = Duration::from_secs(600);

/// Names by identity. The same name gets the same identity for as long as it is remembered, whatever snapshot it comes from;
/// no identity is ever given to another name.
#[derive(Debug)]
pub struct Labels(Mutex<Names>);

#[derive(Debug)]
struct Names {
    routes: Index,
    services: Index,
    rate_limits: Index,
    endpoints: HashMap<EndpointId, EndpointName>,
    /// The same the other way round: by service, then by instance.
    identities: HashMap<String, HashMap<String, EndpointId>>,
    /// The authority that each address was first an endpoint by: by service, then by address.
    owners: HashMap<String, HashMap<String, String>>,
    next: u32,
}

/// Names in the order in which they came.
#[derive(Debug, Default)]
struct Index {
    names: Vec<String>,
    places: HashMap<String, usize>,
}

impl Index {
    fn of(names: &[&str]) -> Index {
        let mut index = Index::default();
        for name in names {
            index.place(name);
        }
        index
    }

    fn place(&mut self, name: &str) -> usize {
        if let Some(&place) = self.places.get(name) {
            return place;
        }
        let place = self.names.len();
        self.names.push(name.to_owned());
        self.places.insert(name.to_owned(), place);
        place
    }

    fn name(&self, place: usize) -> String {
        self.names.get(place).cloned().unwrap_or_else(|| "other".to_owned())
    }
}

#[derive(Debug)]
struct EndpointName {
    service: String,
    instance: String,
    /// The address that it has its name from, where it has it all to itself.
    owns: Option<String>,
    /// Since when no snapshot names it.
    left: Option<Instant>,
}

impl Default for Labels {
    fn default() -> Labels {
        Labels::new()
    }
}

impl Labels {
    /// Knows the routes that no configuration names.
    pub fn new() -> Labels {
        Labels(Mutex::new(Names {
            routes: Index::of(&["none", "/health"]),
            services: Index::of(&["other"]),
            rate_limits: Index::default(),
            endpoints: HashMap::new(),
            identities: HashMap::new(),
            owners: HashMap::new(),
            next: 1,
        }))
    }

    /// The identity of a route's prefix; once 65,536 are used up, the one that stands for no route.
    pub fn route(&self, prefix: &str) -> RouteId {
        u16::try_from(self.names().routes.place(prefix)).map_or(RouteId::NONE, RouteId)
    }

    /// The identity of a service's name; once 65,536 are used up, the one that stands for all others.
    pub fn service(&self, name: &str) -> ServiceId {
        ServiceId(u16::try_from(self.names().services.place(name)).unwrap_or(0))
    }

    /// The identity of a rate limit that the ledger calls `name`.
    pub fn rate_limit(&self, name: &str) -> u32 {
        self.names().rate_limits.place(name) as u32
    }

    /// The identity of an endpoint of a service.
    pub fn endpoint(&self, service: &str, instance: &str) -> EndpointId {
        self.names().endpoint(service, instance, None)
    }

    /// The identity of the endpoint of a service at `address` that is sent `authority`, and what it is called: its address;
    /// with the authority before it when another one of the service was there first, since those are two endpoints. One that
    /// is called so stays so when that other one has been forgotten: breaker, pool and counts go by its identity.
    pub fn endpoint_of(&self, service: &str, authority: &str, address: &str) -> (EndpointId, String) {
        let names = &mut *self.names();
        let instance = format!("{authority}/{address}");
        if let Some(&id) = names.identities.get(service).and_then(|identities| identities.get(&instance)) {
            return (id, instance);
        }
        let owners = entry(&mut names.owners, service);
        let is_owner = match owners.get(address) {
            Some(owner) => owner == authority,
            None => {
                owners.insert(address.to_owned(), authority.to_owned());
                true
            }
        };
        match is_owner {
            true => (names.endpoint(service, address, Some(address)), address.to_owned()),
            false => (names.endpoint(service, &instance, None), instance),
        }
    }

    /// Forgets endpoints that no snapshot has named for [`REMEMBERED`]; `is_named` says which of them the present one names.
    pub fn forget(&self, is_named: impl Fn(EndpointId) -> bool, now: Instant) {
        let Names { endpoints, identities, owners, .. } = &mut *self.names();
        let is_crowded = endpoints.len() > ENDPOINTS_MAX;
        endpoints.retain(|&id, name| {
            if is_named(id) {
                name.left = None;
                return true;
            }
            let left = *name.left.get_or_insert(now);
            if !is_crowded && now.saturating_duration_since(left) < REMEMBERED {
                return true;
            }
            remove(identities, &name.service, &name.instance);
            if let Some(address) = &name.owns {
                remove(owners, &name.service, address);
            }
            false
        });
    }

    /// The `endpoint` label of a route; `other` for what no table had room for.
    pub fn route_name(&self, id: RouteId) -> String {
        self.names().routes.name(usize::from(id.0))
    }

    /// The `service` label.
    pub fn service_name(&self, id: ServiceId) -> String {
        self.names().services.name(usize::from(id.0))
    }

    /// The `service` and `instance` labels of an endpoint that is remembered.
    pub fn endpoint_name(&self, id: EndpointId) -> Option<(String, String)> {
        self.names().endpoints.get(&id).map(|name| (name.service.clone(), name.instance.clone()))
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn endpoint(&mut self, service: &str, instance: &str, owns: Option<&str>) -> EndpointId {
        let identities = entry(&mut self.identities, service);
        if let Some(&id) = identities.get(instance) {
            return id;
        }
        let id = EndpointId(self.next);
        self.next = self.next.wrapping_add(1);
        identities.insert(instance.to_owned(), id);
        let (service, instance) = (service.to_owned(), instance.to_owned());
        let name = EndpointName { service, instance, owns: owns.map(str::to_owned), left: None };
        self.endpoints.insert(id, name);
        id
    }
}

/// What the service has in `map`.
fn entry<'a, T>(map: &'a mut HashMap<String, HashMap<String, T>>, service: &str) -> &'a mut HashMap<String, T> {
    map.entry(service.to_owned()).or_default()
}

fn remove<T>(map: &mut HashMap<String, HashMap<String, T>>, service: &str, key: &str) {
    if let Some(inner) = map.get_mut(service) {
        inner.remove(key);
        if inner.is_empty() {
            map.remove(service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_identity() {
        let labels = Labels::new();
        let sms = labels.route("/sms");
        assert_eq!(sms, RouteId::FIRST);
        assert_eq!((labels.route("/llm"), labels.route("/sms")), (RouteId(3), sms));
        assert_eq!(labels.route_name(RouteId::NONE), "none");
        assert_eq!(labels.route_name(RouteId::HEALTH), "/health");
        assert_eq!((labels.service("sms"), labels.service("sms")), (ServiceId(1), ServiceId(1)));
        assert_eq!(
            (labels.service_name(ServiceId(1)), labels.service_name(ServiceId(9))),
            ("sms".into(), "other".into())
        );
        let endpoint = labels.endpoint("sms", "a:1");
        assert_ne!(endpoint, labels.endpoint("llm", "a:1"));
        assert_eq!(labels.endpoint("sms", "a:1"), endpoint);
        assert_eq!(labels.endpoint_name(endpoint), Some(("sms".to_owned(), "a:1".to_owned())));
    }

    #[test]
    fn two_names_of_an_address_are_two_endpoints() {
        let labels = Labels::new();
        let (first, plain) = labels.endpoint_of("sms", "a:80", "10.0.0.1:80");
        let (second, qualified) = labels.endpoint_of("sms", "b:80", "10.0.0.1:80");
        assert_eq!((plain.as_str(), qualified.as_str()), ("10.0.0.1:80", "b:80/10.0.0.1:80"));
        assert_ne!(first, second);
        // Whichever of them is asked for, and in which order.
        assert_eq!(labels.endpoint_of("sms", "b:80", "10.0.0.1:80").0, second);
        assert_eq!(labels.endpoint_of("sms", "a:80", "10.0.0.1:80").0, first);
        assert_eq!(labels.endpoint_of("llm", "b:80", "10.0.0.1:80").1, "10.0.0.1:80");
    }

    #[test]
    fn an_endpoint_is_remembered_for_a_while_and_its_identity_is_never_anothers() {
        let labels = Labels::new();
        let start = Instant::now();
        let (gone, _) = labels.endpoint_of("sms", "a:80", "10.0.0.1:80");
        let (stays, _) = labels.endpoint_of("sms", "a:80", "10.0.0.2:80");
        let named = |id| id == stays;
        labels.forget(named, start);
        labels.forget(named, start + REMEMBERED / 2);
        assert_eq!(labels.endpoint_of("sms", "a:80", "10.0.0.1:80").0, gone);
        // It was back for a moment, so its time begins anew.
        labels.forget(|_| true, start + REMEMBERED / 2);
        labels.forget(named, start + REMEMBERED);
        assert!(labels.endpoint_name(gone).is_some());
        labels.forget(named, start + 2 * REMEMBERED);
        assert_eq!(labels.endpoint_name(gone), None);
        // Nobody owns the address any more.
        let (other, name) = labels.endpoint_of("sms", "b:80", "10.0.0.1:80");
        assert_eq!(name, "10.0.0.1:80");
        assert!(other != gone && other != stays);
        assert_eq!(labels.endpoint_of("sms", "a:80", "10.0.0.2:80").0, stays);
    }

    #[test]
    fn an_endpoint_keeps_its_identity_when_another_of_its_address_is_forgotten() {
        let labels = Labels::new();
        let start = Instant::now();
        labels.endpoint_of("sms", "a:80", "10.0.0.1:80");
        let second = labels.endpoint_of("sms", "b:80", "10.0.0.1:80");
        for now in [start, start + REMEMBERED] {
            labels.forget(|id| id == second.0, now);
        }
        assert_eq!(labels.endpoint_of("sms", "b:80", "10.0.0.1:80"), second);
        let (first, name) = labels.endpoint_of("sms", "a:80", "10.0.0.1:80");
        assert!(first != second.0 && name == "10.0.0.1:80");
    }

    #[test]
    fn endpoints_that_come_and_go_do_not_pile_up() {
        let labels = Labels::new();
        let now = Instant::now();
        for round in 0..5 {
            for port in 0..20_000 {
                labels.endpoint("sms", &format!("10.0.{round}.1:{port}"));
            }
            labels.forget(|_| false, now);
        }
        let names = labels.names();
        assert!(names.endpoints.len() <= ENDPOINTS_MAX, "{}", names.endpoints.len());
        assert_eq!(names.identities.values().map(HashMap::len).sum::<usize>(), names.endpoints.len());
    }
}
