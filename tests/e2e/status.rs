//! What the management API tells of the endpoints, while they fail and recover.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::support::{Backend, Gate, Gateway, service, until};

fn json(gateway: &Gateway, path: &str) -> Value {
    let answer = gateway.get(path);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}");
    serde_json::from_str(&answer.text()).expect("JSON")
}

fn endpoint(gateway: &Gateway, backend: &Backend) -> Value {
    let status = json(gateway, "/api/v1/services/api/status");
    let endpoints = status["endpoints"].as_array().expect("an array");
    endpoints.iter().find(|entry| entry["instance"] == backend.address.to_string()).expect("it is one").clone()
}

/// A backend that answers every `of`th request 500, and the others 200; 0 for none.
fn failing_every(of: &Arc<AtomicUsize>) -> Backend {
    let (of, count) = (Arc::clone(of), AtomicUsize::new(0));
    Backend::start(move |connection| {
        loop {
            connection.request()?;
            let of = of.load(Ordering::SeqCst);
            let fails = of > 0 && count.fetch_add(1, Ordering::SeqCst).is_multiple_of(of);
            let status = if fails { "500 Oops" } else { "200 OK" };
            connection.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok"))?;
        }
    })
}

#[test]
fn an_endpoint_is_shown_as_it_is() {
    let gate = Gate::default();
    let backend = Backend::gated(&gate);
    let endpoints = format!("{{ url = \"{}\", weight = 7 }}", backend.url());
    let tables = format!("[services.api]\nprefix = \"/api\"\nload_balancing = \"random\"\nendpoints = [{endpoints}]\n");
    let gateway = Gateway::start_with("workers = 2", &tables);
    for _ in 0..3 {
        assert_eq!(gateway.get("/api").status, 200);
    }
    assert_eq!(gateway.get("/api/v1/none").status, 200, "it is the service's own");
    until("the answers are counted", || endpoint(&gateway, &backend)["answers"] == 4);
    let shown = endpoint(&gateway, &backend);
    assert_eq!(
        (&shown["weight"], &shown["source"], &shown["health"]),
        (&7.into(), &"configured".into(), &"unknown".into())
    );
    assert_eq!(
        (&shown["breaker"], &shown["ejected_by"], &shown["in_flight"]),
        (&"closed".into(), &0.into(), &0.into())
    );
    assert!(shown["response_time_ms"].as_f64().is_some_and(|time| time > 0.0 && time < 5_000.0), "{shown}");

    let mut slow = gateway.connect();
    slow.send("GET /api/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    until("one is in flight", || endpoint(&gateway, &backend)["in_flight"] == 1);
    gate.open();
    assert_eq!(slow.response().status, 200);
    until("none is in flight", || endpoint(&gateway, &backend)["in_flight"] == 0);

    let all = json(&gateway, "/api/v1/services/status");
    assert_eq!((&all["workers"], &all["services"][0]["service"]), (&2.into(), &"api".into()));
    assert_eq!(
        (&all["services"][0]["load_balancing"], &all["services"][0]["auth"]),
        (&"random".into(), &"none".into())
    );
    let metrics = json(&gateway, "/api/v1/services/api/metrics");
    assert_eq!((&metrics["answers"]["200"], &metrics["endpoints"][0]["answers"]["200"]), (&5.into(), &5.into()));
    for path in ["/api/v1/services/none/status", "/api/v1/services/none/metrics"] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.reason().as_str()), (404, "unknown_service"));
    }
}

#[test]
fn the_log_and_the_api_tell_of_a_breaker() {
    let fails = Arc::new(AtomicUsize::new(1));
    let backend = failing_every(&fails);
    let lines = "[services.api.circuit_breaker]\nopen_for = \"1s\"\nfailure_threshold = 2\nfailure_statuses = [500]";
    let gateway = Gateway::start(&service("api", &[backend.url()], lines));
    let says = |part: &str| {
        gateway.events.wait_for(|event| {
            event["message"].as_str().is_some_and(|message| message.contains(part))
                && event["instance"] == backend.address.to_string()
        })
    };
    for _ in 0..2 {
        assert_eq!(gateway.get("/api").status, 500);
    }
    assert_eq!(endpoint(&gateway, &backend)["breaker"], "open");
    assert_eq!(gateway.get("/api").reason(), "breaker_open");
    assert_eq!(says("a circuit breaker has opened")["service"], "api");
    fails.store(0, Ordering::SeqCst);
    until("it works again", || gateway.get("/api").status == 200);
    assert_eq!(endpoint(&gateway, &backend)["breaker"], "closed");
    says("the circuit breaker has closed");
}

#[test]
fn who_fails_more_than_its_siblings_is_out_for_a_while() {
    let (fails, never) = (Arc::new(AtomicUsize::new(2)), Arc::new(AtomicUsize::new(0)));
    let (bad, good) = (failing_every(&fails), failing_every(&never));
    let lines = "[services.api.outlier_detection]\ninterval = \"1s\"\nminimum_requests = 10\neject_for = \"2s\"\n\
                 [services.api.circuit_breaker]\nfailure_threshold = 1000\nfailure_ratio = 0\nfailure_statuses = [500]";
    let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], lines));
    let ejected = || endpoint(&gateway, &bad)["ejected_by"] == 1;
    until("it is out", || {
        (0..50).for_each(|_| _ = gateway.get("/api"));
        ejected()
    });
    let metric = format!("api_gateway_endpoint_ejected{{service=\"api\",instance=\"{}\"}}", bad.address);
    assert_eq!(gateway.metric(&metric), 1.0);
    gateway.events.wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("is ejected")));
    let before = bad.requests().len();
    assert!((0..50).all(|_| gateway.get("/api").status == 200), "its sibling answers");
    assert_eq!(bad.requests().len(), before);
    assert_eq!(endpoint(&gateway, &good)["ejected_by"], 0);
    fails.store(0, Ordering::SeqCst);
    until("it is back", || {
        (0..10).for_each(|_| assert_eq!(gateway.get("/api").status, 200));
        bad.requests().len() > before
    });
    until("that is told too", || !ejected());
}
