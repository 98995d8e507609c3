//! No spelling of a path reaches a service under another one's name.

use crate::support::{Backend, Gateway, service};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What becomes of a path.
enum Fate {
    /// `sms` gets this target.
    Sms(&'static str),
    /// `llm` gets this target, as its own.
    Llm(&'static str),
    /// The gateway answers with this status.
    Refused(u16),
}

#[test]
fn dot_segments_and_escapes_cannot_cross_from_one_service_to_another() {
    let (sms, llm) = (Backend::answering(OK), Backend::answering(OK));
    let tables = service("sms", &[sms.url()], "methods = [\"GET\"]") + &service("llm", &[llm.url()], "");
    let gateway = Gateway::start(&tables);
    let mut checked = 0;
    let mut check = |target: &str, fate: Fate| {
        let seen = (sms.requests().len(), llm.requests().len());
        checked += 1;
        let id = format!("path-{checked}");
        let answer = gateway
            .send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n"));
        let (name, backend, status, expected) = match fate {
            Fate::Sms(expected) => ("sms", Some(&sms), 200, expected),
            Fate::Llm(expected) => ("llm", Some(&llm), 200, expected),
            Fate::Refused(status) => ("", None, status, ""),
        };
        assert_eq!(answer.status, status, "{target}");
        let now = (sms.requests().len(), llm.requests().len());
        assert_eq!(now.0 + now.1, seen.0 + seen.1 + usize::from(backend.is_some()), "{target}");
        if let Some(backend) = backend {
            assert_eq!(backend.last().line(), format!("GET {expected} HTTP/1.1"), "{target}");
            assert_eq!(gateway.logged(&id)["service"], name, "{target}");
        }
    };
    check("/sms/../llm/x", Fate::Llm("/x"));
    check("/sms/%2e%2e/llm/x", Fate::Llm("/x"));
    check("/sms/.%2E/llm", Fate::Llm("/"));
    check("/sms/a/../../llm/./x", Fate::Llm("/x"));
    check("/llm/../sms/x/..", Fate::Sms("/"));
    check("/sms/a/../b", Fate::Sms("/b"));
    check("/sms/%2e/b", Fate::Sms("/b"));
    check("/%73ms/x", Fate::Sms("/x"));
    check("/sms/%252e%252e/llm", Fate::Sms("/%252e%252e/llm"));
    check("/sms/a%2fb", Fate::Sms("/a%2Fb"));
    check("/sms/...", Fate::Sms("/..."));
    check("/sms//llm", Fate::Sms("/llm"));
    check("/sms?/../llm", Fate::Sms("/?/../llm"));
    check("/sms%2f..%2fllm", Fate::Refused(400));
    check("/sms/..%2fllm", Fate::Refused(400));
    check("/sms/%2e%2e%2fllm", Fate::Refused(400));
    check("/sms/..%5cllm", Fate::Refused(400));
    check("/sms/..;/llm", Fate::Refused(400));
    check("/sms/..\\llm", Fate::Refused(400));
    check("/sms/%00", Fate::Refused(400));
    check("/sms/%0d%0aX:y", Fate::Refused(400));
    check("/sms/%zz", Fate::Refused(400));
    check("/sms/#frag", Fate::Refused(400));
    check("/../sms", Fate::Refused(400));
    check("/sms/../..", Fate::Refused(400));
    check("/sms%2fx", Fate::Refused(404));
    check("//sms", Fate::Refused(404));
    check("/smsx/../llmx", Fate::Refused(404));
    check("http://a/sms/../llm/y", Fate::Llm("/y"));
    check("http://a@b/sms", Fate::Refused(400));
    check("ftp://a/sms", Fate::Refused(400));
    check("sms", Fate::Refused(400));
    check("*", Fate::Refused(400));
}

#[test]
fn no_spelling_of_a_nested_service_goes_round_its_policy() {
    let (site, admin) = (Backend::answering(OK), Backend::answering(OK));
    let secret = "[auth.jwt]\nsecret = \"a secret of at least thirty-two bytes\"\n";
    let nested = |prefix: &str| {
        service("site", &[site.url()], "").replace("\"/site\"", "\"/\"")
            + &service("admin", &[admin.url()], "auth = \"required\"").replace("\"/admin\"", &format!("\"{prefix}\""))
    };
    let gateway = Gateway::start(&(secret.to_owned() + &nested("/admin")));
    let check = |target: &str, status: u16, reason: Option<&str>| {
        let seen = site.requests().len();
        let answer = gateway.get(target);
        assert_eq!((answer.status, answer.header("x-gateway-error")), (status, reason), "{target}");
        assert_eq!(site.requests().len(), seen + usize::from(status == 200), "{target}");
    };
    for target in [
        "//admin",
        "/admin;x=1",
        "/;/admin",
        "/admin%2f",
        "/%2fadmin",
        "/admin%20",
        "/admin.",
        "/%5cadmin",
        "/a;/..//admin",
        "/admin%3bx",
        "//admin/users",
        "/admin%2fusers",
    ] {
        check(target, 400, Some("ambiguous_path"));
    }
    check("/admin", 401, Some("credentials_missing"));
    check("/admin//users;x=1", 401, Some("credentials_missing"));
    for target in ["/", "//", "/a;x=1", "/a%2fb", "/a//b", "/b%20", "/administration;x", "/a//admin", "/a%20b/c."] {
        check(target, 200, None);
    }
    assert!(admin.requests().is_empty());
}
