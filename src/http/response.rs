//! Response heads: read from an upstream, written anew for the client (RFC 9112, sections 4 and 6.3).
//!
//! An upstream is trusted more than a client, and still not with framing: what could be read in two ways is an error, the
//! client gets a 502, and the connection is dropped.

use super::body::Framing;
use super::headers::{self, FieldCopier, HeadScan, Kinds, Name, TransferCoding, classify, push_line};
use super::method::Method;
use super::request::{FieldStorage, HEADER_COUNT_MAX, Version};
use super::text::push_decimal;
use crate::snapshot::Limits;

/// A response head that was understood.
#[derive(Debug)]
pub struct ResponseHead<'a> {
    /// The upstream's version.
    pub version: Version,
    /// The status code, 100 to 999.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: &'a str,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether an answer of its kind has no body: 1xx, 204, 304, and any to HEAD. Some backends send one nevertheless.
    pub bodiless: bool,
    /// Whether the upstream connection can serve another exchange once this one is complete.
    pub persistent: bool,
    /// `Content-Length` as the upstream gave it, also where no body follows (HEAD, 304).
    content_length: Option<u64>,
    nominates: bool,
    fields: &'a [httparse::Header<'a>],
    kinds: Kinds,
    /// The head as it was sent.
    pub bytes: &'a [u8],
}

/// Why a response is not passed on: 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ResponseError {
    #[error("a line of the head does not end in CR LF")]
    BareLineEnd,
    #[error("the status line or a field is malformed")]
    Malformed,
    #[error("the head is too large")]
    TooLarge,
    #[error("the framing is ambiguous")]
    Framing,
    #[error("it switched protocols without being asked to")]
    UnaskedUpgrade,
}

/// What was asked, as far as the answer's meaning depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The request's method: HEAD has no body in its answer.
    pub method: Method,
    /// Whether an upgrade was asked for, so that 101 is an answer.
    pub upgrade: bool,
}

/// Finds the end of a head in what an upstream sent so far.
fn find_end(bytes: &[u8], scan: &mut HeadScan, limits: &Limits) -> Result<Option<usize>, ResponseError> {
    match scan.advance(bytes).map_err(|_| ResponseError::BareLineEnd)? {
        Some(end) if end <= limits.header_bytes => Ok(Some(end)),
        None if bytes.len() < limits.header_bytes => Ok(None),
        _ => Err(ResponseError::TooLarge),
    }
}

/// Reads the head at the front of what an upstream sent so far; `None` while it goes on beyond that. `scan` remembers what was
/// looked at: a head that comes at once is read at once, and of one in pieces the end is looked for first, each byte once.
///
/// # Errors
/// See [`ResponseError`]; [`ResponseError::BareLineEnd`] and [`ResponseError::TooLarge`] as soon as they are certain.
pub fn parse<'a>(
    bytes: &'a [u8],
    scan: &mut HeadScan,
    storage: &'a mut FieldStorage<'a>,
    asked: Asked,
    limits: &Limits,
) -> Result<Option<ResponseHead<'a>>, ResponseError> {
    let is_first_look = *scan == HeadScan::default();
    if !is_first_look && find_end(bytes, scan, limits)?.is_none() {
        return Ok(None);
    }
    let mut response = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    // The reason phrase may be missing with its space; nothing else is forgiven.
    config.allow_spaces_after_header_name_in_responses(false);
    let parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut storage[..HEADER_COUNT_MAX]);
    let bytes = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= limits.header_bytes => &bytes[..length],
        failed => {
            return match (find_end(bytes, scan, limits)?, failed) {
                (None, _) => Ok(None),
                (Some(_), Err(httparse::Error::TooManyHeaders)) => Err(ResponseError::TooLarge),
                (Some(_), _) => Err(ResponseError::Malformed),
            };
        }
    };
    // httparse skips line ends of any kind before the status line.
    if !bytes.starts_with(b"HTTP") || !headers::has_strict_line_ends(bytes, response.headers) {
        return Err(find_end(bytes, scan, limits).err().unwrap_or(ResponseError::Malformed));
    }
    let (Some(minor), Some(status)) = (response.version, response.code) else { return Err(ResponseError::Malformed) };
    if status < 100 {
        return Err(ResponseError::Malformed);
    }
    let version = if minor == 1 { Version::Http11 } else { Version::Http10 };
    let mut head = ResponseHead {
        version,
        status,
        reason: response.reason.unwrap_or_default(),
        framing: Framing::None,
        bodiless: false,
        persistent: version == Version::Http11,
        content_length: None,
        nominates: false,
        fields: response.headers,
        kinds: Kinds::default(),
        bytes,
    };
    head.read_fields(asked)?;
    Ok(Some(head))
}

impl ResponseHead<'_> {
    fn read_fields(&mut self, asked: Asked) -> Result<(), ResponseError> {
        let mut coding = None;
        let mut closes = false;
        for (place, field) in self.fields.iter().enumerate() {
            match self.kinds.classify(place, field.name.as_bytes()) {
                Name::ContentLength => {
                    let length = headers::content_length(field.value).ok_or(ResponseError::Framing)?;
                    if self.content_length.replace(length).is_some_and(|earlier| earlier != length) {
                        return Err(ResponseError::Framing);
                    }
                }
                Name::TransferEncoding => match (coding, headers::transfer_coding(field.value)) {
                    (None, TransferCoding::Chunked) if self.version == Version::Http11 => coding = Some(()),
                    _ => return Err(ResponseError::Framing),
                },
                // Most say one word.
                Name::Connection if headers::is(field.value, b"keep-alive") => self.persistent = true,
                Name::Connection if headers::is(field.value, b"close") => closes = true,
                Name::Connection => {
                    for option in headers::list(field.value) {
                        match option {
                            _ if option.eq_ignore_ascii_case(b"close") => closes = true,
                            _ if option.eq_ignore_ascii_case(b"keep-alive") => self.persistent = true,
                            _ if classify(option) == Name::Other && !option.is_empty() => self.nominates = true,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if coding.is_some() && self.content_length.is_some() {
            return Err(ResponseError::Framing);
        }
        if self.status == 101 && !asked.upgrade {
            return Err(ResponseError::UnaskedUpgrade);
        }
        // RFC 9112, section 6.3, in its order.
        self.bodiless = asked.method == Method::Head || self.status < 200 || matches!(self.status, 204 | 304);
        self.framing = match (coding, self.content_length) {
            _ if self.bodiless => Framing::None,
            (Some(()), _) => Framing::Chunked,
            (None, Some(0)) => Framing::None,
            (None, Some(length)) => Framing::Length(length),
            (None, None) => Framing::Close,
        };
        self.persistent &= !closes && self.framing != Framing::Close;
        Ok(())
    }
}

/// What the gateway says to the client beyond what the upstream said.
#[derive(Debug)]
pub struct Returning<'a> {
    /// The client's version.
    pub version: Version,
    /// How the body goes to the client: [`Framing::Chunked`] never to HTTP/1.0.
    pub framing: Framing,
    /// Whether the client's connection lives on.
    pub persistent: bool,
    /// Whether the answer is the gateway's own, so that `X-Gateway-Error` is passed on.
    pub from_gateway: bool,
    /// `X-Request-Id`.
    pub request_id: &'a [u8],
    /// `Date`, for an answer that came without one (RFC 9110, section 6.6.1).
    pub date: &'a [u8; 29],
    /// What the gateway adds of its own, as whole lines.
    pub fields: &'a [u8],
    /// Which of the upstream's fields they replace.
    pub replaces: Replaces,
}

/// The upstream's fields that do not reach the client, because the gateway has its own word in the matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replaces {
    /// `Access-Control-*`.
    pub cors: bool,
    /// `RateLimit` and its kin.
    pub rate_limit: bool,
}

/// Writes the head that goes to the client.
pub fn write(head: &ResponseHead<'_>, returning: &Returning<'_>, out: &mut Vec<u8>) {
    push_status_line(head.status, head.reason, out);
    let mut has_date = false;
    let mut copier = FieldCopier::new(head.bytes);
    for (place, field) in head.fields.iter().enumerate() {
        match head.kinds.recall(place, field.name.as_bytes()) {
            Name::Date => {
                has_date = true;
                copier.push(field, out);
            }
            Name::Connection
            | Name::ContentLength
            | Name::TransferEncoding
            | Name::HopByHop
            | Name::Te
            | Name::XRequestId => {}
            Name::GatewayError if !returning.from_gateway => {}
            Name::Cors if returning.replaces.cors => {}
            Name::RateLimit if returning.replaces.rate_limit => {}
            // 426 must say what it takes (RFC 9110, section 15.5.22).
            Name::Upgrade if !matches!(head.status, 101 | 426) => {}
            _ if head.nominates && headers::is_nominated(head.fields, field.name) => {}
            _ => copier.push(field, out),
        }
    }
    copier.finish(out);
    if head.status < 200 {
        if head.status == 101 {
            out.extend_from_slice(b"Connection: Upgrade\r\n");
            push_line(b"X-Request-Id: ", returning.request_id, out);
        }
        out.extend_from_slice(b"\r\n");
        return;
    }
    if !has_date {
        push_line(b"Date: ", returning.date, out);
    }
    push_line(b"X-Request-Id: ", returning.request_id, out);
    out.extend_from_slice(b"Via: 1.1 ringway\r\n");
    out.extend_from_slice(returning.fields);
    push_connection(returning.version, returning.persistent, out);
    if head.status == 426 {
        out.extend_from_slice(b"Connection: Upgrade\r\n");
    }
    match (returning.framing, head.content_length) {
        (Framing::Chunked, _) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        // 204 has no length (RFC 9110, section 8.6); HEAD and 304 tell the length of what they stand for.
        (_, Some(length)) if head.status != 204 => {
            out.extend_from_slice(b"Content-Length: ");
            push_decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// `HTTP/1.1 200 OK` and a line end; `status` from 100 to 999.
pub fn push_status_line(status: u16, reason: &str, out: &mut Vec<u8>) {
    debug_assert!((100..1000).contains(&status), "a status has three digits");
    let [hundreds, tens, ones] = [status / 100, status / 10, status].map(|part| b'0' + (part % 10) as u8);
    out.extend_from_slice(&[b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', hundreds, tens, ones, b' ']);
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The `Connection` line where the version's default is not meant (RFC 9112, section 9.3).
pub fn push_connection(version: Version, persistent: bool, out: &mut Vec<u8>) {
    match (version, persistent) {
        (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (Version::Http11, true) => {}
    }
}
