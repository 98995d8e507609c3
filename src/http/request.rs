//! Request heads: read strictly, written anew for the upstream (RFC 9112, sections 3, 5 and 6).
//!
//! [`parse`] decides everything about a request that its head can decide: form of the target, host, framing, whether the
//! connection may live on. What it lets through is unambiguous; what is not is an error with the status that follows.
//! Nothing is copied: a [`RequestHead`] points into the bytes that it was read from.

mod write;

use std::mem::MaybeUninit;

pub use write::{Forwarding, replace_host, write};

use super::body::Framing;
use super::headers::{self, HeadScan, Kinds, Name, TransferCoding, classify};
use super::method::{Method, MethodSet};
use super::problem::Problem;
use super::trace_context;
use crate::snapshot::Limits;

/// Storage for the fields of a head while it is looked at: as many as `limits.header_count` may allow.
pub type FieldStorage<'a> = [MaybeUninit<httparse::Header<'a>>; HEADER_COUNT_MAX];

/// The highest value that `limits.header_count` may have.
pub const HEADER_COUNT_MAX: usize = 256;

/// `HTTP/1.0` or `HTTP/1.1`; nothing else is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Version {
    Http10,
    Http11,
}

/// The form of a request target (RFC 9112, section 3.2). `CONNECT`'s authority-form is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`, alone or behind `http://host`.
    Path,
    /// `*`, with OPTIONS.
    Asterisk,
}

/// A request head that was understood.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: Method,
    /// The method as it was sent.
    pub method_token: &'a [u8],
    /// The target as it was sent.
    pub target: &'a [u8],
    /// The form of the target.
    pub form: Form,
    /// The target's path, not normalised; `/` when an absolute-form has none.
    pub path: &'a [u8],
    /// What stands behind the first `?`, untouched.
    pub query: Option<&'a [u8]>,
    /// The version.
    pub version: Version,
    /// The host asked for, from the target or else the `Host` field; empty on HTTP/1.0 without one.
    pub host: &'a [u8],
    /// How the body is delimited: `None`, `Length` or `Chunked`.
    pub framing: Framing,
    /// Whether the client wants the connection to live on.
    pub persistent: bool,
    /// `Expect: 100-continue` on HTTP/1.1.
    pub expects_continue: bool,
    /// `Connection: Upgrade` with `Upgrade: websocket`. Other protocols are not offered to the upstream: `h2c` would let
    /// requests through that no policy has seen.
    pub upgrade: bool,
    /// `TE: trailers`.
    pub accepts_trailers: bool,
    /// Whether `Connection` nominates fields beyond the ones known to be hop-by-hop.
    nominates: bool,
    /// `X-Request-Id`, when it is well-formed.
    pub request_id: Option<&'a [u8]>,
    /// `traceparent` without its version, when it is well-formed and the only one.
    pub traceparent: Option<&'a [u8]>,
    /// What the client offers to show who it is.
    pub credentials: Credentials<'a>,
    /// The fields, in the order they came in.
    pub fields: &'a [httparse::Header<'a>],
    kinds: Kinds,
    /// The head as it was sent.
    pub bytes: &'a [u8],
}

/// The fields that carry credentials. They are never shown.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// `Authorization`.
    pub authorization: Option<&'a [u8]>,
    /// `X-API-Key`.
    pub api_key: Option<&'a [u8]>,
    /// Whether one of them came more than once.
    pub repeated: bool,
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("authorization", &self.authorization.is_some())
            .field("api_key", &self.api_key.is_some())
            .field("repeated", &self.repeated)
            .finish()
    }
}

/// Why a head is not served. The connection closes after each of them: where the next request starts is not certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RequestError {
    BareLineEnd,
    RequestLine,
    Target,
    Field,
    Host,
    ContentLength,
    TransferEncoding,
    UnknownCoding,
    Connect,
    Expectation,
    TargetTooLong,
    HeadTooLarge,
    Version,
}

impl RequestError {
    /// What the client is answered with.
    pub const fn problem(self) -> Problem {
        match self {
            RequestError::BareLineEnd => Problem::malformed("A line of the request's head does not end in CR LF."),
            RequestError::RequestLine => Problem::malformed("The request line is malformed."),
            RequestError::Target => Problem::malformed("The request target is malformed."),
            RequestError::Field => Problem::malformed("A header field is malformed."),
            RequestError::Host => Problem::malformed("The Host header field is missing, repeated or malformed."),
            RequestError::ContentLength => Problem::malformed("Content-Length is repeated or not a plain number."),
            RequestError::TransferEncoding => Problem::malformed(
                "Transfer-Encoding must be a single `chunked`, in HTTP/1.1 and without Content-Length.",
            ),
            RequestError::UnknownCoding => Problem::new(
                501,
                "unsupported_transfer_coding",
                "The transfer coding is not implemented; use `chunked`.",
            ),
            RequestError::Connect => {
                Problem::new(405, "method_not_allowed", "The CONNECT method is not available here.")
                    .allow(MethodSet::ALL)
            }
            RequestError::Expectation => {
                Problem::new(417, "expectation_failed", "The only expectation that can be met is `100-continue`.")
            }
            RequestError::TargetTooLong => Problem::new(414, "uri_too_long", "The request target is too long."),
            RequestError::HeadTooLarge => {
                Problem::new(431, "headers_too_large", "The header fields are too large or too many.")
            }
            RequestError::Version => {
                Problem::new(505, "version_not_supported", "Only HTTP/1.0 and HTTP/1.1 are supported.")
            }
        }
    }
}

/// How many bytes of empty lines stand before the request line. A robust server skips them (RFC 9112, section 2.2).
pub fn leading_empty_lines(bytes: &[u8]) -> usize {
    bytes.chunks(2).take_while(|pair| *pair == b"\r\n").count() * 2
}

/// Whether `bytes` hold a whole head yet: up to where they do, or `None`. `scan` remembers what was looked at; `skip` is what
/// [`leading_empty_lines`] said.
///
/// Most heads come at once and alone. So bytes that end as a head does, and of which nothing was looked at yet, are given back
/// whole: [`parse`] tells where the head in them ends. In all others its end is looked for, each byte once.
///
/// # Errors
/// [`RequestError::BareLineEnd`] and the two limits, in what is looked at, as soon as they are certain.
pub fn holds_head(
    bytes: &[u8],
    skip: usize,
    scan: &mut HeadScan,
    limits: &Limits,
) -> Result<Option<usize>, RequestError> {
    let is_first_look = *scan == HeadScan::from(skip);
    if is_first_look && bytes.len() - skip <= limits.header_bytes && bytes[skip..].ends_with(b"\r\n\r\n") {
        return Ok(Some(bytes.len()));
    }
    let end = scan.advance(bytes).map_err(|_| RequestError::BareLineEnd)?;
    // A method and a version stand on the line with the target: 32 bytes hold any of them.
    let line_bytes_max = limits.uri_bytes + 32;
    match end {
        Some(end) if end - skip <= limits.header_bytes => Ok(Some(end)),
        None if bytes.len() < limits.header_bytes && scan.has_first_line(skip) => Ok(None),
        None if bytes.len() < limits.header_bytes.min(skip + line_bytes_max) => Ok(None),
        None if !scan.has_first_line(skip) => Err(RequestError::TargetTooLong),
        _ => Err(RequestError::HeadTooLarge),
    }
}

/// Reads the head that `bytes` begin with and hold whole, as [`holds_head`] said; what stands behind its empty line is left alone.
///
/// # Errors
/// Every reason in [`RequestError`]. Nothing ambiguous is repaired.
pub fn parse<'a>(
    bytes: &'a [u8],
    storage: &'a mut FieldStorage<'a>,
    limits: &Limits,
) -> Result<RequestHead<'a>, RequestError> {
    let mut request = httparse::Request::new(&mut []);
    let allowed = limits.header_count.min(HEADER_COUNT_MAX);
    let length = match request.parse_with_uninit_headers(bytes, &mut storage[..allowed]) {
        Ok(httparse::Status::Complete(length)) => length,
        failed => return Err(refusal(bytes, failed.err())),
    };
    let bytes = &bytes[..length];
    let (method_token, target, version) = match (request.method, request.path, request.version) {
        (Some(method), Some(target), Some(0)) => (method.as_bytes(), target.as_bytes(), Version::Http10),
        (Some(method), Some(target), Some(1)) => (method.as_bytes(), target.as_bytes(), Version::Http11),
        _ => return Err(RequestError::RequestLine),
    };
    // httparse skips line ends of any kind before the request line.
    if !std::ptr::eq(method_token.as_ptr(), bytes.as_ptr()) || !headers::has_strict_line_ends(bytes, request.headers) {
        return Err(RequestError::BareLineEnd);
    }
    let method = Method::from_bytes(method_token);
    if target.len() > limits.uri_bytes {
        return Err(RequestError::TargetTooLong);
    }
    if method == Method::Connect {
        return Err(RequestError::Connect);
    }
    let (form, authority, path, query) = split_target(target, method)?;

    let mut head = RequestHead {
        method,
        method_token,
        target,
        form,
        path,
        query,
        version,
        host: b"",
        framing: Framing::None,
        persistent: version == Version::Http11,
        expects_continue: false,
        upgrade: false,
        accepts_trailers: false,
        nominates: false,
        request_id: None,
        traceparent: None,
        credentials: Credentials::default(),
        fields: request.headers,
        kinds: Kinds::default(),
        bytes,
    };
    head.read_fields()?;
    if let Some(authority) = authority {
        head.host = authority;
    }
    Ok(head)
}

/// Method and fields of a head that [`parse`] refused, where they could be read.
pub fn fields<'a>(bytes: &'a [u8], storage: &'a mut FieldStorage<'a>) -> Option<(Method, &'a [httparse::Header<'a>])> {
    let mut request = httparse::Request::new(&mut []);
    request.parse_with_uninit_headers(bytes, storage).ok()?;
    Some((Method::from_bytes(request.method?.as_bytes()), request.headers))
}

impl<'a> RequestHead<'a> {
    /// The `X-Forwarded-For` lines, last one first: for a trusted peer's word about its client.
    pub fn forwarded_for(&self) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.fields.iter().rev().filter(|field| field.name.eq_ignore_ascii_case("x-forwarded-for"));
        lines.map(|field| field.value)
    }

    /// One walk over the fields: framing, host and connection options.
    fn read_fields(&mut self) -> Result<(), RequestError> {
        let mut host = None;
        let mut length = None;
        let mut coding = None;
        let mut wants_upgrade = false;
        let mut has_traceparent = false;
        let mut offers_websocket = false;
        let mut closes = false;
        for (place, field) in self.fields.iter().enumerate() {
            let value = field.value;
            match self.kinds.classify(place, field.name.as_bytes()) {
                Name::Host if host.is_some() || !is_authority(value) => return Err(RequestError::Host),
                Name::Host => host = Some(value),
                Name::ContentLength if length.is_some() => return Err(RequestError::ContentLength),
                Name::ContentLength => {
                    length = Some(headers::content_length(value).ok_or(RequestError::ContentLength)?);
                }
                Name::TransferEncoding => match (coding, headers::transfer_coding(value)) {
                    (None, TransferCoding::Chunked) => coding = Some(TransferCoding::Chunked),
                    (None, TransferCoding::Unknown) => coding = Some(TransferCoding::Unknown),
                    _ => return Err(RequestError::TransferEncoding),
                },
                Name::Expect if self.version == Version::Http10 => {}
                Name::Expect if value.eq_ignore_ascii_case(b"100-continue") => self.expects_continue = true,
                Name::Expect => return Err(RequestError::Expectation),
                // Most say one word.
                Name::Connection if headers::is(value, b"keep-alive") => self.persistent = true,
                Name::Connection if headers::is(value, b"close") => closes = true,
                Name::Connection => {
                    for option in headers::list(value) {
                        match option {
                            _ if option.eq_ignore_ascii_case(b"close") => closes = true,
                            _ if option.eq_ignore_ascii_case(b"keep-alive") => self.persistent = true,
                            _ if option.eq_ignore_ascii_case(b"upgrade") => wants_upgrade = true,
                            _ if classify(option).is_end_to_end() && !option.is_empty() => self.nominates = true,
                            _ => {}
                        }
                    }
                }
                Name::Upgrade => {
                    offers_websocket |= headers::list(value).any(|token| token.eq_ignore_ascii_case(b"websocket"));
                }
                Name::Te => {
                    self.accepts_trailers |= headers::list(value).any(|token| token.eq_ignore_ascii_case(b"trailers"));
                }
                Name::XRequestId if headers::is_request_id(value) => self.request_id = Some(value),
                Name::Traceparent => {
                    // Several are none (W3C Trace Context, section 3.2.1).
                    let is_first = !std::mem::replace(&mut has_traceparent, true);
                    self.traceparent = trace_context::known_part(value).filter(|_| is_first);
                }
                Name::Authorization => {
                    self.credentials.repeated |= self.credentials.authorization.replace(value).is_some();
                }
                Name::ApiKey => self.credentials.repeated |= self.credentials.api_key.replace(value).is_some(),
                _ => {}
            }
        }
        self.framing = match (coding, length) {
            (Some(_), Some(_)) => return Err(RequestError::TransferEncoding),
            (Some(_), None) if self.version == Version::Http10 => return Err(RequestError::TransferEncoding),
            (Some(TransferCoding::Chunked), None) => Framing::Chunked,
            (Some(_), None) => return Err(RequestError::UnknownCoding),
            (None, Some(0)) | (None, None) => Framing::None,
            (None, Some(length)) => Framing::Length(length),
        };
        self.host = match host {
            Some(host) => host,
            None if self.version == Version::Http10 => b"",
            None => return Err(RequestError::Host),
        };
        self.persistent &= !closes;
        self.expects_continue &= self.framing != Framing::None;
        self.upgrade = wants_upgrade
            && offers_websocket
            && self.version == Version::Http11
            && self.method == Method::Get
            && self.framing == Framing::None;
        Ok(())
    }
}

/// Why httparse did not read `bytes` as a head, or did not find its end.
#[cold]
fn refusal(bytes: &[u8], error: Option<httparse::Error>) -> RequestError {
    match error {
        _ if HeadScan::default().advance(bytes).is_err() => RequestError::BareLineEnd,
        None | Some(httparse::Error::NewLine | httparse::Error::Token) => RequestError::RequestLine,
        Some(httparse::Error::TooManyHeaders) => RequestError::HeadTooLarge,
        Some(httparse::Error::Version) => version_error(bytes),
        Some(_) => RequestError::Field,
    }
}

/// A version that was named and is not spoken, or a request line that names none.
fn version_error(bytes: &[u8]) -> RequestError {
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    match line.rsplit(|&byte| byte == b' ').next() {
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit()
                && minor.is_ascii_digit()
                && (*major, *minor) != (b'1', b'0')
                && (*major, *minor) != (b'1', b'1')
                && memchr::memchr_iter(b' ', line).count() == 2 =>
        {
            RequestError::Version
        }
        _ => RequestError::RequestLine,
    }
}

type Target<'a> = (Form, Option<&'a [u8]>, &'a [u8], Option<&'a [u8]>);

/// Splits a target into form, authority, path and query.
fn split_target(target: &[u8], method: Method) -> Result<Target<'_>, RequestError> {
    if target == b"*" && method == Method::Options {
        return Ok((Form::Asterisk, None, target, None));
    }
    if target.contains(&b'#') {
        return Err(RequestError::Target);
    }
    if target.starts_with(b"/") {
        let (path, query) = split_query(target);
        return Ok((Form::Path, None, path, query));
    }
    let scheme_end = target.windows(3).position(|three| three == b"://").ok_or(RequestError::Target)?;
    let scheme = &target[..scheme_end];
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return Err(RequestError::Target);
    }
    let rest = &target[scheme_end + 3..];
    let authority_end = rest.iter().position(|&byte| byte == b'/' || byte == b'?').unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(authority_end);
    if !is_authority(authority) {
        return Err(RequestError::Target);
    }
    let (path, query) = split_query(rest);
    Ok((Form::Path, Some(authority), if path.is_empty() { b"/" } else { path }, query))
}

fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

/// `host [":" port]` without userinfo (RFC 9110, section 7.2; RFC 3986, section 3.2.2): a name, an IPv4 address or an
/// IPv6 address in brackets; not empty.
fn is_authority(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => match rest.iter().position(|&byte| byte == b']') {
            Some(end) => {
                let (address, behind) = rest.split_at(end);
                let address_ok =
                    std::str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
                return address_ok && matches!(behind, [b']'] | [b']', b':', ..]) && is_port(behind.get(2..));
            }
            None => return false,
        },
        _ => {
            let end = value.iter().position(|&byte| !IS_HOST[usize::from(byte)]).unwrap_or(value.len());
            match &value[end..] {
                [] => (value, None),
                [b':', port @ ..] => (&value[..end], Some(port)),
                _ => return false,
            }
        }
    };
    !host.is_empty() && host.len() <= 255 && is_port(port)
}

/// The bytes of a registered name or an IPv4 address (RFC 3986, section 3.2.2).
const IS_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b'%')
            || matches!(byte as u8, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        byte += 1;
    }
    table
};

fn is_port(port: Option<&[u8]>) -> bool {
    port.is_none_or(|digits| digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit))
}
