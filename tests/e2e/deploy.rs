//! What lies under deploy/: alerts that fire when they should, a dashboard that asks for what there is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::prometheus::Prometheus;
use crate::support::{Backend, Gateway, service, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).expect("a file of the project")
}

/// The names of metrics in a text, without what histograms add to theirs.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("api_gateway_") || word.starts_with("process_"));
    let parts = ["_bucket", "_count", "_sum"];
    names.map(|name| parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()).collect()
}

/// The expressions of a Grafana dashboard, with its variables filled in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let fill = |expr: &str| {
        let variables = [("$__rate_interval", "1m"), ("$job", ".*"), ("$instance", ".*"), ("$service", ".*")];
        variables.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value))
    };
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let annotations = dashboard["annotations"]["list"].as_array().expect("annotations").iter();
    targets.chain(annotations).map(|asked| fill(asked["expr"].as_str().expect("an expression"))).collect()
}

#[test]
fn alerts_do_what_they_say() {
    for arguments in [["check", "rules", "ringway.rules.yml"], ["test", "rules", "ringway.rules.test.yml"]] {
        let output =
            Command::new("promtool").args(arguments).current_dir(deploy("prometheus")).output().expect("promtool");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn alerts_and_dashboard_ask_for_what_there_is() {
    let backend = Backend::answering(OK);
    let health = "[health]\nenabled = true\n";
    let limits = "rate_limit = { enabled = true, requests = 2, window = \"1h\" }";
    let gateway = Gateway::start(&(service("api", &[backend.url()], limits) + health));
    until("a request is refused", || gateway.get("/api").status == 429);
    gateway.get("/metrics");
    until("the endpoint is checked", || gateway.get("/metrics").text().contains("api_gateway_endpoint_healthy{"));
    let text = gateway.get("/metrics").text();
    let there: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in ["prometheus/ringway.rules.yml", "prometheus/ringway.rules.test.yml", "grafana/ringway.json"] {
        let asked = metrics_in(&read(name));
        assert!(asked.len() > 3, "{name}: {asked:?}");
        let missing: Vec<_> = asked.iter().filter(|metric| !there.contains(metric.as_str())).collect();
        assert!(missing.is_empty(), "{name} asks for {missing:?}");
    }

    let dashboard: Value = serde_json::from_str(&read("grafana/ringway.json")).expect("JSON");
    let prometheus = Prometheus::scraping(gateway.address);
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 30);
    for expression in &expressions {
        assert!(prometheus.understands(expression), "{expression}");
    }
    assert!(!prometheus.understands("rate(("), "it would say so");
    // Labels that the dashboard selects by are there, as Prometheus calls them.
    let breakers = "count(api_gateway_circuit_breaker_state{service=\"api\", exported_instance!=\"\"})";
    until("the breakers are there", || prometheus.query(breakers) == Some(1.0));
}
