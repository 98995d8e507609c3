//! A changed configuration takes effect while the gateway runs, or changes nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::{Backend, Gate, Gateway, RaisedAtEnd, service, until};

const APPLIED: &str = "api_gateway_config_reload_total{result=\"applied\"}";
const INVALID: &str = "api_gateway_config_reload_total{result=\"invalid\"}";

fn answering(text: &str) -> Backend {
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
}

#[test]
fn services_come_and_go_at_sighup() {
    let (one, other) = (answering("one"), answering("other"));
    let gateway = Gateway::start(&service("api", &[one.url()], ""));
    assert_eq!(gateway.get("/api").text(), "one");
    assert_eq!(gateway.get("/new").status, 404);
    gateway.reload(&(service("api", &[other.url()], "") + &service("new", &[one.url()], "methods = [\"GET\"]")));
    assert_eq!((gateway.get("/api").text(), gateway.get("/new").text()), ("other".to_owned(), "one".to_owned()));
    gateway.reload(&service("new", &[one.url()], "methods = [\"POST\"]"));
    assert_eq!((gateway.get("/api").status, gateway.get("/new").status), (404, 405));
    assert_eq!((gateway.metric(APPLIED), gateway.metric(INVALID)), (2.0, 0.0));
    let generation = gateway.metric("api_gateway_config_generation");
    assert!(generation >= 3.0);
    assert_eq!(gateway.metric("api_gateway_config_generation_adopted{worker=\"0\"}"), generation);
}

#[test]
fn a_changed_file_is_enough() {
    let (one, other) = (answering("one"), answering("other"));
    let gateway = Gateway::start(&service("api", &[one.url()], ""));
    // Another file in its place, and another text in the same file.
    gateway.write_config(&service("api", &[other.url()], ""));
    until("the other backend answers", || gateway.get("/api").text() == "other");
    let text = fs::read_to_string(gateway.config()).expect("it is there");
    let back = text.replace(&other.url(), &one.url());
    fs::write(gateway.config(), back).expect("writable");
    until("the first backend answers", || gateway.get("/api").text() == "one");
    assert_eq!(gateway.metric(INVALID), 0.0);
}

/// What Kubernetes does to a mounted ConfigMap: the file is a link through `..data`, which is turned to another folder.
#[test]
fn a_turned_link_is_a_changed_file() {
    let (one, other) = (answering("one"), answering("other"));
    let folder = std::env::temp_dir().join(format!("ringway-configmap-{}", std::process::id()));
    let write = |version: &str, backend: &Backend| {
        let data = folder.join(version);
        fs::create_dir_all(&data).expect("a writable folder");
        let tables = service("api", &[backend.url()], "auth = \"none\"\nrate_limit = { enabled = false }");
        fs::write(data.join("config.toml"), tables).expect("writable");
        symlink(version, folder.join("..next")).expect("writable");
        fs::rename(folder.join("..next"), folder.join("..data")).expect("writable");
    };
    write("..1", &one);
    symlink("..data/config.toml", folder.join("config.toml")).expect("writable");
    let script = "shift 2; exec \"$0\" run --host 127.0.0.1 --port 0 --config \"$CONFIG_LINK\"";
    let mut command = Command::new("/bin/sh");
    let link = folder.join("config.toml");
    let script = script.replace("$CONFIG_LINK", link.to_str().expect("text"));
    command.args(["-c", &script, env!("CARGO_BIN_EXE_ringway")]);
    let gateway = Gateway::start_command(command, "", "");
    assert_eq!(gateway.get("/api").text(), "one");
    write("..2", &other);
    until("the other backend answers", || gateway.get("/api").text() == "other");
    drop(gateway);
    fs::remove_dir_all(folder).expect("it is there");
}

#[test]
fn an_invalid_file_changes_nothing_and_the_log_says_why() {
    let backend = answering("one");
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    gateway.write_config(&service("api", &[backend.url()], "load_balancing = \"fastest\"\nmethod = [\"GET\"]"));
    gateway.signal("HUP");
    let says = |key: &str, problem: &str| {
        gateway.events.wait_for(|event| {
            let error = event["error"].as_str().unwrap_or_default();
            event["level"] == "ERROR" && error.contains(key) && error.contains(problem)
        });
    };
    says("services.api.load_balancing", "round_robin");
    says("services.api.method", "unknown key");
    gateway.events.wait_for(|event| event["errors"] == 2);
    until("it is counted", || gateway.metric(INVALID) >= 1.0);
    assert_eq!((gateway.get("/api").text(), gateway.metric(APPLIED)), ("one".to_owned(), 0.0));
    assert_eq!(gateway.metric("api_gateway_config_reload_failed"), 1.0);
    // A file that is gone is as wrong.
    fs::remove_file(gateway.config()).expect("it is there");
    gateway.events.wait_for(|event| event["error"].as_str().unwrap_or_default().contains("cannot be read"));
    assert_eq!(gateway.get("/api").text(), "one");
    gateway.reload(&service("api", &[backend.url()], "methods = [\"POST\"]"));
    assert_eq!(gateway.get("/api").status, 405);
    assert_eq!(gateway.metric("api_gateway_config_reload_failed"), 0.0);
}

#[test]
fn what_cannot_change_is_named_and_the_rest_changes() {
    let backend = answering("one");
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let text = service("api", &[backend.url()], "methods = [\"POST\"]") + "[metrics]\nenabled = false\n";
    gateway.reload(&text);
    let warning = gateway.events.wait_for(|event| event["keys"].is_string());
    assert_eq!(warning["keys"], "[metrics]");
    assert_eq!(gateway.get("/api").status, 405);
    assert!(gateway.metric(APPLIED) >= 1.0, "metrics are still served");
}

#[test]
fn connections_and_requests_outlive_a_reload() {
    let gate = Gate::default();
    let backend = Backend::gated(&gate);
    let gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let mut client = gateway.connect();
    let get = "GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(get);
    assert_eq!(client.response().status, 200);
    let mut slow = gateway.connect();
    slow.send("GET /api/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    until("the backend has it", || backend.last().line().contains("slow"));
    // The slow request has the pooled connection; one more is made, and both are kept.
    client.send(get);
    assert_eq!(client.response().status, 200);
    assert_eq!(backend.connections(), 2);
    // The service it began with is gone when it ends.
    gateway.reload(&service("other", &[backend.url()], ""));
    gate.open();
    assert_eq!(slow.response().text(), "ok");
    gateway.reload(&service("api", &[backend.url()], "methods = [\"GET\"]"));
    gateway.reload(&service("api", &[backend.url()], "methods = [\"GET\", \"POST\"]"));
    client.send(get);
    assert_eq!(client.response().status, 200);
    let connections = backend.connections();
    gateway.reload(&service("api", &[backend.url()], "methods = [\"GET\", \"PUT\"]"));
    client.send(get);
    assert_eq!(client.response().status, 200);
    assert_eq!(backend.connections(), connections, "the pool is the endpoint's, not the snapshot's");
    assert_eq!(gateway.metric("api_gateway_active_requests"), 1.0, "the scrape itself");
}

#[test]
fn keys_are_rotated() {
    let backend = answering("in");
    let tables = |key: &str| {
        let hash = Command::new("sh")
            .args(["-c", "printf %s \"$1\" | \"$0\" hash-key", env!("CARGO_BIN_EXE_ringway"), key])
            .output()
            .expect("it runs");
        let hash = String::from_utf8(hash.stdout).expect("text");
        let keys = format!("[[auth.api_keys]]\nname = \"a\"\nhash = \"{}\"\n", hash.trim());
        service("api", &[backend.url()], "auth = \"required\"") + &keys
    };
    let (old, new) = ("an-old-key-of-forty-characters-or-more-00", "a-new-key-of-forty-characters-or-more-000");
    let gateway = Gateway::start(&tables(old));
    let status = |key: &str| {
        gateway.send(format!("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-API-Key: {key}\r\n\r\n")).status
    };
    assert_eq!((status(old), status(new)), (200, 401));
    gateway.reload(&tables(new));
    assert_eq!((status(old), status(new)), (401, 200));
}

#[test]
fn limits_change_with_what_was_used_under_the_old_ones() {
    let backend = answering("in");
    let tables = |limit: &str| service("api", &[backend.url()], &format!("rate_limit = {{ {limit} }}"));
    let gateway = Gateway::start(&tables("requests = 5, window = \"1h\""));
    let admitted = || (0..12).filter(|_| gateway.get("/api").status == 200).count();
    assert_eq!(admitted(), 5);
    gateway.reload(&tables("requests = 8, window = \"1h\""));
    assert_eq!(admitted(), 3, "five of the eight are used up");
    // A window of another length begins anew.
    gateway.reload(&tables("requests = 2, window = \"2h\""));
    assert_eq!(admitted(), 2);
    gateway.reload(&tables("enabled = false"));
    assert_eq!(admitted(), 12);
}

#[test]
fn no_request_fails_while_the_configuration_changes() {
    const RELOADS: usize = 20;
    let backends = [answering("ok"), answering("ok")];
    let tables = |index: usize| {
        let urls: Vec<String> = backends.iter().map(Backend::url).collect();
        service("api", &urls[index % 2..], &format!("load_balancing = \"{}\"", ["random", "round_robin"][index % 2]))
    };
    let gateway = Gateway::start_with("workers = 2", &tables(0));
    let done = AtomicBool::new(false);
    let answered: usize = thread::scope(|scope| {
        let end = RaisedAtEnd(&done);
        let clients: Vec<_> = (0..8)
            .map(|index| {
                let (gateway, done) = (&gateway, &done);
                scope.spawn(move || {
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) {
                        let mut client = gateway.connect();
                        // Some connections live for one request, some for many.
                        for _ in 0..[1, 50][index % 2] {
                            client.send("GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
                            assert_eq!(client.response().status, 200);
                            count += 1;
                        }
                    }
                    count
                })
            })
            .collect();
        for index in 0..RELOADS {
            gateway.reload(&tables(index + 1));
        }
        drop(end);
        clients.into_iter().map(|client| client.join().expect("no failure")).sum()
    });
    assert!(answered > RELOADS, "{answered}");
    assert_eq!(gateway.metric(INVALID), 0.0);
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_holds_nothing_up() {
    let backend = answering("ok");
    let mut gateway = Gateway::start(&service("api", &[backend.url()], ""));
    let pipe = gateway.config().with_extension("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    std::fs::rename(&pipe, gateway.config()).expect("the same folder");
    gateway.signal("HUP");
    gateway.events.wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("not be read in time")));
    assert_eq!(gateway.get("/api").status, 200);
    assert_eq!(gateway.metric("api_gateway_config_reload_failed"), 1.0);
    // The next one is taken up, and the one that still waits does not hold up the end.
    gateway.reload(&service("other", &[backend.url()], ""));
    assert_eq!(gateway.get("/other").status, 200);
    gateway.signal("TERM");
    assert!(gateway.wait_exit().success());
}
