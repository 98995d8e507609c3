//! Answers that the gateway makes itself: RFC 9457 problem documents, and small JSON bodies.

use super::headers::push_line;
use super::method::{Method, MethodSet};
use super::request::Version;
use super::response::{push_connection, push_status_line};
use super::text::push_decimal;

/// A problem: status, a stable word for machines, a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The status code.
    pub status: u16,
    /// `reason` in the document and `X-Gateway-Error`: lower case, underscores; part of the contract.
    pub reason: &'static str,
    /// What went wrong and what to do about it; tells nothing of the gateway's inside.
    pub detail: &'static str,
    /// What `Allow` lists, with 405.
    pub allow: Option<MethodSet>,
    /// Seconds for `Retry-After`, with 503.
    pub retry_after: Option<u32>,
}

impl Problem {
    /// A problem without further fields.
    pub const fn new(status: u16, reason: &'static str, detail: &'static str) -> Problem {
        Problem { status, reason, detail, allow: None, retry_after: None }
    }

    /// 400 for a head that breaks the rules.
    pub const fn malformed(detail: &'static str) -> Problem {
        Problem::new(400, "malformed_request", detail)
    }

    /// The same, with `Retry-After`.
    #[must_use]
    pub const fn retry_after(self, seconds: u32) -> Problem {
        Problem { retry_after: Some(seconds), ..self }
    }

    /// The same, with `Allow`.
    #[must_use]
    pub const fn allow(self, methods: MethodSet) -> Problem {
        Problem { allow: Some(methods), ..self }
    }
}

/// What an answer of the gateway's own needs to know about the request.
#[derive(Debug)]
pub struct Addressee<'a> {
    /// The request's version; 1.1 where it was not understood.
    pub version: Version,
    /// The request's method: HEAD gets no body.
    pub method: Method,
    /// Whether the connection lives on.
    pub persistent: bool,
    /// `X-Request-Id`.
    pub request_id: &'a [u8],
    /// The target asked for, whose path is shown as `instance`.
    pub target: &'a [u8],
    /// `Date`.
    pub date: &'a [u8; 29],
    /// What else the answer says, as whole lines.
    pub fields: &'a [u8],
}

/// Writes a whole answer with a problem document; says how many bytes of body that has.
pub fn write(problem: &Problem, to: &Addressee<'_>, out: &mut Vec<u8>) -> usize {
    let mut fields = Vec::with_capacity(128);
    push_line(b"X-Gateway-Error: ", problem.reason.as_bytes(), &mut fields);
    if let Some(methods) = problem.allow {
        fields.extend_from_slice(b"Allow: ");
        for (index, method) in methods.named().enumerate() {
            fields.extend_from_slice(if index == 0 { b"" } else { b", " });
            fields.extend_from_slice(method.as_str().as_bytes());
        }
        fields.extend_from_slice(b"\r\n");
    }
    if let Some(seconds) = problem.retry_after {
        fields.extend_from_slice(b"Retry-After: ");
        push_decimal(u64::from(seconds), &mut fields);
        fields.extend_from_slice(b"\r\n");
    }
    let mut body = Vec::with_capacity(512);
    body.extend_from_slice(b"{\"type\":\"urn:ringway:problem:");
    body.extend_from_slice(problem.reason.as_bytes());
    body.extend_from_slice(b"\",\"title\":");
    push_json_string(reason_phrase(problem.status).as_bytes(), &mut body);
    body.extend_from_slice(b",\"status\":");
    push_decimal(u64::from(problem.status), &mut body);
    body.extend_from_slice(b",\"detail\":");
    push_json_string(problem.detail.as_bytes(), &mut body);
    body.extend_from_slice(b",\"instance\":");
    let path = to.target.split(|&byte| byte == b'?').next().unwrap_or_default();
    push_json_string(path, &mut body);
    body.extend_from_slice(b",\"reason\":");
    push_json_string(problem.reason.as_bytes(), &mut body);
    body.extend_from_slice(b",\"request_id\":");
    push_json_string(to.request_id, &mut body);
    body.extend_from_slice(b"}\n");
    write_answer(problem.status, b"application/problem+json", &fields, &body, to, out)
}

/// Writes a whole answer: status line, `fields` (whole lines), the usual fields, body. Says how many bytes of body: none where
/// the method or the status has none.
pub fn write_answer(
    status: u16,
    content_type: &[u8],
    fields: &[u8],
    body: &[u8],
    to: &Addressee<'_>,
    out: &mut Vec<u8>,
) -> usize {
    push_status_line(status, reason_phrase(status), out);
    push_line(b"Date: ", to.date, out);
    push_line(b"Server: ringway\r\nX-Request-Id: ", to.request_id, out);
    out.extend_from_slice(to.fields);
    out.extend_from_slice(fields);
    push_connection(to.version, to.persistent, out);
    if status == 204 {
        out.extend_from_slice(b"\r\n");
        return 0;
    }
    push_line(b"Content-Type: ", content_type, out);
    out.extend_from_slice(b"Cache-Control: no-store\r\nContent-Length: ");
    push_decimal(body.len() as u64, out);
    out.extend_from_slice(b"\r\n\r\n");
    if to.method == Method::Head {
        return 0;
    }
    out.extend_from_slice(body);
    body.len()
}

/// The registered phrase of a status code.
fn reason_phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}

/// Appends `text` as a JSON string; what is not UTF-8 becomes U+FFFD.
pub fn push_json_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                0x00..=0x1f | 0x7f => {
                    let hex = b"0123456789abcdef";
                    let escape = [b'\\', b'u', b'0', b'0', hex[usize::from(byte >> 4)], hex[usize::from(byte & 15)]];
                    out.extend_from_slice(&escape);
                }
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}
