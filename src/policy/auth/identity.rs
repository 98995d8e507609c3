//! Who a client turned out to be, and what the upstream is told about it.

use std::time::Duration;

/// The longest subject, in bytes: what the access log shows of a field.
pub const SUBJECT_MAX: usize = 256;

/// The most scopes of one identity.
pub const SCOPES_MAX: usize = 64;

/// The longest list of scopes, in bytes with the spaces between them.
pub const SCOPES_BYTES_MAX: usize = 2_048;

/// A verified client. Nothing in it can break a header field or a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    method: AuthMethod,
    subject: Box<str>,
    scopes: Box<str>,
    expires: Option<u64>,
    rate_limit: Option<OwnLimit>,
    lines: Box<[u8]>,
}

/// How a client proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// A JSON Web Token in `Authorization: Bearer`.
    Jwt,
    /// A key in `X-API-Key`.
    ApiKey,
}

impl AuthMethod {
    /// The word in `X-Auth-Method` and the access log: `jwt`, `api_key`.
    pub const fn as_str(self) -> &'static str {
        match self {
            AuthMethod::Jwt => "jwt",
            AuthMethod::ApiKey => "api_key",
        }
    }
}

/// An API key's own rate limit, in place of the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnLimit {
    /// Requests per window, at least 1.
    pub requests: u32,
    /// The window.
    pub window: Duration,
}

/// Why something is nobody's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It would be ambiguous in a header or a log line.
    #[error("a name must be 1 to {SUBJECT_MAX} visible ASCII characters without spaces")]
    Subject,
    /// RFC 6749, section 3.3, and our bounds.
    #[error(
        "scopes must be visible ASCII characters without spaces, quotation marks and backslashes, \
         at most {SCOPES_MAX} scopes and {SCOPES_BYTES_MAX} bytes"
    )]
    Scopes,
}

impl Identity {
    /// An identity that ends at `expires`, in Unix seconds and any leeway included; `None`: never.
    ///
    /// # Errors
    /// When the subject or the scopes are empty where they may not be, too long, or hold anything but visible ASCII.
    pub fn new<'s>(
        method: AuthMethod,
        subject: &str,
        scopes: impl IntoIterator<Item = &'s str>,
        expires: Option<u64>,
        rate_limit: Option<OwnLimit>,
    ) -> Result<Identity, IdentityError> {
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if subject.is_empty() || subject.len() > SUBJECT_MAX || !is_visible(subject) {
            return Err(IdentityError::Subject);
        }
        let mut list = String::new();
        for (index, scope) in scopes.into_iter().enumerate() {
            if index == SCOPES_MAX || list.len() + scope.len() >= SCOPES_BYTES_MAX || !is_scope(scope) {
                return Err(IdentityError::Scopes);
            }
            if index > 0 {
                list.push(' ');
            }
            list.push_str(scope);
        }
        let mut lines = format!("X-User-Id: {subject}\r\nX-Auth-Method: {}\r\n", method.as_str());
        if !list.is_empty() {
            lines.push_str("X-Auth-Scopes: ");
            lines.push_str(&list);
            lines.push_str("\r\n");
        }
        Ok(Identity {
            method,
            subject: subject.into(),
            scopes: list.into(),
            expires,
            rate_limit,
            lines: lines.into_bytes().into(),
        })
    }

    /// How it was proved.
    pub fn method(&self) -> AuthMethod {
        self.method
    }

    /// Who it is: a token's `sub`, an API key's owner. The two are different people even where they are called the same,
    /// so whatever counts by subject counts by [`Identity::method`] too.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What it may do, separated by single spaces; empty for nothing in particular.
    pub fn scopes(&self) -> &str {
        &self.scopes
    }

    /// When it ends, in Unix seconds with the leeway included; `None`: never.
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// The API key's own rate limit.
    pub fn rate_limit(&self) -> Option<OwnLimit> {
        self.rate_limit
    }

    /// `X-User-Id`, `X-Auth-Method` and, where there is a scope, `X-Auth-Scopes`, as whole lines for the upstream's head.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Whether `scope` is among its scopes.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.split(' ').any(|own| own == scope)
    }

    /// Whether its time is over at `now`, in Unix seconds.
    pub fn is_over(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

/// A `scope-token` (RFC 6749, section 3.3).
pub fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_identity_may_hold() {
        let check = |subject: &str, scopes: &[&str], expected: Result<&str, IdentityError>| {
            let made = Identity::new(AuthMethod::Jwt, subject, scopes.iter().copied(), None, None);
            let lines = made.map(|made| String::from_utf8(made.lines().to_vec()).expect("ASCII"));
            assert_eq!(lines.as_deref().map_err(|&error| error), expected, "{subject} {scopes:?}");
        };
        check("u-1", &[], Ok("X-User-Id: u-1\r\nX-Auth-Method: jwt\r\n"));
        check(
            "auth0|a@b.c",
            &["sms:send", "llm"],
            Ok("X-User-Id: auth0|a@b.c\r\nX-Auth-Method: jwt\r\nX-Auth-Scopes: sms:send llm\r\n"),
        );
        check("", &[], Err(IdentityError::Subject));
        check("a b", &[], Err(IdentityError::Subject));
        check("a\r\nX-Admin: 1", &[], Err(IdentityError::Subject));
        check("é", &[], Err(IdentityError::Subject));
        check("a\0", &[], Err(IdentityError::Subject));
        check(&"a".repeat(SUBJECT_MAX + 1), &[], Err(IdentityError::Subject));
        check("u", &["a b"], Err(IdentityError::Scopes));
        check("u", &[""], Err(IdentityError::Scopes));
        check("u", &["a\"b"], Err(IdentityError::Scopes));
        check("u", &["a\nb"], Err(IdentityError::Scopes));
        check("u", &["a"; SCOPES_MAX + 1], Err(IdentityError::Scopes));
        check("u", &[&"a".repeat(SCOPES_BYTES_MAX)], Err(IdentityError::Scopes));
        assert!(Identity::new(AuthMethod::Jwt, &"a".repeat(SUBJECT_MAX), ["a"; SCOPES_MAX], None, None).is_ok());
    }

    #[test]
    fn scopes_are_compared_whole() {
        let identity = Identity::new(AuthMethod::ApiKey, "u", ["sms:send", "llm"], Some(10), None).expect("fine");
        for (scope, expected) in [("sms:send", true), ("llm", true), ("sms", false), ("send", false), ("LLM", false)] {
            assert_eq!(identity.has_scope(scope), expected, "{scope}");
        }
        assert!(!identity.is_over(9) && identity.is_over(10));
    }
}
