//! What can be seen of a request afterwards: its line in the log, its count in the metrics.

use serde_json::Value;

use crate::support::{Backend, Gate, Gateway, gateway_to, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn every_request_leaves_one_line() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    gateway.send(format!(
        "POST /api/x?token=hush&a=b HTTP/1.1\r\nHost: a\r\nX-Request-Id: whole\r\nAuthorization: Bearer hush\r\n\
         Cookie: hush\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    ));
    let line = gateway.logged("whole");
    let expected: [(&str, Value); 16] = [
        ("level", "info".into()),
        ("request_id", "whole".into()),
        ("trace_id", TRACE.into()),
        ("worker", 0.into()),
        ("client", "127.0.0.1".into()),
        ("method", "POST".into()),
        ("path", "/api/x?token=***&a=b".into()),
        ("route", "/api".into()),
        ("service", "api".into()),
        ("instance", backend.address.to_string().into()),
        ("status", 200.into()),
        ("bytes_in", 5.into()),
        ("bytes_out", 2.into()),
        ("rate_limited", false.into()),
        ("retries", 0.into()),
        ("error", Value::Null),
    ];
    for (field, value) in expected {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    let ts = line["ts"].as_str().expect("a time");
    assert!(ts.len() == 24 && ts.ends_with('Z') && ts.as_bytes()[19] == b'.', "{ts}");
    let (whole, upstream) = (line["duration_ms"].as_f64(), line["upstream_ms"].as_f64());
    assert!(upstream > Some(0.0) && whole >= upstream, "{line}");
    assert!(!line.to_string().contains("hush"), "{line}");
}

#[test]
fn refusals_leave_a_line_that_says_why() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let check = |request: &str, status: u16, error: &str| {
        let answer = gateway.send(request);
        let id = answer.header("x-request-id").expect("an id").to_owned();
        let line = gateway.logged(&id);
        assert_eq!((&line["status"], &line["error"]), (&status.into(), &error.into()), "{line}");
        assert_eq!(line["level"], if status < 500 { "warn" } else { "error" });
    };
    check("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 404, "no_route");
    check("GET / HTTP/1.1\r\n\r\n", 400, "malformed_request");
    check("nonsense\r\n\r\n", 400, "malformed_request");
    check("GET / HTTP/3.0\r\n\r\n", 505, "version_not_supported");
    check("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "unsupported_transfer_coding");
}

#[test]
fn no_client_can_forge_a_line() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    let target = "/api/\"}\u{e9}{\"status\":1,\"x\":\"?q=\\n\\u0000";
    let answer = gateway.get(target);
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let line = gateway.logged(&id);
    assert_eq!((line["status"].as_u64(), line["path"].as_str()), (Some(200), Some(target)));
    assert!(gateway.log.all().iter().all(Value::is_object), "every line is an object");
}

#[test]
fn the_log_can_be_switched_off_or_thinned_out() {
    let backend = Backend::answering(OK);
    let silent = Gateway::start(&(service("api", &[backend.url()], "") + "[logging]\nenabled = false"));
    let sampled = Gateway::start(&(service("api", &[backend.url()], "") + "[logging]\nsample = 0.0"));
    for gateway in [&silent, &sampled] {
        assert_eq!(gateway.get("/api").status, 200);
        assert_eq!(gateway.get("/nowhere").status, 404);
    }
    sampled.log.wait_for(|line| line["status"] == 404);
    assert!(sampled.log.all().iter().all(|line| line["status"].as_u64() >= Some(400)), "errors are always logged");
    let mut silent = silent;
    silent.signal("TERM");
    silent.wait_exit();
    assert_eq!(silent.log.all(), [] as [Value; 0]);
}

#[test]
fn text_lines_are_for_eyes() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&(service("api", &[backend.url()], "") + "[logging]\nformat = \"text\""));
    gateway.get("/api/seen");
    let line = gateway.log.wait_for(|line| line.as_str().is_some_and(|line| line.contains("/api/seen")));
    assert!(line.as_str().is_some_and(|line| line.contains("status=200")), "{line}");
}

#[test]
fn requests_are_counted_by_method_route_and_status() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    for _ in 0..7 {
        gateway.get("/api/one");
    }
    gateway.get("/api/two?three");
    gateway.send("PURGE /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    gateway.send("M-SEARCH /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    for path in ["/nowhere", "/else"] {
        gateway.get(path);
    }
    gateway.send("broken\r\n\r\n");
    let count = |labels: &str| gateway.metric(&format!("api_gateway_requests_total{{{labels}}}"));
    assert_eq!(count("method=\"GET\",endpoint=\"/api\",status=\"200\""), 8.0);
    assert_eq!(count("method=\"OTHER\",endpoint=\"/api\",status=\"200\""), 2.0);
    assert_eq!(count("method=\"GET\",endpoint=\"none\",status=\"404\""), 2.0);
    assert!(count("method=\"GET\",endpoint=\"/health\",status=\"200\"") >= 1.0);
    let instance = backend.address;
    assert_eq!(
        gateway.metric(&format!(
            "api_gateway_service_requests_total{{service=\"api\",instance=\"{instance}\",status=\"200\"}}"
        )),
        10.0
    );
    let seconds = "api_gateway_request_duration_seconds";
    let labels = "method=\"GET\",endpoint=\"/api\"";
    assert_eq!(gateway.metric(&format!("{seconds}_count{{{labels}}}")), 8.0);
    assert_eq!(gateway.metric(&format!("{seconds}_bucket{{le=\"+Inf\",{labels}}}")), 8.0);
    assert!(gateway.metric(&format!("{seconds}_sum{{{labels}}}")) > 0.0);
    let text = gateway.get("/metrics").text();
    assert!(!text.contains("/api/one") && !text.contains("/nowhere"), "no raw path is a label:\n{text}");
}

#[test]
fn requests_under_way_are_a_gauge() {
    let gate = Gate::default();
    let backend = Backend::start({
        let gate = gate.clone();
        move |connection| {
            connection.request()?;
            gate.pass();
            connection.send(OK)
        }
    });
    let gateway = gateway_to(&backend);
    let mut clients: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    until("the backend has them", || backend.requests().len() == 3);
    // The scrape itself is one more.
    assert_eq!(gateway.metric("api_gateway_active_requests"), 4.0);
    for client in &mut clients {
        gate.open();
        gate.open();
        gate.open();
        assert_eq!(client.response().status, 200);
    }
    until("they are over", || gateway.metric("api_gateway_active_requests") == 1.0);
}

#[test]
fn every_line_of_an_exposition_is_well_formed() {
    let backend = Backend::answering(OK);
    let gateway = gateway_to(&backend);
    gateway.get("/api");
    let answer = gateway.get("/metrics");
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    for line in answer.text().lines().filter(|line| !line.starts_with("# ")) {
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = sample.split('{').next().expect("a name");
        assert!(name.starts_with("api_gateway_") || name.starts_with("process_"), "{line}");
        assert!(
            answer.text().contains(&format!(
                "# TYPE {}",
                name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count")
            )),
            "{line}"
        );
    }
    let open = gateway
        .send("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n");
    assert!(open.header("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text")));
    assert!(open.text().ends_with("# EOF\n"));
}

#[test]
fn metrics_can_be_switched_off() {
    let gateway = Gateway::start("[metrics]\nenabled = false");
    assert_eq!(gateway.get("/metrics").status, 404);
    assert_eq!(gateway.get("/health").status, 200);
}

#[test]
fn all_workers_are_summed() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start_with("workers = 3", &service("api", &[backend.url()], ""));
    for _ in 0..60 {
        gateway.get("/api");
    }
    assert_eq!(gateway.metric("api_gateway_requests_total{method=\"GET\",endpoint=\"/api\",status=\"200\"}"), 60.0);
    let workers = || gateway.log.all().iter().filter_map(|line| line["worker"].as_u64()).collect::<Vec<_>>();
    until("every request has its line", || workers().len() > 60);
    assert!(workers().iter().any(|worker| *worker != workers()[0]), "more than one worker serves: {:?}", workers());
}

#[test]
fn health_is_answered_in_all_its_forms() {
    let gateway = Gateway::start("");
    for (path, word) in [
        ("/health", "healthy"),
        ("/health/live", "alive"),
        ("/livez", "alive"),
        ("/health/ready", "healthy"),
        ("/readyz", "healthy"),
    ] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["status"], word, "{path}");
    }
    let answer = gateway.send("POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
}
