//! From a configuration, the addresses of its names and the identities in the counters to a [`Snapshot`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::http::method::MethodSet;
use crate::http::trace_context;
use crate::policy::auth::{ApiKeys, Authenticator, KeySet, Mode, RequiredScopes};
use crate::policy::cors::Cors;
use crate::snapshot::{
    Address, BreakerPolicy, Endpoint, Health, HealthPolicy, Limits, Quota, RateLimit, RateLimitKey, RetryPolicy,
    Service, ServiceKind, Snapshot, Source, Timeouts, Tracing,
};
use crate::telemetry::labels::Labels;
use crate::traffic::balance::Algorithm;
use crate::traffic::outlier::OutlierSettings;
use crate::traffic::route::{RouteSpec, RouteTable};

use super::config::{
    self, Allowed, Config, CorsSettings, DEFAULT_LIMIT, EndpointSpec, EndpointUrl, OWN_LIMIT, RateLimitSpec,
};
use super::registry::book::INSTANCES_MAX;
use super::registry::instance::Registered;
use super::registry::validate;
use super::resolve::Resolved;

/// The name of the control plane's own service; no other may have it.
const MANAGEMENT: &str = "management";

/// What the control plane answers. `/health` and its kin are the workers' own.
const MANAGEMENT_PREFIXES: [&str; 4] = ["/docs", "/openapi.json", "/dashboard", "/api/v1/services"];

/// Served too, when `metrics.enabled`.
const METRICS_PREFIX: &str = "/metrics";

/// The largest body of a management request, in bytes: nothing there takes more than a small JSON object.
pub const MANAGEMENT_BODY_BYTES: u64 = 16 << 10;

/// `timeouts.idle_body` of management requests at least: the dashboard's stream has something to say once a second.
const MANAGEMENT_IDLE_BODY: Duration = Duration::from_secs(5);

/// The most endpoints of a service, those of the URLs that come first: a name may stand for many.
const ENDPOINTS_MAX: usize = 256;

/// The snapshot number `generation` of `config`, with every endpoint healthy. `management` is where the control plane listens for the requests that it
/// answers itself: they are routed as to any other service, one [`Service`] for each prefix.
pub fn snapshot(
    config: &Config,
    resolved: &Resolved,
    registered: &Registered,
    authenticator: &Arc<Authenticator>,
    labels: &Labels,
    management: Address,
    generation: u64,
) -> Snapshot {
    let configured = config.services.iter().map(|service| {
        let allow = config.discovery.allow.as_deref();
        let mut endpoints = endpoints(service, resolved, labels);
        add_registered(&mut endpoints, service, registered.of(&service.name), allow, resolved, labels);
        (own_service(config, service, endpoints.into(), labels), service.hosts.clone())
    });
    let endpoint = management_endpoint(management, labels);
    let metrics = config.metrics.enabled.then_some(METRICS_PREFIX);
    let managed = metrics.into_iter().chain(MANAGEMENT_PREFIXES).filter(|_| config.admin.listen.is_none());
    let managed = managed.map(|prefix| (management_service(config, prefix, &endpoint, labels), Vec::new()));

    let mut specs = Vec::new();
    let mut services = Vec::new();
    for (service, hosts) in configured.chain(managed) {
        if service.kind == ServiceKind::Management {
            // The host is looked at before the prefix: a service bound to a host must not hide these paths there.
            let hosts = config.services.iter().flat_map(|service| service.hosts.iter().cloned()).collect();
            specs.push(RouteSpec { prefix: service.prefix.to_string(), hosts, service: services.len() });
        }
        specs.push(RouteSpec { prefix: service.prefix.to_string(), hosts, service: services.len() });
        services.push(service);
    }
    Snapshot {
        generation,
        limits: config.limits.clone(),
        timeouts: config.timeouts.clone(),
        trusted_proxies: config.server.trusted_proxies.as_slice().into(),
        redis: redis_address(config, resolved),
        authenticator: Arc::clone(authenticator),
        cors: cors(&config.cors),
        ipv6_prefix: config.ipv6_prefix,
        write_forwarded: config.server.forwarded,
        logging: config.logging.clone(),
        tracing: config.tracing.enabled.then(|| Tracing { threshold: trace_context::threshold(config.tracing.sample) }),
        routes: RouteTable::new(&specs),
        services: services.into(),
    }
}

fn own_service(config: &Config, service: &config::Service, endpoints: Box<[Endpoint]>, labels: &Labels) -> Service {
    Service {
        name: service.name.as_str().into(),
        id: labels.service(&service.name),
        prefix: service.prefix.as_str().into(),
        kind: ServiceKind::Backend,
        route: labels.route(&service.prefix),
        methods: service.methods,
        load_balancing: service.load_balancing,
        health: service.health.policy(),
        endpoints,
        breaker: service.breaker.clone(),
        outliers: service.outliers.clone(),
        retry: service.retry.clone(),
        timeouts: service.timeouts.clone(),
        limits: service.limits.clone(),
        pipelining: service.pipelining,
        auth: service.auth,
        required_scopes: RequiredScopes::new(
            service.required_scopes.iter().map(|(methods, scopes)| (*methods, scopes.as_slice())),
        ),
        forward_credentials: service.forward_credentials,
        cors: cors(&service.cors),
        rate_limits: rate_limits(config, service, labels),
    }
}

/// The service's limits. An API key's own limit replaces the service's default one, where that counts by identity; otherwise it
/// holds beside the others.
fn rate_limits(config: &Config, service: &config::Service, labels: &Labels) -> Box<[RateLimit]> {
    let limit = |name: &str, quota, key| {
        let ledger_name = format!("{}:{name}", service.name);
        RateLimit {
            id: labels.rate_limit(&ledger_name),
            name: name.into(),
            ledger_name: ledger_name.into(),
            quota,
            key,
        }
    };
    let is_replaced = |spec: &RateLimitSpec| spec.name == DEFAULT_LIMIT && spec.key == RateLimitKey::Identity;
    let configured = service.rate_limits.iter().map(|spec| {
        let quota = if is_replaced(spec) { Quota::Default(spec.limit) } else { Quota::Fixed(spec.limit) };
        limit(&spec.name, quota, spec.key)
    });
    let keys_have_own = service.auth != Mode::None && config.auth.api_keys.iter().any(|key| key.rate_limit.is_some());
    let is_added = keys_have_own && !service.rate_limits.iter().any(is_replaced);
    let own = is_added.then(|| limit(OWN_LIMIT, Quota::Own, RateLimitKey::Identity));
    configured.chain(own).collect()
}

fn cors(settings: &CorsSettings) -> Option<Arc<Cors>> {
    settings.enabled.then(|| Arc::new(Cors::new(&settings.rules).expect("the configuration was validated")))
}

/// Who knows every credential that is good: the configuration's keys and those `fetched` from their issuer. `version`
/// must be one that no other had.
pub fn authenticator(config: &Config, fetched: KeySet, version: u64) -> Arc<Authenticator> {
    let auth = &config.auth;
    Arc::new(Authenticator {
        version,
        awaits_issuer: auth.jwks_url.is_some() && fetched.is_empty(),
        keys: auth.keys.clone().and(fetched),
        rules: auth.rules.clone(),
        api_keys: ApiKeys::new(auth.api_keys.clone()).expect("the configuration was validated"),
    })
}

/// Where Redis is; `None` without one, and while its name does not resolve.
pub fn redis_address(config: &Config, resolved: &Resolved) -> Option<Address> {
    match &config.redis.server.as_ref()?.address {
        EndpointUrl::Address { address, .. } => Some(Address::Tcp(*address)),
        EndpointUrl::Name { host, port, .. } => resolved.addresses(host, *port).next().map(Address::Tcp),
        EndpointUrl::Unix(path) => Some(Address::Unix(path.clone())),
        // A redis:// URL is read as a host and a port.
        EndpointUrl::Srv { .. } => None,
    }
}

fn management_service(config: &Config, prefix: &str, endpoint: &Endpoint, labels: &Labels) -> Service {
    Service {
        name: MANAGEMENT.into(),
        id: labels.service(MANAGEMENT),
        prefix: prefix.into(),
        kind: ServiceKind::Management,
        route: labels.route(prefix),
        // Which methods there are differs from path to path below the prefix.
        methods: MethodSet::ALL,
        load_balancing: Algorithm::RoundRobin,
        health: HealthPolicy::NONE,
        endpoints: Box::new([endpoint.clone()]),
        breaker: BreakerPolicy::off(),
        outliers: OutlierSettings::OFF,
        retry: RetryPolicy::off(),
        timeouts: Timeouts {
            idle_body: config.timeouts.idle_body.max(MANAGEMENT_IDLE_BODY),
            ..config.timeouts.clone()
        },
        limits: Limits { body_bytes: MANAGEMENT_BODY_BYTES, ..config.limits.clone() },
        pipelining: 1,
        auth: Mode::None,
        required_scopes: RequiredScopes::default(),
        forward_credentials: true,
        cors: cors(&config.cors),
        rate_limits: Box::new([]),
    }
}

fn management_endpoint(address: Address, labels: &Labels) -> Endpoint {
    // Its address is another one in each process; its name is not.
    let instance = "control";
    Endpoint {
        id: labels.endpoint(MANAGEMENT, instance),
        instance: instance.into(),
        authority: "localhost".into(),
        address,
        weight: 1,
        health: Health::Healthy,
        source: Source::Own,
    }
}

/// One for each address of each URL, in the order of the configuration, [`ENDPOINTS_MAX`] at most.
fn endpoints(service: &config::Service, resolved: &Resolved, labels: &Labels) -> Vec<Endpoint> {
    let mut taken = HashSet::new();
    let mut endpoints = Vec::new();
    for spec in &service.endpoints {
        let mut add = |authority: &str, address, weight, source| {
            if endpoints.len() < ENDPOINTS_MAX {
                let endpoint = endpoint(service, authority, address, weight, source, labels);
                // A name and SRV records may both lead to one backend by one name.
                endpoints.extend(taken.insert(endpoint.id).then_some(endpoint));
            }
        };
        match &spec.url {
            EndpointUrl::Address { authority, address } => {
                add(authority, Address::Tcp(*address), spec.weight, Source::Configured)
            }
            EndpointUrl::Name { authority, host, port } => {
                resolved
                    .addresses(host, *port)
                    .for_each(|address| add(authority, Address::Tcp(address), spec.weight, Source::Dns));
            }
            EndpointUrl::Srv { name } => {
                for target in resolved.targets(name) {
                    add(&target.authority, Address::Tcp(target.address), target.weight, Source::Dns);
                }
            }
            EndpointUrl::Unix(path) => add("localhost", Address::Unix(path.clone()), spec.weight, Source::Configured),
        }
    }
    endpoints
}

/// One for each address that no endpoint has yet, of each of the `registered` instances, as far as they may be there;
/// [`INSTANCES_MAX`] at most.
fn add_registered(
    endpoints: &mut Vec<Endpoint>,
    service: &config::Service,
    registered: &[EndpointSpec],
    allow: Option<&[Allowed]>,
    resolved: &Resolved,
    labels: &Labels,
) {
    let most = endpoints.len() + INSTANCES_MAX;
    let mut known: HashSet<Address> = endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
    for spec in registered {
        let (authority, addresses) = match &spec.url {
            EndpointUrl::Address { authority, address } => (authority.as_str(), vec![Address::Tcp(*address)]),
            EndpointUrl::Name { authority, host, port } => {
                (authority.as_str(), resolved.addresses(host, *port).map(Address::Tcp).collect())
            }
            EndpointUrl::Unix(path) => ("localhost", vec![Address::Unix(path.clone())]),
            // Nobody registers these.
            EndpointUrl::Srv { .. } => continue,
        };
        for address in addresses {
            let is_permitted = endpoints.len() < most && validate::permits(&spec.url, &address, allow);
            if is_permitted && known.insert(address.clone()) {
                endpoints.push(endpoint(service, authority, address, spec.weight, Source::Registered, labels));
            }
        }
    }
}

fn endpoint(
    service: &config::Service,
    authority: &str,
    address: Address,
    weight: u16,
    source: Source,
    labels: &Labels,
) -> Endpoint {
    let (id, instance) = labels.endpoint_of(&service.name, authority, &instance(&address));
    Endpoint {
        id,
        instance: instance.into(),
        authority: authority.into(),
        address,
        weight,
        health: Health::Healthy,
        source,
    }
}

/// `127.0.0.1:9001`, `unix:/run/app.sock`.
fn instance(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// A seam that tests begin with: a snapshot without services.
#[cfg(test)]
pub(crate) fn seam_without_services(workers: usize, generation: u64) -> Arc<crate::snapshot::Seam> {
    let management = Address::Unix("\0test".into());
    let (config, resolved) = (Config::default(), Resolved::default());
    let first =
        snapshot(&config, &resolved, &Registered::default(), &Arc::default(), &Labels::new(), management, generation);
    Arc::new(crate::snapshot::Seam::new(first, workers))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::time::Instant;

    use super::*;
    use crate::control::registry::book::Book;
    use crate::control::registry::instance::Instance;
    use crate::control::resolve::{Answer, Plan, Question, Records, Target, resolve_plan};
    use crate::snapshot::EndpointId;

    const TEXT: &str = r#"
        [server]
        trusted_proxies = ["10.0.0.0/8"]

        [timeouts]
        connect = "2s"

        [services.sms]
        prefix = "/api/v1/sms/"
        endpoints = ["http://127.0.0.1:9001", { url = "http://localhost:9001", weight = 3 }, "unix:/run/sms.sock"]
        auth = "none"
        methods = ["GET"]

        [services.sms.timeouts]
        idle_body = "5m"

        [services.gone]
        prefix = "/gone"
        endpoints = ["http://name.invalid"]
        auth = "none"
    "#;

    fn build(text: &str, labels: &Labels) -> Snapshot {
        build_with(text, &Registered::default(), labels)
    }

    fn build_with(text: &str, registered: &Registered, labels: &Labels) -> Snapshot {
        let config = Config::from_toml(text, "test", &[], &[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolved = runtime.block_on(resolve_plan(Plan::of(&config, registered), &Resolved::default()));
        snapshot(
            &config,
            &resolved,
            registered,
            &Arc::default(),
            labels,
            Address::Unix(PathBuf::from("\0ringway-1")),
            7,
        )
    }

    #[test]
    fn services_and_their_endpoints() {
        let snapshot = build(TEXT, &Labels::new());
        assert_eq!(snapshot.generation, 7);
        assert_eq!(snapshot.trusted_proxies.len(), 1);
        let names: Vec<(&str, &str, bool)> =
            snapshot.services.iter().map(|s| (&*s.name, &*s.prefix, s.kind == ServiceKind::Backend)).collect();
        let expected = [
            ("gone", "/gone", true),
            ("sms", "/api/v1/sms", true),
            ("management", "/metrics", false),
            ("management", "/docs", false),
            ("management", "/openapi.json", false),
            ("management", "/dashboard", false),
            ("management", "/api/v1/services", false),
        ];
        assert_eq!(names, expected);
        assert!(snapshot.services[0].endpoints.is_empty());

        let sms = &snapshot.services[1];
        let endpoints: Vec<(&str, &str, u16)> =
            sms.endpoints.iter().map(|e| (&*e.instance, &*e.authority, e.weight)).collect();
        let expected = [
            ("127.0.0.1:9001", "127.0.0.1:9001", 1),
            ("localhost:9001/127.0.0.1:9001", "localhost:9001", 3),
            ("unix:/run/sms.sock", "localhost", 1),
        ];
        assert_eq!(endpoints, expected);
        let ids: HashSet<EndpointId> = sms.endpoints.iter().map(|endpoint| endpoint.id).collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(sms.timeouts.connect.as_secs(), 2);
        assert_eq!(sms.timeouts.idle_body.as_secs(), 300);
        assert_eq!(sms.methods.named().count(), 1);

        let management = &snapshot.services[2];
        assert_eq!(&*management.endpoints[0].instance, "control");
        assert_eq!(&*management.endpoints[0].authority, "localhost");
        assert_eq!(management.limits.body_bytes, MANAGEMENT_BODY_BYTES);
    }

    #[test]
    fn registered_instances_stand_beside_configured_ones() {
        let labels = Labels::new();
        let mut book = Book::default();
        let (localhost, ip, socket) = ("http://localhost:9001", "http://127.0.0.1:9001", "unix:/run/sms.sock");
        for url in [ip, localhost, "http://localhost:9002", "http://127.0.0.1:9002", "http://10.0.0.1:9001", socket] {
            let instance =
                Instance { url: config::parse_endpoint(url).unwrap(), weight: 7, ttl: Duration::from_secs(5) };
            book.put("sms", instance, Instant::now());
        }
        let check = |allow: &str, expected: &[&str]| {
            let own = format!("discovery.allow = {allow}").replace("discovery.allow = none", "");
            let snapshot = build_with(&format!("{own}\n{TEXT}"), &book.registered(), &labels);
            let sms = &snapshot.services[1].endpoints;
            let added: BTreeSet<String> = sms[3..].iter().map(|endpoint| format!("{:?}", endpoint.address)).collect();
            assert_eq!(added.len(), sms.len() - 3, "{allow}: no address twice");
            let expected = expected.iter().map(|address| format!("Tcp({address})")).collect();
            assert_eq!(added, expected, "{allow}");
            assert!(sms[3..].iter().all(|endpoint| endpoint.weight == 7));
        };
        check("none", &["127.0.0.1:9002", "10.0.0.1:9001"]);
        check("[\"localhost\"]", &["127.0.0.1:9002"]);
        check("[\"10.0.0.0/8\"]", &["10.0.0.1:9001"]);
        check("[\"*.localhost\"]", &[]);
    }

    #[test]
    fn metrics_can_be_off() {
        let snapshot = build("metrics.enabled = false", &Labels::new());
        assert!(snapshot.services.iter().all(|service| &*service.prefix != METRICS_PREFIX));
        assert_eq!(snapshot.services.len(), MANAGEMENT_PREFIXES.len());
    }

    #[test]
    fn endpoints_follow_the_names() {
        let text = r#"
            [services.sms]
            prefix = "/sms"
            endpoints = ["http://a:80", "http://b:80", "srv+http://_sms._tcp.b"]
            auth = "none"
        "#;
        let config = Config::from_toml(text, "test", &[], &[]).unwrap();
        let labels = Labels::new();
        let hosts = |list: &[&str]| Records::Addresses(list.iter().map(|address| address.parse().unwrap()).collect());
        let target = |address: &str, authority: &str, weight| Target {
            address: address.parse().unwrap(),
            authority: authority.to_owned(),
            weight,
        };
        let endpoints = |a: Records, b: Records, srv: Vec<Target>| -> Vec<(String, EndpointId, u16)> {
            let mut resolved = Resolved::default();
            let questions =
                [Question::Host("a".into()), Question::Host("b".into()), Question::Srv("_sms._tcp.b".into())];
            for (question, records) in questions.into_iter().zip([a, b, Records::Targets(srv)]) {
                resolved.learn(question, Ok(Answer { records, ttl: None }));
            }
            let address = Address::Unix(PathBuf::from("\0ringway-1"));
            let snapshot = snapshot(&config, &resolved, &Registered::default(), &Arc::default(), &labels, address, 1);
            let endpoints = snapshot.services[0].endpoints.iter();
            endpoints.map(|endpoint| (endpoint.instance.to_string(), endpoint.id, endpoint.weight)).collect()
        };
        let srv = vec![target("10.0.0.1:80", "a:80", 9), target("10.0.0.4:81", "c:81", 3)];
        let first = endpoints(hosts(&["10.0.0.1", "10.0.0.2"]), hosts(&["10.0.0.1"]), srv.clone());
        let instances: Vec<(&str, u16)> = first.iter().map(|(instance, _, weight)| (&**instance, *weight)).collect();
        assert_eq!(instances, [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("b:80/10.0.0.1:80", 1), ("10.0.0.4:81", 3)]);
        // What stays keeps its identity, whatever came or went before it.
        let second = endpoints(hosts(&["10.0.0.9"]), hosts(&["10.0.0.1"]), vec![srv[1].clone()]);
        assert_eq!(second[1..], first[2..]);

        let many = |block: u8| Records::Addresses((0..200).map(|i| [10, block, 0, i].into()).collect());
        assert_eq!(endpoints(many(0), many(1), srv).len(), ENDPOINTS_MAX);
    }

    #[test]
    fn identities_survive_a_reload() {
        let labels = Labels::new();
        let first = build(TEXT, &labels);
        let second = build(
            &format!("{TEXT}\n[services.more]\nprefix = \"/more\"\nendpoints = [\"http://[::1]\"]\nauth = \"none\""),
            &labels,
        );
        let find = |snapshot: &Snapshot| {
            let sms = snapshot.services.iter().find(|service| &*service.name == "sms").expect("it is configured");
            (sms.route, sms.endpoints.iter().map(|endpoint| endpoint.id).collect::<Vec<_>>())
        };
        assert_eq!(find(&first), find(&second));
    }
}
