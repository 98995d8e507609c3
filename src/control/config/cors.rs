//! `[cors]`, and `[services.<name>.cors]` over it.

use std::time::Duration;

use crate::policy::cors::{Cors, CorsRules, LIST_MAX, MAX_AGE_MAX, ORIGINS_MAX, OriginPattern};

use super::read::Section;
use super::value::Node;

const MAX_AGE_LONGEST: Duration = Duration::from_secs(MAX_AGE_MAX as u64);

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
            allow_origins: Vec::new(),
            allow_methods: texts(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            allow_headers: texts(&["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"]),
            expose_headers: texts(&[
                "X-Request-Id",
                "X-Gateway-Error",
                "Retry-After",
                "X-RateLimit-Limit",
                "X-RateLimit-Remaining",
                "X-RateLimit-Reset",
            ]),
            allow_credentials: false,
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
            allow_origins: origins(section).unwrap_or_else(|| known.allow_origins.clone()),
            allow_methods: names(section, "allow_methods").unwrap_or_else(|| known.allow_methods.clone()),
            allow_headers: names(section, "allow_headers").unwrap_or_else(|| known.allow_headers.clone()),
            expose_headers: names(section, "expose_headers").unwrap_or_else(|| known.expose_headers.clone()),
            allow_credentials: section.read("allow_credentials", known.allow_credentials, Node::boolean),
            max_age: section
                .read("max_age", Duration::from_secs(known.max_age.into()), |node| {
                    node.duration(Duration::ZERO..=MAX_AGE_LONGEST)
                })
                .as_secs() as u32,
            private_network: section.read("private_network", known.private_network, Node::boolean),
        },
    };
    check(section, &settings);
    settings
}

/// Notes what is wrong with the rules as a whole, at the key that is to be changed or, where that was inherited, at another
/// that the table has. Where it has none of them, the fault is noted where it was inherited from.
fn check(section: Section<'_>, settings: &CorsSettings) {
    let reject = |keys: &[&str], problem: &str| {
        if let Some((key, node)) = keys.iter().find_map(|key| Some((key, section.node(key)?))) {
            section.errors.reject(&section.path(key), node, problem);
        }
    };
    if let Err(error) = Cors::new(&settings.rules) {
        reject(&[error.key(), "allow_credentials", "allow_origins"], &error.to_string());
    }
    // Origins that were written and refused are errors of their own already.
    let has_refused = |node: &Node| node.list().is_ok_and(|origins| !origins.is_empty());
    let are_refused = section.node("allow_origins").is_some_and(has_refused);
    if settings.enabled && settings.rules.allow_origins.is_empty() && !are_refused {
        let problem = "needs allow_origins, the pages that may ask: [\"https://app.example.com\"], or [\"*\"]";
        reject(&["enabled", "allow_origins"], problem);
    }
}

fn origins(section: Section<'_>) -> Option<Vec<OriginPattern>> {
    let entries = section.list("allow_origins", 0..=ORIGINS_MAX, |node| {
        OriginPattern::parse(node.text()?).map_err(|error| error.to_string())
    })?;
    Some(entries.into_iter().map(|(pattern, _)| pattern).collect())
}

fn names(section: Section<'_>, key: &str) -> Option<Vec<String>> {
    let entries = section.list(key, 0..=LIST_MAX, |node| node.text().map(str::to_owned))?;
    Some(entries.into_iter().map(|(name, _)| name).collect())
}
