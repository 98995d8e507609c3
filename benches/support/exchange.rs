//! A forwarded request, whole: what a worker computes for it, in the order and with the arguments of `src/proxy`, where
//! sockets, clocks and randomness come in between. Whoever changes the order there changes it here.
//!
//! The request names itself and its trace, which the gateway otherwise draws. Times are what a request takes that is served
//! at once.

use std::cell::RefCell;
use std::hint::black_box;
use std::mem::{MaybeUninit, take};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringway::control::build;
use ringway::control::config::Config;
use ringway::control::registry::instance::Registered;
use ringway::control::resolve::Resolved;
use ringway::http::body::Decoder;
use ringway::http::headers::HeadScan;
use ringway::http::request::{self, Forwarding, HEADER_COUNT_MAX, RequestHead, Version};
use ringway::http::response::{self, Asked, Replaces, Returning};
use ringway::http::trace_context::{self, TRACE_ID};
use ringway::policy::access_log::{self, AccessRecord, Clock};
use ringway::policy::auth::{Cache, Identity, KeySet, Mode, Presented};
use ringway::policy::cors::CorsRequest;
use ringway::policy::rate_limit::headers::{self, Shown};
use ringway::policy::rate_limit::identity::Identity as Counted;
use ringway::proxy::answer::Health;
use ringway::proxy::limiter::{Admission, Limiter, Moment, SharedLimits, Subject};
use ringway::proxy::loaded::{Loaded, ServiceState};
use ringway::proxy::transaction::Scratch;
use ringway::snapshot::{self, Address, OnError, Snapshot};
use ringway::telemetry::counters::{Counters, TraceId};
use ringway::telemetry::labels::Labels;
use ringway::traffic::balance::Balancer;
use ringway::traffic::breaker::{BreakerState, Permit, Verdict};
use ringway::traffic::standing::{self, Standing};
use ringway::traffic::{path, route};

use super::{NOW, TRACEPARENT, Work, auth, heads, moment, records, work};

/// Four endpoints behind one prefix.
const SERVICE: &str = "[services.sms]\nprefix = \"/api/v1/sms\"\nendpoints = [\"http://127.0.0.1:9001\", \
    \"http://127.0.0.1:9002\", \"http://127.0.0.1:9003\", \"http://127.0.0.1:9004\"]\n";

/// No policy, and no log.
const BARE: &str = "auth = \"none\"\nrate_limit = { enabled = false }\n[logging]\nenabled = false\n";

/// A token, a limit, CORS, and the log in JSON.
const GUARDED: &str = "auth = \"required\"\nrate_limit = { requests = 1000000000, window = \"1h\" }\n\
    cors = { enabled = true, allow_origins = [\"https://app.example.com\"] }\n[logging]\nformat = \"json\"\n";

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// From the request to the head of the answer, and to its end.
const UPSTREAM: Duration = Duration::from_micros(610);
const WHOLE: Duration = Duration::from_micros(740);

/// A request without policies.
pub fn bare() -> Work {
    forward(BARE, &[])
}

/// A request with every policy, by a client that has asked before.
pub fn guarded() -> Work {
    let bearer = format!("Authorization: Bearer {}\r\n", auth::token("user-1"));
    forward(GUARDED, &[b"Origin: https://app.example.com\r\n", bearer.as_bytes()])
}

/// Forwards the browser's request, with `lines` added, under `policy`.
fn forward(policy: &str, lines: &[&[u8]]) -> Work {
    let end = heads::REQUEST.len() - b"\r\n".len();
    let request = [&heads::REQUEST[..end], b"traceparent: ", TRACEPARENT, b"\r\n", &lines.concat(), b"\r\n"].concat();
    let answer = [heads::RESPONSE, &[b'x'; 512]].concat();
    let mut worker = Worker::new(&[SERVICE, policy].concat());
    let mut inbound = Vec::with_capacity(answer.len());
    work(move || {
        inbound.clear();
        inbound.extend_from_slice(&answer);
        worker.forward(black_box(&request), &mut inbound)
    })
}

/// The snapshot of a configuration.
fn snapshot(toml: &str) -> Snapshot {
    ringway::policy::auth::install();
    let secret = [("JWT_SECRET_KEY".to_owned(), String::from_utf8_lossy(auth::SECRET).into_owned())];
    let config = Config::from_toml(toml, "bench", &secret, &[]).expect("valid");
    let authenticator = build::authenticator(&config, KeySet::default(), 1);
    let management = Address::Unix("management".into());
    let (resolved, registered) = (Resolved::default(), Registered::default());
    build::snapshot(&config, &resolved, &registered, &authenticator, &Labels::new(), management, 1)
}

/// A worker's state, as far as it computes.
struct Worker {
    loaded: Rc<Loaded>,
    counters: Counters,
    limiter: Rc<Limiter>,
    tokens: Cache,
    clock: Clock,
    line: Vec<u8>,
    scratch: Scratch,
    moment: Moment,
    draw: u64,
}

/// What becomes known of a request on its way.
#[derive(Default)]
struct Known {
    client: Option<IpAddr>,
    service: usize,
    identity: Option<Rc<Identity>>,
    replaces: Replaces,
    endpoint: usize,
    breaker: Option<BreakerState>,
    permit: Option<Permit>,
    status: u16,
    bytes_out: u64,
}

impl Worker {
    fn new(toml: &str) -> Worker {
        let snapshot = snapshot(toml);
        let services = snapshot.services.iter().map(state).collect();
        Worker {
            loaded: Rc::new(Loaded { snapshot: Arc::new(snapshot), services }),
            counters: records::counters(),
            limiter: Rc::new(Limiter::new(SharedLimits::new(1_000), None, OnError::Local)),
            tokens: auth::cache(),
            clock: Clock::default(),
            line: Vec::with_capacity(4_096),
            scratch: Scratch::default(),
            moment: moment(),
            draw: 0,
        }
    }

    /// The whole way: the request as it came, and the answer as it came. Returns what the client is sent, in bytes.
    fn forward(&mut self, request: &[u8], answer: &mut [u8]) -> usize {
        let limits = &Rc::clone(&self.loaded).snapshot.limits;
        let skip = request::leading_empty_lines(request);
        let end = request::holds_head(request, skip, &mut HeadScan::from(skip), limits).expect("fine").expect("whole");
        self.counters.request_started();
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let head = request::parse(&request[skip..end], &mut storage, limits).expect("fine");
        let mut known = Known { client: Some(PEER), ..Known::default() };
        self.identify(&head);
        let mut body = Decoder::new(head.framing);
        let data = body.decode(&mut []).expect("none").data;
        self.send(&head, &mut known);
        body.push_piece(head.framing, &request[end..end + data], true, &mut self.scratch.out);
        self.answer(&head, &mut known, answer);
        let sent = self.scratch.out.len();
        self.finish(&head, known);
        sent
    }

    /// `Transaction::identify`.
    fn identify(&mut self, head: &RequestHead<'_>) {
        let scratch = &mut self.scratch;
        scratch.method.extend_from_slice(head.method_token);
        scratch.target.extend_from_slice(head.target);
        scratch.request_id.extend_from_slice(head.request_id.expect("named"));
        scratch.traceparent.extend_from_slice(b"00");
        scratch.traceparent.extend_from_slice(head.traceparent.expect("named"));
    }

    /// `pipeline::stages`.
    fn send(&mut self, head: &RequestHead<'_>, known: &mut Known) {
        let loaded = Rc::clone(&self.loaded);
        let mut normal = take(&mut self.scratch.path);
        let path = path::normalize(head.path, &mut normal).expect("fine");
        assert!(Health::from_path(path).is_none());
        known.service = loaded.snapshot.routes.find(head.host, path).expect("a service");
        let folded = path::fold(path, &mut self.scratch.out);
        assert!(folded.and_then(|path| loaded.snapshot.routes.find(head.host, path)).is_none());
        let (service, state) = (&loaded.snapshot.services[known.service], &loaded.services[known.service]);
        state.memory.in_flight.set(state.memory.in_flight.get() + 1);
        self.cross_origin(head, service, known);
        assert!(service.methods.contains(head.method));
        assert!(head.target.len() <= service.limits.uri_bytes && head.bytes.len() <= service.limits.header_bytes);
        self.authenticate(head, service, known);
        self.limit(service, known);
        self.choose(service, state, known);
        let forwarding = Forwarding {
            path: route::strip(path, &service.prefix),
            authority: &service.endpoints[known.endpoint].authority,
            peer: Some(PEER),
            peer_is_trusted: false,
            request_id: &self.scratch.request_id,
            traceparent: &self.scratch.traceparent,
            identity: known.identity.as_ref().map_or(b"", |identity| identity.lines()),
            with_credentials: service.forward_credentials,
            with_forwarded: loaded.snapshot.write_forwarded,
        };
        self.scratch.out.clear();
        request::write(head, &forwarding, &mut self.scratch.out);
        self.scratch.path = normal;
    }

    /// `guard::cross_origin`.
    fn cross_origin(&mut self, head: &RequestHead<'_>, service: &snapshot::Service, known: &mut Known) {
        let Some(cors) = service.cors.as_deref() else { return };
        known.replaces.cors = true;
        let fields = head.fields.iter().map(|field| (field.name.as_bytes(), field.value));
        black_box(cors.render(&CorsRequest::read(head.method, fields), &mut self.scratch.fields));
    }

    /// `guard::authenticate`.
    fn authenticate(&mut self, head: &RequestHead<'_>, service: &snapshot::Service, known: &mut Known) {
        if service.auth == Mode::None {
            return;
        }
        let authenticator = &self.loaded.snapshot.authenticator;
        let offered = head.credentials;
        let presented = Presented::read(offered.authorization, offered.api_key, offered.repeated);
        known.identity = authenticator.recall(presented, &mut self.tokens, NOW);
        if known.identity.is_none() {
            known.identity = authenticator.verify(service.auth, presented, &mut self.tokens, NOW).expect("good");
            self.counters.token_misses.add(1);
        } else {
            self.counters.token_hits.add(1);
        }
        service.required_scopes.check(head.method, known.identity.as_deref()).expect("enough");
    }

    /// `guard::limit`.
    fn limit(&mut self, service: &snapshot::Service, known: &mut Known) {
        if service.rate_limits.is_empty() {
            return;
        }
        let subject = Subject {
            identity: known.identity.as_deref().map(|identity| Counted::User(identity.subject().as_bytes())),
            ip: Counted::ip(PEER, self.loaded.snapshot.ipv6_prefix),
            own: None,
        };
        let held = &mut self.scratch.held;
        assert_eq!(self.limiter.admit(&service.rate_limits, &subject, self.moment, held), Admission::Pass);
        let shown = held.iter().filter_map(|entry| {
            let name = &service.rate_limits[entry.index].name;
            Some(Shown { name, limit: &entry.limit, standing: entry.standing()? })
        });
        headers::push_headers(shown, &mut self.scratch.fields);
        known.replaces.rate_limit = true;
    }

    /// `attempt::choose`.
    fn choose(&mut self, service: &snapshot::Service, state: &ServiceState, known: &mut Known) {
        let (settings, now) = (&service.breaker.settings, self.moment.instant);
        let usable = |index: usize| {
            state.standing.is_usable(index) && state.endpoints[index].breaker.borrow().allows(settings, now)
        };
        let share = |index: usize| state.standing.share(index, 0);
        let in_flight = |index: usize| state.endpoints[index].in_flight();
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let chosen = state.balancer.borrow_mut().pick(self.draw, usable, share, in_flight).expect("one");
        state.memory.budget.borrow_mut().note_request(now);
        state.endpoints[chosen].count(1);
        let mut breaker = state.endpoints[chosen].breaker.borrow_mut();
        (known.endpoint, known.breaker, known.permit) =
            (chosen, Some(breaker.state(now)), breaker.admit(settings, now));
    }

    /// `Reply::receive`, for a body that has come with its head.
    fn answer(&mut self, asked: &RequestHead<'_>, known: &mut Known, inbound: &mut [u8]) {
        let loaded = Rc::clone(&self.loaded);
        let (service, state) = (&loaded.snapshot.services[known.service], &loaded.services[known.service]);
        let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let asked = Asked { method: asked.method, upgrade: asked.upgrade };
        let scan = &mut HeadScan::default();
        let head = response::parse(inbound, scan, &mut storage, asked, &service.limits).expect("fine").expect("whole");
        let returning = Returning {
            version: Version::Http11,
            framing: head.framing,
            persistent: true,
            from_gateway: false,
            request_id: &self.scratch.request_id,
            date: self.clock.http_date(NOW * 1_000),
            fields: &self.scratch.fields,
            replaces: known.replaces,
        };
        self.scratch.out.clear();
        response::write(&head, &returning, &mut self.scratch.out);
        known.status = head.status;
        self.counters.upstream_answered(service.endpoints[known.endpoint].id, head.status, UPSTREAM);
        state.endpoints[known.endpoint].answered(UPSTREAM);
        assert!(!service.breaker.is_failure(head.status));
        let (framing, length) = (head.framing, head.bytes.len());
        let body = &mut inbound[length..];
        let mut decoder = Decoder::new(framing);
        let data = decoder.decode(body).expect("fine").data;
        decoder.push_piece(framing, &body[..data], false, &mut self.scratch.out);
        known.bytes_out = data as u64;
    }

    /// `Transaction`'s drop.
    fn finish(&mut self, head: &RequestHead<'_>, mut known: Known) {
        let loaded = Rc::clone(&self.loaded);
        let (service, state) = (&loaded.snapshot.services[known.service], &loaded.services[known.service]);
        let endpoint = &state.endpoints[known.endpoint];
        if let Some(permit) = known.permit.take() {
            let mut record = endpoint.outlier.get();
            record.note(false);
            endpoint.outlier.set(record);
            let (settings, now) = (&service.breaker.settings, self.moment.instant);
            endpoint.breaker.borrow_mut().settle(permit, Verdict::Success, settings, now, self.draw);
        }
        state.memory.in_flight.set(state.memory.in_flight.get() - 1);
        endpoint.count(-1);
        let traceparent = &self.scratch.traceparent;
        let trace: Option<&TraceId> = traceparent.get(TRACE_ID).and_then(|id| id.try_into().ok());
        let trace = trace.filter(|_| trace_context::is_sampled(traceparent)).map(|trace| (trace, NOW * 1_000));
        self.counters.request_finished(service.route, head.method, known.status, WHOLE, trace);
        self.counters.bytes_in.add(0);
        self.counters.bytes_out.add(known.bytes_out);
        self.counters.retries.add(0);
        if loaded.snapshot.logging.enabled {
            self.log(service, &known);
        }
        let scratch = &mut self.scratch;
        let buffers = [
            &mut scratch.out,
            &mut scratch.path,
            &mut scratch.method,
            &mut scratch.target,
            &mut scratch.request_id,
            &mut scratch.traceparent,
            &mut scratch.fields,
        ];
        buffers.into_iter().for_each(Vec::clear);
        scratch.held.clear();
    }

    /// `Transaction::log`.
    fn log(&mut self, service: &snapshot::Service, known: &Known) {
        let logging = &self.loaded.snapshot.logging;
        let scratch = &self.scratch;
        let record = AccessRecord {
            unix_ms: NOW * 1_000 + 123,
            request_id: &scratch.request_id,
            trace_id: scratch.traceparent.get(TRACE_ID).unwrap_or_default(),
            worker: 3,
            client: known.client,
            method: &scratch.method,
            path: &scratch.target,
            route: &service.prefix,
            service: &service.name,
            instance: &service.endpoints[known.endpoint].instance,
            status: known.status,
            duration: WHOLE,
            upstream: Some(UPSTREAM),
            bytes_in: 0,
            bytes_out: known.bytes_out,
            auth: known.identity.as_ref().map_or("", |identity| identity.method().as_str()),
            user: known.identity.as_ref().map_or("", |identity| identity.subject()),
            rate_limited: false,
            retries: 0,
            tried: &[],
            breaker: known.breaker.map_or("", BreakerState::as_str),
            error: None,
        };
        self.line.clear();
        access_log::render(&record, logging.format, &logging.redact, &mut self.clock, &mut self.line);
        black_box(&self.line);
    }
}

/// A worker's side of a service whose endpoints are all healthy.
fn state(service: &snapshot::Service) -> ServiceState {
    let weights = service.endpoints.iter().map(|endpoint| endpoint.weight);
    ServiceState {
        balancer: RefCell::new(Balancer::new(service.load_balancing, weights)),
        standing: Standing::new(service.endpoints.iter().map(|_| standing::Health::Healthy), 500, 0),
        endpoints: service.endpoints.iter().map(|_| Rc::default()).collect(),
        memory: Rc::default(),
    }
}
