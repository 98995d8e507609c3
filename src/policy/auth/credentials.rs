//! What a client offers to show who it is: one credential, or none, or a request that is refused.
//!
//! The rule: **a request carries at most one credential.** `Authorization` twice, `X-API-Key` twice, or a bearer token
//! next to an API key is refused with 400 and `error="invalid_request"`, whichever of them would have been good: RFC 6750
//! (section 2: "clients MUST NOT use more than one method", section 3.1: 400) asks for it, and a gateway and a backend
//! that each picked another one would serve two different users in one request. So is a credential that breaks its own
//! syntax, is empty, or too long.
//!
//! An `Authorization` of another scheme (`Basic`, `Digest` …) is no credential for this gateway: it stands for the backend,
//! may stand next to an API key, and without one the request counts as anonymous (RFC 6750, section 3.1: the answer then
//! has no error code). Tokens in the body or the query (RFC 6750, sections 2.2 and 2.3) are never looked for.

/// The longest bearer token, in bytes.
pub const TOKEN_MAX: usize = 8_192;

/// The longest API key, in bytes.
pub const API_KEY_MAX: usize = 256;

/// The credential of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    /// None that concerns the gateway.
    None,
    /// What follows `Bearer` in `Authorization`: a `b64token` (RFC 6750, section 2.1) of at most [`TOKEN_MAX`] bytes.
    Bearer(&'a [u8]),
    /// The value of `X-API-Key`: 1 to [`API_KEY_MAX`] visible ASCII characters.
    ApiKey(&'a [u8]),
    /// Refused before anything is verified.
    Malformed(Malformed),
}

/// Why the credentials of a request are not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// More than one of them.
    Several,
    /// `Authorization` breaks its syntax, or a bearer token is empty or too long.
    Authorization,
    /// `X-API-Key` is empty, too long, or holds what is no visible ASCII.
    ApiKey,
}

/// Without the credential itself, which must not end up in a log.
impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Presented::None => f.write_str("None"),
            Presented::Bearer(_) => f.write_str("Bearer(…)"),
            Presented::ApiKey(_) => f.write_str("ApiKey(…)"),
            Presented::Malformed(why) => write!(f, "Malformed({why:?})"),
        }
    }
}

impl<'a> Presented<'a> {
    /// Reads the values of `Authorization` and `X-API-Key`; `repeated` when either came more than once.
    pub fn read(authorization: Option<&'a [u8]>, api_key: Option<&'a [u8]>, repeated: bool) -> Presented<'a> {
        if repeated {
            return Presented::Malformed(Malformed::Several);
        }
        let bearer = match authorization.map(bearer) {
            None | Some(Ok(None)) => None,
            Some(Ok(Some(token))) => Some(token),
            Some(Err(malformed)) => return Presented::Malformed(malformed),
        };
        match (bearer, api_key) {
            (None, None) => Presented::None,
            (Some(_), Some(_)) => Presented::Malformed(Malformed::Several),
            (Some(token), None) => Presented::Bearer(token),
            (None, Some(key)) if is_api_key(key) => Presented::ApiKey(key),
            (None, Some(_)) => Presented::Malformed(Malformed::ApiKey),
        }
    }
}

/// The token of an `Authorization` with the scheme `Bearer`, in any case; `None` for another scheme.
fn bearer(value: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let value = value.trim_ascii();
    let scheme_end = value.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
    let (scheme, rest) = value.split_at(scheme_end.unwrap_or(value.len()));
    if scheme.is_empty() {
        return Err(Malformed::Authorization);
    }
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    let token = rest.trim_ascii_start();
    let is_apart = rest.len() > token.len() && !rest[..rest.len() - token.len()].contains(&b'\t');
    if is_apart && is_b64token(token) { Ok(Some(token)) } else { Err(Malformed::Authorization) }
}

/// RFC 6750, section 2.1, and the bound.
fn is_b64token(value: &[u8]) -> bool {
    if value.len() > TOKEN_MAX {
        return false;
    }
    let padding = value.iter().rev().take_while(|&&byte| byte == b'=').count();
    let text = &value[..value.len() - padding];
    // Every byte is looked at, so that there is no branch per byte.
    !text.is_empty() && text.iter().fold(true, |all, &byte| all & TOKEN_BYTES[byte as usize])
}

/// Letters, digits and `-._~+/`.
static TOKEN_BYTES: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let value = byte as u8;
        allowed[byte] = value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
        byte += 1;
    }
    allowed
};

/// Whether `value` can be an API key at all.
pub(super) fn is_api_key(value: &[u8]) -> bool {
    (1..=API_KEY_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_credential_a_request() {
        use Malformed::{ApiKey, Authorization, Several};
        use Presented::{Bearer, None as Nothing};
        let check = |authorization: Option<&str>, api_key: Option<&str>, expected| {
            let authorization = authorization.map(str::as_bytes);
            let read = Presented::read(authorization, api_key.map(str::as_bytes), false);
            assert_eq!(read, expected, "{authorization:?} {api_key:?}");
        };
        let refused = |why| Presented::Malformed(why);
        check(None, None, Nothing);
        check(Some("Bearer a.b.c"), None, Bearer(b"a.b.c"));
        check(Some("bearer a.b.c"), None, Bearer(b"a.b.c"));
        check(Some("BEARER   a.b.c "), None, Bearer(b"a.b.c"));
        check(Some("Bearer abc=="), None, Bearer(b"abc=="));
        check(Some("Bearer -._~+/a"), None, Bearer(b"-._~+/a"));
        check(None, Some("key-1"), Presented::ApiKey(b"key-1"));
        // Another scheme is the backend's.
        check(Some("Basic dTpw"), None, Nothing);
        check(Some("Digest username=\"a\""), None, Nothing);
        check(Some("Negotiate"), None, Nothing);
        check(Some("Basic dTpw"), Some("key-1"), Presented::ApiKey(b"key-1"));
        check(Some("BearerX abc"), None, Nothing);
        check(Some("X-Bearer abc"), None, Nothing);
        // Several.
        check(Some("Bearer a.b.c"), Some("key-1"), refused(Several));
        check(Some("Bearer a.b.c"), Some(""), refused(Several));
        assert_eq!(Presented::read(Some(b"Bearer a"), None, true), refused(Several));
        assert_eq!(Presented::read(Some(b"Basic a"), None, true), refused(Several));
        assert_eq!(Presented::read(None, Some(b"a"), true), refused(Several));
        // Broken.
        check(Some(""), None, refused(Authorization));
        check(Some(" "), None, refused(Authorization));
        check(Some("=abc"), None, refused(Authorization));
        check(Some("Bearer"), None, refused(Authorization));
        check(Some("Bearer "), None, refused(Authorization));
        check(Some("Bearer\ta.b.c"), None, refused(Authorization));
        check(Some("Bearer \ta.b.c"), None, refused(Authorization));
        check(Some("Bearer=a.b.c"), None, refused(Authorization));
        check(Some("Bearer: a.b.c"), None, refused(Authorization));
        check(Some("Bearer a.b.c d"), None, refused(Authorization));
        check(Some("Bearer a,Bearer b"), None, refused(Authorization));
        check(Some("Bearer \"a\""), None, refused(Authorization));
        check(Some("Bearer =="), None, refused(Authorization));
        check(Some("Bearer a=b"), None, refused(Authorization));
        check(Some("Bearer a\u{e9}"), None, refused(Authorization));
        check(Some("Bearer"), Some("key-1"), refused(Authorization));
        check(None, Some(""), refused(ApiKey));
        check(None, Some("a b"), refused(ApiKey));
        check(None, Some("a, b"), refused(ApiKey));
        check(None, Some("a\u{e9}"), refused(ApiKey));
        let key = "a".repeat(API_KEY_MAX);
        check(None, Some(&key), Presented::ApiKey(key.as_bytes()));
        check(None, Some(&format!("{key}a")), refused(ApiKey));
        let token = "a".repeat(TOKEN_MAX);
        check(Some(&format!("Bearer {token}")), None, Bearer(token.as_bytes()));
        check(Some(&format!("Bearer {token}a")), None, refused(Authorization));
    }

    #[test]
    fn credentials_do_not_show_themselves() {
        assert_eq!(format!("{:?} {:?}", Presented::Bearer(b"a"), Presented::ApiKey(b"b")), "Bearer(…) ApiKey(…)");
    }

    proptest! {
        #[test]
        fn what_is_read_is_clean(value: Vec<u8>, key: Option<Vec<u8>>, prefix in prop::bool::ANY) {
            let value = if prefix { [b"Bearer ", &*value].concat() } else { value };
            match Presented::read(Some(&value), key.as_deref(), false) {
                Presented::Bearer(token) => prop_assert!(!token.is_empty() && token.iter().all(u8::is_ascii_graphic)),
                Presented::ApiKey(key) => prop_assert!(!key.is_empty() && key.iter().all(u8::is_ascii_graphic)),
                Presented::None | Presented::Malformed(_) => {}
            }
        }
    }
}
