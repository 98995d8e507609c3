//! A request that one endpoint fails is answered by another, where that is safe.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::backend::Connection;
use crate::support::client::Response;
use crate::support::{Backend, Gateway, kernel, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nbad";

/// A port that refuses connections.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

/// A backend that reads each request and then does what `fail` says instead of answering.
fn failing(fail: impl Fn(&mut Connection) -> std::io::Result<()> + Send + Sync + 'static) -> Backend {
    Backend::start(move |connection| {
        connection.request()?;
        fail(connection)
    })
}

fn request(gateway: &Gateway, method: &str, id: &str, body: &str) -> Response {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    gateway.send(format!(
        "{method} /api/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: {id}\r\n{length}\r\n{body}"
    ))
}

/// Asks until both endpoints have been the first choice; returns the statuses.
fn ask_often(gateway: &Gateway, method: &str, body: &str) -> Vec<u16> {
    (0..8).map(|index| request(gateway, method, &format!("often-{index}"), body).status).collect()
}

const PATIENT: &str = "[services.api.retry]\nbudget_minimum = 1000\nbackoff = \"1ms\"\n";

#[test]
fn what_was_not_sent_goes_elsewhere_whatever_the_method() {
    let good = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[nobody(), good.url()], PATIENT));
    for method in ["GET", "POST", "PATCH"] {
        assert_eq!(ask_often(&gateway, method, "body"), [200; 8], "{method}");
    }
    assert!(good.requests().iter().all(|request| request.body == b"body"));
    assert!(good.requests().iter().all(|request| request.header("host") == Some(&good.address.to_string())));
    assert!(gateway.metric("api_gateway_retries_total{worker=\"0\"}") >= 12.0);
}

#[test]
fn an_old_client_s_request_outlives_the_hints_that_it_does_not_get() {
    let failing = failing(|connection| connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"));
    let good = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[failing.url(), good.url()], PATIENT));
    for _ in 0..4 {
        let response = gateway.send("GET /api/x HTTP/1.0\r\n\r\n");
        assert_eq!((response.status, response.text()), (200, "ok".to_owned()));
    }
    assert!(failing.connections() > 0);
    assert!(good.requests().iter().all(|request| request.line() == "GET /x HTTP/1.1"), "{:?}", good.requests());
}

#[test]
fn a_body_that_is_broken_from_its_beginning_is_not_asked_for_elsewhere() {
    // By then the client's head stands where the request was.
    for head in ["Transfer-Encoding: chunked", "A: b\r\nTransfer-Encoding: chunked"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nzz\r\n");
        let failing = failing(move |connection| connection.send(&answer));
        let good = Backend::answering(OK);
        let gateway = Gateway::start(&service("api", &[failing.url(), good.url()], PATIENT));
        let mut statuses = ask_often(&gateway, "GET", "");
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 200, 502, 502, 502, 502]);
        assert!(good.requests().iter().all(|request| request.line() == "GET /x HTTP/1.1"), "{:?}", good.requests());
        assert_eq!(gateway.metric("api_gateway_panics_total{worker=\"0\"}"), 0.0);
    }
}

#[test]
fn what_was_sent_goes_elsewhere_only_if_twice_is_as_good_as_once() {
    type Fail = fn(&mut Connection) -> std::io::Result<()>;
    let fails: [(&str, Fail); 4] = [
        ("upstream_closed", |_| Ok(())),
        ("upstream_closed", |connection| {
            connection.reset();
            Ok(())
        }),
        ("upstream_protocol_error", |connection| connection.send("nonsense\r\n\r\n")),
        ("upstream_closed", |connection| connection.send("HTTP/1.1 200 OK\r\nConte")),
    ];
    for (reason, fail) in fails {
        let (bad, good) = (failing(fail), Backend::answering(OK));
        let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], PATIENT));
        assert_eq!(ask_often(&gateway, "GET", ""), [200; 8], "{reason}");
        assert_eq!(ask_often(&gateway, "PUT", "body"), [200; 8], "{reason}");
        let tried = gateway.log.wait_for(|line| line["retries"] == 1);
        assert_eq!(tried["tried"], format!("{}={reason}", bad.address), "{tried}");
        assert_eq!(tried["instance"], good.address.to_string());
        let statuses = ask_often(&gateway, "POST", "body");
        assert_eq!(statuses.iter().filter(|&&status| status == 502).count(), 4, "{statuses:?}");
        let posts = bad.requests().iter().filter(|request| request.line().starts_with("POST")).count();
        assert_eq!(posts, 4, "each went to one endpoint");
    }
}

#[test]
fn an_answer_that_another_endpoint_may_better_is_not_passed_on() {
    let (bad, good) = (Backend::answering(UNAVAILABLE), Backend::answering(OK));
    let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], PATIENT));
    assert_eq!(ask_often(&gateway, "GET", ""), [200; 8]);
    let statuses = ask_often(&gateway, "POST", "body");
    assert_eq!(statuses.iter().filter(|&&status| status == 503).count(), 4, "{statuses:?}");
    // Each answer is counted where it came from.
    let counted = |backend: &Backend, status: u16| {
        let instance = backend.address;
        gateway.metric(&format!(
            "api_gateway_service_requests_total{{service=\"api\",instance=\"{instance}\",status=\"{status}\"}}"
        ))
    };
    assert_eq!((counted(&bad, 503), counted(&good, 200)), (8.0, 12.0));
}

#[test]
fn the_last_answer_is_passed_on_as_it_is() {
    let bad = [Backend::answering(UNAVAILABLE), Backend::answering(UNAVAILABLE)];
    let gateway = Gateway::start(&service("api", &[bad[0].url(), bad[1].url()], PATIENT));
    let answer = request(&gateway, "GET", "last", "");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-gateway-error")), (503, "bad", None));
    assert_eq!(bad.iter().map(|backend| backend.requests().len()).sum::<usize>(), 2, "each was asked once");
    assert_eq!(gateway.logged("last")["retries"], 1);
}

#[test]
fn attempts_are_all_there_are() {
    let bad: Vec<Backend> = (0..5).map(|_| failing(|_| Ok(()))).collect();
    let urls: Vec<String> = bad.iter().map(Backend::url).collect();
    for (attempts, expected) in [(1, 1), (2, 2), (4, 4)] {
        let asked = || bad.iter().map(|backend| backend.requests().len()).sum::<usize>();
        let before = asked();
        let gateway = Gateway::start(&service("api", &urls, &format!("{PATIENT}attempts = {attempts}")));
        let answer = request(&gateway, "GET", "all", "");
        assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_closed"));
        assert_eq!(asked() - before, expected, "attempts = {attempts}");
    }
    let gateway = Gateway::start(&service("api", &urls, "[services.api.retry]\nenabled = false"));
    assert_eq!(request(&gateway, "GET", "off", "").status, 502);
    assert_eq!(gateway.logged("off")["retries"], 0);
}

#[test]
fn nothing_is_repeated_once_something_was_passed_on() {
    let cut = failing(|connection| connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"));
    let hinting = failing(|connection| connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"));
    for bad in [cut, hinting] {
        let good = Backend::answering(OK);
        let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], PATIENT));
        for index in 0..8 {
            let mut client = gateway.connect();
            client.send(format!("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: {index}\r\n\r\n"));
            let head = client.head();
            if head.starts_with("HTTP/1.1 103") {
                assert_eq!(client.response().status, 502);
            }
            drop(client);
            assert_eq!(gateway.logged(&index.to_string())["retries"], 0);
        }
        assert_eq!((bad.requests().len(), good.requests().len()), (4, 4));
    }
}

#[test]
fn a_dead_service_is_not_asked_many_times_over() {
    const REQUESTS: usize = 200;
    let asked = Arc::new(AtomicUsize::new(0));
    let bad: Vec<Backend> = (0..3)
        .map(|_| {
            let asked = Arc::clone(&asked);
            failing(move |_| {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        })
        .collect();
    let urls: Vec<String> = bad.iter().map(Backend::url).collect();
    let lines = "[services.api.retry]\nattempts = 3\nbudget = 0.1\nbudget_minimum = 0\nbackoff = \"0s\"";
    let gateway = Gateway::start(&service("api", &urls, lines));
    for index in 0..REQUESTS {
        assert_eq!(request(&gateway, "GET", &index.to_string(), "").status, 502);
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked <= REQUESTS + REQUESTS / 10 + 1, "{asked} tries of {REQUESTS} requests");
    assert!(asked > REQUESTS, "there were some retries");
    assert!(gateway.metric("api_gateway_retries_refused_total{worker=\"0\"}") > 0.0);
}

#[test]
fn a_slow_endpoint_gets_a_part_of_the_time() {
    let slow = failing(|connection| {
        connection.rest();
        Ok(())
    });
    let good = Backend::answering(OK);
    let timeouts = "[services.api.timeouts]\nresponse_header = \"3s\"\n";
    let lines = format!("{timeouts}{PATIENT}try_timeout = \"200ms\"");
    let gateway = Gateway::start(&service("api", &[slow.url(), good.url()], &lines));
    let begun = Instant::now();
    assert_eq!(ask_often(&gateway, "GET", ""), [200; 8]);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // With nothing that may be repeated, the whole time is there.
    let begun = Instant::now();
    let slowest = (0..2).map(|index| request(&gateway, "POST", &index.to_string(), "x").status).min();
    assert_eq!((slowest, begun.elapsed() > Duration::from_secs(2)), (Some(200), true));
}

#[test]
fn with_nowhere_else_to_go_the_whole_time_is_there() {
    let backend = Backend::start(|connection| {
        connection.request()?;
        std::thread::sleep(Duration::from_millis(500));
        connection.send(OK)
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], &format!("{PATIENT}try_timeout = \"100ms\"")));
    assert_eq!(request(&gateway, "GET", "alone", "").status, 200);
}

#[test]
fn a_status_that_is_retried_need_not_be_a_failure() {
    let (busy, good) = (Backend::answering("HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n"), Backend::answering(OK));
    let breaker = "[services.api.circuit_breaker]\nfailure_threshold = 1\n";
    let lines = format!("{breaker}{PATIENT}statuses = [429]");
    let gateway = Gateway::start(&service("api", &[busy.url(), good.url()], &lines));
    assert_eq!(ask_often(&gateway, "GET", ""), [200; 8]);
    assert_eq!(busy.requests().len(), 4, "its breaker has stayed closed");
}

#[test]
fn an_answer_to_a_body_that_is_gone_is_passed_on() {
    let (bad, good) = (Backend::answering(UNAVAILABLE), Backend::answering(OK));
    let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], &format!("{PATIENT}body_bytes = 10")));
    for framing in ["Transfer-Encoding: chunked", "Content-Length: 11"] {
        let mut statuses = [(); 4].map(|()| {
            let mut client = gateway.connect();
            client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
            until("the head is read", || kernel::unread_of(&client.stream) == 0);
            client.send(if framing.ends_with("chunked") { "b\r\nhello world\r\n0\r\n\r\n" } else { "hello world" });
            client.response().status
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 503, 503], "{framing}");
    }
    assert_eq!((bad.requests().len(), good.requests().len()), (4, 4));
}

/// A backend that counts the heads it has got, and answers when `hello world` has come behind one.
fn greeted(heads: &Arc<AtomicUsize>) -> Backend {
    let heads = Arc::clone(heads);
    Backend::start(move |connection| {
        loop {
            connection.head()?;
            heads.fetch_add(1, Ordering::SeqCst);
            assert_eq!(connection.take(11)?, b"hello world");
            connection.send(OK)?;
        }
    })
}

const GREETING: &str = "PUT /api HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n";

#[test]
fn a_body_that_is_still_to_come_goes_elsewhere_whole() {
    let heads = Arc::default();
    let bad = Backend::start(|connection| {
        connection.head()?;
        connection.send("what?\r\n\r\n")
    });
    let good = greeted(&heads);
    let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], &format!("{PATIENT}body_bytes = 10")));
    for request in 1..=4 {
        let mut client = gateway.connect();
        client.send(GREETING);
        until("it is where it is answered", || heads.load(Ordering::SeqCst) == request);
        client.send("hello world");
        assert_eq!(client.response().status, 200);
    }
    // A request is counted when its answer is out.
    until("both are counted", || gateway.metric("api_gateway_retries_total{worker=\"0\"}") == 2.0);
}

#[test]
fn an_answer_that_does_not_wait_for_the_body_is_passed_on() {
    let (hasty_heads, heads) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let counter = Arc::clone(&hasty_heads);
    let hasty = Backend::start(move |connection| {
        connection.head()?;
        counter.fetch_add(1, Ordering::SeqCst);
        connection.send(UNAVAILABLE)?;
        connection.rest();
        Ok(())
    });
    let good = greeted(&heads);
    let gateway = Gateway::start(&service("api", &[hasty.url(), good.url()], &format!("{PATIENT}body_bytes = 10")));
    let (mut hastily, mut well) = (0, 0);
    for _ in 0..4 {
        let mut client = gateway.connect();
        client.send(GREETING);
        until("it is somewhere", || hasty_heads.load(Ordering::SeqCst) + heads.load(Ordering::SeqCst) > hastily + well);
        if hasty_heads.load(Ordering::SeqCst) > hastily {
            hastily += 1;
            assert_eq!(client.response().status, 503);
        } else {
            well += 1;
            client.send("hello world");
            assert_eq!(client.response().status, 200);
        }
    }
    assert_eq!((hastily, well), (2, 2));
}

#[test]
fn a_body_that_comes_while_its_endpoint_fails_arrives_whole_or_not_at_all() {
    for driver in ["io_uring", "epoll"] {
        let bad = Backend::start(|connection| {
            connection.head()?;
            connection.send("what?\r\n\r\n")
        });
        let good = Backend::answering(OK);
        let lines = format!("{PATIENT}body_bytes = 10\n[services.api.circuit_breaker]\nenabled = false");
        let tables = service("api", &[bad.url(), good.url()], &lines);
        let gateway = Gateway::start_with(&format!("driver = \"{driver}\""), &tables);
        for round in 0..300 {
            let mut client = gateway.connect();
            client.send(GREETING);
            // Some come before the endpoint has failed, some afterwards, and some in that moment.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(round % 100 * 4) {
                std::hint::spin_loop();
            }
            client.send("hello worldGET /api HTTP/1.1\r\nHost: a\r\n\r\n");
            let statuses = (client.response().status, client.response().status);
            assert!(matches!(statuses, (200 | 502, 200)), "{driver}: {statuses:?}");
        }
        let arrived = good.requests();
        let mut bodies = arrived.iter().filter(|request| request.line().starts_with("PUT"));
        assert!(bodies.all(|request| request.body == b"hello world"), "{driver}");
    }
}

#[test]
fn leave_to_send_a_body_is_waited_for_no_longer_than_an_answer() {
    let silent: Vec<String> = (0..3).map(|_| Backend::silent().url()).collect();
    let timeouts = "[services.api.timeouts]\nresponse_header = \"1s\"\n";
    let gateway = Gateway::start(&service("api", &silent, &format!("{timeouts}{PATIENT}try_timeout = \"200ms\"")));
    let mut client = gateway.connect();
    let begun = Instant::now();
    client.send("PUT /api HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.response().status, 504);
    let took = begun.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_millis(2_500)).contains(&took), "{took:?}");
    // A request is counted when its answer is out.
    until("both are counted", || gateway.metric("api_gateway_retries_total{worker=\"0\"}") == 2.0);
}

#[test]
fn small_bodies_are_gathered_and_large_ones_are_not() {
    let bad = failing(|_| Ok(()));
    let good = Backend::answering(OK);
    let gateway = Gateway::start(&service("api", &[bad.url(), good.url()], &format!("{PATIENT}body_bytes = 1000")));
    let put = |length: usize| {
        let mut client = gateway.connect();
        client.send(format!("PUT /api HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        // The body comes for itself.
        until("the head is read", || kernel::unread_of(&client.stream) == 0);
        client.try_send("b".repeat(length)).map_or(502, |()| client.response().status)
    };
    assert_eq!([(); 4].map(|()| put(1_000)), [200; 4]);
    assert!(good.requests().iter().all(|request| request.body.len() == 1_000));
    let statuses = [(); 4].map(|()| put(1_001));
    assert_eq!(statuses.iter().filter(|&&status| status == 502).count(), 2, "{statuses:?}");
}

#[test]
fn a_client_that_leaves_in_a_pause_is_noticed() {
    let bad = failing(|_| Ok(()));
    let other = failing(|_| Ok(()));
    let lines = "[services.api.retry]\nbudget_minimum = 10\nbackoff = \"10s\"\nbackoff_max = \"10s\"";
    let gateway = Gateway::start(&service("api", &[bad.url(), other.url()], lines));
    for index in 0..4 {
        let mut client = gateway.connect();
        client.send(format!("GET /api HTTP/1.1\r\nHost: a\r\nX-Request-Id: leaves-{index}\r\n\r\n"));
        let before = index + 1;
        until("it was tried", || bad.requests().len() + other.requests().len() >= before);
        drop(client);
        let line = gateway.logged_within(Duration::from_secs(3), &format!("leaves-{index}"));
        assert!(matches!(line["status"].as_u64(), Some(499 | 502)), "{line}");
    }
    assert_eq!(gateway.metric("api_gateway_active_requests"), 1.0);
    assert_eq!(gateway.log.all().iter().filter(|line| line["path"] == "/api").count(), 4);
}
