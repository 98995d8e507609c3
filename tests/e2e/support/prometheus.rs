//! What reads metrics for a living: Prometheus, its linter, and the strict parser of its Python library.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::{Client, free_port, until};

/// A server that scrapes one target each second; ended when dropped.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Prometheus {
    /// A server that has scraped `target` once already.
    pub fn scraping(target: SocketAddr) -> Prometheus {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("ringway-prometheus-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: ringway, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(&config, text).expect("a file");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed");
        let prometheus = Prometheus { child, address, folder };
        until("prometheus has scraped", || prometheus.query("up").is_some_and(|up| up == 1.0));
        prometheus
    }

    /// The value of an expression that has one.
    pub fn query(&self, expression: &str) -> Option<f64> {
        let answer = self.get(&format!("/api/v1/query?query={}", percent_encoded(expression)))?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// Whether an expression is one.
    pub fn understands(&self, expression: &str) -> bool {
        let answer = self.get(&format!("/api/v1/query?query={}", percent_encoded(expression))).expect("an answer");
        answer["status"] == "success"
    }

    /// The exemplars of a series, of the last hour.
    pub fn exemplars(&self, series: &str) -> Vec<Value> {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        let (from, to) = (now - 3_600, now + 60);
        let path = format!("/api/v1/query_exemplars?query={}&start={from}&end={to}", percent_encoded(series));
        let answer = self.get(&path).expect("an answer");
        answer["data"][0]["exemplars"].as_array().cloned().unwrap_or_default()
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut client = Client::from(std::net::TcpStream::connect(self.address).ok()?);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        serde_json::from_slice(&client.response().body).ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Ended already, if it never started.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The Python that `tests/run` has given the packages of tests/requirements.txt.
pub const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");

/// What a command says about `text`, given to it on standard input: nothing where it is content.
pub fn complaints(command: &[&str], text: &str) -> String {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    // One that stops reading says why.
    let _ = child.stdin.take().expect("piped").write_all(text.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let mut said = String::from_utf8_lossy(&said).into_owned();
    if !output.status.success() {
        said += &format!("\n{}", output.status);
    }
    said
}
