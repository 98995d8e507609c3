//! The schedule in paused time, against fetches by script; a fetch against a real server on loopback.

use std::cell::{Cell, RefCell};
use std::future::ready;
use std::net::Ipv4Addr;
use std::str::Utf8Error;

use axum::Router;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

const REFRESH: Duration = Duration::from_secs(300);

/// A document and its `max-age` in seconds, or a fetch that fails.
type Turn<'a> = Result<(&'a [u8], Option<u64>), ()>;

/// What happened while fetches went by a script.
#[derive(Default)]
struct Told {
    /// When each fetch began, in seconds from the start.
    begun: RefCell<Vec<f64>>,
    published: RefCell<Vec<String>>,
    wanted: Cell<bool>,
}

/// Follows `script` for each fetch, the last of it for all others, until `end` has passed. `want_at` are the times at which
/// an unknown key is named. Documents that are not UTF-8 do not parse.
async fn follow(script: &[Turn<'_>], want_at: &[u64], end: u64) -> Told {
    let told = Told::default();
    let start = Instant::now();
    let fetch = || {
        let turn = told.begun.borrow().len();
        told.begun.borrow_mut().push(start.elapsed().as_secs_f64());
        ready(match script[turn.min(script.len() - 1)] {
            Ok((bytes, max_age)) => Ok(Document { bytes: bytes.to_vec(), max_age: max_age.map(Duration::from_secs) }),
            Err(()) => Err(FetchError::TooLong),
        })
    };
    let parse = |bytes: &[u8]| -> Result<String, Utf8Error> { Ok(std::str::from_utf8(bytes)?.to_owned()) };
    let publish = |text| told.published.borrow_mut().push(text);
    let wants = async {
        for &at in want_at {
            sleep_until(start + Duration::from_secs(at)).await;
            told.wanted.set(true);
        }
        std::future::pending::<()>().await;
    };
    let fresh = keep_fresh(REFRESH, fetch, || told.wanted.take(), parse, publish);
    let both = async { tokio::join!(fresh, wants) };
    assert!(timeout(Duration::from_secs(end), both).await.is_err(), "it goes on for ever");
    told
}

/// The times at which fetches begin lie within these ranges, in seconds.
fn check_begun(told: &Told, expected: &[(f64, f64)]) {
    let begun = told.begun.borrow();
    let fits = |(at, range): (&f64, &(f64, f64))| (range.0..=range.1 + 0.2).contains(at);
    assert!(begun.len() == expected.len() && begun.iter().zip(expected).all(fits), "{begun:?}, expected {expected:?}");
}

#[test]
fn when_the_next_fetch_is_due() {
    let check = |is_good, max_age: Option<u64>, draw, expected: f64| {
        let due = due_in(is_good, max_age.map(Duration::from_secs), REFRESH, draw).as_secs_f64();
        assert!((due - expected).abs() < 0.001, "{is_good} {max_age:?} {draw}: {due}");
    };
    check(true, None, 0.0, 300.0);
    check(true, None, 1.0, 270.0);
    check(true, Some(60), 0.0, 60.0);
    check(true, Some(60), 0.5, 57.0);
    check(true, Some(0), 0.0, 10.0);
    check(true, Some(u64::MAX), 0.0, 300.0);
    check(false, None, 0.0, 10.0);
    check(false, None, 1.0, 9.0);
}

#[tokio::test(start_paused = true)]
async fn the_first_document_is_asked_for_until_it_is_there() {
    let script = [Err(()), Err(()), Ok((&b"\xff"[..], Some(3_600))), Err(()), Ok((&b"a"[..], None)), Err(())];
    let told = follow(&script, &[1], 320).await;
    let fourth = (0.225 + 0.45 + 0.9, 0.25 + 0.5 + 1.0);
    let fifth = (fourth.0 + 1.8, fourth.1 + 2.0);
    let begun = [(0.0, 0.0), (0.225, 0.25), (0.675, 0.75), fourth, fifth, (fifth.0 + 270.0, fifth.1 + 300.0)];
    check_begun(&Told { begun: told.begun.borrow()[..6].to_vec().into(), ..Told::default() }, &begun);
    assert_eq!(*told.published.borrow(), ["a"]);
    // An issuer that is away for long is not asked more often than one whose keys are known.
    let told = follow(&[Err(())], &[], 100).await;
    let begun = told.begun.borrow();
    assert!(begun.windows(2).skip(6).all(|two| two[1] - two[0] >= 9.0), "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn on_schedule() {
    let told = follow(&[Ok((b"a", None))], &[], 700).await;
    check_begun(&told, &[(0.0, 0.0), (270.0, 300.0), (540.0, 600.0)]);
    assert_eq!(*told.published.borrow(), ["a"], "the same document is published once");
}

#[tokio::test(start_paused = true)]
async fn as_its_server_says() {
    let told = follow(&[Ok((b"a", Some(50))), Ok((b"b", Some(1))), Ok((b"b", None))], &[], 200).await;
    check_begun(&told, &[(0.0, 0.0), (45.0, 50.0), (54.0, 60.0)]);
    assert_eq!(*told.published.borrow(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_good_document_stays() {
    let script = [Ok((&b"a"[..], None)), Err(()), Ok((&b"\xff"[..], Some(3_600))), Ok((&b"a"[..], None))];
    let told = follow(&script, &[], 400).await;
    // A failure is followed by another fetch soon, whatever the document that is no good says of its age.
    check_begun(&told, &[(0.0, 0.0), (270.0, 300.0), (279.0, 310.0), (288.0, 320.0)]);
    assert_eq!(*told.published.borrow(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_brings_one_fetch() {
    let check = async |wants: &[u64], expected: &[(f64, f64)]| {
        let told = follow(&[Ok((b"a", None))], wants, 150).await;
        check_begun(&told, expected);
    };
    check(&[100], &[(0.0, 0.0), (100.0, 100.0)]).await;
    // Sooner than the bound allows: not lost, but late.
    check(&[3], &[(0.0, 0.0), (10.0, 10.0)]).await;
    check(&[100, 101, 102, 103], &[(0.0, 0.0), (100.0, 100.0), (110.0, 110.0)]).await;
    let flood: Vec<u64> = (1..=45).collect();
    check(&flood, &[(0.0, 0.0), (10.0, 10.0), (20.0, 20.0), (30.0, 30.0), (40.0, 40.0), (50.0, 50.0)]).await;
}

/// A server on loopback, and what it is asked through.
async fn server(routes: Router) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

async fn fetch(url: &str) -> Result<Document, String> {
    Fetcher::new(url, KEY_SETS).expect("a client").fetch().await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_document_and_how_long_it_is_fresh() {
    let answer = async |headers: HeaderMap| {
        assert_eq!(headers["accept"], "application/jwk-set+json, application/json");
        assert!(headers["user-agent"].to_str().expect("ASCII").starts_with("ringway/"));
        ([("cache-control", "public, max-age=60"), ("age", "10")], "{\"keys\":[]}")
    };
    let routes = Router::new()
        .route("/jwks", get(answer))
        .route("/moved", get(async || Redirect::temporary("/jwks")))
        .route("/longest", get(async || vec![b' '; DOCUMENT_BYTES_MAX]));
    let url = server(routes).await;
    let expected = Document { bytes: b"{\"keys\":[]}".to_vec(), max_age: Some(Duration::from_secs(50)) };
    assert_eq!(fetch(&format!("{url}/jwks")).await, Ok(expected.clone()));
    assert_eq!(fetch(&format!("{url}/moved")).await, Ok(expected));
    assert_eq!(fetch(&format!("{url}/longest")).await.expect("it fits").bytes.len(), DOCUMENT_BYTES_MAX);
}

#[tokio::test]
async fn what_is_no_document() {
    let endless = async || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 65_536])));
    let cut = async || {
        let pieces = stream::iter([Ok(&b"{"[..]), Err(std::io::Error::other("gone"))]);
        Body::from_stream(pieces).into_response()
    };
    let routes = Router::new()
        .route("/endless", get(endless))
        .route("/long", get(async || vec![b' '; DOCUMENT_BYTES_MAX + 1]))
        .route("/cut", get(cut))
        .route("/round", get(async || Redirect::temporary("/round")))
        .route("/empty", get(async || axum::http::StatusCode::NO_CONTENT));
    let url = server(routes).await;
    for (path, expected) in [
        ("/endless", "the answer is longer than 1048576 bytes"),
        ("/long", "the answer is longer than 1048576 bytes"),
        ("/cut", "error"),
        ("/round", "too many redirects"),
        ("/missing?key=hunter2", "the answer's status is 404"),
        ("/empty", "the answer's status is 204"),
    ] {
        let error = fetch(&format!("{url}{path}")).await.expect_err(path);
        assert!(error.contains(expected), "{path}: {error}");
        assert!(!error.contains("127.0.0.1") && !error.contains("hunter2"), "{path}: {error}");
    }
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port").local_addr().expect("an address");
    let error = fetch(&format!("http://{nobody}/?key=hunter2")).await.expect_err("nobody listens");
    assert!(error.contains("refused") && !error.contains("hunter2"), "{error}");
}

/// From the first fetch to the second, over a real connection, with what the issuer would change.
#[tokio::test]
async fn a_new_key_is_published() {
    let turn = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let answer = async move || format!("{}", turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let fetcher = Fetcher::new(&server(Router::new().route("/", get(answer))).await, KEY_SETS).expect("a client");
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    let parse = |bytes: &[u8]| -> Result<String, Utf8Error> { Ok(std::str::from_utf8(bytes)?.to_owned()) };
    let publish = |text| sender.send(text).expect("it is received");
    let fresh = keep_fresh(REFRESH, || fetcher.fetch(), || false, parse, publish);
    let first = async {
        let first = received.recv().await;
        assert_eq!(first.as_deref(), Some("0"));
        // The next one is minutes away.
        tokio::time::pause();
        tokio::time::advance(REFRESH).await;
        tokio::time::resume();
        assert_eq!(received.recv().await.as_deref(), Some("1"));
    };
    tokio::select! {
        () = fresh => unreachable!("it goes on for ever"),
        () = first => {}
    }
}
