//! `[tracing]`: which requests are traced, and who is told.

use std::time::Duration;

use super::read::Section;
use super::value::Node;
use crate::redis::client::Secret;

/// `[tracing]`
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Whether spans are made at all.
    pub enabled: bool,
    /// The collector's base URL; spans go to `/v1/traces` below it (OTLP over HTTP, protobuf).
    pub endpoint: String,
    /// What `Authorization` says to the collector.
    pub authorization: Option<Secret>,
    /// The share of the traces that begin here which are recorded, 0.0 to 1.0. Those that come with a client are recorded where
    /// it says so.
    pub sample: f64,
    /// What the gateway is called in them.
    pub service_name: String,
    /// How long the collector may take for a batch, 100 ms to 1 min.
    pub timeout: Duration,
}

pub(super) fn tracing(section: Section<'_>) -> Tracing {
    Tracing {
        enabled: section.read("enabled", false, Node::boolean),
        endpoint: section.read("endpoint", "http://127.0.0.1:4318".to_owned(), |node| endpoint(node.text()?)),
        authorization: section.get("authorization", |node| match node.text()? {
            text if !text.is_empty() && reqwest::header::HeaderValue::from_str(text).is_ok() => Ok(Secret::new(text)),
            _ => Err("must be what Authorization says, such as \"Bearer …\"".to_owned()),
        }),
        sample: section.read("sample", 0.01, |node| {
            let share = node.number().filter(|share| (0.0..=1.0).contains(share));
            share.ok_or("must be a number from 0.0 to 1.0".to_owned())
        }),
        service_name: section.read("service_name", "ringway".to_owned(), |node| match node.text()? {
            text if (1..=64).contains(&text.len()) => Ok(text.to_owned()),
            _ => Err("must be a name of 1 to 64 bytes".to_owned()),
        }),
        timeout: section.read("timeout", Duration::from_secs(5), |node| {
            node.duration(Duration::from_millis(100)..=Duration::from_secs(60))
        }),
    }
}

/// Without the slash at its end, which some write.
fn endpoint(text: &str) -> Result<String, String> {
    let text = super::credentials::plain_url(text)?;
    match text.contains('?') {
        true => Err("must not have a query".to_owned()),
        false => Ok(text.trim_end_matches('/').to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn spans_go_where_they_are_wanted() {
        let read = |lines: &str| Config::from_toml(&format!("[tracing]\n{lines}"), "c.toml", &[], &[]);
        let config = read(
            "enabled = true\nendpoint = \"https://otel.example:4318/base/\"\nsample = 1\nauthorization = \"Bearer x\"",
        );
        let tracing = config.expect("good").tracing;
        assert_eq!(
            (tracing.enabled, tracing.endpoint.as_str(), tracing.sample),
            (true, "https://otel.example:4318/base", 1.0)
        );
        assert_eq!(tracing.authorization.map(|secret| secret.expose().to_owned()), Some("Bearer x".to_owned()));
        assert!(!Config::default().tracing.enabled);
        for (lines, expected) in [
            ("sample = 1.5", "0.0 to 1.0"),
            ("endpoint = \"127.0.0.1:4318\"", "must be a URL"),
            ("endpoint = \"http://u:p@a\"", "credentials"),
            ("endpoint = \"http://a?b\"", "query"),
            ("service_name = \"\"", "1 to 64"),
            ("timeout = \"1ms\"", "100ms"),
            ("authorization = \"a\\nb: c\"", "Bearer"),
            ("sampel = 1", "sample"),
        ] {
            let problem = read(lines).expect_err(lines).to_string();
            assert!(problem.contains(expected), "{lines}: {problem}");
        }
        let problem = read("authorization = \"hush\\n\"").expect_err("a line break").to_string();
        assert!(!problem.contains("hush"), "{problem}");
    }
}
