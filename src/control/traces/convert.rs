//! A record as spans: one for the request, and one below it for each try.
//!
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::http::method::Method;
use crate::http::request::Version;
use crate::snapshot::RouteId;
use crate::telemetry::labels::Labels;
use crate::telemetry::spans::{Attempt, SpanRecord};

/// Appends the spans of `record` to `spans`.
pub(super) fn spans(record: &SpanRecord, labels: &Labels, spans: &mut Vec<SpanData>) {
    let ended = UNIX_EPOCH + Duration::from_nanos(record.ended_unix_ns);
    let started = ended - Duration::from_nanos(record.took_ns);
    spans.push(request(record, labels, started, ended));
    for (index, attempt) in record.attempts().iter().enumerate() {
        spans.push(self::attempt(record, attempt, index, labels, started));
    }
}

/// What the gateway did for its client.
fn request(record: &SpanRecord, labels: &Labels, started: SystemTime, ended: SystemTime) -> SpanData {
    let method = method(record.method);
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("url.path", String::from_utf8_lossy(record.path()).into_owned()),
        KeyValue::new("http.response.status_code", i64::from(record.status)),
        KeyValue::new("network.protocol.version", if record.version == Version::Http10 { "1.0" } else { "1.1" }),
        KeyValue::new("http.request.body.size", record.bytes_in as i64),
        KeyValue::new("http.response.body.size", record.bytes_out as i64),
        KeyValue::new("ringway.worker", i64::from(record.worker)),
    ];
    let mut name = Cow::Borrowed(method);
    if record.route != RouteId::NONE {
        let route = labels.route_name(record.route);
        name = format!("{method} {route}").into();
        attributes.push(KeyValue::new("http.route", route));
    }
    if let Some(client) = record.client {
        attributes.push(KeyValue::new("client.address", client.to_string()));
    }
    if let Some(service) = record.service {
        attributes.push(KeyValue::new("ringway.service", labels.service_name(service)));
    }
    if record.rate_limited {
        attributes.push(KeyValue::new("ringway.rate_limited", true));
    }
    // 4xx are the client's errors, not this span's.
    let is_error = record.status >= 500;
    if let Some(kind) = kind(record.status, record.error).filter(|_| is_error || record.error.is_some()) {
        attributes.push(KeyValue::new("error.type", kind));
    }
    SpanData {
        parent_span_id: SpanId::from_bytes(record.parent.to_be_bytes()),
        parent_span_is_remote: record.parent != 0,
        span_kind: SpanKind::Server,
        status: status(is_error),
        ..span(record, record.span, name, started, ended, attributes)
    }
}

/// What an endpoint did for the gateway.
fn attempt(record: &SpanRecord, attempt: &Attempt, index: usize, labels: &Labels, started: SystemTime) -> SpanData {
    let method = method(record.method);
    let begun = started + Duration::from_nanos(attempt.after_ns);
    let mut attributes = vec![KeyValue::new("http.request.method", method)];
    if let Some((service, instance)) = labels.endpoint_name(attempt.endpoint) {
        // `authority/address` where two names have one address.
        let address =
            instance.rsplit_once('/').filter(|_| !instance.starts_with("unix:")).map_or(&*instance, |(_, at)| at);
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !address.starts_with("unix:") => (host, port.parse::<i64>().ok()),
            _ => (address, None),
        };
        attributes.push(KeyValue::new("server.address", host.trim_matches(['[', ']']).to_owned()));
        attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
        attributes.push(KeyValue::new("ringway.service", service));
        attributes.push(KeyValue::new("ringway.instance", instance));
    }
    if attempt.status > 0 {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(attempt.status)));
    }
    if index > 0 {
        attributes.push(KeyValue::new("http.request.resend_count", index as i64));
    }
    let is_error = attempt.status >= 400 || attempt.error.is_some();
    if let Some(kind) = kind(attempt.status, attempt.error).filter(|_| is_error) {
        attributes.push(KeyValue::new("error.type", kind));
    }
    SpanData {
        parent_span_id: SpanId::from_bytes(record.span.to_be_bytes()),
        span_kind: SpanKind::Client,
        status: status(is_error),
        ..span(record, attempt.span, method.into(), begun, begun + Duration::from_nanos(attempt.took_ns), attributes)
    }
}

fn span(
    record: &SpanRecord,
    id: u64,
    name: Cow<'static, str>,
    start_time: SystemTime,
    end_time: SystemTime,
    attributes: Vec<KeyValue>,
) -> SpanData {
    let (trace, id) = (TraceId::from_bytes(record.trace.to_be_bytes()), SpanId::from_bytes(id.to_be_bytes()));
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name,
        start_time,
        end_time,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("ringway").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

fn method(method: Method) -> &'static str {
    if method == Method::Other { "_OTHER" } else { method.as_str() }
}

fn status(is_error: bool) -> Status {
    if is_error { Status::error("") } else { Status::Unset }
}

/// The stable word, or else the status.
fn kind(status: u16, error: Option<&'static str>) -> Option<Cow<'static, str>> {
    match (error, status) {
        (Some(word), _) => Some(word.into()),
        (None, 0) => None,
        (None, status) => Some(status.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(span: &SpanData, key: &str) -> Option<String> {
        span.attributes.iter().find(|attribute| attribute.key.as_str() == key).map(|found| found.value.to_string())
    }

    fn record(status: u16, error: Option<&'static str>) -> SpanRecord {
        let mut record = SpanRecord::EMPTY;
        (record.trace, record.span, record.status, record.error) = (1, 2, status, error);
        record
    }

    #[test]
    fn a_request_and_its_tries() {
        let labels = Labels::new();
        let (bad, _) = labels.endpoint_of("sms", "a:80", "[::1]:9001");
        let (good, _) = labels.endpoint_of("sms", "b:80", "[::1]:9001");
        let mut record = record(200, None);
        (record.trace, record.parent, record.span) = (7, 8, 9);
        record.ended_unix_ns = 5_000_000_000;
        record.took_ns = 1_000_000_000;
        record.method = Method::Post;
        record.route = labels.route("/sms");
        record.service = Some(labels.service("sms"));
        record.set_path(b"/sms/send?token=hush");
        record.begin_attempt(10, bad, 0);
        let failed = record.last_attempt().expect("one");
        (failed.took_ns, failed.error) = (100_000_000, Some("upstream_closed"));
        record.begin_attempt(11, good, 150_000_000);
        let answered = record.last_attempt().expect("another");
        (answered.took_ns, answered.status) = (800_000_000, 200);
        let mut spans = Vec::new();
        super::spans(&record, &labels, &mut spans);
        let [request, first, second] = &spans[..] else { panic!("{spans:?}") };

        assert_eq!(
            (&*request.name, &request.span_kind, &request.status),
            ("POST /sms", &SpanKind::Server, &Status::Unset)
        );
        assert_eq!(request.parent_span_id, SpanId::from_bytes(8u64.to_be_bytes()));
        assert!(request.parent_span_is_remote);
        assert_eq!(attribute(request, "url.path").as_deref(), Some("/sms/send"));
        assert_eq!(attribute(request, "http.route").as_deref(), Some("/sms"));
        assert_eq!(attribute(request, "error.type"), None);
        assert!(!format!("{spans:?}").contains("hush"));

        for (span, id) in [(first, 10u64), (second, 11)] {
            assert_eq!(span.span_context.span_id(), SpanId::from_bytes(id.to_be_bytes()));
            assert_eq!(span.parent_span_id, request.span_context.span_id());
            assert_eq!(
                (span.span_context.trace_id(), &span.span_kind),
                (request.span_context.trace_id(), &SpanKind::Client)
            );
            assert!(span.start_time >= request.start_time && span.end_time <= request.end_time);
            assert_eq!(attribute(span, "server.address").as_deref(), Some("::1"));
            assert_eq!(attribute(span, "server.port").as_deref(), Some("9001"));
        }
        assert_eq!(first.status, Status::error(""));
        assert_eq!(attribute(first, "error.type").as_deref(), Some("upstream_closed"));
        assert_eq!(attribute(first, "http.request.resend_count"), None);
        assert_eq!(attribute(second, "http.request.resend_count").as_deref(), Some("1"));
        assert_eq!(attribute(second, "ringway.instance").as_deref(), Some("b:80/[::1]:9001"));
        assert!(first.end_time <= second.start_time);
    }

    #[test]
    fn whose_error_it_is() {
        let check = |status: u16, error: Option<&'static str>, is_error: bool, kind: Option<&str>| {
            let mut spans = Vec::new();
            super::spans(&record(status, error), &Labels::new(), &mut spans);
            assert_eq!((spans.len(), &*spans[0].name), (1, "GET"));
            assert_eq!(spans[0].status == Status::error(""), is_error, "{status}");
            assert_eq!(attribute(&spans[0], "error.type").as_deref(), kind, "{status}");
        };
        check(200, None, false, None);
        check(404, Some("no_route"), false, Some("no_route"));
        check(404, None, false, None);
        check(500, None, true, Some("500"));
        check(503, Some("breaker_open"), true, Some("breaker_open"));
        check(499, Some("client_gone"), false, Some("client_gone"));
    }

    #[test]
    fn an_endpoint_on_a_unix_socket_has_no_port() {
        let labels = Labels::new();
        let (endpoint, _) = labels.endpoint_of("sms", "localhost", "unix:/run/a:b.sock");
        let mut record = record(500, None);
        record.begin_attempt(3, endpoint, 0);
        record.last_attempt().expect("one").status = 500;
        let mut spans = Vec::new();
        super::spans(&record, &labels, &mut spans);
        assert_eq!(attribute(&spans[1], "server.address").as_deref(), Some("unix:/run/a:b.sock"));
        assert_eq!(attribute(&spans[1], "server.port"), None);
        assert_eq!(
            (&spans[1].status, attribute(&spans[1], "error.type").as_deref()),
            (&Status::error(""), Some("500"))
        );
    }
}
