//! A request's host in the form in which routes name it.
//!
//! Nothing here validates: whoever parsed the request has refused a bad `Host` already. What is odd nevertheless matches
//! no configured host.

/// The longest name that can match a route: a domain name has at most 253 bytes (RFC 1035, section 2.3.4, less the
/// length bytes).
pub const NAME_MAX: usize = 253;

/// The host's name within `authority` (`Example.com:8080`, `[::1]:80`, `example.com.`): in lower case, without port and
/// without one trailing dot. Written to `buffer`. `None` when it is empty or longer than [`NAME_MAX`].
pub fn canonical<'b>(authority: &[u8], buffer: &'b mut [u8; NAME_MAX]) -> Option<&'b [u8]> {
    let name = name_of(authority);
    if name.is_empty() {
        return None;
    }
    let canonical = buffer.get_mut(..name.len())?;
    canonical.copy_from_slice(name);
    canonical.make_ascii_lowercase();
    Some(canonical)
}

/// The name without port and trailing dot. An IPv6 address keeps its brackets.
fn name_of(authority: &[u8]) -> &[u8] {
    if authority.first() == Some(&b'[') {
        return memchr::memchr(b']', authority).map_or(authority, |end| &authority[..=end]);
    }
    // At the last colon: the odd `a:1:2` is left as `a:1`, which matches nothing.
    let name = memchr::memrchr(b':', authority).map_or(authority, |colon| &authority[..colon]);
    name.strip_suffix(b".").unwrap_or(name)
}

/// What is left of `name` behind each of its dots, longest first: `b.c` and `c` for `a.b.c`. A wildcard `*.b.c` is known
/// by its `b.c`.
pub fn parents(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    memchr::memchr_iter(b'.', name).map(|dot| &name[dot + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |authority: &str, expected: Option<&str>| {
            let mut buffer = [0; NAME_MAX];
            assert_eq!(canonical(authority.as_bytes(), &mut buffer), expected.map(str::as_bytes), "{authority}");
        };
        check("example.com", Some("example.com"));
        check("EXAMPLE.Com:8080", Some("example.com"));
        check("example.com.", Some("example.com"));
        check("example.com.:80", Some("example.com"));
        check("example.com..", Some("example.com."));
        check("example.com:", Some("example.com"));
        check("127.0.0.1:80", Some("127.0.0.1"));
        check("[2001:DB8::1]:80", Some("[2001:db8::1]"));
        check("[::1]", Some("[::1]"));
        check("[::1", Some("[::1"));
        check("a:1:2", Some("a:1"));
        check("", None);
        check(":80", None);
        check(".", None);
        check(&"a".repeat(NAME_MAX), Some(&"a".repeat(NAME_MAX)));
        check(&"a".repeat(NAME_MAX + 1), None);
    }

    #[test]
    fn parents_of_a_name() {
        let check = |name: &str, expected: &[&str]| {
            let actual: Vec<_> = parents(name.as_bytes()).map(|parent| str::from_utf8(parent).unwrap()).collect();
            assert_eq!(actual, expected, "{name}");
        };
        check("a.b.c", &["b.c", "c"]);
        check("a", &[]);
        check("a.", &[""]);
    }
}
