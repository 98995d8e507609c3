//! The command line: what each command prints, and how it exits.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Backend, Gateway, gateway_to};

fn ringway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

/// A configuration file that is gone with the test.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> File {
        static WRITTEN: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringway-e2e-cli-{}-{}.toml", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a writable folder for temporary files");
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// 32 bytes, as HS256 needs.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

const GOOD: &str = "[services.sms]\nprefix = \"/sms\"\nendpoints = [\"http://127.0.0.1:9001\"]\nauth = \"none\"\n";

#[test]
fn check_accepts_a_good_file_under_each_of_its_names() {
    let file = File::new(GOOD);
    for arguments in [
        &["check", "--config", file.path()][..],
        &["validate", "--config", file.path()],
        &["-t", "--config", file.path()],
    ] {
        let (code, out, err) = run(&mut ringway(arguments));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(out.contains("sms") && out.contains("/sms"), "{out}");
    }
}

#[test]
fn check_accepts_the_shipped_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let check =
        |environment: &[(&str, &str)]| run(ringway(&["check", "--config", path]).envs(environment.iter().copied()));
    let (code, out, err) = check(&[("JWT_SECRET_KEY", SECRET)]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(!out.contains(SECRET), "{out}");
    let (code, _, err) = check(&[]);
    assert_eq!(code, Some(2));
    assert!(err.contains("services.sms.auth") && err.contains("JWT_SECRET_KEY"), "it says what to do: {err}");
    let (code, _, err) = check(&[("JWT_SECRET_KEY", "short-secret")]);
    assert_eq!(code, Some(2));
    assert!(err.contains("needs at least 32") && !err.contains("short-secret"), "a secret is not repeated: {err}");
}

#[test]
fn a_token_is_minted_with_the_configured_secret() {
    let file = File::new("[auth.jwt]\nissuer = \"me\"\naudience = \"ringway\"\n");
    let token = |arguments: &[&str], secret: &str| {
        let all = [&["token", "--config", file.path()], arguments].concat();
        run(ringway(&all).env("JWT_SECRET_KEY", secret))
    };
    let (code, out, err) = token(&["--sub", "alice", "--scope", "a,b", "--exp", "15m"], SECRET);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out.trim_end().split('.').count(), 3, "{out}");
    let (code, _, err) = token(&["--sub", "alice"], "");
    assert_eq!(code, Some(2));
    assert!(err.contains("JWT_SECRET_KEY"), "{err}");
    for bad in [&["--sub", "a b"][..], &["--sub", "alice", "--exp", "soon"], &["--sub", "alice", "--scope", "a b"]] {
        assert_eq!(token(bad, SECRET).0, Some(2), "{bad:?}");
    }
}

#[test]
fn a_key_is_hashed_for_the_configuration() {
    let hash = |key: &str| {
        let mut child = ringway(&["hash-key"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        child.stdin.take().expect("piped").write_all(key.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("a child");
        (output.status.code(), String::from_utf8(output.stdout).expect("ASCII"), output.stderr.is_empty())
    };
    assert_eq!(hash("testpassword"), (Some(2), String::new(), false), "too short");
    let (code, out, quiet) = hash("a-key-of-enough-bytes\n");
    assert_eq!((code, quiet), (Some(0), true));
    assert!(out.starts_with("sha256:") && out.trim_end().len() == "sha256:".len() + 64, "{out}");
    assert_eq!(hash("a-key-of-enough-bytes").1, out, "the line's end is no part of the key");
}

#[test]
fn check_names_every_error_with_its_place_and_range() {
    let file = File::new(
        "[server]\nport = 70000\nworkrs = 2\n\n[timeouts]\nconnect = \"fast\"\n\n\
         [services.sms]\nprefix = \"sms\"\nendpoints = []\nload_balancing = \"best\"\n",
    );
    let (code, out, err) = run(&mut ringway(&["check", "--config", file.path()]));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    for expected in [
        "server.port",
        "70000",
        "65535",
        ":2:",
        "workrs",
        "workers",
        ":3:",
        "timeouts.connect",
        "fast",
        ":6:",
        "services.sms.prefix",
        ":9:",
        "services.sms.endpoints",
        ":10:",
        "load_balancing",
        "best",
        "least_connections",
        ":11:",
    ] {
        assert!(err.contains(expected), "{expected:?} is not in\n{err}");
    }
    let (code, _, err) = run(&mut ringway(&["run", "--config", file.path()]));
    assert_eq!(code, Some(2));
    assert!(err.contains("server.port"), "run refuses it too: {err}");
}

#[test]
fn check_refuses_what_is_not_toml_or_not_there() {
    let file = File::new("[server\nport = 1\n");
    let (code, _, err) = run(&mut ringway(&["check", "--config", file.path()]));
    assert_eq!(code, Some(2), "{err}");
    let (code, _, err) = run(&mut ringway(&["check", "--config", "/no/such/file.toml"]));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("/no/such/file.toml"), "{err}");
}

#[test]
fn the_environment_goes_before_the_file_and_the_command_line_before_both() {
    let file = File::new(&format!("[server]\nport = 1111\n{GOOD}"));
    let check = |command: &mut Command, expected: &str| {
        let (code, out, err) = run(command);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(expected), "{expected} is not in {out}");
    };
    let command = || ringway(&["check", "--config", file.path()]);
    check(&mut command(), "1111");
    check(command().env("PORT", "2222"), "2222");
    check(command().env("RINGWAY_SERVER__PORT", "3333"), "3333");
    check(command().env("PORT", "2222").args(["--port", "4444"]), "4444");
    let (code, _, err) = run(command().env("RINGWAY_SERVER__PROT", "1"));
    assert_eq!(code, Some(2));
    assert!(err.contains("RINGWAY_SERVER__PROT"), "{err}");
}

#[test]
fn version_and_help() {
    let (code, out, _) = run(&mut ringway(&["--version"]));
    assert_eq!(code, Some(0));
    assert!(out.starts_with(&format!("ringway {} (commit ", env!("CARGO_PKG_VERSION"))), "{out}");
    let (code, out, _) = run(&mut ringway(&["--help"]));
    assert_eq!(code, Some(0));
    for command in ["run", "check", "demo", "health", "--config"] {
        assert!(out.contains(command), "{command} is not in {out}");
    }
    for wrong in [&["nonsense"][..], &["--nonsense"], &["run", "--port", "x"]] {
        let (code, _, err) = run(&mut ringway(wrong));
        assert_eq!(code, Some(2), "{wrong:?}: {err}");
    }
}

#[test]
fn an_address_in_use_is_a_failure_that_says_so() {
    let gateway = Gateway::start("");
    let port = gateway.address.port().to_string();
    let (code, _, err) =
        run(ringway(&["run", "--host", "127.0.0.1", "--port", &port]).current_dir(std::env::temp_dir()));
    assert_eq!(code, Some(1));
    assert!(err.contains(&port) && err.contains("PORT"), "{err}");
}

#[test]
fn without_a_file_the_defaults_serve() {
    let mut child = ringway(&["--host", "127.0.0.1", "--port", "0"])
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let listening = lines.find(|line| line.contains("listening"));
    child.kill().expect("it runs");
    child.wait().expect("a child");
    assert!(listening.is_some());
}

#[test]
fn health_tells_by_its_exit_code() {
    let backend = Backend::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    let mut gateway = gateway_to(&backend);
    let health = |path: &str| run(&mut ringway(&["health", "--url", &format!("http://{}{path}", gateway.address)]));
    let (code, out, err) = health("/health");
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("healthy"), "{out}");
    assert_eq!(health("/api").0, Some(1));
    assert_eq!(health("/nowhere").0, Some(1));
    // Without a URL it asks where the environment says that the gateway is.
    let port = gateway.address.port().to_string();
    let (code, _, err) = run(ringway(&["health"]).env("HOST", "0.0.0.0").env("PORT", &port));
    assert_eq!(code, Some(0), "{err}");
    gateway.signal("KILL");
    gateway.wait_exit();
    let url = format!("http://{}/health", gateway.address);
    assert_eq!(run(&mut ringway(&["health", "--url", &url])).0, Some(1));
}

#[test]
fn the_demo_prints_commands_that_work() {
    let mut child = ringway(&["demo", "--port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let commands: Vec<String> = lines
        .by_ref()
        .take_while(|line| !line.contains("Stop with"))
        .filter(|line| line.trim_start().starts_with("curl "))
        .map(|line| line.trim().to_owned())
        .collect();
    std::thread::spawn(move || lines.for_each(drop));
    let outputs: Vec<_> = commands
        .iter()
        .map(|command| {
            let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().expect("a shell");
            assert!(output.status.success(), "{command}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
        .collect();
    child.kill().expect("it runs");
    child.wait().expect("a child");
    assert!(commands.len() >= 5, "{commands:#?}");
    let said = |part: &str, expected: &str| {
        let index = commands.iter().position(|command| command.contains(part)).expect("such a command");
        assert!(outputs[index].contains(expected), "{}: {}", commands[index], outputs[index]);
    };
    said("/api/v1/auth", "HTTP/1.1 200");
    said("/api/v1/sms", "HTTP/1.1 202");
    said("/api/v1/llm", "data: [DONE]");
    said("/health", "\"healthy\"");
    said("/metrics", "api_gateway_requests_total");
}
