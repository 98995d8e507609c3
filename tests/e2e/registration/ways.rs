//! The ways that lead to instances, and to Redis: back to the gateway itself, and into nowhere.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway::policy::auth::api_key::KeyHash;

use super::{KEY, OK, PATH, ask, json, listed, on_redis, register, tables};
use crate::redis::RedisServer;
use crate::support::dns::DnsServer;
use crate::support::{Backend, Gateway, until};

/// Everything to one service.
fn all_to(endpoints: &str) -> String {
    let hash = KeyHash::of(KEY.as_bytes());
    format!("[admin]\nkey_hash = \"{hash}\"\n[services.api]\nprefix = \"/\"\nendpoints = [{endpoints}]")
}

#[test]
fn the_gateway_is_no_instance_of_its_own() {
    let backend = Backend::answering(OK);
    for listening in ["127.0.0.1", "0.0.0.0", "::"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        command.env("HOST", listening);
        let gateway = Gateway::start_command(command, "", &all_to(""));
        let port = gateway.address.port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let answer = ask(&gateway, "POST", PATH, &json!({ "url": format!("http://{host}:{port}") }).to_string());
            let (status, reason) = (answer.status, answer.reason());
            assert_eq!((status, reason.as_str()), (422, "instance_is_the_gateway"), "{listening} {host}");
        }
        register(&gateway, &backend.url(), 60);
        until("it answers", || gateway.get("/").status == 200);
    }
}

#[test]
fn a_loop_that_nobody_sees_ends() {
    let first = Gateway::start(&all_to(""));
    let second = Gateway::start(&all_to(&format!("\"http://{}\"", first.address)));
    let at = register(&first, &format!("http://{}", second.address), 60);
    let start = Instant::now();
    assert!(matches!(first.get("/x").status, 431 | 502));
    let rounds = || first.log.all().len() + second.log.all().len();
    until("its head has grown too large", || {
        [&first, &second].iter().any(|gateway| gateway.log.all().iter().any(|line| line["status"] == 431))
    });
    // The innermost round is logged first.
    until("the others have ended too", || rounds() >= 500);
    assert!(rounds() < 2_000, "{}", rounds());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(matches!(first.get("/x").status, 431 | 502 | 503)));
        }
    });
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    for gateway in [&first, &second] {
        assert_eq!(gateway.get("/health").status, 200);
    }
    assert_eq!(ask(&first, "DELETE", &at, "").status, 204);
    until("the way round is closed", || second.get("/x").reason_or_none().is_none() && first.get("/x").status == 503);
}

#[test]
fn a_name_that_comes_to_stand_for_a_forbidden_address_gets_no_request() {
    let backend = Backend::answering(OK);
    let dns = DnsServer::start(&["app A 127.0.0.1", "*._tcp SRV 1 1 80 app"]);
    let gateway = Gateway::start(&format!("{}\ndns_refresh = \"1s\"\n{}", dns.discovery().trim_end(), all_to("")));
    let url = format!("http://app.example.test:{}", backend.address.port());
    register(&gateway, &url, 600);
    until("it answers", || gateway.get("/").status == 200);
    for address in ["169.254.169.254", "0.0.0.0", "224.0.0.1"] {
        dns.serve(&[&format!("app A {address}")]);
        until("nobody answers", || gateway.get("/").reason_or_none().as_deref() == Some("no_healthy_endpoint"));
        assert_eq!(listed(&gateway), [url.as_str()], "it is still registered");
        dns.serve(&["app A 127.0.0.1"]);
        until("it answers again", || gateway.get("/").status == 200);
    }
    let srv = ask(&gateway, "POST", PATH, "{\"url\": \"srv+http://_a._tcp.example.test\"}");
    assert_eq!(srv.reason(), "instance_url_malformed", "nobody registers SRV records");
}

/// Passes everything on to `target` and back, but for the connections that are cut: they stay open, and nothing arrives.
struct Way {
    address: SocketAddr,
    /// Of the connections so far.
    cut: Arc<std::sync::Mutex<Vec<Arc<AtomicBool>>>>,
}

impl Way {
    fn to(target: SocketAddr) -> Way {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let cut: Arc<std::sync::Mutex<Vec<Arc<AtomicBool>>>> = Arc::default();
        let all = Arc::clone(&cut);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(target) else { continue };
                let is_cut = Arc::new(AtomicBool::new(false));
                all.lock().expect("no panic").push(Arc::clone(&is_cut));
                let pairs = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
                for (from, to) in pairs {
                    let (from, to) = (from.expect("a handle"), to.expect("a handle"));
                    let is_cut = Arc::clone(&is_cut);
                    thread::spawn(move || pass(from, to, &is_cut));
                }
            }
        });
        Way { address, cut }
    }

    fn cut(&self) {
        self.cut.lock().expect("no panic").iter().for_each(|is_cut| is_cut.store(true, Ordering::SeqCst));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !is_cut.load(Ordering::SeqCst) && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    if !is_cut.load(Ordering::SeqCst) {
        // Either end may be gone already.
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}

#[test]
fn notices_are_heard_again_after_the_way_to_redis_was_cut() {
    let (first, second) = (Backend::answering(OK), Backend::answering(OK));
    let redis = RedisServer::start(&[]);
    let way = Way::to(redis.address());
    let table = format!("[redis]\nurl = \"redis://{}/0\"\nprefix = \"t\"", way.address);
    let gateway = Gateway::start(&tables(&first, &table));
    until("it listens", || redis.command(&["PUBSUB", "NUMSUB", "t:registry"]) == "t:registry :1");
    way.cut();
    until("it listens anew", || redis.command(&["PUBSUB", "NUMSUB", "t:registry"]) == "t:registry :2");
    let other = on_redis(&first, &redis);
    let at = register(&other, &second.url(), 60);
    let start = Instant::now();
    until("it hears of it", || listed(&gateway) == [second.url()]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(ask(&gateway, "PUT", &at, "").status, 200);
}
