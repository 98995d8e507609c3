//! One spelling for each path, so that what is routed is what the backend resolves.
//!
//! A gateway that routes by prefix and then strips it is safe only if no backend can read the forwarded path as another
//! one: `/api/v1/sms/%2e%2e/llm` must be `/api/v1/llm` here, under llm's policy, or nothing at all. What comes out of
//! [`normalize`] therefore
//!
//! - begins with `/`, has no `.` or `..` segment, and no segment that a backend which decodes `%2F` and `%5C`, or drops
//!   path parameters (`..;x`, as servlet containers do), would read as one;
//! - holds no escape of an unreserved character, no lower-case escape, no control byte in any form;
//! - holds only bytes that RFC 3986 allows in a path;
//! - is unchanged by a second pass.
//!
//! That one spelling is not yet the only one that backends know for a resource: many merge `//`, drop path parameters, decode
//! `%2F` or trim what stands at a segment's end. Those spellings are data that clients may send, and so are kept (RFC 3986
//! gives `//` and `;x` meanings of their own). [`fold`] tells how such a backend would read the path, for the caller to
//! refuse one that another service's policy holds for when it is read so: `//admin` is not to reach `/`.
//!
//! Deliberately not done: a second decoding (`%252e` is the data `%2e`), and any judgement of letter case and of what
//! non-ASCII bytes mean.

use memchr::{memchr, memrchr};

/// Why a path is refused. The text is fit for the `detail` of the 400 that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is neither empty nor begins with `/`. (The asterisk-form is the caller's to handle.)
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A `%` without two hexadecimal digits behind it.
    #[error("the path holds a percent sign that is not followed by two hexadecimal digits")]
    InvalidEscape,
    /// 0x00 to 0x1F or 0x7F, raw or percent-encoded.
    #[error("the path holds a control character")]
    ControlCharacter,
    /// A raw space, `\`, `#` or `?`.
    #[error("the path holds a character that must be percent-encoded")]
    ForbiddenCharacter,
    /// A `..` with no segment left to remove.
    #[error("the path climbs above its root")]
    AboveRoot,
    /// A dot segment that only shows when an encoded slash or backslash is decoded or a path parameter is dropped.
    #[error("the path hides a dot segment behind an encoded slash or a path parameter")]
    HiddenDotSegment,
}

/// Normalises the path of a request target, without its query, for routing and forwarding (RFC 3986, sections 5.2.4 and
/// 6.2.2).
///
/// An empty path, as in `http://host?query`, is `/` (section 6.2.3). A path that is normal already, as nearly all are, is
/// returned as it is after one scan; any other is written to `scratch`, which may grow to three times the path's length.
///
/// Where clients stray from the grammar: raw bytes from 0x80 on and the printable `"<>[]^{|}` and backquote are sent by
/// real clients and mean only one thing, so that they are percent-encoded. A raw `\`, `#` or `?` is read as a separator by
/// some servers and as data by others, which is how requests slip past a gateway's rules: those are refused.
///
/// # Errors
/// Any [`PathError`]; the request is to be answered 400.
pub fn normalize<'a>(path: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], PathError> {
    match path.first() {
        None => return Ok(b"/"),
        Some(b'/') => {}
        Some(_) => return Err(PathError::NotAbsolute),
    }
    if is_plain(path) {
        return Ok(path);
    }
    scratch.clear();
    rewrite(path, scratch)?;
    Ok(scratch)
}

/// How the most lenient of backends reads the path `normal`, which came out of [`normalize`]: slashes, encoded slashes and
/// backslashes merged, each segment cut before its path parameters, spaces and dots at its end dropped. `None` when that
/// changes nothing, as nearly always: after one scan. Otherwise it is written to `scratch`, and is no longer than `normal`.
///
/// It is for looking up routes, never for forwarding.
pub fn fold<'a>(normal: &[u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    if !is_foldable(normal) {
        return None;
    }
    scratch.clear();
    let mut rest = normal;
    while !rest.is_empty() {
        let end = (0..rest.len()).find(|&at| separator(&rest[at..]) > 0).unwrap_or(rest.len());
        let segment = lenient_name(&rest[..end]);
        if !segment.is_empty() {
            scratch.push(b'/');
            scratch.extend_from_slice(segment);
        }
        rest = &rest[end..];
        rest = &rest[separator(rest)..];
    }
    if scratch.is_empty() {
        scratch.push(b'/');
    }
    Some(scratch)
}

/// Whether [`fold`] may have something to do: an escape, a path parameter, an empty segment, or a dot at a segment's end.
fn is_foldable(normal: &[u8]) -> bool {
    let mut suspicious = normal.last() == Some(&b'.');
    let mut previous = 0;
    for &byte in normal {
        suspicious |= matches!(byte, b'%' | b';') | (byte == b'/' && matches!(previous, b'/' | b'.'));
        previous = byte;
    }
    suspicious
}

/// How long the separator is that `rest` begins with; 0 for none.
fn separator(rest: &[u8]) -> usize {
    match rest.first() {
        Some(b'/') => 1,
        Some(b'%') if is_encoded_separator(rest) => 3,
        _ => 0,
    }
}

/// A segment without its parameters, and without dots and spaces at its end.
fn lenient_name(segment: &[u8]) -> &[u8] {
    let end = (0..segment.len()).find(|&at| segment[at] == b';' || segment[at..].starts_with(b"%3B"));
    let mut name = &segment[..end.unwrap_or(segment.len())];
    while let Some(shorter) = name.strip_suffix(b"%20").or_else(|| name.strip_suffix(b".")) {
        name = shorter;
    }
    name
}

/// What the scan needs to know of a byte, one bit each.
mod class {
    pub const PLAIN: u8 = 0;
    pub const DOT: u8 = 1;
    pub const SLASH: u8 = 2;
    /// Not to be judged by a scan: an escape, or a byte outside the grammar.
    pub const OTHER: u8 = 4;
}

static CLASSES: [u8; 256] = {
    let mut classes = [class::OTHER; 256];
    let mut byte = 0;
    while byte < 256 {
        if is_pchar(byte as u8) {
            classes[byte] = class::PLAIN;
        }
        byte += 1;
    }
    classes[b'.' as usize] = class::DOT;
    classes[b'/' as usize] = class::SLASH;
    classes
};

/// Whether nothing in `path` can need work: no escape, nothing outside the grammar, no segment that begins with a dot.
/// Without a branch per byte, since the answer is nearly always yes.
fn is_plain(path: &[u8]) -> bool {
    let mut suspicious = 0;
    let mut previous = class::PLAIN;
    for &byte in path {
        let class = CLASSES[byte as usize];
        // SLASH is DOT shifted by one: the second term is set for a dot right behind a slash.
        suspicious |= class & class::OTHER | (previous >> 1) & class & class::DOT;
        previous = class;
    }
    suspicious == 0
}

/// Writes the normal form of `path`, which begins with `/`, to the empty `out`.
fn rewrite(path: &[u8], out: &mut Vec<u8>) -> Result<(), PathError> {
    let mut segments = path[1..].split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        // Here `out` is a sequence of "/segment", none of them a dot segment.
        let start = out.len();
        out.push(b'/');
        decode_segment(segment, out)?;
        let kept = match &out[start + 1..] {
            b"." => start,
            b".." => memrchr(b'/', &out[..start]).ok_or(PathError::AboveRoot)?,
            decoded if hides_dot_segment(decoded) => return Err(PathError::HiddenDotSegment),
            _ => continue,
        };
        out.truncate(kept);
        if segments.peek().is_none() {
            out.push(b'/');
        }
    }
    Ok(())
}

/// Appends `segment` with its unreserved characters decoded, its other escapes in upper case, and what the grammar does
/// not allow raw escaped.
fn decode_segment(segment: &[u8], out: &mut Vec<u8>) -> Result<(), PathError> {
    let mut rest = segment;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'%' => {
                let (digits, tail) = tail.split_at_checked(2).ok_or(PathError::InvalidEscape)?;
                let byte = hex_value(digits[0])? << 4 | hex_value(digits[1])?;
                rest = tail;
                match byte {
                    _ if byte.is_ascii_control() => return Err(PathError::ControlCharacter),
                    _ if is_unreserved(byte) => out.push(byte),
                    _ => push_escape(byte, out),
                }
            }
            _ if is_pchar(byte) => out.push(byte),
            _ if byte.is_ascii_control() => return Err(PathError::ControlCharacter),
            b' ' | b'\\' | b'#' | b'?' => return Err(PathError::ForbiddenCharacter),
            _ => push_escape(byte, out),
        }
    }
    Ok(())
}

/// Whether a decoded segment, which is no dot segment itself, holds one for a backend that decodes slashes and backslashes
/// or drops path parameters.
fn hides_dot_segment(segment: &[u8]) -> bool {
    let ends_name =
        |rest: &[u8]| rest.is_empty() || rest[0] == b';' || rest.starts_with(b"%3B") || is_encoded_separator(rest);
    let mut rest = segment;
    loop {
        let dots = rest.iter().take_while(|&&byte| byte == b'.').count();
        if matches!(dots, 1 | 2) && ends_name(&rest[dots..]) {
            return true;
        }
        while !is_encoded_separator(rest) {
            // Skip the byte at hand, then all up to the next escape.
            let Some(next) = rest.get(1..).and_then(|tail| memchr(b'%', tail)) else { return false };
            rest = &rest[1 + next..];
        }
        rest = &rest[3..];
    }
}

fn is_encoded_separator(rest: &[u8]) -> bool {
    rest.starts_with(b"%2F") || rest.starts_with(b"%5C")
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

fn hex_value(digit: u8) -> Result<u8, PathError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PathError::InvalidEscape),
    }
}

/// `unreserved` of RFC 3986, section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` of RFC 3986, section 3.3, but for the percent sign: what a segment may hold raw.
const fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::PathError::*;
    use super::*;

    #[track_caller]
    fn check(path: impl AsRef<[u8]>, expected: Result<&str, PathError>) {
        let mut scratch = Vec::new();
        let actual = normalize(path.as_ref(), &mut scratch).map(|path| str::from_utf8(path).expect("ASCII"));
        assert_eq!(actual, expected, "{}", path.as_ref().escape_ascii());
    }

    #[test]
    fn normal_paths_are_returned_as_they_are() {
        for path in ["/", "/a", "/a/", "//", "/a//b", "/a.b/c..d/e.", "/a/b;v=1,2/c:d@e", "/!$&'()*+,;=-_~", "/..."] {
            check(path, Ok(path));
        }
        for path in ["/.well-known/x", "/...", "/..a/.b", "/%20", "/%2F", "/%C3%A9", "/%252e", "/a%2Fb%5Cc"] {
            check(path, Ok(path));
        }
        let path = b"/api/v1/sms/send".as_slice();
        assert_eq!(normalize(path, &mut Vec::new()).map(<[u8]>::as_ptr), Ok(path.as_ptr()), "not copied");
    }

    #[test]
    fn an_empty_path_is_the_root() {
        check("", Ok("/"));
    }

    #[test]
    fn escapes() {
        check("/%41%7a%30%2D%2e%5f%7E", Ok("/Az0-._~"));
        check("/%c3%a9%2a%3d", Ok("/%C3%A9%2A%3D"));
        check("/%2541", Ok("/%2541"));
        check("/%252e%252e/x", Ok("/%252e%252e/x"));
        check("/a%3fb%23", Ok("/a%3Fb%23"));
        for path in ["/%", "/%4", "/%zz", "/%4g", "/%g4", "/%%41", "/a%/b", "/a%2/f", "/%+1", "/%-1"] {
            check(path, Err(InvalidEscape));
        }
    }

    #[test]
    fn dot_segments() {
        // RFC 3986, section 5.2.4 and its examples.
        check("/a/b/c/./../../g", Ok("/a/g"));
        check("/.", Ok("/"));
        check("/./", Ok("/"));
        check("/./a", Ok("/a"));
        check("/a/.", Ok("/a/"));
        check("/a/..", Ok("/"));
        check("/a/../", Ok("/"));
        check("/a/b/..", Ok("/a/"));
        check("/a/b/../", Ok("/a/"));
        check("/a//../b", Ok("/a/b"));
        check("/a//..", Ok("/a/"));
        check("//..", Ok("/"));
        check("/a/./b/.././c", Ok("/a/c"));
        check("/api/v1/sms/../llm", Ok("/api/v1/llm"));
        check("/api/v1/sms/%2e%2e/llm", Ok("/api/v1/llm"));
        check("/api/v1/sms/.%2E/llm", Ok("/api/v1/llm"));
        check("/api/v1/sms/%2e./llm", Ok("/api/v1/llm"));
        check("/a/%2e/b", Ok("/a/b"));
    }

    #[test]
    fn the_root_is_the_top() {
        for path in
            ["/..", "/../", "/../a", "/a/../..", "/a/../../b", "/./..", "/%2e%2e", "/a/%2e%2E/.%2e/b", "//../.."]
        {
            check(path, Err(AboveRoot));
        }
    }

    #[test]
    fn hidden_dot_segments() {
        for path in [
            "/a/..%2fllm",
            "/a/%2e%2e%2fllm",
            "/a/%2e%2e%5c",
            "/a%2f..%2fb",
            "/a%2F..",
            "/a%5c%2e%2e",
            "/a%5C.%5Cb",
            "/a%2f.",
            "/..%2f",
            "/.%2f",
            "/%2f..",
            "/%2f%2f..",
            "/a%20%2f%2e%2e",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/.;/b",
            "/a/..%3bx/b",
            "/a%2f..;x%2fb",
            "/a;x%2f..",
        ] {
            check(path, Err(HiddenDotSegment));
        }
        check("/a%2fb", Ok("/a%2Fb"));
        check("/a%2f...%2fb", Ok("/a%2F...%2Fb"));
        check("/a%2f..b%2f.c", Ok("/a%2F..b%2F.c"));
        check("/a..%2fb.%5c", Ok("/a..%2Fb.%5C"));
        check("/a;../b;.", Ok("/a;../b;."));
        check("/%2f%5c", Ok("/%2F%5C"));
    }

    #[test]
    fn bytes_outside_the_grammar() {
        check("/a|b^c", Ok("/a%7Cb%5Ec"));
        check("/\"<>[]`{}", Ok("/%22%3C%3E%5B%5D%60%7B%7D"));
        check("/é", Ok("/%C3%A9"));
        check(b"/\xff\x80", Ok("/%FF%80"));
        for path in ["/a\\b", "/..\\b", "/a#b", "/a?b", "/a b", "\\a"] {
            let expected = if path.starts_with('/') { ForbiddenCharacter } else { NotAbsolute };
            check(path, Err(expected));
        }
        for path in ["/\0", "/a\tb", "/\x7f", "/a\r\nb", "/%00", "/%0a", "/%0D%0A", "/%1f", "/%7F"] {
            check(path, Err(ControlCharacter));
        }
        for path in ["*", "a", "a/b", "http://a/b", "."] {
            check(path, Err(NotAbsolute));
        }
    }

    #[test]
    fn lenient_readings() {
        let check = |path: &str, expected: Option<&str>| {
            let mut scratch = Vec::new();
            assert_eq!(fold(path.as_bytes(), &mut scratch), expected.map(str::as_bytes), "{path}");
        };
        for path in ["/", "/a", "/a/", "/a.b/.c", "/a:b@c/d,e=f", "/.a/b~"] {
            check(path, None);
        }
        for path in [
            "//admin",
            "/;/admin",
            "/admin;x=1",
            "/admin%3Bx",
            "/admin%2F",
            "/%2Fadmin",
            "/%5Cadmin",
            "/admin%20",
            "/admin.",
            "/admin.%20.;x",
            "/.../admin",
            "/%20/admin//",
        ] {
            check(path, Some("/admin"));
        }
        check("//", Some("/"));
        check("/%2F", Some("/"));
        check("/;x", Some("/"));
        check("/a%2Fb", Some("/a/b"));
        check("/a;x/b;y", Some("/a/b"));
        check("/a%20b", Some("/a%20b"));
        check("/a/b./c", Some("/a/b/c"));
        check("/%C3%A9", Some("/%C3%A9"));
    }

    /// The same by other means: characters as values, RFC 3986's own description of the removal, and the hidden dot
    /// segments found by really decoding.
    fn reference(path: &[u8]) -> Result<String, ()> {
        let Ok(decoded) = reference_decode(path) else { return Err(()) };
        let mut input = decoded.as_str();
        let mut output = String::new();
        while !input.is_empty() {
            if input.starts_with("/./") {
                input = &input[2..];
            } else if input == "/." {
                input = "/";
            } else if input.starts_with("/../") || input == "/.." {
                input = if input == "/.." { "/" } else { &input[3..] };
                output.truncate(output.rfind('/').ok_or(())?);
            } else {
                let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
                output += &input[..end];
                input = &input[end..];
            }
        }
        let hidden = decoded.split('/').filter(|segment| !matches!(*segment, "." | "..")).any(|segment| {
            let seen = segment.replace("%2F", "/").replace("%5C", "/").replace("%3B", ";");
            seen.split('/').any(|piece| matches!(piece.split(';').next(), Some("." | "..")))
        });
        if hidden { Err(()) } else { Ok(output) }
    }

    fn reference_decode(path: &[u8]) -> Result<String, ()> {
        let mut decoded = String::new();
        let mut at = 0;
        while at < path.len() {
            let escaped = path[at] == b'%';
            let byte = if escaped {
                let digits = path.get(at + 1..at + 3).ok_or(())?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(());
                }
                u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap()
            } else {
                path[at]
            };
            at += if escaped { 3 } else { 1 };
            let raw = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
            let raw_if_raw = "/!$&'()*+,;=:@";
            match char::from(byte) {
                '\0'..='\x1f' | '\x7f' => return Err(()),
                shown if raw.contains(shown) || !escaped && raw_if_raw.contains(shown) => decoded.push(shown),
                ' ' | '\\' | '#' | '?' if !escaped => return Err(()),
                _ => decoded += &format!("%{byte:02X}"),
            }
        }
        Ok(decoded)
    }

    /// Paths made of what matters, and now and then of anything.
    fn paths() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            12 => proptest::sample::select(
                &["/", "/", "/", ".", ".", "..", "/..", "/../", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "%3b", ";",
                  "a", "b", "%41", "%7e", "%25", "%252e", "%C3", "é", "|", "=", "/a/b"][..]
            ).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => proptest::sample::select(&["\\", "#", "%", "%z", "%00", " ", "%4"][..])
                .prop_map(|piece| piece.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 1..3),
        ];
        proptest::collection::vec(piece, 0..14).prop_map(|pieces| [b"/".as_slice(), &pieces.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn agrees_with_the_reference(path in paths()) {
            let mut scratch = Vec::new();
            let actual = normalize(&path, &mut scratch).map(|path| String::from_utf8(path.to_vec()).unwrap());
            prop_assert_eq!(actual.map_err(|_| ()), reference(&path), "{}", path.escape_ascii());
        }

        #[test]
        fn the_result_is_normal(path in paths()) {
            let mut scratch = Vec::new();
            if let Ok(normal) = normalize(&path, &mut scratch) {
                let normal = String::from_utf8(normal.to_vec()).unwrap();
                let mut again = Vec::new();
                prop_assert_eq!(normalize(normal.as_bytes(), &mut again), Ok(normal.as_bytes()));
                prop_assert!(normal.starts_with('/'));
                prop_assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")));
                for escape in normal.split('%').skip(1) {
                    let byte = u8::from_str_radix(&escape[..2], 16).unwrap();
                    prop_assert!(!is_unreserved(byte) && !byte.is_ascii_control());
                    prop_assert!(!escape[..2].contains(|digit: char| digit.is_ascii_lowercase()));
                }
            }
        }

        #[test]
        fn a_lenient_reading_is_its_own(path in paths()) {
            let (mut normal, mut folded) = (Vec::new(), Vec::new());
            if let Ok(normal) = normalize(&path, &mut normal)
                && let Some(folded) = fold(normal, &mut folded)
            {
                prop_assert!(folded.len() <= normal.len());
                let text = String::from_utf8(folded.to_vec()).unwrap();
                prop_assert!(text == "/" || text.starts_with('/') && !text.ends_with('/') && !text.contains("//"));
                let mut again = Vec::new();
                prop_assert_eq!(fold(folded, &mut again).unwrap_or(folded), folded);
            }
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = normalize(&path, &mut Vec::new());
        }
    }
}
