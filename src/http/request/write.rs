//! The head that goes upstream.

use std::net::IpAddr;

use super::{RequestHead, Version};
use crate::http::body::Framing;
use crate::http::headers::{self, FieldCopier, Name, push_line};
use crate::http::method::Method;
use crate::http::text::{push_address, push_decimal};

/// What the gateway says to the upstream beyond what the client said.
#[derive(Debug)]
pub struct Forwarding<'a> {
    /// The path to ask for: normalised, the prefix cut off.
    pub path: &'a [u8],
    /// The endpoint's `Host`.
    pub authority: &'a str,
    /// The peer that sent the request; `None` for a Unix socket.
    pub peer: Option<IpAddr>,
    /// Whether the peer's own `X-Forwarded-*` fields are believed and extended, or dropped and replaced.
    pub peer_is_trusted: bool,
    /// `X-Request-Id`.
    pub request_id: &'a [u8],
    /// `traceparent`.
    pub traceparent: &'a [u8],
    /// Who the client is, as whole lines: empty for one that nobody has verified.
    pub identity: &'a [u8],
    /// Whether the client's credentials go on to the upstream.
    pub with_credentials: bool,
    /// Whether `Forwarded` (RFC 7239) is written beside `X-Forwarded-*`.
    pub with_forwarded: bool,
}

/// Gives a head that [`write()`] wrote another `Host`.
pub fn replace_host(out: &mut Vec<u8>, authority: &[u8]) {
    // It is the line behind the first one.
    let mut lines = memchr::memchr_iter(b'\n', out);
    if let (Some(first), Some(second)) = (lines.next(), lines.next()) {
        let value = first + 1 + b"Host: ".len()..second - b"\r".len();
        out.splice(value, authority.iter().copied());
    }
}

/// Writes the head that goes upstream: always HTTP/1.1, persistent, each of its lines as the gateway writes it.
pub fn write(head: &RequestHead<'_>, forwarding: &Forwarding<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method_token);
    out.push(b' ');
    out.extend_from_slice(forwarding.path);
    if let Some(query) = head.query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    push_line(b" HTTP/1.1\r\nHost: ", forwarding.authority.as_bytes(), out);

    let mut forwarded_proto = None;
    let mut forwarded_host = None;
    let mut forwarded_for = None;
    let mut forwarded = None;
    let mut via = None;
    let mut copier = FieldCopier::new(head.bytes);
    for (place, field) in head.fields.iter().enumerate() {
        let name = field.name.as_bytes();
        match head.kinds.recall(place, name) {
            kind if kind.is_end_to_end() && head.nominates && headers::is_nominated(head.fields, field.name) => {}
            Name::Authorization | Name::ApiKey if !forwarding.with_credentials => {}
            kind if kind.is_end_to_end() => copier.push(field, out),
            Name::Date => copier.push(field, out),
            Name::Expect if head.expects_continue => copier.push(field, out),
            Name::Tracestate if head.traceparent.is_some() => copier.push(field, out),
            Name::XForwardedProto => forwarded_proto = Some(field.value),
            Name::XForwardedHost => forwarded_host = Some(field.value),
            // Several lines of a list are one list (RFC 9110, section 5.3): all but the last are passed on as they are.
            Name::Forwarded if forwarding.peer_is_trusted => {
                if let Some(earlier) = forwarded.replace(field) {
                    copier.push(earlier, out);
                }
            }
            Name::Via => {
                if let Some(earlier) = via.replace(field) {
                    copier.push(earlier, out);
                }
            }
            Name::XForwardedFor if forwarding.peer_is_trusted => {
                if let Some(earlier) = forwarded_for.replace(field) {
                    copier.push(earlier, out);
                }
            }
            _ => {}
        }
    }
    copier.finish(out);

    out.extend_from_slice(b"X-Forwarded-For: ");
    push_list(forwarded_for, out);
    push_peer(forwarding.peer, out);
    match forwarded_proto {
        Some(proto) if forwarding.peer_is_trusted => push_line(b"\r\nX-Forwarded-Proto: ", proto, out),
        _ => out.extend_from_slice(b"\r\nX-Forwarded-Proto: http\r\n"),
    }
    let host = forwarded_host.filter(|_| forwarding.peer_is_trusted).unwrap_or(head.host);
    if !host.is_empty() {
        push_line(b"X-Forwarded-Host: ", host, out);
    }
    push_forwarded(forwarded, head.host, forwarding, out);
    out.extend_from_slice(b"Via: ");
    push_list(via, out);
    out.extend_from_slice(match head.version {
        Version::Http10 => b"1.0 ringway",
        Version::Http11 => b"1.1 ringway",
    });
    push_line(b"\r\nX-Request-Id: ", forwarding.request_id, out);
    push_line(b"traceparent: ", forwarding.traceparent, out);
    out.extend_from_slice(forwarding.identity);
    match (head.upgrade, head.accepts_trailers) {
        (true, _) => out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        (false, true) => out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n"),
        (false, false) => {}
    }
    match head.framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            push_decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        // Methods that usually carry a body say that this one is empty (RFC 9110, section 8.6).
        Framing::None if matches!(head.method, Method::Post | Method::Put | Method::Patch) => {
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        Framing::None | Framing::Close => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// `Forwarded` with what earlier proxies wrote in it and, where it is asked for, an element about this hop
/// (RFC 7239, sections 4 and 6).
fn push_forwarded(earlier: Option<&httparse::Header<'_>>, host: &[u8], forwarding: &Forwarding<'_>, out: &mut Vec<u8>) {
    if !forwarding.with_forwarded {
        if let Some(earlier) = earlier {
            push_line(b"Forwarded: ", earlier.value, out);
        }
        return;
    }
    out.extend_from_slice(b"Forwarded: ");
    push_list(earlier, out);
    let is_ipv6 = matches!(forwarding.peer, Some(IpAddr::V6(_)));
    out.extend_from_slice(if is_ipv6 { b"for=\"[" } else { b"for=" });
    push_peer(forwarding.peer, out);
    out.extend_from_slice(if is_ipv6 { b"]\"" } else { b"" });
    if !host.is_empty() {
        // What a host may be holds no quote and no backslash.
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=http\r\n");
}

/// What stands in a list before one's own element.
fn push_list(earlier: Option<&httparse::Header<'_>>, out: &mut Vec<u8>) {
    if let Some(earlier) = earlier {
        out.extend_from_slice(earlier.value);
        out.extend_from_slice(b", ");
    }
}

fn push_peer(peer: Option<IpAddr>, out: &mut Vec<u8>) {
    match peer {
        Some(address) => push_address(address, out),
        None => out.extend_from_slice(b"unknown"),
    }
}
