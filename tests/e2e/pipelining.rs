//! `pipelining`: GET requests that are ready at once go out on one connection, and each client gets its own answer, whatever becomes
//! of the others.

use std::fs;
use std::io;
use std::mem;
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::support::backend::Connection;
use crate::support::{Backend, Client, Gate, Gateway, QUIET, holds_within, kernel, pattern, service, until};

const JOINED: &str = "api_gateway_upstream_pipelined_total{worker=\"0\"}";
/// How a script ends that closes its connection.
const CLOSED: fn() -> io::Result<()> = || Err(io::ErrorKind::ConnectionAborted.into());
/// A body that may not be there, which looks like another answer.
const EVIL: &str = "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const NO_BODY: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// A gateway whose worker has one idle connection to `backend`, and `count` clients that are known to it.
fn gateway_and_clients(backend: &Backend, lines: &str, count: usize) -> (Gateway, Vec<Client>) {
    gateway_on("auto", backend, lines, count)
}

fn gateway_on(driver: &str, backend: &Backend, lines: &str, count: usize) -> (Gateway, Vec<Client>) {
    let gateway = Gateway::start_with(&format!("driver = \"{driver}\""), &service("api", &[backend.url()], lines));
    let mut clients: Vec<Client> = (0..count).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /api/first HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(backend.connections(), 1);
    (gateway, clients)
}

/// On a busy machine an answer may take longer than the gateway is patient. So what is to be seen when it is in time has more than
/// one try.
fn in_time(what: &str, attempt: impl Fn() -> bool) {
    assert!((0..6).any(|_| attempt()), "{what}");
}

/// A gateway that stands still: what is sent meanwhile, its worker finds all at once and in that order.
struct Paused<'a>(&'a Gateway);

impl<'a> Paused<'a> {
    fn new(gateway: &'a Gateway) -> Paused<'a> {
        let tasks = format!("/proc/{}/task", gateway.pid());
        let all_are = |state: &str| {
            let mut stats = fs::read_dir(&tasks).expect("a process").flatten().map(|task| task.path().join("stat"));
            stats.all(|stat| fs::read_to_string(stat).is_ok_and(|stat| stat.contains(state)))
        };
        // Its worker may have to begin to read from a client that has its answer: what is there by then it finds before all else.
        until("all of the gateway's threads wait for something to do", || all_are(") S "));
        gateway.signal("STOP");
        until("they stand still", || all_are(") T "));
        Paused(gateway)
    }

    fn send(&self, client: &mut Client, request: &str) {
        client.send(request);
        until("it has come", || kernel::unread_of(&client.stream) == request.len() as u64);
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}

fn get(index: usize) -> String {
    format!("GET /api/{index} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Each client asks for a path of its own.
fn ask_at_once(gateway: &Gateway, clients: &mut [Client]) {
    let paused = Paused::new(gateway);
    clients.iter_mut().enumerate().for_each(|(index, client)| paused.send(client, &get(index)));
}

/// The target of a request.
fn path(head: &str) -> String {
    head.split(' ').nth(1).expect("a target").to_owned()
}

/// Every client but the first `but` gets the answer to what [`ask_at_once`] has it ask.
fn each_gets_its_own(clients: &mut [Client], but: usize, when: &str) {
    for (index, client) in clients.iter_mut().enumerate().skip(but) {
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, format!("/{index}")), "{when}");
    }
}

/// Answers with the path.
fn answer(connection: &mut Connection, path: &str) -> io::Result<()> {
    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()))
}

/// Answers every request with its path.
fn naming() -> Backend {
    Backend::start(|connection| {
        loop {
            let path = path(&connection.request()?.head);
            answer(connection, &path)?;
        }
    })
}

/// The same, `/0` when the gate is open.
fn gated(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(move |connection| {
        loop {
            let path = path(&connection.request()?.head);
            if path == "/0" {
                gate.pass();
            }
            answer(connection, &path)?;
        }
    })
}

#[test]
fn requests_that_are_ready_at_once_share_a_connection() {
    in_time("they share a connection", || share_a_connection("auto"));
}

#[test]
fn requests_that_are_ready_at_once_share_a_connection_on_epoll() {
    in_time("they share a connection", || share_a_connection("epoll"));
}

/// Whether they do, twenty times in a row.
fn share_a_connection(driver: &str) -> bool {
    // Long and short, counted and chunked, in pieces and several at once.
    let backend = Backend::start(|connection| {
        loop {
            let path = path(&connection.request()?.head);
            match path.as_bytes() {
                b"/1" => {
                    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n/1\r\n0\r\n\r\n")?
                }
                b"/3" => {
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")?;
                    connection.send(pattern(0, 200_000))?;
                }
                b"/5" => {
                    connection.send("HTTP/1.1 200 OK\r\nContent-Le")?;
                    connection.send("ngth: 2\r\n\r\n/")?;
                    connection.send("5")?;
                }
                _ => answer(connection, &path)?,
            }
        }
    });
    let (gateway, mut clients) = gateway_on(driver, &backend, "pipelining = 8", 8);
    (1..=20).all(|round| {
        ask_at_once(&gateway, &mut clients);
        for (index, client) in clients.iter_mut().enumerate() {
            let response = client.response();
            let is_own = match index {
                3 => response.body == pattern(0, 200_000),
                _ => response.text() == format!("/{index}"),
            };
            assert!(response.status == 200 && is_own, "client {index} got {response:?}");
        }
        (gateway.metric(JOINED), backend.connections()) == (f64::from(7 * round), 1)
    })
}

#[test]
fn no_more_than_so_many_go_together_and_only_where_it_is_said() {
    let check = |lines: &str, joined: f64, connections: usize| {
        in_time(lines, || {
            let backend = naming();
            let (gateway, mut clients) = gateway_and_clients(&backend, lines, 8);
            ask_at_once(&gateway, &mut clients);
            each_gets_its_own(&mut clients, 0, lines);
            (gateway.metric(JOINED), backend.connections()) == (joined, connections)
        });
    };
    check("", 0.0, 8);
    check("pipelining = 1", 0.0, 8);
    // The connection that there is takes three; nobody leads on a new one.
    check("pipelining = 3", 2.0, 6);
}

#[test]
fn only_get_requests_without_a_body_join() {
    let backend = naming();
    let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 8", 6);
    let requests = [
        "GET /api/0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /api/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "DELETE /api/2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /api/3 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        "OPTIONS /api/4 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /api/5 HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    let paused = Paused::new(&gateway);
    clients.iter_mut().zip(requests).for_each(|(client, request)| paused.send(client, request));
    drop(paused);
    each_gets_its_own(&mut clients, 0, "");
    assert_eq!(gateway.metric(JOINED), 1.0);
}

#[test]
fn an_answer_that_is_slow_holds_nobody_up_for_long() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 8", 8);
    ask_at_once(&gateway, &mut clients);
    // The first one waits until the others have their answers.
    each_gets_its_own(&mut clients, 1, "while the first one waits");
    gate.open();
    assert_eq!(clients[0].response().text(), "/0");
    assert_eq!(gateway.metric(JOINED), 7.0);
    until("all but one were sent again", || gateway.metric("api_gateway_retries_total{worker=\"0\"}") == 7.0);

    // Such an endpoint is asked for one thing at a time.
    gate.open();
    ask_at_once(&gateway, &mut clients);
    each_gets_its_own(&mut clients, 0, "later");
    assert_eq!(gateway.metric(JOINED), 7.0);
}

#[test]
fn answers_that_are_slow_one_after_the_other_are_not_waited_for_either() {
    let backend = Backend::start(|connection| {
        loop {
            let path = path(&connection.request()?.head);
            if path != "/first" {
                thread::sleep(Duration::from_millis(60));
            }
            answer(connection, &path)?;
        }
    });
    let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 16", 16);
    ask_at_once(&gateway, &mut clients);
    each_gets_its_own(&mut clients, 0, "slow answers");
    assert_eq!(gateway.metric(JOINED), 15.0);
    until("most were sent again", || gateway.metric("api_gateway_retries_total{worker=\"0\"}") >= 8.0);
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_for_long() {
    const LONG: usize = 64 << 20;
    let backend = Backend::start(|connection| {
        loop {
            let path = path(&connection.request()?.head);
            match path.as_str() {
                "/0" => {
                    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n"))?;
                    connection.send(pattern(0, LONG))?;
                }
                path => answer(connection, path)?,
            }
        }
    });
    let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 4", 4);
    ask_at_once(&gateway, &mut clients);
    each_gets_its_own(&mut clients, 1, "while the first one does not read");
    assert_eq!(gateway.metric(JOINED), 3.0);
    assert!(clients[0].response().body == pattern(0, LONG), "another body");
}

#[test]
fn whatever_becomes_of_the_connection_everybody_is_answered() {
    /// What the connection that they share does with the second of them, how many are sent again, and whether they go together
    /// the next time.
    fn check(what: &str, end: fn(&mut Connection) -> io::Result<()>, resent: RangeInclusive<u32>, joins_later: bool) {
        in_time(what, || attempt(what, end, &resent, joins_later));
    }
    fn attempt(
        what: &str,
        end: fn(&mut Connection) -> io::Result<()>,
        resent: &RangeInclusive<u32>,
        joins_later: bool,
    ) -> bool {
        let backend = Backend::start(move |connection| {
            let mut is_first = true;
            loop {
                let path = path(&connection.request()?.head);
                if path == "/1" && connection.index == 0 && mem::take(&mut is_first) {
                    end(connection)?;
                    continue;
                }
                answer(connection, &path)?;
            }
        });
        let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 4", 4);
        ask_at_once(&gateway, &mut clients);
        for (index, client) in clients.iter_mut().enumerate() {
            let response = client.response();
            let expected = match (what, index) {
                ("says that it closes", 1) => (200, "/1, bye".to_owned()),
                ("has an empty body", 1) => (200, String::new()),
                ("has no body", 1) => (204, String::new()),
                ("has a body that may not be there", 1) => (304, String::new()),
                _ => (200, format!("/{index}")),
            };
            assert_eq!((response.status, response.text()), expected, "{what}, {index}");
        }
        assert_eq!(gateway.metric(JOINED), 3.0, "{what}");
        // A request is counted when its answer is out.
        let is_counted = || resent.contains(&(gateway.metric("api_gateway_retries_total{worker=\"0\"}") as u32));
        let as_many = holds_within(QUIET, is_counted);
        ask_at_once(&gateway, &mut clients);
        each_gets_its_own(&mut clients, 0, what);
        as_many && (gateway.metric(JOINED) > 3.0) == joins_later
    }
    check("closes", |_| CLOSED(), 3..=3, false);
    let reset = |connection: &mut Connection| {
        connection.reset();
        CLOSED()
    };
    // The reset may overtake the answer before it.
    check("resets", reset, 3..=4, false);
    let speak = |connection: &mut Connection| {
        connection.send("what?\r\n\r\n")?;
        connection.rest();
        Ok(())
    };
    check("says something else", speak, 3..=3, false);
    let stop = |connection: &mut Connection| {
        connection.send("HTTP/1.1 200 OK\r\nContent-Len")?;
        CLOSED()
    };
    check("stops in the middle of a head", stop, 3..=3, false);
    let say = |connection: &mut Connection| {
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\n/1, bye")?;
        CLOSED()
    };
    check("says that it closes", say, 2..=2, true);
    check("has an empty body", |connection| connection.send(EMPTY), 0..=0, true);
    check("has no body", |connection| connection.send(NO_BODY), 2..=2, false);
    let old = |connection: &mut Connection| {
        connection.send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n/1")
    };
    check("is of HTTP/1.0", old, 2..=2, false);
    check("has a body that may not be there", |connection| connection.send(EVIL), 2..=2, false);
}

#[test]
fn an_answer_that_goes_to_another_endpoint_leaves_the_others_theirs() {
    let busy = Backend::start(|connection| {
        loop {
            let path = path(&connection.request()?.head);
            match path.as_str() {
                "/1" => connection.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")?,
                path => answer(connection, path)?,
            }
        }
    });
    let (gateway, mut clients) = gateway_and_clients(&busy, "pipelining = 4\nretry = { statuses = [503] }", 4);
    let other = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother");
    let tables = service("api", &[busy.url(), other.url()], "pipelining = 4\nretry = { statuses = [503] }");
    gateway.reload(&tables);
    for _ in 0..4 {
        ask_at_once(&gateway, &mut clients);
        for (index, client) in clients.iter_mut().enumerate() {
            let text = client.response().text();
            assert!(text == "other" || index != 1 && text == format!("/{index}"), "client {index} got {text}");
        }
    }
}

#[test]
fn a_client_that_leaves_takes_nobody_along() {
    for leaver in 0..3 {
        let gate = Gate::default();
        let backend = gated(&gate);
        let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 3", 3);
        ask_at_once(&gateway, &mut clients);
        until("they share a connection", || gateway.metric(JOINED) == 2.0);
        drop(clients.remove(leaver));
        gate.open();
        gate.open();
        for (place, client) in clients.iter_mut().enumerate() {
            let index = if place < leaver { place } else { place + 1 };
            assert_eq!(client.response().text(), format!("/{index}"), "without {leaver}");
        }
    }
}

#[test]
fn a_client_that_goes_away_does_not_part_the_others() {
    in_time("the others go together the next time", || {
        let backend = naming();
        let (gateway, mut clients) = gateway_and_clients(&backend, "pipelining = 4", 4);
        let paused = Paused::new(&gateway);
        clients.iter_mut().enumerate().for_each(|(index, client)| paused.send(client, &get(index)));
        // Its answer cannot be written.
        SockRef::from(&clients[0].stream).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(clients.remove(0));
        drop(paused);
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.response().text(), format!("/{}", index + 1));
        }
        ask_at_once(&gateway, &mut clients);
        each_gets_its_own(&mut clients, 0, "without the one that left");
        (gateway.metric(JOINED), backend.connections()) == (3.0 + 2.0, 1)
    });
}
