//! Which pages may ask: the CORS protocol (Fetch standard, section 3.3), and Private Network Access.
//!
//! The rules are compiled once: what an answer says is rendered ahead, and a request adds a few lines to it. A preflight is
//! answered by the gateway with 204, allowed or not: one that is not allowed simply lacks the fields that would allow it,
//! which is how a browser learns it. `*` never goes together with credentials: where those are allowed, a page is named.
//!
//! `Vary: Origin` is on every answer that depends on the page, on those to requests without an `Origin` too, since caches
//! keep them for everybody.

mod origin;

use crate::http::headers::{list, push_decimal, push_field};
use crate::http::method::Method;
use crate::http::request::CorsFields;

pub use origin::{OriginError, OriginPattern};

/// The longest list of requested header names that is looked at, in bytes.
const REQUEST_HEADERS_MAX: usize = 4_096;

/// `[cors]`, and `[services.<name>.cors]` over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsRules {
    /// The pages that may ask; `None` stands for `*`, every page.
    pub origins: Option<Vec<OriginPattern>>,
    /// The methods, case-sensitive; `*` stands for every method. GET, HEAD and POST always may be.
    pub methods: Vec<String>,
    /// The request header names; `*` stands for every name.
    pub headers: Vec<String>,
    /// The answer's header names that a page may read; `*` stands for every name.
    pub expose: Vec<String>,
    /// Whether pages may send cookies and credentials.
    pub credentials: bool,
    /// How long a browser may remember a preflight, in seconds.
    pub max_age: u32,
    /// Whether pages of public networks may ask.
    pub private_network: bool,
}

/// Rules, compiled.
#[derive(Debug, Clone)]
pub struct Cors {
    rules: CorsRules,
    methods_line: Box<[u8]>,
    headers_line: Box<[u8]>,
    expose_line: Box<[u8]>,
}

/// What a request turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorsVerdict {
    /// A question that the gateway answers itself: 204.
    Preflight,
    /// Anything else: it goes on.
    Actual,
}

impl Cors {
    /// Compiles `rules`, which were validated: names and methods are tokens, and `origins` is not `None` with credentials.
    pub fn new(rules: CorsRules) -> Cors {
        let line = |name: &str, values: &[String]| -> Box<[u8]> {
            let is_any = values.iter().any(|value| value == "*");
            let mut line = Vec::new();
            match (is_any, rules.credentials) {
                _ if values.is_empty() => {}
                (true, false) => push_field(name.as_bytes(), b"*", &mut line),
                // `*` is a name like any other where credentials are allowed: what is asked for is said back instead.
                (true, true) => {}
                (false, _) => push_field(name.as_bytes(), values.join(", ").as_bytes(), &mut line),
            }
            line.into()
        };
        Cors {
            methods_line: line("Access-Control-Allow-Methods", &rules.methods),
            headers_line: line("Access-Control-Allow-Headers", &rules.headers),
            expose_line: line("Access-Control-Expose-Headers", &rules.expose),
            rules,
        }
    }

    /// Appends what the answer to a request with `method` and `fields` says about it, as whole lines.
    pub fn apply(&self, method: Method, fields: &CorsFields<'_>, out: &mut Vec<u8>) -> CorsVerdict {
        let preflight = match (method, fields.origin, fields.request_method) {
            (Method::Options, Some(_), Some(requested)) => Some(requested),
            _ => None,
        };
        let Some(requested) = preflight else {
            if self.depends_on_origin() {
                push_field(b"Vary", b"Origin", out);
            }
            if self.push_origin(fields, out) {
                out.extend_from_slice(&self.expose_line);
            }
            return CorsVerdict::Actual;
        };
        let vary: &[u8] = match self.rules.private_network {
            false => b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
            true => {
                b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
            }
        };
        push_field(b"Vary", vary, out);
        let names = fields.request_headers.unwrap_or_default();
        if self.allows_method(requested) && self.allows_headers(names) && self.push_origin(fields, out) {
            self.push_allowed(requested, names, fields, out);
        }
        CorsVerdict::Preflight
    }

    /// What a preflight that is allowed is told beside the origin.
    fn push_allowed(&self, requested: &[u8], names: &[u8], fields: &CorsFields<'_>, out: &mut Vec<u8>) {
        let reflects = |values: &[String]| self.rules.credentials && has(values, "*");
        if reflects(&self.rules.methods) {
            push_field(b"Access-Control-Allow-Methods", requested, out);
        }
        out.extend_from_slice(&self.methods_line);
        // `*` does not cover Authorization (Fetch standard, section 3.3.3): it has to be named.
        if !names.is_empty() && has(&self.rules.headers, "*") {
            push_field(b"Access-Control-Allow-Headers", names, out);
        } else {
            out.extend_from_slice(&self.headers_line);
        }
        out.extend_from_slice(b"Access-Control-Max-Age: ");
        push_decimal(u64::from(self.rules.max_age), out);
        out.extend_from_slice(b"\r\n");
        if self.rules.private_network && fields.request_private_network == Some(b"true") {
            push_field(b"Access-Control-Allow-Private-Network", b"true", out);
        }
    }

    /// Names the page, if it may ask; whether it may.
    fn push_origin(&self, fields: &CorsFields<'_>, out: &mut Vec<u8>) -> bool {
        let Some(origin) = fields.origin.filter(|_| !fields.repeated) else { return false };
        match &self.rules.origins {
            None => push_field(b"Access-Control-Allow-Origin", b"*", out),
            Some(patterns) if patterns.iter().any(|pattern| pattern.matches(origin)) => {
                push_field(b"Access-Control-Allow-Origin", origin, out);
            }
            Some(_) => return false,
        }
        if self.rules.credentials {
            push_field(b"Access-Control-Allow-Credentials", b"true", out);
        }
        true
    }

    fn depends_on_origin(&self) -> bool {
        self.rules.origins.is_some()
    }

    fn allows_method(&self, requested: &[u8]) -> bool {
        let is_safelisted = matches!(requested, b"GET" | b"HEAD" | b"POST");
        let listed = |method: &String| method.as_bytes() == requested;
        is_safelisted || is_token(requested) && (has(&self.rules.methods, "*") || self.rules.methods.iter().any(listed))
    }

    fn allows_headers(&self, names: &[u8]) -> bool {
        if names.is_empty() {
            return true;
        }
        let any = has(&self.rules.headers, "*");
        let is_listed =
            |name: &[u8]| self.rules.headers.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
        names.len() <= REQUEST_HEADERS_MAX && list(names).all(|name| is_token(name) && (any || is_listed(name)))
    }
}

fn has(values: &[String], wanted: &str) -> bool {
    values.iter().any(|value| value == wanted)
}

/// Whether `text` is a token (RFC 9110, section 5.6.2): a method, or the name of a field.
pub fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_tchar)
}

#[cfg(test)]
mod tests;
