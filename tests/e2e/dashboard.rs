//! The dashboard: its stream of figures, who may read it, and the page in a real Chromium.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::devtools::Page;
use crate::support::client::header;
use crate::support::{Backend, Client, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const KEY: &str = "an-admin-key-for-the-tests";

/// `admin.key_hash` for a key.
fn admin(key: &str) -> String {
    let hash = ringway::policy::auth::api_key::KeyHash::of(key.as_bytes());
    format!("[admin]\nkey_hash = \"{hash}\"\n")
}

/// An open stream of events.
struct Events {
    client: Client,
    text: String,
}

impl Events {
    fn open(gateway: &Gateway) -> Events {
        Events::open_with(gateway, "").expect("a stream")
    }

    /// With further header fields; the status and the reason, where it is refused.
    fn open_with(gateway: &Gateway, fields: &str) -> Result<Events, (u16, String)> {
        let mut client = gateway.connect();
        client.send(format!("GET /dashboard/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"));
        let head = client.head();
        if head.starts_with("HTTP/1.1 200") {
            assert_eq!(header(&head, "content-type"), Some("text/event-stream"));
            return Ok(Events { client, text: String::new() });
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Err((status, header(&head, "x-gateway-error").unwrap_or_default().to_owned()))
    }

    /// The next event; `None` at the end of the stream.
    fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
                let found = (field("event: ").to_owned(), serde_json::from_str(field("data: ")).expect("JSON"));
                self.text = rest.to_owned();
                return Some(found);
            }
            let chunk = self.client.chunk().expect("no cut in the middle of a chunk");
            if chunk.is_empty() {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }

    /// Waits for the end of the stream.
    fn end(&mut self) {
        let end = Instant::now() + crate::support::DEADLINE;
        while self.next().is_some() {
            assert!(Instant::now() < end, "the stream does not end");
        }
    }

    /// The first sample that `wanted` accepts.
    fn sample(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + crate::support::DEADLINE;
        loop {
            let (name, data) = self.next().expect("the stream goes on");
            if name == "sample" && wanted(&data) {
                return data;
            }
            assert!(Instant::now() < end, "no such sample; the last one is {data:#}");
        }
    }
}

/// Asks for `path` over and over, until it is dropped.
struct Traffic {
    goes_on: Arc<AtomicBool>,
}

impl Traffic {
    fn to(gateway: &Gateway, path: &'static str, pause: Duration) -> Traffic {
        let goes_on = Arc::new(AtomicBool::new(true));
        let (address, is_wanted) = (gateway.address, Arc::clone(&goes_on));
        thread::spawn(move || {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            while is_wanted.load(Ordering::SeqCst) {
                // The gateway may be gone already.
                let Ok(stream) = std::net::TcpStream::connect(address) else { continue };
                let mut client = Client::from(stream);
                if client.try_send(&request).is_ok() {
                    let _ = client.try_response(false);
                }
                thread::sleep(pause);
            }
        });
        Traffic { goes_on }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::SeqCst);
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn its_files_need_nothing_else_and_may_do_nothing_else() {
    let gateway = Gateway::start(&admin(KEY));
    for (path, content_type, part) in [
        ("/dashboard", "text/html; charset=utf-8", "/dashboard/app.js"),
        ("/dashboard/", "text/html; charset=utf-8", "/dashboard/app.css"),
        ("/dashboard/app.js", "text/javascript; charset=utf-8", "textContent"),
        ("/dashboard/app.css", "text/css; charset=utf-8", "--card"),
    ] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(content_type)), "{path}");
        assert!(answer.text().contains(part), "{path}");
        let policy = answer.header("content-security-policy").expect("a policy");
        for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"] {
            assert!(policy.contains(rule) && !policy.contains("unsafe"), "{policy}");
        }
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let mut client = gateway.connect();
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.head_response().status, 200);
    }
    for path in ["/dashboard", "/dashboard/app.js", "/dashboard/events"] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let answer = gateway.send(request);
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{path}");
        assert_eq!(answer.reason(), "method_not_allowed");
    }
    assert_eq!(gateway.get("/dashboard/else").reason(), "no_route");
}

#[test]
fn figures_come_each_second_however_short_a_body_may_stand_still() {
    let backend = Backend::answering(OK);
    let tables = format!("[timeouts]\nidle_body = \"300ms\"\n{}", service("api", &[backend.url()], ""));
    let gateway = Gateway::start_with("workers = 2", &tables);
    let traffic = Traffic::to(&gateway, "/api/x", Duration::from_millis(5));
    let mut events = Events::open(&gateway);
    let (name, history) = events.next().expect("an event");
    assert_eq!(name, "history");
    assert!(history["points"].is_array(), "{history}");
    let first = events.next().expect("at once").1;
    assert_eq!((&first["gateway"]["phase"], &first["gateway"]["viewers"]), (&"serving".into(), &1.into()));
    assert_eq!((&first["gateway"]["metrics"], &first["gateway"]["key"]), (&true.into(), &false.into()));
    assert_eq!(first["workers"].as_array().expect("an array").len(), 2);

    let sample = events.sample(|sample| number(&sample["traffic"]["classes"][2]) > 1.0 && !sample["skew"].is_null());
    let (p50, p99) = (&sample["traffic"]["p50"]["ms"], &sample["traffic"]["p99"]["ms"]);
    assert!(number(p50) > 0.0 && number(p50) <= number(p99), "{sample:#}");
    let sample =
        events.sample(|sample| sample["services"][0]["endpoints"][0]["rate"].as_f64().is_some_and(|r| r > 1.0));
    let shown = &sample["services"][0];
    assert_eq!((&shown["name"], &shown["state"], &shown["good"]), (&"api".into(), &"healthy".into(), &1.into()));
    assert!(number(&shown["rate"]) > 1.0 && number(&shown["endpoints"][0]["mean_ms"]) > 0.0, "{shown:#}");
    assert_eq!(shown["endpoints"][0]["instance"], backend.address.to_string());
    assert_eq!(sample["point"].as_array().expect("an array").len(), 12);

    // The gateway's own pages are no traffic, this stream and its minutes least of all.
    drop(traffic);
    let quiet = events.sample(|sample| number(&sample["traffic"]["classes"][2]) == 0.0);
    assert_eq!((&quiet["traffic"]["in_flight"], &quiet["traffic"]["p50"]), (&0.into(), &Value::Null), "{quiet:#}");
    let before = number(&quiet["at"]);
    let times: Vec<f64> = (0..3).map(|_| number(&events.sample(|_| true)["at"])).collect();
    assert!(times[2] - before > 2_500.0 && times[2] - before < 8_000.0, "{before} {times:?}");
    let later = Events::open(&gateway).next().expect("the history").1;
    assert!(later["points"].as_array().expect("an array").len() >= 5, "{later}");
}

#[test]
fn whoever_has_no_key_sees_nothing() {
    let gateway = Gateway::start(&admin(KEY));
    let with = |key: &str| Events::open_with(&gateway, &format!("X-API-Key: {key}\r\n")).map(|_| ());
    assert_eq!(Events::open_with(&gateway, "").map(|_| ()), Err((401, "credentials_missing".to_owned())));
    assert_eq!(with("another-key-of-somebody"), Err((401, "admin_key_wrong".to_owned())));
    assert_eq!(with(KEY), Ok(()));
    let answer = gateway.get("/dashboard/events");
    assert!(answer.header("www-authenticate").is_some_and(|it| it.starts_with("Bearer")));
    assert_eq!(answer.reason(), "credentials_missing");

    // Another key ends what was opened with the old one; a reload that changes nothing of it does not.
    let field = format!("Authorization: Bearer {KEY}\r\n");
    let mut events = Events::open_with(&gateway, &field).expect("a stream");
    events.sample(|sample| sample["gateway"]["key"] == true);
    gateway.reload(&format!("{}{}", admin(KEY), service("api", &["http://127.0.0.1:9".to_owned()], "")));
    events.sample(|sample| sample["services"][0]["name"] == "api" && sample["gateway"]["reloads"]["applied"] == 1);
    gateway.reload(&admin("the-next-key-of-the-tests"));
    events.end();
    assert_eq!(with(KEY), Err((401, "admin_key_wrong".to_owned())));
    assert_eq!(with("the-next-key-of-the-tests"), Ok(()));
}

#[test]
fn there_are_so_many_places_and_who_leaves_makes_room() {
    let gateway = Gateway::start("");
    let mut all: Vec<Events> = (0..32).map(|_| Events::open(&gateway)).collect();
    let refused = gateway.get("/dashboard/events");
    assert_eq!((refused.status, refused.reason().as_str()), (503, "dashboard_full"));
    assert!(refused.header("retry-after").is_some());
    all[0].sample(|sample| sample["gateway"]["viewers"] == 32);
    all.truncate(1);
    let left = Instant::now();
    all[0].sample(|sample| sample["gateway"]["viewers"] == 1);
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
    assert!(Events::open_with(&gateway, "").is_ok());
}

#[test]
fn it_does_not_hold_up_a_drain() {
    let mut gateway = Gateway::start_with("drain_timeout = \"60s\"\ndrain_delay = \"1500ms\"", "");
    let mut events = Events::open(&gateway);
    events.sample(|_| true);
    gateway.signal("TERM");
    let begun = Instant::now();
    events.sample(|sample| sample["gateway"]["phase"] == "unready");
    let mut last = String::new();
    while let Some((name, _)) = events.next() {
        last = name;
    }
    assert_eq!(last, "end");
    assert!(gateway.wait_exit().success());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn after_an_upgrade_the_next_process_is_shown() {
    let gateway = Gateway::start("");
    let mut events = Events::open(&gateway);
    let pid = number(&events.sample(|_| true)["gateway"]["pid"]);
    let next = gateway.upgrade().expect("an upgrade");
    events.end();
    assert_ne!(pid, f64::from(next));
    // For a moment a new connection may still reach the process before.
    until("the next process is shown", || match Events::open_with(&gateway, "") {
        Ok(mut events) => number(&events.sample(|_| true)["gateway"]["pid"]) == f64::from(next),
        Err(refused) => refused != (503, "draining".to_owned()) && panic!("{refused:?}"),
    });
}

#[test]
fn what_is_not_counted_is_said() {
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&format!("[metrics]\nenabled = false\n{}", service("api", &[backend.url()], "")));
    let _traffic = Traffic::to(&gateway, "/api", Duration::from_millis(20));
    let mut events = Events::open(&gateway);
    let sample = events.sample(|sample| sample["services"][0]["rate"].as_f64().is_some_and(|rate| rate > 1.0));
    assert_eq!(sample["gateway"]["metrics"], false);
    assert_eq!((&sample["traffic"]["p50"], &sample["services"][0]["failed"]), (&Value::Null, &Value::Null));
    assert!(number(&sample["services"][0]["mean_ms"]) > 0.0);
}

/// Two services in a real browser: everything is drawn, numbers move, and a breaker is seen opening when a backend dies.
#[test]
fn a_browser_shows_it_all_live() {
    let (works, steady) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (dying, living, other) = (Backend::fragile(&works), Backend::fragile(&steady), Backend::fragile(&steady));
    let breaker = "circuit_breaker = { failure_threshold = 3, open_for = \"1h\" }\n";
    let tables = service("payments", &[dying.url()], breaker) + &service("sms", &[living.url(), other.url()], breaker);
    let mut gateway = Gateway::start_with("workers = 2", &tables);
    let origin = format!("http://{}/", gateway.address);
    let _sms = Traffic::to(&gateway, "/sms/send", Duration::from_millis(4));
    let _payments = Traffic::to(&gateway, "/payments/pay", Duration::from_millis(9));
    let _nowhere = Traffic::to(&gateway, "/nowhere", Duration::from_millis(150));
    let mut page = Page::open(&format!("{origin}dashboard"));
    page.until(LIVE);
    page.until("parseFloat(document.getElementById('rate').textContent) > 5");
    page.until("document.getElementById('p50').textContent.includes('ms')");
    page.until("document.querySelectorAll('#services details').length >= 2");
    page.until("document.querySelectorAll('#workers tbody tr').length == 2");
    page.until("document.querySelector('#traffic-chart .plot path').getAttribute('d').length > 60");
    let seen = page.text("document.querySelector('#traffic-chart .plot path:last-of-type').getAttribute('d')");
    page.until(&format!(
        "document.querySelector('#traffic-chart .plot path:last-of-type').getAttribute('d') != '{seen}'"
    ));
    assert_eq!(page.text(&breaker_of(&dying)), "closed");
    assert_eq!(page.text(&breaker_of(&living)), "closed");
    assert!(page.text("document.body.innerText").contains("all 2 healthy"));

    // The charts are read with the keyboard, too.
    page.ask("document.querySelector('#traffic-chart .plot svg').focus()");
    page.press("ArrowLeft");
    page.until("/^\\d\\d:\\d\\d:\\d\\d$/.test(document.querySelector('#traffic-chart .when').textContent)");
    page.press("Escape");
    page.ask("document.activeElement.blur()");
    let more = std::env::var("RINGWAY_SCREENSHOT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    thread::sleep(Duration::from_secs(more));
    page.prefer("light");
    page.picture("desktop-light", false);
    page.prefer("dark");
    page.picture("desktop-dark", false);

    works.store(false, Ordering::SeqCst);
    page.until(&format!("({}) == 'open'", breaker_of(&dying)));
    page.until("document.body.innerText.includes('Every endpoint is in trouble: payments')");
    page.until("document.getElementById('errors-tile').dataset.level == 'bad'");
    assert_eq!(page.text(&breaker_of(&living)), "closed");
    page.picture("one-broken-dark", false);
    page.prefer("light");
    page.picture("one-broken-light", false);

    page.size(390, 844);
    page.until("innerWidth == 390 && document.documentElement.scrollWidth <= 390");
    page.picture("phone-light", true);
    page.prefer("dark");
    page.picture("phone-dark", true);
    page.size(360, 740);
    page.until("innerWidth == 360 && document.documentElement.scrollWidth <= 360");

    // The toggle beats what the system prefers.
    page.size(1440, 900);
    page.ask("document.getElementById('theme').click()");
    page.until("getComputedStyle(document.documentElement).colorScheme == 'light'");

    // Gone: what stands there is marked as old.
    gateway.signal("KILL");
    gateway.wait_exit();
    page.until("document.getElementById('state-text').textContent.startsWith('Connection lost, last figures from')");
    page.until("document.getElementById('board').hasAttribute('data-stale')");
    page.picture("connection-lost", false);

    assert_eq!(page.complaints, Vec::<String>::new());
    assert!(page.asked.iter().all(|url| url.starts_with(&origin) || url.starts_with("data:")), "{:?}", page.asked);
}

const LIVE: &str = "document.getElementById('state').dataset.state == 'live'";

/// What stands in the breaker's column of an endpoint.
fn breaker_of(backend: &Backend) -> String {
    let address = backend.address;
    format!(
        "[...document.querySelectorAll('#services tr')].find(row => row.dataset.key == '{address}')?.cells[2].textContent"
    )
}

#[test]
fn a_browser_asks_for_the_key_and_comes_back_by_itself() {
    let gateway = Gateway::start(&admin(KEY));
    let mut page = Page::open(&format!("http://{}/dashboard", gateway.address));
    page.until("!document.getElementById('door').hidden && document.activeElement.id == 'key'");
    page.picture("key-form", false);
    let enter = |page: &mut Page, key: &str| {
        page.ask(&format!("document.getElementById('key').value = '{key}'"));
        page.ask("document.querySelector('#door button').click()");
    };
    enter(&mut page, "");
    page.until("document.getElementById('door-error').textContent.includes('Type the key')");
    enter(&mut page, "not the key");
    page.until("document.getElementById('door-error').textContent.includes('no spaces')");
    enter(&mut page, "not-the-key");
    page.until("document.getElementById('door-error').textContent.includes('not the admin key')");
    page.prefer("dark");
    page.picture("key-form-wrong", false);
    enter(&mut page, KEY);
    page.until(LIVE);
    assert_eq!(page.text("sessionStorage.getItem('ringway-admin-key')"), KEY);
    assert!(!page.text("JSON.stringify(localStorage) + document.cookie + location.href").contains(KEY));
    page.until("document.body.innerText.includes('No services yet')");
    page.picture("empty", false);

    // Names are text, whatever they say.
    let hostile = "unix:/tmp/<img src=x onerror=document.body.remove()>.sock";
    gateway.reload(&format!("{}{}", admin(KEY), service("odd", &[hostile.to_owned()], "")));
    page.until(&format!("document.querySelector('#services td.instance')?.textContent == '{hostile}'"));
    assert_eq!(page.ask("document.querySelectorAll('#board img').length"), 0);

    // An upgrade is a moment's interruption.
    let pid = gateway.upgrade().expect("an upgrade");
    page.until(&format!("document.getElementById('facts').textContent.includes('{pid}, since')"));
    page.until(LIVE);
    // The key is forgotten when somebody says so.
    page.ask("document.getElementById('forget').click()");
    page.until("!document.getElementById('door').hidden && document.getElementById('board').hidden");
    assert_eq!(page.ask("sessionStorage.getItem('ringway-admin-key')"), Value::Null);
    assert_eq!(page.complaints, Vec::<String>::new());
}
