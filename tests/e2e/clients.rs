//! Clients and a backend of other makes: what is right by our own reading of the RFCs is right by theirs.

use std::io::Read;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use ringway::demo::{self, Kind};
use serde_json::Value;

use crate::support::{Gateway, pattern};

/// A gateway in front of the demo's backends, which axum and hyper serve.
fn gateway() -> Gateway {
    let backends = demo::start().expect("free ports");
    let tables = demo::config(&backends, &demo::Credentials::new([1; 56], 0), 0);
    let services = tables.split_once("\n[services").expect("services").1;
    Gateway::start(&format!("[services{services}").replace("auth = \"required\"", "auth = \"none\""))
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn curl_understands_everything() {
    let gateway = gateway();
    let url = |path: &str| format!("http://{}{path}", gateway.address);
    let echoed: Value = serde_json::from_str(&curl(&[&url("/api/v1/auth/who?am=i")])).expect("JSON");
    assert_eq!(echoed["path"], "/who?am=i");
    assert_eq!(echoed["headers"]["x-forwarded-host"], gateway.address.to_string());

    let code = ["--output", "/dev/null", "--write-out", "%{http_code} %{num_connects} "];
    let with_code = |more: &[&str]| curl(&[&code, more].concat());
    assert_eq!(with_code(&["--head", &url("/api/v1/auth/x")]), "200 1 ");
    assert_eq!(with_code(&[&url("/nowhere")]), "404 1 ");
    assert_eq!(with_code(&["--http1.0", &url("/api/v1/auth/x")]), "200 1 ");
    let twice = [url("/api/v1/auth/x"), url("/nowhere"), url("/api/v1/auth/y")];
    let twice = curl(&[
        &twice[0],
        "-o",
        "/dev/null",
        &twice[1],
        "-o",
        "/dev/null",
        &twice[2],
        "-o",
        "/dev/null",
        "--write-out",
        "%{num_connects}",
    ]);
    assert_eq!(twice, "100", "one connection serves three requests");
}

#[test]
fn curl_uploads_counted_chunked_and_with_an_expectation() {
    let gateway = gateway();
    let url = format!("http://{}/api/v1/auth/upload", gateway.address);
    let path = std::env::temp_dir().join(format!("ringway-e2e-upload-{}", std::process::id()));
    let body = "0123456789abcdef".repeat(50_000);
    std::fs::write(&path, &body).expect("a file");
    let data = format!("@{}", path.display());
    let ways: [&[&str]; 4] = [
        &["--data-binary", &data],
        &["--data-binary", &data, "--header", "Expect: 100-continue"],
        &["--data-binary", &data, "--header", "Transfer-Encoding: chunked"],
        &["--upload-file", &data[1..], "--header", "Expect:"],
    ];
    for way in ways {
        let echoed: Value = serde_json::from_str(&curl(&[way, &[&url]].concat())).expect("JSON");
        assert!(echoed["body"] == body.as_str(), "{way:?}");
    }
    std::fs::remove_file(path).expect("the file is there");
}

#[test]
fn curl_sees_tokens_as_they_come() {
    let gateway = gateway();
    let mut child = Command::new("curl")
        .args(["--silent", "--no-buffer", "--noproxy", "*", "--max-time", "20"])
        .arg(format!("http://{}/api/v1/llm/stream", gateway.address))
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    let mut stdout = child.stdout.take().expect("piped");
    let mut text = String::new();
    let mut reads = 0;
    loop {
        let mut piece = [0; 4096];
        let read = stdout.read(&mut piece).expect("the pipe");
        if read == 0 {
            break;
        }
        reads += 1;
        text += std::str::from_utf8(&piece[..read]).expect("UTF-8");
    }
    assert!(child.wait().expect("a child").success());
    assert_eq!(text.matches("data: ").count(), 10, "{text}");
    assert!(reads >= 8, "the tokens came in {reads} pieces only");
}

#[test]
fn ureq_understands_everything() {
    let gateway = gateway();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
    let url = |path: &str| format!("http://{}{path}", gateway.address);
    for round in 0..20 {
        let mut sent = agent.post(url("/api/v1/sms/send")).send(format!("{{\"n\":{round}}}")).expect("an answer");
        assert_eq!(sent.status(), 202);
        let sent: Value = serde_json::from_str(&sent.body_mut().read_to_string().expect("text")).expect("JSON");
        assert_eq!(sent["message"]["n"], round);
        let mut refused = agent.get(url("/nowhere")).call().expect("an answer");
        assert_eq!(refused.status(), 404);
        // ureq keeps a connection whose answer was read to its end.
        assert!(refused.body_mut().read_to_string().expect("text").contains("no_route"));
    }
    let accepted: f64 = gateway.metric("api_gateway_connections_accepted_total{worker=\"0\"}");
    assert!(accepted < 10.0, "ureq's connection is kept: {accepted}");
    let mut streamed = agent.get(url("/api/v1/llm/stream")).call().expect("an answer");
    assert!(streamed.body_mut().read_to_string().expect("text").ends_with("data: [DONE]\n\n"));
}

/// Python's own client against Python's own server.
#[test]
fn python_understands_everything() {
    const SERVER: &str = r#"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(body), 1000):
            piece = body[at:at + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;
    const CLIENT: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
body = open(sys.argv[2], "rb").read()
for round in range(5):
    connection.request("POST", "/api/x", body)
    assert connection.getresponse().read() == body
    connection.request("POST", "/api/x", (body[at:at + 777] for at in range(0, len(body), 777)), encode_chunked=True)
    assert connection.getresponse().read() == body
    connection.request("GET", "/nowhere")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["X-Gateway-Error"]) == (404, "no_route")
    assert answer.read()
print("done")
"#;
    let port = crate::support::free_port();
    let mut server = Command::new("python3").args(["-c", SERVER, &port.to_string()]).spawn().expect("python3");
    crate::support::until("the server listens", || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    let gateway = Gateway::start(&crate::support::service("api", &[format!("http://127.0.0.1:{port}")], ""));
    let path = std::env::temp_dir().join(format!("ringway-e2e-python-{}", std::process::id()));
    std::fs::write(&path, pattern(0, 200_000)).expect("a file");
    let output = Command::new("python3")
        .args(["-c", CLIENT, &gateway.address.port().to_string()])
        .arg(&path)
        .output()
        .expect("python3 is installed");
    server.kill().expect("it runs");
    server.wait().expect("a child");
    std::fs::remove_file(path).expect("the file is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_demos_kinds_all_answer() {
    let gateway = gateway();
    for kind in Kind::ALL {
        let answer = gateway.get(&format!("/api/v1/{}/health", kind.name()));
        assert_eq!(answer.status, 200, "{kind:?}");
    }
}
