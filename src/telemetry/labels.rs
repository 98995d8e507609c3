//! Names behind the small numbers that the counters are kept by. The control plane writes and reads them; workers never do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::snapshot::{EndpointId, RouteId, ServiceId};

/// The most endpoints that get a name of their own in a process's life. Later ones are counted as `other`, and still have
/// an identity each, another in every snapshot: connections are pooled by it.
pub const ENDPOINTS_MAX: usize = 65_536;

/// Names by identity. The same name gets the same identity for the process's life, whatever snapshot it comes from.
#[derive(Debug)]
pub struct Labels(Mutex<Names>);

#[derive(Debug)]
struct Names {
    routes: Vec<String>,
    services: Vec<String>,
    rate_limits: Vec<String>,
    endpoints: Vec<(String, String)>,
    /// The authority that each (service, address) was first an endpoint by; [`ENDPOINTS_MAX`] at most.
    owners: Vec<(String, String, String)>,
    /// Endpoints that came when there was no name left.
    nameless: u32,
}

impl Default for Labels {
    fn default() -> Labels {
        Labels::new()
    }
}

impl Labels {
    /// Knows the routes that no configuration names.
    pub fn new() -> Labels {
        let routes = vec!["none".to_owned(), "/health".to_owned()];
        let endpoints = vec![("other".to_owned(), "other".to_owned())];
        Labels(Mutex::new(Names {
            routes,
            services: vec!["other".to_owned()],
            rate_limits: Vec::new(),
            endpoints,
            owners: Vec::new(),
            nameless: 0,
        }))
    }

    /// The identity of a route's prefix; once 65,536 are used up, the one that stands for no route.
    pub fn route(&self, prefix: &str) -> RouteId {
        let names = &mut *self.names();
        let index = names.routes.iter().position(|known| known == prefix).unwrap_or_else(|| {
            names.routes.push(prefix.to_owned());
            names.routes.len() - 1
        });
        u16::try_from(index).map_or(RouteId::NONE, RouteId)
    }

    /// The identity of a service's name; once 65,536 are used up, the one that stands for all others.
    pub fn service(&self, name: &str) -> ServiceId {
        let services = &mut self.names().services;
        let index = services.iter().position(|known| known == name).unwrap_or_else(|| {
            services.push(name.to_owned());
            services.len() - 1
        });
        ServiceId(u16::try_from(index).unwrap_or(0))
    }

    /// The `service` label.
    pub fn service_name(&self, id: ServiceId) -> String {
        self.names().services.get(usize::from(id.0)).cloned().unwrap_or_else(|| "other".to_owned())
    }

    /// The identity of a rate limit that the ledger calls `name`.
    pub fn rate_limit(&self, name: &str) -> u32 {
        let names = &mut self.names().rate_limits;
        let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        index as u32
    }

    /// The identity of an endpoint of a service.
    pub fn endpoint(&self, service: &str, instance: &str) -> EndpointId {
        let names = &mut *self.names();
        let known = names.endpoints.iter().position(|(s, i)| s == service && i == instance);
        EndpointId(match known {
            Some(index) => index as u32,
            None if names.endpoints.len() >= ENDPOINTS_MAX => {
                names.nameless += 1;
                ENDPOINTS_MAX as u32 + names.nameless
            }
            None => {
                names.endpoints.push((service.to_owned(), instance.to_owned()));
                (names.endpoints.len() - 1) as u32
            }
        })
    }

    /// The identity of the endpoint of a service at `address` that is sent `authority`, and what it is called: its address;
    /// with the authority before it when another one of the service was there first, since those are two endpoints.
    pub fn endpoint_of(&self, service: &str, authority: &str, address: &str) -> (EndpointId, String) {
        let is_owner = {
            let owners = &mut self.names().owners;
            match owners.iter().find(|(s, a, _)| s == service && a == address) {
                Some((_, _, owner)) => owner == authority,
                None if owners.len() >= ENDPOINTS_MAX => false,
                None => {
                    owners.push((service.to_owned(), address.to_owned(), authority.to_owned()));
                    true
                }
            }
        };
        let instance = if is_owner { address.to_owned() } else { format!("{authority}/{address}") };
        (self.endpoint(service, &instance), instance)
    }

    /// The `endpoint` label of a route; `other` for what no table had room for.
    pub fn route_name(&self, id: RouteId) -> String {
        self.names().routes.get(usize::from(id.0)).cloned().unwrap_or_else(|| "other".to_owned())
    }

    /// The `service` and `instance` labels of an endpoint.
    pub fn endpoint_name(&self, id: EndpointId) -> (String, String) {
        let names = self.names();
        names.endpoints.get(id.0 as usize).unwrap_or(&names.endpoints[0]).clone()
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let endpoint = labels.endpoint("sms", "a:1");
        assert_ne!(endpoint, labels.endpoint("llm", "a:1"));
        assert_eq!(labels.endpoint("sms", "a:1"), endpoint);
        assert_eq!(labels.endpoint_name(endpoint), ("sms".to_owned(), "a:1".to_owned()));
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
}
