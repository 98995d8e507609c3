//! An endpoint that fails gets no requests for a while, and is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Backend, Gate, Gateway, service, until};

fn state(gateway: &Gateway, backend: &Backend) -> f64 {
    let instance = backend.address;
    gateway.metric(&format!("api_gateway_circuit_breaker_state{{service=\"api\",instance=\"{instance}\"}}"))
}

const LINES: &str = "[services.api.circuit_breaker]\nfailure_threshold = 3\nopen_for = \"500ms\"\n[services.api.retry]\nenabled = false";

#[test]
fn a_breaker_opens_and_closes_again() {
    let works = Arc::new(AtomicBool::new(false));
    let backend = Backend::fragile(&works);
    let gateway = Gateway::start(&service("api", &[backend.url()], LINES));
    assert_eq!(state(&gateway, &backend), 0.0);
    for _ in 0..3 {
        assert_eq!(gateway.get("/api").status, 502);
    }
    let refused = gateway.get("/api");
    assert_eq!((refused.status, refused.reason().as_str()), (503, "breaker_open"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(state(&gateway, &backend), 2.0);
    assert_eq!(backend.requests().len(), 3, "nothing more reached the backend");
    let line = gateway.log.wait_for(|line| line["error"] == "breaker_open");
    assert_eq!((&line["breaker"], &line["instance"]), (&"open".into(), &serde_json::Value::Null));

    // It is tried again, in vain.
    until("it is half-open", || state(&gateway, &backend) == 1.0);
    assert_eq!(gateway.get("/api").status, 502);
    assert_eq!(gateway.get("/api").reason(), "breaker_open");
    assert_eq!(gateway.log.wait_for(|line| line["breaker"] == "half_open")["status"], 502);

    works.store(true, Ordering::SeqCst);
    until("it works again", || gateway.get("/api").status == 200);
    assert_eq!(state(&gateway, &backend), 0.0);
}

#[test]
fn half_open_lets_through_no_more_than_its_count() {
    let works = Arc::new(AtomicBool::new(false));
    let gate = Gate::default();
    let backend = Backend::start({
        let (works, gate) = (Arc::clone(&works), gate.clone());
        move |connection| {
            loop {
                let request = connection.request()?;
                if !works.load(Ordering::SeqCst) {
                    return Ok(());
                }
                if request.line().contains("slow") {
                    gate.pass();
                }
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
        }
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], LINES));
    for _ in 0..3 {
        assert_eq!(gateway.get("/api").status, 502);
    }
    works.store(true, Ordering::SeqCst);
    until("it is half-open", || state(&gateway, &backend) == 1.0);
    let before = backend.requests().len();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| gateway.get("/api/slow").status)).collect();
        // The trial ends when all the others have their answers.
        until("all but one are refused", || clients.iter().filter(|client| client.is_finished()).count() == 7);
        gate.open();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    });
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
    assert_eq!(backend.requests().len() - before, 1);
    assert_eq!(gateway.get("/api").status, 200);
}

#[test]
fn others_take_the_requests_meanwhile() {
    let (broken, works) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (bad, good) = (Backend::fragile(&broken), Backend::fragile(&works));
    let lines = LINES.replace("enabled = false", "budget_minimum = 100");
    let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], &lines));
    for _ in 0..50 {
        assert_eq!(gateway.get("/api").status, 200);
    }
    assert_eq!((state(&gateway, &bad), state(&gateway, &good)), (2.0, 0.0));
    assert!(bad.requests().len() < 10, "{} requests were sent to it", bad.requests().len());
    broken.store(true, Ordering::SeqCst);
    until("both get requests", || {
        let before = bad.requests().len();
        assert_eq!(gateway.get("/api").status, 200);
        bad.requests().len() > before
    });
}

#[test]
fn a_client_that_leaves_is_no_failure() {
    let backend = Backend::start(|connection| {
        loop {
            let request = connection.request()?;
            if request.line().contains("slow") {
                connection.rest();
                return Ok(());
            }
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], LINES));
    for index in 0..10 {
        let mut client = gateway.connect();
        client.send(format!("GET /api/slow HTTP/1.1\r\nHost: a\r\nX-Request-Id: {index}\r\n\r\n"));
        until("the backend has it", || backend.requests().len() > index);
        drop(client);
        assert_eq!(gateway.logged(&index.to_string())["status"], 499);
    }
    assert_eq!((state(&gateway, &backend), gateway.get("/api").status), (0.0, 200));
}

#[test]
fn it_outlives_a_reload_and_its_settings_change_with_one() {
    let works = Arc::new(AtomicBool::new(false));
    let backend = Backend::fragile(&works);
    let tables = |open_for: &str| service("api", &[backend.url()], &LINES.replace("500ms", open_for));
    let gateway = Gateway::start(&tables("1h"));
    for _ in 0..3 {
        assert_eq!(gateway.get("/api").status, 502);
    }
    gateway.reload(&(tables("1h") + &service("other", &[backend.url()], "")));
    assert_eq!(gateway.get("/api").reason(), "breaker_open");
    gateway.reload(&service(
        "api",
        &[backend.url()],
        "circuit_breaker = { enabled = false }\n[services.api.retry]\nenabled = false",
    ));
    assert_eq!(gateway.get("/api").reason(), "upstream_closed");
    works.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(gateway.get("/api").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_share_of_failures_opens_it_too() {
    let backend = Backend::start(|connection| {
        loop {
            let request = connection.request()?;
            let status = if request.line().contains("bad") { "504 Late" } else { "200 OK" };
            connection.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok"))?;
        }
    });
    let lines = "[services.api.circuit_breaker]\nfailure_threshold = 1000\nfailure_ratio = 0.5\nminimum_requests = 10\nopen_for = \"1h\"";
    let gateway = Gateway::start(&service("api", &[backend.url()], lines));
    // Two good ones for each bad one, and then one for one.
    for index in 0..30 {
        assert_ne!(
            gateway.get(if index % 3 == 0 { "/api/bad" } else { "/api" }).reason_or_none(),
            Some("breaker_open".to_owned())
        );
    }
    let opened = (0..60).position(|index| gateway.get(if index % 4 == 0 { "/api" } else { "/api/bad" }).status == 503);
    assert!(opened.is_some_and(|after| after > 5), "{opened:?}");
    assert_eq!(state(&gateway, &backend), 2.0);
}
