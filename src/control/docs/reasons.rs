//! Every `reason` that an answer of the gateway's own can have, as /docs lists them.

/// A reason, the status that it comes with, and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Reason {
    /// The stable word.
    pub word: &'static str,
    /// The status.
    pub status: u16,
    /// What has happened, and what to do.
    pub meaning: &'static str,
}

const fn reason(status: u16, word: &'static str, meaning: &'static str) -> Reason {
    Reason { word, status, meaning }
}

/// All of them, by status.
pub const REASONS: &[Reason] = &[
    reason(400, "malformed_request", "The request is not valid HTTP/1.1. Use a well-kept client."),
    reason(400, "malformed_body", "The chunked body is malformed. Use a well-kept client."),
    reason(400, "malformed_json", "The body is not the JSON object that is asked for."),
    reason(
        400,
        "ambiguous_path",
        "The path can be read as another service's: send it without empty segments, parameters and encoded slashes.",
    ),
    reason(400, "credentials_several", "More than one credential was sent. Send one."),
    reason(
        400,
        "credentials_malformed",
        "The credential cannot be read: send `Authorization: Bearer …` or `X-API-Key`.",
    ),
    reason(
        401,
        "credentials_missing",
        "The service asks for a credential. Send `Authorization: Bearer …` or `X-API-Key`.",
    ),
    reason(401, "token_malformed", "The token is no JWT."),
    reason(401, "token_algorithm", "The token is signed with an algorithm that is not accepted."),
    reason(401, "token_key_unknown", "The token is signed with a key that is not known."),
    reason(401, "token_signature", "The token's signature is wrong."),
    reason(401, "token_claims", "The token lacks a claim, or has one of the wrong type."),
    reason(401, "token_expired", "The token's time is over. Get another one."),
    reason(401, "token_not_yet_valid", "The token's time has not come. Look at the clocks."),
    reason(401, "token_issuer", "The token is another issuer's."),
    reason(401, "token_audience", "The token is meant for somebody else."),
    reason(401, "api_key_unknown", "Nobody has this API key."),
    reason(401, "api_key_disabled", "The API key is switched off."),
    reason(401, "api_key_expired", "The API key's time is over."),
    reason(401, "admin_key_wrong", "This is not the admin key."),
    reason(
        403,
        "insufficient_scope",
        "The credential is good and does not allow this; `WWW-Authenticate` names the scopes.",
    ),
    reason(403, "admin_key_not_configured", "Nobody may register instances: `admin.key_hash` is not set."),
    reason(404, "no_route", "No service is configured for this path."),
    reason(404, "unknown_service", "There is no service of that name."),
    reason(404, "unknown_instance", "There is no such instance; its time may be over. Register it again."),
    reason(405, "method_not_allowed", "The path does not take this method; see `Allow`."),
    reason(408, "request_timeout", "The request did not arrive in time. Send it again."),
    reason(409, "instances_full", "The service has as many registered instances as there may be."),
    reason(413, "body_too_large", "The body is longer than the service accepts."),
    reason(414, "uri_too_long", "The request target is longer than the service accepts."),
    reason(417, "expectation_failed", "`Expect` asks for something other than `100-continue`."),
    reason(422, "instance_url_malformed", "The instance's URL is none that can be used."),
    reason(
        422,
        "instance_address_forbidden",
        "No backend may be at the instance's address: link-local, metadata, multicast.",
    ),
    reason(422, "instance_is_the_gateway", "The instance's address is the gateway's own: requests would go round."),
    reason(422, "instance_not_allowed", "`discovery.allow` does not name the instance's address."),
    reason(422, "instance_name_unresolved", "The instance's name does not resolve."),
    reason(422, "instance_weight_invalid", "The weight is not between 1 and 1000."),
    reason(422, "instance_ttl_invalid", "The time to live is out of its range."),
    reason(429, "rate_limited", "Too many requests. Wait as long as `Retry-After` says."),
    reason(431, "headers_too_large", "The request's head is larger than the service accepts."),
    reason(501, "unsupported_transfer_coding", "Only `chunked` is understood."),
    reason(502, "upstream_unreachable", "No connection to the service could be made. Try again later."),
    reason(502, "upstream_closed", "The service closed the connection before it answered."),
    reason(502, "upstream_protocol_error", "The service answered with something that is not valid HTTP."),
    reason(503, "no_healthy_endpoint", "No instance of the service is available. Try again later."),
    reason(503, "breaker_open", "The service fails and is given a pause: try again when `Retry-After` is over."),
    reason(503, "overloaded", "Too many requests are under way. Try again later."),
    reason(503, "draining", "The gateway is going down. Send the request again: another one takes it."),
    reason(503, "keys_unavailable", "The token cannot be checked yet: its issuer's keys have not been fetched."),
    reason(
        503,
        "registry_unavailable",
        "The registry cannot be changed now: Redis is away or refuses. Try again later.",
    ),
    reason(503, "dashboard_full", "As many dashboards are open as there may be."),
    reason(504, "upstream_connect_timeout", "The service did not accept a connection in time."),
    reason(504, "upstream_timeout", "The service did not answer in time."),
    reason(505, "version_not_supported", "HTTP/1.0 and HTTP/1.1 are spoken here."),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What stands in quotes in the sources, tests left out.
    fn quoted(folder: &Path, words: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                if !path.ends_with("tests") && !path.ends_with("docs") {
                    quoted(&path, words);
                }
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).expect("text");
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                words.extend(code.split('"').skip(1).step_by(2).map(str::to_owned));
            }
        }
    }

    /// The words of README's table of reasons, which must be there for those who read it.
    fn in_readme() -> BTreeSet<String> {
        let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("text");
        let table = readme.split("| status | `reason` |").nth(1).and_then(|rest| rest.split("\n\n").next());
        let rows = table.expect("the table").lines().filter(|line| !line.contains("log and metrics only"));
        rows.flat_map(|row| row.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
    }

    #[test]
    fn the_list_is_whole() {
        let listed: BTreeSet<String> = REASONS.iter().map(|reason| reason.word.to_owned()).collect();
        assert_eq!(listed.len(), REASONS.len(), "each is there once");
        assert_eq!(listed, in_readme());
        let mut used = BTreeSet::new();
        quoted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut used);
        let unused: Vec<_> = listed.iter().filter(|word| !used.contains(*word)).collect();
        assert!(unused.is_empty(), "no code gives {unused:?}");
    }

    #[test]
    fn no_code_gives_a_reason_that_is_not_listed() {
        // Wherever a problem is made, its word stands in quotes behind its status.
        let mut found = BTreeSet::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("the sources") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|kind| kind == "rs") {
                    let text = fs::read_to_string(&path).expect("text");
                    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                    for place in code.split("Problem::new(").skip(1).chain(code.split("StatusCode::").skip(1)) {
                        let start: String = place.chars().take(90).collect();
                        found.extend(start.split('"').nth(1).filter(|word| word.contains('_')).map(str::to_owned));
                    }
                }
            }
        }
        assert!(found.len() > 25, "{found:?}");
        let is_word = |word: &&String| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let unlisted: Vec<_> =
            found.iter().filter(is_word).filter(|word| !REASONS.iter().any(|reason| reason.word == **word)).collect();
        assert!(unlisted.is_empty(), "{unlisted:?}");
    }
}
