//! Traces: who asked, who was asked, and a collector that is told; read with the protocol's own types.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

use crate::support::backend::Request;
use crate::support::prometheus::PYTHON;
use crate::support::{Backend, Gate, Gateway, free_port, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn tables(backends: &[&Backend], collector: &Backend, lines: &str) -> String {
    let urls: Vec<String> = backends.iter().map(|backend| backend.url()).collect();
    format!("{}[tracing]\nenabled = true\nendpoint = \"{}\"\n{lines}\n", service("api", &urls, ""), collector.url())
}

/// The spans that a collector has got so far.
fn spans(collector: &Backend) -> Vec<Span> {
    let decode = |request: &Request| {
        assert!(request.line().starts_with("POST /v1/traces "), "{}", request.line());
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        let mut body = Vec::new();
        match request.header("content-encoding") {
            Some("gzip") => GzDecoder::new(&*request.body).read_to_end(&mut body).map(drop).expect("gzip"),
            _ => body.clone_from(&request.body),
        }
        ExportTraceServiceRequest::decode(&*body).expect("protobuf")
    };
    let resources =
        collector.requests().iter().map(decode).flat_map(|request| request.resource_spans).collect::<Vec<_>>();
    let scopes = resources.into_iter().flat_map(|resource| {
        let attributes = resource.resource.expect("a resource").attributes;
        assert!(attributes.iter().any(|attribute| attribute.key == "service.name"), "{attributes:?}");
        resource.scope_spans
    });
    scopes.flat_map(|scope| scope.spans).collect()
}

/// The spans of one trace, once there are so many: the request's own, and those of its tries.
fn trace(collector: &Backend, trace: &str, count: usize) -> (Span, Vec<Span>) {
    let of_trace = || spans(collector).into_iter().filter(|span| hex(&span.trace_id) == trace).collect::<Vec<_>>();
    until("the spans are there", || of_trace().len() >= count);
    let (mut servers, clients): (Vec<_>, Vec<_>) =
        of_trace().into_iter().partition(|span| span.kind == SpanKind::Server as i32);
    assert_eq!((servers.len(), clients.len()), (1, count - 1));
    (servers.remove(0), clients)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let value = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = span
        .attributes
        .iter()
        .filter_map(|pair| Some((pair.key.as_str(), value(pair.value.as_ref()?.value.as_ref()?))));
    pairs.collect()
}

fn ask(gateway: &Gateway, path: &str, fields: &str) -> u16 {
    gateway.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n")).status
}

fn sent(backend: &Backend) -> Vec<String> {
    backend.requests().iter().map(|request| request.header("traceparent").expect("a traceparent").to_owned()).collect()
}

#[test]
fn a_request_and_its_tries_are_spans() {
    let broken = Backend::answering("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
    let (good, collector) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&tables(&[&broken, &good], &collector, "sample = 0.0"));
    // The first goes to either of them; the second to the other.
    for _ in 0..2 {
        let state = "tracestate: vendor=1\r\n";
        assert_eq!(ask(&gateway, "/api/x?token=hush", &format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n{state}")), 200);
        if !broken.requests().is_empty() {
            break;
        }
    }
    assert_eq!(good.last().header("tracestate"), Some("vendor=1"));
    let all = || spans(&collector);
    until("all spans are there", || all().iter().filter(|span| span.name == "GET").count() >= 2);
    let failed =
        all().into_iter().find(|span| attributes(span).get("http.response.status_code").is_some_and(|s| s == "503"));
    let failed = failed.expect("the try that failed");
    let request = all().into_iter().find(|span| span.span_id == failed.parent_span_id).expect("its request");
    let answered =
        all().into_iter().filter(|span| span.parent_span_id == request.span_id && span.span_id != failed.span_id);
    let [answered] = &answered.collect::<Vec<_>>()[..] else { panic!("one more try") };

    assert_eq!(
        (request.name.as_str(), hex(&request.trace_id).as_str(), hex(&request.parent_span_id).as_str()),
        ("GET /api", TRACE, PARENT)
    );
    let seen = attributes(&request);
    for (key, value) in [
        ("url.path", "/api/x"),
        ("http.route", "/api"),
        ("http.response.status_code", "200"),
        ("client.address", "127.0.0.1"),
    ] {
        assert_eq!(seen.get(key).map(String::as_str), Some(value), "{seen:?}");
    }
    assert_eq!(attributes(answered).get("http.request.resend_count").map(String::as_str), Some("1"));
    assert_eq!(attributes(&failed)["server.port"], broken.address.port().to_string());
    assert_eq!(
        (failed.status.as_ref().map(|status| status.code), answered.status.as_ref().map(|status| status.code)),
        (Some(2), Some(0))
    );
    // Each endpoint was told of its own try.
    assert!(sent(&broken).contains(&format!("00-{TRACE}-{}-01", hex(&failed.span_id))));
    assert!(sent(&good).contains(&format!("00-{TRACE}-{}-01", hex(&answered.span_id))));
    for (outer, inner) in [(&request, &failed), (&request, answered)] {
        assert!(
            outer.start_time_unix_nano <= inner.start_time_unix_nano
                && inner.end_time_unix_nano <= outer.end_time_unix_nano
        );
    }
    assert!(failed.end_time_unix_nano <= answered.start_time_unix_nano);
    assert!(!format!("{:?}", all()).contains("hush"));
}

/// A real collector (rotel, from tests/requirements.txt) that passes on what it has understood; ended when dropped.
struct Collector {
    process: Child,
    url: String,
}

impl Collector {
    fn passing_on_to(backend: &Backend) -> Collector {
        let free = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (http, grpc) = (free(), free());
        let libraries = Path::new(PYTHON).ancestors().nth(2).expect("the environment").join("lib");
        let version =
            std::fs::read_dir(libraries).expect("tests/run has made it").next().expect("a version").expect("a folder");
        let process = Command::new(version.path().join("site-packages/rotel/rotel-agent"))
            .args(["start", "--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-http-endpoint", &http.to_string(), "--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-exporter-endpoint", &backend.url()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the collector is installed (tests/run)");
        until("the collector listens", || TcpStream::connect(http).is_ok());
        Collector { process, url: format!("http://{http}") }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_real_collector_understands_them() {
    let (backend, behind) = (Backend::answering(OK), Backend::answering(OK));
    let collector = Collector::passing_on_to(&behind);
    let tables = format!(
        "{}[tracing]\nenabled = true\nsample = 1.0\nendpoint = \"{}\"\n",
        service("api", &[backend.url()], ""),
        collector.url
    );
    let gateway = Gateway::start(&tables);
    assert_eq!(ask(&gateway, "/api/x", ""), 200);
    let last = sent(&backend).pop().expect("one");
    let (request, tries) = trace(&behind, &last[3..35], 2);
    assert_eq!((request.name.as_str(), attributes(&request)["http.route"].as_str()), ("GET /api", "/api"));
    assert_eq!((&tries[0].parent_span_id, hex(&tries[0].span_id).as_str()), (&request.span_id, &last[36..52]));
    assert_eq!(gateway.metric("api_gateway_spans_dropped_total{worker=\"0\"}"), 0.0);
}

#[test]
fn who_decides_whether_it_is_recorded() {
    let (backend, collector) = (Backend::answering(OK), Backend::answering(OK));
    let tables = |sample: &str| tables(&[&backend], &collector, &format!("sample = {sample}"));
    let gateway = Gateway::start(&tables("0.0"));
    // The client: not recorded, and passed on as it came.
    let unrecorded = format!("00-{TRACE}-{PARENT}-00");
    assert_eq!(ask(&gateway, "/api", &format!("traceparent: {unrecorded}\r\n")), 200);
    assert_eq!(sent(&backend).last(), Some(&unrecorded));
    // Or the gateway, which records none of those that begin here …
    assert_eq!(ask(&gateway, "/api", ""), 200);
    assert!(sent(&backend)[1].ends_with("-00"), "{:?}", sent(&backend));
    // … a version to come is known as far as this one goes; what is malformed, or there twice, is replaced.
    let cases = [
        (format!("traceparent: cc-{TRACE}-{PARENT}-00-more\r\n"), true),
        (format!("traceparent: 00-{TRACE}-{PARENT}-0\r\n"), false),
        (format!("traceparent: {unrecorded}\r\ntraceparent: {unrecorded}\r\n"), false),
    ];
    for (fields, is_kept) in cases {
        assert_eq!(ask(&gateway, "/api", &format!("{fields}tracestate: vendor=1\r\n")), 200);
        assert_eq!(sent(&backend).last() == Some(&unrecorded), is_kept, "{fields}");
        assert_eq!(backend.last().header("tracestate").is_some(), is_kept, "{fields}");
    }
    // … or, from the next configuration on, all of them.
    gateway.reload(&tables("1.0"));
    assert_eq!(ask(&gateway, "/api", ""), 200);
    let last = sent(&backend).pop().expect("one");
    let (request, tries) = trace(&collector, &last[3..35], 2);
    assert_eq!((request.parent_span_id.len(), hex(&tries[0].span_id).as_str()), (0, &last[36..52]));
    let line = gateway.log.wait_for(|line| line["trace_id"] == last[3..35]);
    assert_eq!(line["status"], 200);
    assert_eq!(ask(&gateway, "/nowhere", &format!("traceparent: 00-{}-{PARENT}-01\r\n", "a".repeat(32))), 404);
    let (refused, _) = trace(&collector, &"a".repeat(32), 1);
    assert_eq!((refused.name.as_str(), attributes(&refused)["error.type"].as_str()), ("GET", "no_route"));
    assert!(spans(&collector).iter().all(|span| hex(&span.trace_id) != TRACE), "what its client did not record");
}

#[test]
fn a_collector_that_is_away_or_slow_costs_spans_and_nothing_else() {
    let backend = Backend::answering(OK);
    let gate = Gate::default();
    let collector = Backend::start({
        let gate = gate.clone();
        move |connection| {
            connection.request()?;
            gate.pass();
            connection.send("HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")?;
            loop {
                connection.request()?;
                connection.send(OK)?;
            }
        }
    });
    let gateway = Gateway::start(&tables(&[&backend], &collector, "sample = 1.0\ntimeout = \"20s\""));
    let mut client = gateway.connect();
    let dropped = || gateway.metric("api_gateway_spans_dropped_total{worker=\"0\"}");
    // It has been asked once, and says nothing: what its ring has no room for is lost.
    until("spans are dropped", || {
        let mut client = gateway.connect();
        for _ in 0..200 {
            client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
        dropped() > 0.0
    });
    gate.open();
    let said = |text: &'static str| {
        move |event: &serde_json::Value| event["message"].as_str().is_some_and(|message| message.contains(text))
    };
    gateway.events.wait_for(said("does not take spans"));
    gateway.events.wait_for(said("takes spans again"));
    assert_eq!(gateway.events.all().iter().filter(|event| said("does not take spans")(event)).count(), 1, "once");
    assert!(gateway.metric("api_gateway_spans_lost_total") > 0.0, "the batch that was refused");
    client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

#[test]
fn the_last_spans_are_sent_when_the_process_ends() {
    let (backend, collector) = (Backend::answering(OK), Backend::answering(OK));
    let authorization = "sample = 1.0\nservice_name = \"edge\"\nauthorization = \"Bearer hush\"";
    let mut gateway = Gateway::start(&tables(&[&backend], &collector, authorization));
    assert_eq!(ask(&gateway, "/api", ""), 200);
    gateway.signal("TERM");
    assert!(gateway.wait_exit().success());
    let last = sent(&backend).pop().expect("one");
    trace(&collector, &last[3..35], 2);
    assert_eq!(collector.last().header("authorization"), Some("Bearer hush"));
    assert!(!format!("{:?}", gateway.events.all()).contains("hush"));
}

#[test]
fn what_cannot_change_is_named() {
    let (backend, collector) = (Backend::answering(OK), Backend::answering(OK));
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    gateway.reload(&tables(&[&backend], &collector, "sample = 1.0"));
    gateway.events.wait_for(|event| event["keys"] == "[tracing]");
    assert_eq!(ask(&gateway, "/api", ""), 200);
    assert!(spans(&collector).is_empty());
}
