//! Field names that the gateway treats specially, and the checks on field values that heads of both kinds share.
//!
//! A name is classified once into a [`Name`]; everything that is not special is passed on untouched.

use std::ops::Range;

use memchr::memchr2;

/// A field that the gateway reads, owns or removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Name {
    Connection,
    ContentLength,
    TransferEncoding,
    Host,
    Expect,
    Upgrade,
    Te,
    Via,
    Date,
    XForwardedFor,
    XForwardedProto,
    XForwardedHost,
    Forwarded,
    XRequestId,
    Traceparent,
    Tracestate,
    /// Hop-by-hop whatever `Connection` says (RFC 9110, section 7.6.1, and the older lists it replaces).
    HopByHop,
    /// Set by the gateway alone: a backend that trusts it must never see a client's.
    Identity,
    /// Set by the gateway alone, on answers that it made itself.
    GatewayError,
    Authorization,
    ApiKey,
    /// One of the `Access-Control-*` fields, of a request or an answer.
    Cors,
    /// What an answer says about the rate limit that holds for its client.
    RateLimit,
    /// Read as one of the others by backends that take `_` for `-` (RFC 3875, section 4.1.18, and what grew out of CGI).
    Confusable,
    /// Not special.
    Other,
}

impl Name {
    /// Whether the field is the two ends' own matter, and so may be nominated in `Connection`.
    pub fn is_end_to_end(self) -> bool {
        matches!(self, Name::Other | Name::Authorization | Name::ApiKey | Name::Cors | Name::RateLimit)
    }
}

/// Classifies a field name; names are case-insensitive (RFC 9110, section 5.1).
///
/// It is asked for each field of a message: length and first letter leave few candidates, which are compared without a branch for
/// each letter.
pub fn classify(name: &[u8]) -> Name {
    let Some(first) = name.first() else { return Name::Other };
    match (name.len(), first.to_ascii_lowercase()) {
        (2, b't') if is(name, b"te") => Name::Te,
        (3, b'v') if is(name, b"via") => Name::Via,
        (4, b'h') if is(name, b"host") => Name::Host,
        (4, b'd') if is(name, b"date") => Name::Date,
        (6, b'e') if is(name, b"expect") => Name::Expect,
        (7, b'u') if is(name, b"upgrade") => Name::Upgrade,
        (7, b't') if is(name, b"trailer") => Name::HopByHop,
        (9, b'f') if is(name, b"forwarded") => Name::Forwarded,
        (9, b'x') if is(name, b"x-user-id") => Name::Identity,
        (9, b'x') if is(name, b"x-api-key") => Name::ApiKey,
        (9, b'r') if is(name, b"ratelimit") => Name::RateLimit,
        (10, b'c') if is(name, b"connection") => Name::Connection,
        (10, b'k') if is(name, b"keep-alive") => Name::HopByHop,
        (10, b't') if is(name, b"tracestate") => Name::Tracestate,
        (11, b't') if is(name, b"traceparent") => Name::Traceparent,
        (12, b'x') if is(name, b"x-request-id") => Name::XRequestId,
        (13, b'x') if is(name, b"x-auth-method") || is(name, b"x-auth-scopes") => Name::Identity,
        (13, b'a') if is(name, b"authorization") => Name::Authorization,
        (14, b'c') if is(name, b"content-length") => Name::ContentLength,
        (14, b'h') if is(name, b"http2-settings") => Name::HopByHop,
        (15, b'x') if is(name, b"x-forwarded-for") => Name::XForwardedFor,
        (15, b'x') if is(name, b"x-gateway-error") => Name::GatewayError,
        (16, b'r') if is(name, b"ratelimit-policy") => Name::RateLimit,
        (16, b'x') if is(name, b"x-forwarded-host") => Name::XForwardedHost,
        (16, b'p') if is(name, b"proxy-connection") => Name::HopByHop,
        (17, b't') if is(name, b"transfer-encoding") => Name::TransferEncoding,
        (17, b'x') if is(name, b"x-forwarded-proto") => Name::XForwardedProto,
        (17, b'x') if is(name, b"x-ratelimit-limit") || is(name, b"x-ratelimit-reset") => Name::RateLimit,
        (18, b'p') if is(name, b"proxy-authenticate") => Name::HopByHop,
        (19, b'p') if is(name, b"proxy-authorization") => Name::HopByHop,
        (21, b'x') if is(name, b"x-ratelimit-remaining") => Name::RateLimit,
        (22.., b'a') if name[..15].eq_ignore_ascii_case(b"access-control-") => Name::Cors,
        _ if name.contains(&b'_') && is_confusable(name) => Name::Confusable,
        _ => Name::Other,
    }
}

/// Whether `word` is `known` but for its case; `known` is in lower case.
pub(super) fn is<const LENGTH: usize>(word: &[u8], known: &[u8; LENGTH]) -> bool {
    <&[u8; LENGTH]>::try_from(word).is_ok_and(|word| {
        let differences = word.iter().zip(known).map(|(byte, known)| byte.to_ascii_lowercase() ^ known);
        differences.fold(0, |all, one| all | one) == 0
    })
}

/// Whether `name`, with a hyphen for each underscore, is one of the special names.
#[cold]
fn is_confusable(name: &[u8]) -> bool {
    let mut hyphenated = [0; 64];
    let Some(hyphenated) = hyphenated.get_mut(..name.len()) else { return false };
    for (to, &from) in hyphenated.iter_mut().zip(name) {
        *to = if from == b'_' { b'-' } else { from };
    }
    classify(hyphenated) != Name::Other
}

/// Fields that change framing, routing, trust or the meaning of what was already passed on, and so may not arrive in a
/// trailer section (RFC 9110, section 6.5.1).
pub fn may_be_trailer(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    classify(name) == Name::Other
        && !is(b"cookie")
        && !is(b"set-cookie")
        && !is(b"cache-control")
        && !is(b"content-encoding")
        && !is(b"content-type")
        && !is(b"content-range")
        && !is(b"www-authenticate")
        && !is(b"max-forwards")
        && !is(b"range")
        && !is(b"location")
}

/// The elements of a comma-separated list, trimmed; an empty element is returned as such.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether a `Connection` line among `fields` names the field `name`, which is hop-by-hop then (RFC 9110, section 7.6.1).
pub fn is_nominated(fields: &[httparse::Header<'_>], name: &str) -> bool {
    fields
        .iter()
        .filter(|field| classify(field.name.as_bytes()) == Name::Connection)
        .flat_map(|field| list(field.value))
        .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

/// Reads a `Content-Length`: digits alone. A sign, a list, white space inside, or a value beyond `u64` is `None`
/// (RFC 9112, section 6.3: anything else is an unrecoverable error).
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, &byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// What the lines `Transfer-Encoding` of one message say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferCoding {
    /// Exactly one coding, `chunked`.
    Chunked,
    /// A coding that is not `chunked`, in a place where it could stand.
    Unknown,
    /// An empty element, `chunked` twice or not last, or a parameter on it.
    Malformed,
}

/// Reads one `Transfer-Encoding` line (RFC 9112, section 6.1).
pub fn transfer_coding(value: &[u8]) -> TransferCoding {
    let mut coding = None;
    for element in list(value) {
        let chunked = element.eq_ignore_ascii_case(b"chunked");
        let token = !element.is_empty() && element.iter().all(|&byte| is_token(byte));
        coding = match coding {
            _ if !token => return TransferCoding::Malformed,
            Some(TransferCoding::Chunked) => return TransferCoding::Malformed,
            None if chunked => Some(TransferCoding::Chunked),
            // After another coding `chunked` is where it belongs, and the other coding is still one we do not decode.
            _ => Some(TransferCoding::Unknown),
        };
    }
    coding.unwrap_or(TransferCoding::Malformed)
}

/// A `tchar` (RFC 9110, section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'z' | b'|' | b'~' | b'0'..=b'9' | b'A'..=b'Z')
}

/// A request id that may be kept: 1 to 128 bytes that mean nothing special in a header, a URL or a log line.
pub fn is_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len())
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~:=+/@".contains(byte))
}

/// Where the search for the end of a head stands, so that bytes that trickle in are looked at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadScan {
    at: usize,
    line_start: usize,
}

/// A line end that is not CRLF: a bare LF, or a CR that something else follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BareLineEnd;

impl HeadScan {
    /// A search that begins `skip` bytes in.
    pub fn from(skip: usize) -> HeadScan {
        HeadScan { at: skip, line_start: skip }
    }

    /// The length of the head at the front of `bytes`, its empty line included; `None` when it goes on beyond them.
    ///
    /// httparse takes a bare LF for a line end. A backend may not, and where two readers disagree about where a head
    /// ends, requests are smuggled: so any LF without CR before it, and any CR without LF behind it, is refused
    /// (RFC 9112, section 2.2), here and by [`has_strict_line_ends`].
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, BareLineEnd> {
        let mut from = self.at;
        while let Some(found) = memchr2(b'\r', b'\n', &bytes[from..]) {
            let index = from + found;
            match (bytes[index], bytes.get(index + 1)) {
                (b'\r', None) => {
                    self.at = index;
                    return Ok(None);
                }
                (b'\r', Some(b'\n')) if index == self.line_start => return Ok(Some(index + 2)),
                (b'\r', Some(b'\n')) => {
                    from = index + 2;
                    self.line_start = from;
                }
                _ => return Err(BareLineEnd),
            }
        }
        self.at = bytes.len();
        Ok(None)
    }

    /// Whether the first line is complete.
    pub fn has_first_line(&self, skip: usize) -> bool {
        self.line_start > skip
    }
}

/// What the first fields of a head are, by their place, so that nobody has to classify them again. Few heads have more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds([Option<Name>; 32]);

impl Kinds {
    /// Classifies a field for the first time.
    pub fn classify(&mut self, place: usize, name: &[u8]) -> Name {
        let kind = classify(name);
        if let Some(known) = self.0.get_mut(place) {
            *known = Some(kind);
        }
        kind
    }

    /// What [`Kinds::classify`] said of it, or would say.
    pub fn recall(&self, place: usize, name: &[u8]) -> Name {
        self.0.get(place).copied().flatten().unwrap_or_else(|| classify(name))
    }
}

/// Copies fields out of the head that they were read from: neighbours in one piece, if they are written as the gateway would.
#[derive(Debug)]
pub struct FieldCopier<'a> {
    head: &'a [u8],
    /// Whole lines that are still to be copied.
    lines: Range<usize>,
}

impl<'a> FieldCopier<'a> {
    /// For the fields of `head`.
    pub fn new(head: &'a [u8]) -> FieldCopier<'a> {
        FieldCopier { head, lines: 0..0 }
    }

    /// Appends `field` and a line end, in its turn: as it stands, or written anew where white space differs.
    pub fn push(&mut self, field: &httparse::Header<'_>, out: &mut Vec<u8>) {
        match self.line(field) {
            Some(line) if line.start == self.lines.end => self.lines.end = line.end,
            Some(line) => {
                self.finish(out);
                self.lines = line;
            }
            None => {
                self.finish(out);
                push_field(field.name.as_bytes(), field.value, out);
            }
        }
    }

    /// Appends what has been pushed and not been appended yet. To be called before anything else is appended.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let lines = std::mem::take(&mut self.lines);
        out.extend_from_slice(&self.head[lines]);
    }

    /// Where in the head the field's line stands, if it is written there as [`push_field`] would write it.
    fn line(&self, field: &httparse::Header<'_>) -> Option<Range<usize>> {
        let place = |part: &[u8]| part.as_ptr().addr().wrapping_sub(self.head.as_ptr().addr());
        let start = place(field.name.as_bytes());
        let colon = start.checked_add(field.name.len())?;
        let value = colon.checked_add(b": ".len())?;
        let end = value.checked_add(field.value.len())?;
        let next = end.checked_add(b"\r\n".len())?;
        let is_ours = place(field.value) == value
            && self.head.get(colon..value) == Some(b": ")
            && self.head.get(end..next) == Some(b"\r\n");
        is_ours.then_some(start..next)
    }
}

/// Whether each line of a head ends in CR LF. `fields` are what httparse read of it, which takes a CR nowhere but before an LF, and
/// an LF alone for a line end; each name begins right behind one.
pub fn has_strict_line_ends(head: &[u8], fields: &[httparse::Header<'_>]) -> bool {
    let begins_a_line = |name: &str| {
        let before = name.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
        head.get(..before).is_some_and(|before| before.ends_with(b"\r\n"))
    };
    head.ends_with(b"\r\n\r\n") && fields.iter().all(|field| begins_a_line(field.name))
}

/// Appends `value` and a line end behind `label`: the field's name with `": "`, and whatever stands before that.
#[inline]
pub fn push_line<const LENGTH: usize>(label: &[u8; LENGTH], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(label);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends `name: value` and a line end.
pub fn push_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::request::HEADER_COUNT_MAX;
    use super::*;

    #[test]
    fn names_are_known_in_any_case() {
        let check = |name: &str, expected| {
            for spelling in [name.to_owned(), name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
                assert_eq!(classify(spelling.as_bytes()), expected, "{spelling}");
            }
        };
        for (names, expected) in [
            ("TE", Name::Te),
            ("Via", Name::Via),
            ("Host", Name::Host),
            ("Date", Name::Date),
            ("Expect", Name::Expect),
            ("Upgrade", Name::Upgrade),
            ("Forwarded", Name::Forwarded),
            ("Connection", Name::Connection),
            ("Tracestate", Name::Tracestate),
            ("Traceparent", Name::Traceparent),
            ("X-Request-Id", Name::XRequestId),
            ("Authorization", Name::Authorization),
            ("X-Api-Key", Name::ApiKey),
            ("Content-Length", Name::ContentLength),
            ("Transfer-Encoding", Name::TransferEncoding),
            ("X-Forwarded-For", Name::XForwardedFor),
            ("X-Forwarded-Host", Name::XForwardedHost),
            ("X-Forwarded-Proto", Name::XForwardedProto),
            ("X-Gateway-Error", Name::GatewayError),
            ("X-User-Id X-Auth-Method X-Auth-Scopes", Name::Identity),
            ("Access-Control-Allow-Origin Access-Control-Request-Method", Name::Cors),
            ("RateLimit RateLimit-Policy X-RateLimit-Limit X-RateLimit-Reset X-RateLimit-Remaining", Name::RateLimit),
            (
                "Trailer Keep-Alive HTTP2-Settings Proxy-Connection Proxy-Authenticate Proxy-Authorization",
                Name::HopByHop,
            ),
            ("X_User_Id Content_Length", Name::Confusable),
            ("Hosts Hos Accept Content-Type Access-Control X-Request-If X_Mine", Name::Other),
        ] {
            names.split(' ').for_each(|name| check(name, expected));
        }
        assert_eq!(classify(b""), Name::Other);
    }

    #[test]
    fn what_was_classified_is_recalled() {
        let names = |place: usize| if place.is_multiple_of(3) { "Via" } else { "Accept" };
        let mut kinds = Kinds::default();
        for place in 0..HEADER_COUNT_MAX {
            assert_eq!(kinds.classify(place, names(place).as_bytes()), classify(names(place).as_bytes()));
        }
        for place in 0..HEADER_COUNT_MAX {
            assert_eq!(kinds.recall(place, names(place).as_bytes()), classify(names(place).as_bytes()), "{place}");
        }
        assert_eq!(kinds.recall(0, b"Accept"), Name::Via, "asked again");
        assert_eq!(Kinds::default().recall(0, b"Via"), Name::Via, "nobody has asked yet");
    }

    #[test]
    fn a_field_from_elsewhere_is_copied_too() {
        let head = b"A: 1\r\nB: 2\r\n\r\n";
        let field = |name: &'static str, value: &'static [u8]| httparse::Header { name, value };
        let mut copier = FieldCopier::new(head);
        let mut out = Vec::new();
        copier.push(&field("C", b"3"), &mut out);
        copier.push(&field("", b""), &mut out);
        copier.finish(&mut out);
        assert_eq!(out, b"C: 3\r\n: \r\n");
    }

    #[test]
    fn content_length_is_digits_alone() {
        let check = |value: &[u8], expected| assert_eq!(content_length(value), expected, "{value:?}");
        check(b"0", Some(0));
        check(b"007", Some(7));
        check(b"18446744073709551615", Some(u64::MAX));
        for refused in [&b""[..], b"+5", b"-1", b"5,5", b"5, 6", b"5 5", b"0x10", b"18446744073709551616", b"1e3"] {
            check(refused, None);
        }
    }

    #[test]
    fn transfer_codings() {
        use TransferCoding::*;
        let check = |value: &[u8], expected| assert_eq!(transfer_coding(value), expected, "{value:?}");
        check(b"chunked", Chunked);
        check(b"Chunked", Chunked);
        check(b"gzip", Unknown);
        check(b"gzip, chunked", Unknown);
        check(b"xchunked", Unknown);
        check(b"chunked, chunked", Malformed);
        check(b"chunked, gzip", Malformed);
        check(b"chunked,", Malformed);
        check(b",chunked", Malformed);
        check(b"", Malformed);
        check(b"chunked;a=b", Malformed);
        check(b"\x0bchunked", Malformed);
    }

    #[test]
    fn the_end_of_a_head_is_found_at_every_split() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        for split in 0..head.len() {
            let mut scan = HeadScan::default();
            let first = scan.advance(&head[..split]).expect("the line ends are right");
            assert_eq!(first.is_some(), split >= head.len() - 4, "{split}");
            if first.is_none() {
                assert_eq!(scan.advance(head), Ok(Some(head.len() - 4)), "{split}");
            }
        }
    }

    #[test]
    fn a_bare_line_end_is_refused_as_soon_as_it_is_seen() {
        let check = |bytes: &[u8]| assert_eq!(HeadScan::default().advance(bytes), Err(BareLineEnd), "{bytes:?}");
        check(b"GET / HTTP/1.1\n");
        check(b"GET / HTTP/1.1\r\nA: b\n");
        check(b"GET / HTTP/1.1\r\nA: b\rc");
        check(b"GET / HTTP/1.1\r\r\n");
        check(b"GET / HTTP/1.1\r\n\n");
    }
}
