//! Where pages come from: serialised origins (RFC 6454, section 6.2), and patterns of them.

/// The longest origin that is looked at, in bytes.
const ORIGIN_MAX: usize = 512;

/// One entry of `cors.allow_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `https://app.example.com`, lower case.
    Exact(Box<str>),
    /// `https://*.example.com`: every name below it, at any depth, and not itself.
    Below {
        /// `https://`
        scheme: Box<str>,
        /// `.example.com`, with the port if there is one.
        suffix: Box<str>,
    },
}

/// Why something is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// No scheme, or something behind the port.
    #[error("must be an origin such as \"https://app.example.com\" or \"http://localhost:3000\", without a path")]
    Shape,
    /// A `*` anywhere but at the beginning of the host.
    #[error("may have one * only, as in \"https://*.example.com\"")]
    Wildcard,
    /// What browsers leave out.
    #[error("must leave out the scheme's own port, as browsers do: \"https://app.example.com\"")]
    DefaultPort,
}

impl OriginPattern {
    /// Reads a pattern; `null` is the origin of pages that have none, such as files.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub fn parse(text: &str) -> Result<OriginPattern, OriginError> {
        let text = text.to_ascii_lowercase();
        if text == "null" {
            return Ok(OriginPattern::Exact(text.into()));
        }
        let scheme_end = text.find("://").ok_or(OriginError::Shape)? + 3;
        let (scheme, host) = text.split_at(scheme_end);
        let is_scheme =
            scheme[..scheme_end - 3].bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if scheme_end == 3 || !is_scheme || text.len() > ORIGIN_MAX {
            return Err(OriginError::Shape);
        }
        match (scheme, host.rsplit_once(':').map(|(_, port)| port)) {
            ("http://", Some("80")) | ("https://", Some("443")) => return Err(OriginError::DefaultPort),
            _ => {}
        }
        match host.strip_prefix('*') {
            Some(suffix) if suffix.contains('*') => Err(OriginError::Wildcard),
            Some(suffix) if suffix.starts_with('.') && is_host(&suffix.as_bytes()[1..]) => {
                Ok(OriginPattern::Below { scheme: scheme.into(), suffix: suffix.into() })
            }
            Some(_) => Err(OriginError::Wildcard),
            None if host.contains('*') => Err(OriginError::Wildcard),
            None if is_host(host.as_bytes()) => Ok(OriginPattern::Exact(text.into())),
            None => Err(OriginError::Shape),
        }
    }

    /// Whether `origin`, as a browser sent it, is one of these.
    pub fn matches(&self, origin: &[u8]) -> bool {
        match self {
            OriginPattern::Exact(known) => known.as_bytes().eq_ignore_ascii_case(origin),
            OriginPattern::Below { scheme, suffix } => {
                let Some(labels) = origin.len().checked_sub(scheme.len() + suffix.len()).filter(|length| *length > 0)
                else {
                    return false;
                };
                let (before, rest) = origin.split_at(scheme.len());
                let (labels, after) = rest.split_at(labels);
                origin.len() <= ORIGIN_MAX
                    && before.eq_ignore_ascii_case(scheme.as_bytes())
                    && after.eq_ignore_ascii_case(suffix.as_bytes())
                    && labels.split(|&byte| byte == b'.').all(is_label)
            }
        }
    }
}

/// `host[:port]`: labels, or an IPv6 address in brackets.
fn is_host(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|&byte| byte == b':').filter(|_| !text.ends_with(b"]")) {
        Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
        None => (text, None),
    };
    let is_port = port.is_none_or(|port| (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit));
    let is_address = host.starts_with(b"[")
        && host.ends_with(b"]")
        && host[1..host.len() - 1].iter().all(|&byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    is_port && (is_address || host.split(|&byte| byte == b'.').all(is_label))
}

fn is_label(label: &[u8]) -> bool {
    !label.is_empty() && label.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}
