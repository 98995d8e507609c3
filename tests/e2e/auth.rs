//! Who may pass: tokens and API keys, and what everybody else is told.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ringway::policy::auth::api_key::KeyHash;
use ringway::policy::auth::mint::{self, Mint};
use ringway::policy::auth::{self, Algorithm};

use crate::support::client::Response;
use crate::support::{Backend, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const KEY: &str = "rw_a-key-of-enough-bytes";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn token(subject: &str, scopes: &[&str], issued: u64, secret: &str) -> String {
    auth::install();
    let scopes: Vec<String> = scopes.iter().map(|&scope| scope.to_owned()).collect();
    let mint = Mint { subject, scopes: &scopes, lifetime: 600, issuer: None, audience: None };
    mint::mint(&mint, secret.as_bytes(), Algorithm::HS256, issued).expect("a secret of its length")
}

/// A gateway with the services `closed`, `optional` and `open` in front of `backend`, and further tables.
fn gateway(backend: &Backend, closed: &str, tables: &str) -> Gateway {
    let hash = KeyHash::of(KEY.as_bytes());
    Gateway::start(&format!(
        "[auth.jwt]\nsecret = \"{SECRET}\"\n[[auth.api_keys]]\nname = \"app\"\nhash = \"{hash}\"\nscopes = [\"read\"]\n\
         [[auth.api_keys]]\nname = \"off\"\nhash = \"{}\"\nenabled = false\n{tables}\n{}{}{}",
        KeyHash::of(b"rw_a-key-that-is-off"),
        service("closed", &[backend.url()], &format!("auth = \"required\"\n{closed}")),
        service("optional", &[backend.url()], "auth = \"optional\""),
        service("open", &[backend.url()], "auth = \"none\""),
    ))
}

fn ask(gateway: &Gateway, path: &str, fields: &[String]) -> Response {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    gateway.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

#[test]
fn who_is_known_passes_under_that_name() {
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, "", "");
    let forged = ["X-User-Id: root".to_owned(), "X-Auth-Method: jwt".to_owned(), "X-Auth-Scopes: all".to_owned()];
    let check = |path: &str, credential: Option<String>, user: Option<&str>, method: Option<&str>, scopes| {
        let fields: Vec<String> = credential.into_iter().chain(forged.clone()).collect();
        // Twice: the second time it is remembered.
        for _ in 0..2 {
            let answer = ask(&gateway, path, &fields);
            assert_eq!(answer.status, 200, "{path} {fields:?} {}", answer.text());
            let sent = backend.last();
            assert_eq!(sent.header("x-user-id"), user, "{path}");
            assert_eq!(sent.header("x-auth-method"), method, "{path}");
            assert_eq!(sent.header("x-auth-scopes"), scopes, "{path}");
            let line = gateway.logged(answer.header("x-request-id").expect("an id"));
            assert_eq!((line["user"].as_str(), line["auth"].as_str()), (user, method), "{line}");
        }
    };
    let alice = token("alice", &["read", "write"], now(), SECRET);
    check("/closed", Some(bearer(&alice)), Some("alice"), Some("jwt"), Some("read write"));
    check("/closed", Some(format!("X-API-Key: {KEY}")), Some("app"), Some("api_key"), Some("read"));
    check("/optional", Some(bearer(&alice)), Some("alice"), Some("jwt"), Some("read write"));
    check("/optional", None, None, None, None);
    // Credentials are the backend's matter here.
    check("/open", Some(bearer("whatever")), None, None, None);
    assert_eq!(backend.last().header("authorization"), Some("Bearer whatever"));
    let logged = gateway.log.all().iter().map(ToString::to_string).collect::<String>();
    assert!(!logged.contains(&alice) && !logged.contains(KEY), "credentials are not logged");
}

#[test]
fn who_is_not_is_told_why() {
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, "required_scopes = { POST = [\"write\"], GET = [\"read\"] }", "");
    let check = |path: &str, fields: &[String], status: u16, reason: &str, challenge: &str| {
        let answer = ask(&gateway, path, fields);
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{path} {fields:?}");
        let told = answer.header("www-authenticate").expect("a challenge");
        assert!(told.starts_with("Bearer realm=\"ringway\"") && told.contains(challenge), "{told}");
        assert_eq!(told.contains("error="), challenge.contains("error="), "{told}");
    };
    let good = token("alice", &["read"], now(), SECRET);
    let invalid = "error=\"invalid_token\"";
    check("/closed", &[], 401, "credentials_missing", "");
    check("/closed", &["Authorization: Basic dTpw".into()], 401, "credentials_missing", "");
    check("/closed", &[bearer("a.b.c")], 401, "token_malformed", invalid);
    check("/closed", &[bearer(&token("alice", &[], now() - 1_000, SECRET))], 401, "token_expired", invalid);
    check("/closed", &[bearer(&token("alice", &[], now() + 1_000, SECRET))], 401, "token_not_yet_valid", invalid);
    let stranger = "fedcba9876543210fedcba9876543210";
    check("/closed", &[bearer(&token("alice", &[], now(), stranger))], 401, "token_signature", invalid);
    check("/closed", &["X-API-Key: rw_nobodys-key-at-all".into()], 401, "api_key_unknown", "");
    check("/closed", &["X-API-Key: rw_a-key-that-is-off".into()], 401, "api_key_disabled", "");
    check("/optional", &[bearer("a.b.c")], 401, "token_malformed", invalid);
    let several = "error=\"invalid_request\"";
    check("/closed", &[bearer(&good), bearer(&good)], 400, "credentials_several", several);
    check("/closed", &[bearer(&good), format!("X-API-Key: {KEY}")], 400, "credentials_several", several);
    check("/closed", &["Authorization: Bearer".into()], 400, "credentials_malformed", several);
    let nobody = token("bob", &[], now(), SECRET);
    check("/closed", &[bearer(&nobody)], 403, "insufficient_scope", "error=\"insufficient_scope\"");
    assert_eq!(ask(&gateway, "/closed", &[bearer(&good)]).status, 200);
    let post = gateway.send(format!(
        "POST /closed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\nContent-Length: 0\r\n\r\n",
        bearer(&good)
    ));
    assert_eq!((post.status, post.reason().as_str()), (403, "insufficient_scope"));
    assert_eq!(backend.requests().len(), 1, "nobody else came through");
}

#[test]
fn credentials_stay_here_where_they_are_to() {
    let backend = Backend::answering(OK);
    let gateway = gateway(&backend, "forward_credentials = false", "");
    let alice = token("alice", &[], now(), SECRET);
    assert_eq!(ask(&gateway, "/closed", &[bearer(&alice)]).status, 200);
    assert_eq!(backend.last().header("authorization"), None);
    assert_eq!(ask(&gateway, "/closed", &[format!("X-API-Key: {KEY}")]).status, 200);
    assert_eq!(backend.last().header("x-api-key"), None);
    assert_eq!(ask(&gateway, "/optional", &[bearer(&alice)]).status, 200);
    assert_eq!(backend.last().header("authorization"), Some(bearer(&alice).trim_start_matches("Authorization: ")));
}

/// An issuer: a web server that hands out a document, whatever it is asked.
fn issuer(document: &Arc<Mutex<String>>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!("http://{}/jwks.json", listener.local_addr().expect("bound"));
    let document = Arc::clone(document);
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut request = [0; 2048];
            let _ = connection.read(&mut request);
            let body = document.lock().expect("no panic").clone();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = connection.write_all((head + &body).as_bytes());
        }
    });
    url
}

/// What an issuer signs with.
struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    fn new() -> SigningKey {
        let random = SystemRandom::new();
        let key = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).expect("randomness").as_ref());
        SigningKey(key.expect("a fresh key"))
    }

    fn jwks(&self, kid: &str) -> String {
        let x = BASE64.encode(self.0.public_key().as_ref());
        format!(
            "{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"{kid}\",\"alg\":\"EdDSA\",\"x\":\"{x}\"}}]}}"
        )
    }

    fn sign(&self, kid: &str) -> String {
        let head = BASE64.encode(format!("{{\"alg\":\"EdDSA\",\"typ\":\"JWT\",\"kid\":\"{kid}\"}}"));
        let claims = BASE64.encode(format!("{{\"sub\":\"alice\",\"exp\":{}}}", now() + 600));
        let signature = BASE64.encode(self.0.sign(format!("{head}.{claims}").as_bytes()).as_ref());
        bearer(&format!("{head}.{claims}.{signature}"))
    }
}

#[test]
fn whoever_is_ready_knows_the_issuers_keys() {
    let key = SigningKey::new();
    let document = Arc::new(Mutex::new(key.jwks("one")));
    let url = issuer(&document);
    let backend = Backend::answering(OK);
    // The issuer answers when the lock is free.
    let slow = document.lock().expect("no panic");
    let gateway = std::thread::scope(|scope| {
        let tables = format!(
            "[auth.jwt]\nalgorithms = [\"EdDSA\"]\njwks_url = \"{url}\"\n{}",
            service("closed", &[backend.url()], "auth = \"required\"")
        );
        let gateway = scope.spawn(move || Gateway::start(&tables));
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        assert!(!gateway.is_finished(), "it is ready without them");
        drop(slow);
        gateway.join().expect("it starts")
    });
    assert_eq!(ask(&gateway, "/closed", &[key.sign("one")]).status, 200);
    let stranger = ask(&gateway, "/closed", &[key.sign("two")]);
    assert_eq!((stranger.status, stranger.reason().as_str()), (401, "token_key_unknown"));
}

#[test]
fn an_issuers_keys_are_fetched() {
    let key = SigningKey::new();
    let document = Arc::new(Mutex::new("not yet".to_owned()));
    let url = issuer(&document);
    let backend = Backend::answering(OK);
    let gateway = Gateway::start(&format!(
        "[auth.jwt]\nalgorithms = [\"EdDSA\"]\njwks_url = \"{url}\"\n{}",
        service("closed", &[backend.url()], "auth = \"required\"")
    ));
    // The first document is none: that is said, the gateway is ready in the end, and what cannot be known is not refused.
    gateway.events.wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("cannot be fetched")));
    gateway.events.wait_for(|event| event["message"].as_str().is_some_and(|text| text.contains("ready without")));
    let answer = ask(&gateway, "/closed", &[key.sign("one")]);
    assert_eq!((answer.status, answer.reason().as_str()), (503, "keys_unavailable"));
    assert_eq!((answer.header("retry-after"), answer.header("www-authenticate")), (Some("1"), None));
    *document.lock().expect("no panic") = key.jwks("one");
    until("the key is known", || ask(&gateway, "/closed", &[key.sign("one")]).status == 200);
    assert_eq!(backend.last().header("x-user-id"), Some("alice"));
    *document.lock().expect("no panic") = key.jwks("two");
    // A token with an unknown key brings the next fetch forward.
    until("the new key is known", || ask(&gateway, "/closed", &[key.sign("two")]).status == 200);
}
