//! What is scraped: true, bounded, and understood by those who read it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use crate::support::gateway::signal;
use crate::support::prometheus::{PYTHON, Prometheus, complaints};
use crate::support::{Backend, Gate, Gateway, gateway_to, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Reads OpenMetrics as strictly as the specification asks for, and says so where it cannot.
const STRICT: &str = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as read; \
                      list(read(sys.stdin.read()))";

/// Answers `/NNN` with that status, and a body as long as the request's and one byte more.
fn obliging() -> Backend {
    Backend::start(|connection| {
        loop {
            let request = connection.request()?;
            let status = request.line().split(['/', ' ']).find_map(|word| word.parse::<u16>().ok()).unwrap_or(200);
            let body = "x".repeat(request.body.len() + 1);
            connection.send(format!("HTTP/1.1 {status} S\r\nContent-Length: {}\r\n\r\n{body}", body.len()))?;
        }
    })
}

fn scrape(gateway: &Gateway, accept: &str) -> String {
    gateway.send(format!("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")).text()
}

/// The values of a metric's samples in `text`, by their labels as they stand there.
fn samples<'a>(text: &'a str, name: &str) -> BTreeMap<&'a str, f64> {
    let of_metric = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    of_metric
        .map(|rest| {
            let (labels, value) = rest.rsplit_once("} ").expect("labels and a value");
            (labels, value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn the_linter_and_the_strict_parser_have_nothing_to_say() {
    let backend = obliging();
    let gateway = Gateway::start_with("workers = 2", &service("api", &[backend.url()], ""));
    for path in ["/api/200", "/api/404", "/api/500", "/nowhere"] {
        gateway.get(path);
    }
    let plain = scrape(&gateway, "*/*");
    assert_eq!(complaints(&["promtool", "check", "metrics"], &plain), "");
    let open = scrape(&gateway, "application/openmetrics-text");
    assert!(open.contains(" # {trace_id=\""), "there are exemplars");
    // The linter reads the older format alone: what it does not know there are exemplars, and that a counter's help goes by the
    // name without `_total`.
    let cut = |line: &str| line.split(" # {").next().map(|line| format!("{line}\n"));
    let known: String = open.lines().filter_map(cut).collect();
    let complaints_left = complaints(&["promtool", "check", "metrics"], &known);
    let is_known =
        |line: &&str| line.ends_with("_total no help text") || line.is_empty() || line.starts_with("exit status");
    assert_eq!(complaints_left.lines().find(|line| !is_known(line)), None);
    assert_eq!(complaints(&[PYTHON, "-c", STRICT], &open), "");
}

#[test]
fn prometheus_scrapes_it() {
    let backend = obliging();
    let gateway = gateway_to(&backend);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for _ in 0..5 {
        gateway.send(format!(
            "GET /api/200 HTTP/1.1\r\nHost: a\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n"
        ));
    }
    let prometheus = Prometheus::scraping(gateway.address);
    let requests = "api_gateway_requests_total{endpoint=\"/api\",method=\"GET\",status=\"200\"}";
    until("it has seen the requests", || prometheus.query(requests) == Some(5.0));
    let count = "api_gateway_request_duration_seconds_count{endpoint=\"/api\"}";
    assert_eq!(prometheus.query(count), Some(5.0));
    assert!(prometheus.query("histogram_quantile(0.99, api_gateway_upstream_duration_seconds_bucket)") > Some(0.0));
    assert!(prometheus.query("process_resident_memory_bytes") > Some(1e6));
    let exemplars = prometheus.exemplars("api_gateway_request_duration_seconds_bucket{endpoint=\"/api\"}");
    assert!(exemplars.iter().any(|exemplar| exemplar["labels"]["trace_id"] == trace), "{exemplars:?}");
}

#[test]
fn counts_are_what_the_clients_counted() {
    let backends = [obliging(), obliging()];
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let gateway = Gateway::start_with("workers = 3", &(service("api", &urls, "") + "[retry]\nenabled = false\n"));
    let seen: BTreeMap<(&str, u16), u64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8usize)
            .map(|index| {
                let gateway = &gateway;
                scope.spawn(move || {
                    let mut seen = BTreeMap::new();
                    let mut client = gateway.connect();
                    for turn in 0..150 {
                        let method = ["GET", "POST", "DELETE"][(index + turn) % 3];
                        let path = ["/api/200", "/api/201", "/api/404", "/api/503", "/nowhere"][(index * 7 + turn) % 5];
                        let body = "y".repeat(turn);
                        client.send(format!(
                            "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {turn}\r\n\r\n{body}"
                        ));
                        let answer = client.try_response(false).expect("an answer");
                        *seen.entry((method, answer.status)).or_default() += 1;
                        if answer.header("connection") == Some("close") {
                            client = gateway.connect();
                        }
                    }
                    seen
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for seen in clients.into_iter().map(|client| client.join().expect("no panic")) {
            seen.into_iter().for_each(|(key, count): (_, u64)| *all.entry(key).or_default() += count);
        }
        all
    });
    assert_eq!(seen.values().sum::<u64>(), 8 * 150);
    until("the last one is counted", || gateway.metric("api_gateway_active_requests") == 1.0);
    let text = scrape(&gateway, "*/*");
    let requests = samples(&text, "api_gateway_requests_total");
    let mut counted: BTreeMap<(&str, u16), u64> = BTreeMap::new();
    for (labels, count) in requests {
        let value = |name: &str| {
            labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
        };
        if !["/health", "/metrics", "/readyz"].contains(&value("endpoint").expect("an endpoint")) {
            let status = value("status").expect("a status").parse().expect("a number");
            *counted.entry((value("method").expect("a method"), status)).or_default() += count as u64;
        }
    }
    assert_eq!(counted, seen);
    // What the endpoints answered, by status; a 404 of the gateway's own is none of theirs.
    let of_backends = |status: u16| {
        let answers = samples(&text, "api_gateway_service_requests_total");
        let of_status = answers.iter().filter(|(labels, _)| labels.ends_with(&format!("status=\"{status}\"")));
        of_status
            .filter(|(labels, _)| labels.starts_with("service=\"api\""))
            .map(|(_, count)| *count as u64)
            .sum::<u64>()
    };
    for status in [200, 201, 503] {
        let count: u64 = seen.iter().filter(|((_, other), _)| *other == status).map(|(_, count)| count).sum();
        assert_eq!(of_backends(status), count, "{status}");
    }
    let reached: usize = backends.iter().map(|backend| backend.requests().len()).sum();
    assert_eq!([200, 201, 404, 503].map(of_backends).iter().sum::<u64>(), reached as u64);
    let sum = |name: &str| samples(&text, name).values().sum::<f64>() as u64;
    let sent: u64 = backends.iter().flat_map(|backend| backend.requests()).map(|seen| seen.body.len() as u64).sum();
    assert!(sum("api_gateway_request_body_bytes_total") >= sent);
    let durations = samples(&text, "api_gateway_upstream_duration_seconds_count");
    let of_api = durations.iter().filter(|(labels, _)| labels.contains("\"api\"")).map(|(_, count)| *count as u64);
    assert_eq!(of_api.sum::<u64>(), reached as u64);
    let workers = sum("api_gateway_worker_requests_total");
    assert!(workers > 8 * 150 && samples(&text, "api_gateway_worker_requests_total").len() == 3);
}

#[test]
fn nobody_outside_can_make_series() {
    let backend = obliging();
    let gateway = gateway_to(&backend);
    let count = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let ask = |method: &str, path: &str, host: &str| {
        gateway.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).status
    };
    // One of each kind that there can be.
    assert_eq!(ask("GET", "/api/200", "a"), 200);
    assert_eq!(ask("M-SEARCH", "/api/200", "a"), 200);
    assert_eq!(ask("GET", "/none", "a"), 404);
    assert_eq!(ask("GET", "/none", "a b"), 400);
    gateway.get("/metrics");
    let before = count(&scrape(&gateway, "*/*"));
    for number in 0..100 {
        assert_eq!(ask("GET", &format!("/api/200?{number}=\"}}\\"), &format!("host-{number}.example")), 200);
        assert_eq!(ask(&format!("METHOD-{number}"), "/api/200", "a"), 200);
        assert_eq!(ask("GET", &format!("/{number}/\"x\""), "a"), 404);
        assert_eq!(ask("GET", "/none", &format!("{number} \"")), 400);
    }
    let text = scrape(&gateway, "*/*");
    assert_eq!(count(&text), before, "{text}");
}

#[test]
fn a_metric_has_no_more_series_than_it_may() {
    let backend = obliging();
    let tables = service("api", &[backend.url()], "") + "[metrics]\nmax_series = 100\n[retry]\nenabled = false\n";
    let gateway = Gateway::start_with("workers = 2", &tables);
    // Each worker has room for a hundred of them.
    let mut sent = 0;
    for status in (200..600).filter(|status| ![204, 205, 304].contains(status)) {
        assert_eq!(gateway.get(&format!("/api/{status}")).status, status);
        sent += 1;
    }
    let text = scrape(&gateway, "*/*");
    for name in ["api_gateway_requests_total", "api_gateway_service_requests_total"] {
        let series = samples(&text, name);
        assert_eq!(series.len(), 101, "{name}");
        let other = series.iter().find(|(labels, _)| labels.contains("status=\"other\"")).expect("what is left");
        assert!(*other.1 >= f64::from(sent - 100), "{other:?}");
        let all: f64 = series.values().sum();
        assert!(all >= f64::from(sent), "nothing is lost: {all} of {sent}");
    }
    // What has a series keeps it.
    let named = |text: &str| {
        samples(text, "api_gateway_requests_total").keys().map(|labels| (*labels).to_owned()).collect::<BTreeSet<_>>()
    };
    gateway.get("/api/599");
    gateway.get("/api/200");
    assert_eq!(named(&scrape(&gateway, "*/*")), named(&text));
    assert!(samples(&text, "api_gateway_metrics_series_dropped_total").values().sum::<f64>() > 0.0);
}

#[test]
fn deadlines_are_counted_by_the_key_that_sets_them() {
    let gate = Gate::default();
    let silent = Backend::gated(&gate);
    let timeouts = "[timeouts]\nheader_read = \"200ms\"\nkeepalive_idle = \"300ms\"\nresponse_header = \"250ms\"\n\
                    idle_body = \"200ms\"\nconnect = \"200ms\"\n[retry]\nenabled = false\n";
    // Packets to this network (RFC 5737) go nowhere.
    let nowhere = "http://192.0.2.1:9";
    let tables = service("api", &[silent.url()], "") + &service("far", &[nowhere.to_owned()], "") + timeouts;
    let gateway = Gateway::start(&tables);
    let fired = |kind: &str| gateway.metric(&format!("api_gateway_timeouts_total{{kind=\"{kind}\"}}"));
    let mut idle = gateway.connect();
    assert!(idle.is_closed());
    assert_eq!(fired("keepalive_idle"), 1.0);
    assert_eq!(gateway.send("GET /api HTTP/1.1\r\nHo").status, 408);
    assert_eq!(fired("header_read"), 1.0);
    assert_eq!(gateway.get("/api/slow").status, 504);
    assert_eq!(fired("response_header"), 1.0);
    assert_eq!(gateway.send("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").status, 408);
    assert_eq!(fired("idle_body"), 1.0);
    // A host without a route says so at once.
    if gateway.get("/far").status == 504 {
        assert_eq!(fired("connect"), 1.0);
    }
    assert_eq!(fired("try"), 0.0);
    gate.open();
}

#[test]
fn pools_limits_and_tokens_show() {
    let backend = Backend::answering(OK);
    let tables = service("api", &[backend.url()], "rate_limit = { requests = 3, window = \"1h\", key = \"ip\" }");
    let gateway = Gateway::start(&tables);
    let mut client = gateway.connect();
    let statuses: Vec<u16> = (0..6)
        .map(|_| {
            client.send("GET /api HTTP/1.1\r\nHost: a\r\n\r\n");
            client.response().status
        })
        .collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    let metric = |name: &str| gateway.metric(&format!("api_gateway_{name}{{worker=\"0\"}}"));
    until("the worker has told of its pool", || metric("upstream_connections_idle") >= 1.0);
    // The worker tells once a second; whoever asks meanwhile has the connection to the control plane in use.
    thread::sleep(Duration::from_millis(1_100));
    let text = scrape(&gateway, "*/*");
    let count = |name: &str| samples(&text, &format!("api_gateway_upstream_connections_{name}")).values().sum();
    let (open, idle): (f64, f64) = (count("open"), count("idle"));
    assert!(open >= idle && idle >= 2.0, "{open} {idle}");
    until("the worker has told of its leases", || metric("rate_limit_granted_total") == 3.0);
    assert!(metric("rate_limit_asked_total") > metric("rate_limit_granted_total"));
    assert_eq!(metric("rate_limit_denied_locally_total"), 2.0);
    assert_eq!(gateway.metric("api_gateway_rate_limit_mode{mode=\"memory\"}"), 1.0);
    assert!(gateway.metric("api_gateway_upstream_reuse_ratio") > 0.0);
    let instance = backend.address;
    let labels = format!("{{service=\"api\",instance=\"{instance}\"}}");
    assert_eq!(gateway.metric(&format!("api_gateway_upstream_connect_duration_seconds_count{labels}")), 1.0);
    assert_eq!(gateway.metric(&format!("api_gateway_upstream_duration_seconds_count{labels}")), 3.0);
}

#[test]
fn a_client_that_is_slow_to_send_is_no_slow_endpoint() {
    const SENDING: Duration = Duration::from_millis(400);
    let backend = obliging();
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    // This is the time that is measured.
    thread::sleep(SENDING);
    client.send("world");
    assert_eq!(client.response().status, 200);
    let labels = format!("{{service=\"api\",instance=\"{}\"}}", backend.address);
    let sum = gateway.metric(&format!("api_gateway_upstream_duration_seconds_sum{labels}"));
    assert!(sum < SENDING.as_secs_f64(), "{sum}");
}

/// A pipe with a name, in a folder of its own.
struct NamedPipe {
    folder: PathBuf,
    path: PathBuf,
}

impl NamedPipe {
    fn new(name: &str) -> NamedPipe {
        let folder = std::env::temp_dir().join(format!("ringway-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        NamedPipe { folder, path }
    }

    /// The gateway, by a shell that has `redirection` of it.
    fn start(&self, script: &str, tables: &str) -> Gateway {
        let mut command = Command::new("/bin/sh");
        let script = script.replace("PIPE", &self.path.display().to_string());
        command.args(["-c", &script, env!("CARGO_BIN_EXE_ringway")]);
        Gateway::start_command(command, "", tables)
    }
}

impl Drop for NamedPipe {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let backend = Backend::answering(OK);
    let pipe = NamedPipe::new("unread-log");
    // Open for as long as the test runs, and never read.
    let reader = File::options().read(true).write(true).open(&pipe.path).expect("a pipe");
    let mut gateway = pipe.start("exec \"$0\" \"$@\" > PIPE", &service("api", &[backend.url()], ""));
    let client = RefCell::new(gateway.connect());
    let request = format!("GET /api/{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1_500));
    until("lines are dropped", || {
        let mut client = client.borrow_mut();
        for _ in 0..200 {
            client.send(&request);
            assert_eq!(client.response().status, 200);
        }
        gateway.metric("api_gateway_log_lines_dropped_total{worker=\"0\"}") > 0.0
    });
    gateway.signal("TERM");
    assert!(gateway.wait_exit().success());
    drop(reader);
}

#[test]
fn events_that_nobody_reads_hold_nothing_up() {
    let backend = Backend::answering(OK);
    let pipe = NamedPipe::new("unread-events");
    let script = "cat PIPE >&2 & echo $! > PIPE.reader; exec \"$0\" \"$@\" 2> PIPE";
    let tables = service("api", &[backend.url()], "");
    let mut gateway = pipe.start(script, &tables);
    let reader = std::fs::read_to_string(pipe.path.with_extension("reader")).expect("the reader's id");
    let reader: u32 = reader.trim().parse().expect("a number");
    signal(reader, "STOP");
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut writer = File::options().write(true).custom_flags(flags).open(&pipe.path).expect("a pipe");
    while writer.write(&[b'\n'; 4_096]).is_ok() {}
    // The control plane has much to say, and still does its work.
    for turn in 0..30 {
        gateway.reload(&(tables.clone() + &format!("[timeouts]\nconnect = \"{}ms\"\n", 1_000 + turn)));
    }
    assert_eq!(gateway.get("/api/v1/services/health").status, 200);
    gateway.signal("TERM");
    assert!(gateway.wait_exit().success());
    drop(writer);
    signal(reader, "CONT");
}
