//! Lists of methods and of header names: what is allowed, and the line that says so.

use super::CorsError;
use crate::http::headers::{is_token, list, push_field};
use crate::http::method::Method;

/// The most entries of `allow_methods`, `allow_headers` or `expose_headers`.
pub const LIST_MAX: usize = 100;

/// The longest entry of such a list, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// The longest `Access-Control-Request-Headers` that can be allowed, in bytes; with at most [`LIST_MAX`] names in it.
pub const REQUESTED_BYTES_MAX: usize = 4_096;

/// A list as a field of an answer: which names are in it, and the whole line.
#[derive(Debug)]
pub(super) struct AllowList {
    field: &'static [u8],
    names: Box<[Box<[u8]>]>,
    /// Whether `*` is among them.
    any: bool,
    /// Whether what is asked for is named instead of `*`, which means nothing special once credentials are allowed.
    reflects: bool,
    /// The line that lists the names, without `*` where that one is not sent; empty when there is nothing to list.
    line: Box<[u8]>,
}

impl AllowList {
    /// A list whose entries have been checked.
    fn new(field: &'static [u8], names: &[String], allow_credentials: bool) -> AllowList {
        let any = names.iter().any(|name| name == "*");
        let reflects = any && allow_credentials;
        let listed: Vec<&str> = names.iter().map(String::as_str).filter(|&name| !(reflects && name == "*")).collect();
        let mut line = Vec::new();
        if !listed.is_empty() {
            push_field(field, listed.join(", ").as_bytes(), &mut line);
        }
        let names = names.iter().map(|name| name.as_bytes().into()).collect();
        AllowList { field, names, any, reflects, line: line.into() }
    }

    /// `Access-Control-Allow-Methods`.
    pub(super) fn methods(names: &[String], allow_credentials: bool) -> Result<AllowList, CorsError> {
        const KEY: &str = "allow_methods";
        check_size(KEY, names)?;
        for name in names {
            if !is_name(name.as_bytes()) {
                return Err(CorsError::Method(name.clone()));
            }
            // Browsers bring most methods to upper case, and send the others as the page wrote them: `put` never comes,
            // and `patch` is rather a mistake.
            let upper = name.to_ascii_uppercase();
            if upper != *name && Method::from_bytes(upper.as_bytes()) != Method::Other {
                return Err(CorsError::MethodCase(upper));
            }
        }
        Ok(AllowList::new(b"Access-Control-Allow-Methods", names, allow_credentials))
    }

    /// `Access-Control-Allow-Headers`.
    pub(super) fn headers(names: &[String], allow_credentials: bool) -> Result<AllowList, CorsError> {
        const KEY: &str = "allow_headers";
        check_size(KEY, names)?;
        check_names(KEY, names)?;
        Ok(AllowList::new(b"Access-Control-Allow-Headers", names, allow_credentials))
    }

    /// Appends the line for a preflight that asks for `method`, and tells whether the method is allowed. What is not a
    /// method is answered with no line, so that not even `*` allows it.
    pub(super) fn push_for_method(&self, method: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
        let Some(method) = method.filter(|method| is_name(method)) else { return false };
        if self.reflects {
            push_field(self.field, method, out);
            return true;
        }
        out.extend_from_slice(&self.line);
        // The CORS-safelisted methods need no permission.
        self.any || matches!(method, b"GET" | b"HEAD" | b"POST") || self.names.iter().any(|name| **name == *method)
    }

    /// Appends the line for a preflight that asks for the header names in `requested`, and tells whether all of them are
    /// allowed. What is malformed or too long is answered with no line.
    ///
    /// No name is allowed of itself: a browser asks for `Content-Type` and the like only when the value makes them need a
    /// permission.
    pub(super) fn push_for_headers(&self, requested: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
        let Some(requested) = requested.filter(|requested| is_list(requested)) else { return false };
        let allowed = names(requested).all(|name| self.allows_header(name));
        if !(self.reflects && allowed) {
            out.extend_from_slice(&self.line);
            return allowed;
        }
        let mut before = self.field;
        let mut separator: &[u8] = b": ";
        for name in names(requested) {
            out.extend_from_slice(before);
            out.extend_from_slice(separator);
            out.extend_from_slice(name);
            (before, separator) = (b"", b",");
        }
        if before.is_empty() {
            out.extend_from_slice(b"\r\n");
        }
        true
    }

    fn allows_header(&self, name: &[u8]) -> bool {
        // `*` stands for every name but one, the CORS non-wildcard request-header name.
        (self.any && !name.eq_ignore_ascii_case(b"authorization"))
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The line `Access-Control-Expose-Headers`; empty when `names` is.
pub(super) fn expose_line(names: &[String], allow_credentials: bool) -> Result<Vec<u8>, CorsError> {
    const KEY: &str = "expose_headers";
    check_size(KEY, names)?;
    check_names(KEY, names)?;
    if allow_credentials && names.iter().any(|name| name == "*") {
        return Err(CorsError::ExposeAnyWithCredentials);
    }
    let mut line = Vec::new();
    if !names.is_empty() {
        push_field(b"Access-Control-Expose-Headers", names.join(", ").as_bytes(), &mut line);
    }
    Ok(line)
}

/// The elements of a list; empty ones do not count (RFC 9110, section 5.6.1.2).
fn names(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    list(value).filter(|name| !name.is_empty())
}

/// Header names, within the bounds.
fn is_list(requested: &[u8]) -> bool {
    requested.len() <= REQUESTED_BYTES_MAX
        && names(requested).take(LIST_MAX + 1).count() <= LIST_MAX
        && names(requested).all(is_name)
}

/// A method or a header name: a token (RFC 9110, sections 5.1 and 9.1) of bounded length.
fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(|&byte| is_token(byte))
}

fn check_size(key: &'static str, names: &[String]) -> Result<(), CorsError> {
    if names.len() > LIST_MAX { Err(CorsError::TooMany { key, max: LIST_MAX }) } else { Ok(()) }
}

fn check_names(key: &'static str, names: &[String]) -> Result<(), CorsError> {
    match names.iter().find(|name| !is_name(name.as_bytes())) {
        Some(name) => Err(CorsError::HeaderName { key, name: name.clone() }),
        None => Ok(()),
    }
}
