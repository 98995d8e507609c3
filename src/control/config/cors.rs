//! `[cors]`, and `[services.<name>.cors]` over it.

use std::time::Duration;

use crate::policy::cors::{CorsRules, OriginPattern, is_token};

use super::read::Section;
use super::value::Node;

const DAY: Duration = Duration::from_secs(86_400);

/// The most entries of a list.
const ENTRIES_MAX: usize = 256;

/// `[cors]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsSettings {
    /// Off: CORS is the backend's own matter.
    pub enabled: bool,
    /// The rules that hold where it is on.
    pub rules: CorsRules,
}

/// What holds where nothing is set.
pub(super) fn defaults() -> CorsSettings {
    let texts = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    CorsSettings {
        enabled: false,
        rules: CorsRules {
            origins: Some(Vec::new()),
            methods: texts(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            headers: texts(&["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"]),
            expose: texts(&[
                "X-Request-Id",
                "X-Gateway-Error",
                "Retry-After",
                "X-RateLimit-Limit",
                "X-RateLimit-Remaining",
                "X-RateLimit-Reset",
            ]),
            credentials: false,
            max_age: 600,
            private_network: false,
        },
    }
}

/// The table over `base`.
pub(super) fn cors(section: Section<'_>, base: &CorsSettings) -> CorsSettings {
    let known = &base.rules;
    let settings = CorsSettings {
        enabled: section.read("enabled", base.enabled, Node::boolean),
        rules: CorsRules {
            origins: origins(section).unwrap_or_else(|| known.origins.clone()),
            methods: tokens(section, "allow_methods").unwrap_or_else(|| known.methods.clone()),
            headers: tokens(section, "allow_headers").unwrap_or_else(|| known.headers.clone()),
            expose: tokens(section, "expose_headers").unwrap_or_else(|| known.expose.clone()),
            credentials: section.read("allow_credentials", known.credentials, Node::boolean),
            max_age: section
                .read("max_age", Duration::from_secs(known.max_age.into()), |node| node.duration(Duration::ZERO..=DAY))
                .as_secs() as u32,
            private_network: section.read("private_network", known.private_network, Node::boolean),
        },
    };
    check(section, &settings);
    settings
}

fn check(section: Section<'_>, settings: &CorsSettings) {
    let reject = |key: &str, problem: &str| {
        if let Some(node) = ["enabled", "allow_origins", "allow_credentials"].iter().find_map(|key| section.node(key)) {
            let node = section.node(key).unwrap_or(node);
            section.errors.reject(&section.path(key), node, problem);
        }
    };
    let rules = &settings.rules;
    if rules.credentials && rules.origins.is_none() {
        reject("allow_credentials", "every page (\"*\" in allow_origins) must not get credentials; name the pages");
    }
    if settings.enabled && rules.origins.as_ref().is_some_and(Vec::is_empty) {
        reject("allow_origins", "no page may ask; name some, such as [\"https://app.example.com\"], or [\"*\"]");
    }
}

/// `Some(None)` is `*`; `None` when the key is absent.
fn origins(section: Section<'_>) -> Option<Option<Vec<OriginPattern>>> {
    let entries = section.list("allow_origins", 0..=ENTRIES_MAX, |node| match node.text()? {
        "*" => Ok(None),
        text => OriginPattern::parse(text).map(Some).map_err(|error| error.to_string()),
    })?;
    Some(entries.into_iter().map(|(pattern, _)| pattern).collect())
}

fn tokens(section: Section<'_>, key: &str) -> Option<Vec<String>> {
    let entries = section.list(key, 0..=ENTRIES_MAX, |node| match node.text()? {
        text if is_token(text.as_bytes()) => Ok(text.to_owned()),
        _ => Err("must be a name without spaces, or \"*\"".to_owned()),
    })?;
    Some(entries.into_iter().map(|(entry, _)| entry).collect())
}
