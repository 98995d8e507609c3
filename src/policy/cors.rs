//! CORS: which pages may read an answer (Fetch standard, "CORS protocol"; Private Network Access for local networks).
//!
//! A [`Cors`] is built once per snapshot, with every line of an answer rendered in advance. For each request,
//! [`Cors::render`] appends the lines that any answer to it needs, whoever makes it, and tells how to go on:
//!
//! - [`CorsVerdict::Preflight`] is answered 204 with these lines and nothing else, and never forwarded.
//! - All others go on as usual, also from a refused origin: CORS keeps a page from reading an answer, it keeps no one from
//!   asking. The lines go with whatever answer follows, a 401 or 429 too, in place of the upstream's own
//!   ([`is_cors_response_header`]).
//!
//! What is refused, and how:
//!
//! - Refused origin: no `Access-Control-*` line at all. Refused method, header or private network: the lines say what is
//!   allowed, and the browser compares; so its console names what is missing instead of blaming the origin.
//! - A refused preflight is a 204 as well. A page sees the same network error with any status, but browsers explain a
//!   refusal only where the status is a good one, and to ask is no error. The verdict carries the reason, for the log.
//! - `Vary: Origin` is on every answer that another origin would get otherwise, those without an `Origin` too: a cache
//!   would hand them to a page. With `allow_origins = ["*"]` nothing depends on the origin, and every answer says `*`.
//!
//! Nothing that a client sent is repeated unless it was found in a list or is a token, so that no line can be forged.
//! Rendering into a buffer that is large enough allocates nothing.

mod list;
mod origin;
mod origin_set;

use list::{AllowList, expose_line};
pub use list::{LIST_MAX, NAME_BYTES_MAX, REQUESTED_BYTES_MAX};
pub use origin::{ORIGIN_BYTES_MAX, OriginError, OriginPattern};
use origin_set::Origins;

use crate::http::headers::push_field;
use crate::http::method::Method;
use crate::http::text::push_decimal;

/// The most entries of `allow_origins`.
pub const ORIGINS_MAX: usize = 1_000;

/// The highest `max_age`, in seconds: no browser remembers a preflight for longer.
pub const MAX_AGE_MAX: u32 = 86_400;

/// `[cors]`, and `[services.<name>.cors]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsRules {
    /// Whose pages may read answers; at most [`ORIGINS_MAX`]. Empty: nobody's.
    pub allow_origins: Vec<OriginPattern>,
    /// Methods, case-sensitive, or `*`; at most [`LIST_MAX`]. GET, HEAD and POST are allowed without being listed.
    pub allow_methods: Vec<String>,
    /// Names of request headers, or `*`, which stands for all but `Authorization`; at most [`LIST_MAX`].
    pub allow_headers: Vec<String>,
    /// Names of response headers that pages may read beyond the safelisted ones, or `*`; at most [`LIST_MAX`].
    pub expose_headers: Vec<String>,
    /// Whether pages may send cookies and the like, and read the answers to such requests.
    pub allow_credentials: bool,
    /// How long browsers may remember a preflight, in seconds, 0 to [`MAX_AGE_MAX`].
    pub max_age: u32,
    /// Whether pages from public addresses may ask a gateway on a private one (Private Network Access).
    pub private_network: bool,
}

/// Why rules are refused; the text is about the value of [`CorsError::key`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CorsError {
    #[error("must not have \"*\" while allow_credentials = true: browsers would refuse every answer; list the origins")]
    AnyOriginWithCredentials,
    #[error(
        "must not have \"*\" while allow_credentials = true: browsers take it for a header's name then; list the names"
    )]
    ExposeAnyWithCredentials,
    #[error("must have at most {max} entries")]
    TooMany { key: &'static str, max: usize },
    #[error("must have methods such as \"PUT\", at most {NAME_BYTES_MAX} bytes long, or \"*\"; {0:?} is none")]
    Method(String),
    #[error("must have methods in upper case, since they are case-sensitive: write \"{0}\"")]
    MethodCase(String),
    #[error(
        "must have header names such as \"Content-Type\", at most {NAME_BYTES_MAX} bytes long, or \"*\"; {name:?} is none"
    )]
    HeaderName { key: &'static str, name: String },
    #[error("must be from 0 to {MAX_AGE_MAX} seconds: no browser remembers a preflight for longer")]
    MaxAge,
}

impl CorsError {
    /// The key of the `cors` table that is to be changed.
    pub fn key(&self) -> &'static str {
        match self {
            CorsError::AnyOriginWithCredentials => "allow_origins",
            CorsError::ExposeAnyWithCredentials => "expose_headers",
            CorsError::Method(_) | CorsError::MethodCase(_) => "allow_methods",
            CorsError::TooMany { key, .. } | CorsError::HeaderName { key, .. } => key,
            CorsError::MaxAge => "max_age",
        }
    }
}

/// The lines of one request's field of which a browser sends one at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Line<'a> {
    /// None.
    #[default]
    Absent,
    /// One, with this value.
    One(&'a [u8]),
    /// Several: no browser did that, and none of them counts.
    Several,
}

impl<'a> Line<'a> {
    fn note(&mut self, value: &'a [u8]) {
        *self = if *self == Line::Absent { Line::One(value.trim_ascii()) } else { Line::Several };
    }

    fn value(self) -> Option<&'a [u8]> {
        if let Line::One(value) = self { Some(value) } else { None }
    }
}

/// What a request says about CORS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CorsRequest<'a> {
    /// Whether the method is OPTIONS.
    pub is_options: bool,
    /// `Origin`.
    pub origin: Line<'a>,
    /// `Access-Control-Request-Method`; read with OPTIONS only, as what follows.
    pub method: Line<'a>,
    /// `Access-Control-Request-Headers`.
    pub headers: Line<'a>,
    /// `Access-Control-Request-Private-Network: true`.
    pub private_network: bool,
}

impl<'a> CorsRequest<'a> {
    /// Picks CORS's own out of a request's fields, each a name and a value.
    pub fn read(method: Method, fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> CorsRequest<'a> {
        let mut request = CorsRequest { is_options: method == Method::Options, ..CorsRequest::default() };
        for (name, value) in fields {
            let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
            match name.len() {
                6 if is(b"origin") => request.origin.note(value),
                29 if request.is_options && is(b"access-control-request-method") => request.method.note(value),
                30 if request.is_options && is(b"access-control-request-headers") => request.headers.note(value),
                38 if request.is_options && is(b"access-control-request-private-network") => {
                    request.private_network |= value.trim_ascii() == b"true";
                }
                _ => {}
            }
        }
        request
    }

    /// Whether it is a preflight (Fetch standard, "CORS-preflight request"). Without `Origin` or
    /// `Access-Control-Request-Method`, OPTIONS is a method like others.
    pub fn is_preflight(&self) -> bool {
        self.is_options && self.origin != Line::Absent && self.method != Line::Absent
    }
}

/// What [`Cors::render`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorsVerdict {
    /// No page of another origin asks. Goes on, with the lines rendered.
    NotCors,
    /// A page asks. Goes on, with the lines rendered.
    Actual {
        /// Whether the page will get to read the answer.
        allowed: bool,
    },
    /// A browser asks what a page may do. Answered 204 with the lines rendered, either way; never forwarded.
    Preflight(Result<(), CorsRefusal>),
}

/// Why a browser will not let a page go on after a preflight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorsRefusal {
    /// The origin is not allowed, or several were sent.
    Origin,
    /// The method is not allowed, or not well-formed.
    Method,
    /// A header is not allowed or not well-formed, or the list of them is longer than [`REQUESTED_BYTES_MAX`] or
    /// [`LIST_MAX`].
    Headers,
    /// The page is in another network, and `private_network` is off.
    PrivateNetwork,
}

impl CorsRefusal {
    /// A stable word for it, for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            CorsRefusal::Origin => "cors_origin",
            CorsRefusal::Method => "cors_method",
            CorsRefusal::Headers => "cors_headers",
            CorsRefusal::PrivateNetwork => "cors_private_network",
        }
    }
}

/// Rules made ready for requests.
#[derive(Debug)]
pub struct Cors {
    origins: Origins,
    methods: AllowList,
    headers: AllowList,
    private_network: bool,
    /// Behind `Access-Control-Allow-Origin`, on answers other than a preflight's.
    actual_lines: Box<[u8]>,
    /// The same on a preflight's, before the lists.
    preflight_lines: Box<[u8]>,
    vary: &'static [u8],
    vary_options: &'static [u8],
}

impl Cors {
    /// Checks the rules and renders what does not depend on a request.
    ///
    /// # Errors
    /// See [`CorsError`].
    pub fn new(rules: &CorsRules) -> Result<Cors, CorsError> {
        let origins = Origins::new(&rules.allow_origins);
        if rules.allow_origins.len() > ORIGINS_MAX {
            return Err(CorsError::TooMany { key: "allow_origins", max: ORIGINS_MAX });
        }
        if rules.allow_credentials && origins.is_any() {
            return Err(CorsError::AnyOriginWithCredentials);
        }
        if rules.max_age > MAX_AGE_MAX {
            return Err(CorsError::MaxAge);
        }
        let credentials: &[u8] =
            if rules.allow_credentials { b"Access-Control-Allow-Credentials: true\r\n" } else { b"" };
        let mut preflight_lines = credentials.to_vec();
        preflight_lines.extend_from_slice(b"Access-Control-Max-Age: ");
        push_decimal(u64::from(rules.max_age), &mut preflight_lines);
        preflight_lines.extend_from_slice(b"\r\n");
        let exposed = expose_line(&rules.expose_headers, rules.allow_credentials)?;
        Ok(Cors {
            methods: AllowList::methods(&rules.allow_methods, rules.allow_credentials)?,
            headers: AllowList::headers(&rules.allow_headers, rules.allow_credentials)?,
            private_network: rules.private_network,
            actual_lines: [credentials, &exposed].concat().into(),
            preflight_lines: preflight_lines.into(),
            vary: if origins.is_any() { b"" } else { b"Vary: Origin\r\n" },
            // An OPTIONS that is no preflight is answered by someone else: what makes one is part of the key as well.
            vary_options: match rules.private_network {
                false => b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n",
                true => {
                    b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                      Access-Control-Request-Private-Network\r\n"
                }
            },
            origins,
        })
    }

    /// Appends to `out` the lines that every answer to `request` carries, each with its line end, and tells how the request
    /// goes on. Nothing is appended but whole lines named `Access-Control-*` and one `Vary`, to be sent beside an
    /// upstream's own.
    pub fn render(&self, request: &CorsRequest<'_>, out: &mut Vec<u8>) -> CorsVerdict {
        out.extend_from_slice(if request.is_options { self.vary_options } else { self.vary });
        let allowed = self.push_allow_origin(request.origin, out);
        if request.is_preflight() {
            let refused_origin = Err(CorsRefusal::Origin);
            return CorsVerdict::Preflight(if allowed { self.push_preflight(request, out) } else { refused_origin });
        }
        if allowed {
            out.extend_from_slice(&self.actual_lines);
        }
        match request.origin {
            Line::Absent => CorsVerdict::NotCors,
            Line::One(_) | Line::Several => CorsVerdict::Actual { allowed },
        }
    }

    /// Whether the answer may be read, as its first line says then.
    fn push_allow_origin(&self, origin: Line<'_>, out: &mut Vec<u8>) -> bool {
        const NAME: &[u8] = b"Access-Control-Allow-Origin";
        if self.origins.is_any() {
            // Whatever came: were it looked at, then a cache could be filled with answers that lack the line.
            push_field(NAME, b"*", out);
            return true;
        }
        match origin.value().filter(|origin| self.origins.contains(origin)) {
            Some(origin) => {
                push_field(NAME, origin, out);
                true
            }
            None => false,
        }
    }

    fn push_preflight(&self, request: &CorsRequest<'_>, out: &mut Vec<u8>) -> Result<(), CorsRefusal> {
        out.extend_from_slice(&self.preflight_lines);
        let method_allowed = self.methods.push_for_method(request.method.value(), out);
        let headers_allowed = match request.headers {
            Line::Absent => self.headers.push_for_headers(Some(b""), out),
            names => self.headers.push_for_headers(names.value(), out),
        };
        if request.private_network && self.private_network {
            out.extend_from_slice(b"Access-Control-Allow-Private-Network: true\r\n");
        }
        match (method_allowed, headers_allowed) {
            (false, _) => Err(CorsRefusal::Method),
            (true, false) => Err(CorsRefusal::Headers),
            (true, true) if request.private_network && !self.private_network => Err(CorsRefusal::PrivateNetwork),
            (true, true) => Ok(()),
        }
    }
}

/// Whether a response header belongs to CORS, so that the gateway's own lines take the place of an upstream's.
pub fn is_cors_response_header(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"access-control-";
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

#[cfg(test)]
mod tests;
