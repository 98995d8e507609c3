//! Takes secrets out of a query string.
//!
//! Which characters separate parameters is up to the backend: `&` everywhere, `;` in some, and a second `?` is seen in the
//! wild. So a name is looked for behind each of them, while a secret value lasts up to the next `&`, the only one that ends
//! it everywhere.

/// What a secret value is replaced by; an empty one is left empty.
const MASK: &[u8] = b"***";

/// Hands `target` to `emit` piece by piece, with the values of the query parameters named in `names` (lower case) masked.
/// Names are compared as a backend would read them: percent-decoded once, `+` as a space, in any case.
pub(super) fn redacted(target: &[u8], names: &[Box<str>], mut emit: impl FnMut(&[u8])) {
    let mut shown = 0;
    let mut separator = if names.is_empty() { None } else { memchr::memchr(b'?', target) };
    while let Some(before) = separator {
        let rest = &target[before + 1..];
        let name_end = rest.iter().position(|byte| matches!(byte, b'=' | b'&' | b';' | b'?')).unwrap_or(rest.len());
        let (name, tail) = rest.split_at(name_end);
        let tail_start = before + 1 + name_end;
        let next = match tail.strip_prefix(b"=") {
            Some(value) if names.iter().any(|secret| reads_as(name, secret.as_bytes())) => {
                let value_len = memchr::memchr(b'&', value);
                emit(&target[shown..=tail_start]);
                if !value.is_empty() && value_len != Some(0) {
                    emit(MASK);
                }
                shown = value_len.map_or(target.len(), |len| tail_start + 1 + len);
                value_len.map(|len| 1 + len)
            }
            _ => memchr::memchr3(b'&', b';', b'?', tail),
        };
        separator = next.map(|offset| tail_start + offset);
    }
    emit(&target[shown..]);
}

/// Whether the decoded `name` is `secret`, which is in lower case.
fn reads_as(name: &[u8], secret: &[u8]) -> bool {
    let mut rest = name;
    let decoded = std::iter::from_fn(|| {
        let (&byte, tail) = rest.split_first()?;
        let escaped = (byte == b'%').then(|| tail.split_at_checked(2)).flatten();
        let escaped = escaped.and_then(|(digits, tail)| Some((hex(digits[0])? << 4 | hex(digits[1])?, tail)));
        let (byte, tail) = escaped.unwrap_or((if byte == b'+' { b' ' } else { byte }, tail));
        rest = tail;
        Some(byte.to_ascii_lowercase())
    });
    decoded.eq(secret.iter().copied())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redact(target: &str, names: &[&str]) -> String {
        let names: Vec<Box<str>> = names.iter().map(|&name| name.into()).collect();
        let mut out = Vec::new();
        redacted(target.as_bytes(), &names, |piece| out.extend_from_slice(piece));
        String::from_utf8(out).expect("cut at ASCII")
    }

    #[test]
    fn values_of_named_parameters_are_masked() {
        let check = |target: &str, expected: &str| assert_eq!(redact(target, &["token", "api key", "é"]), expected);
        check("/a", "/a");
        check("/a?", "/a?");
        check("/a?b=c", "/a?b=c");
        check("/token=x", "/token=x");
        check("/a?token=x", "/a?token=***");
        check("/a?token=x&b=c", "/a?token=***&b=c");
        check("/a?b=c&token=x", "/a?b=c&token=***");
        check("/a?token=x&token=y&&token=z", "/a?token=***&token=***&&token=***");
        check("/a?TOKEN=x&Token=y", "/a?TOKEN=***&Token=***");
        check("/a?%74oken=x&t%4Fken=y&%54%4f%4B%45%4e=z", "/a?%74oken=***&t%4Fken=***&%54%4f%4B%45%4e=***");
        check("/a?api+key=x&api%20key=y", "/a?api+key=***&api%20key=***");
        check("/a?%C3%A9=x&é=y", "/a?%C3%A9=***&é=***");
        check("/a?token=x=y;z?w", "/a?token=***");
        check("/a?b=1;token=x;y&c=2", "/a?b=1;token=***&c=2");
        check("/a?b=1?token=x", "/a?b=1?token=***");
        check("/a?b==token=x", "/a?b==token=x");
        check("/a??token=x", "/a??token=***");
        check("/a?token=é", "/a?token=***");
        check("/a?token", "/a?token");
        check("/a?token&token=", "/a?token&token=");
        check("/a?token=&b=c", "/a?token=&b=c");
        check("/a?tokens=x&atoken=y&toke=z&token%=v", "/a?tokens=x&atoken=y&toke=z&token%=v");
        check("/a?%7=1&%=2&%zz=3", "/a?%7=1&%=2&%zz=3");
        assert_eq!(redact("/a?token=x", &[]), "/a?token=x");
    }

    proptest! {
        #[test]
        fn no_secret_is_shown_and_nothing_else_is_lost(
            parameters in proptest::collection::vec(("[a-c%+;?=é]{0,4}", any::<bool>(), "[0-9a-z;?=%]{1,6}"), 0..8),
        ) {
            let mut target = String::from("/p?");
            let mut expected = target.clone();
            for (junk, secret, value) in &parameters {
                if *secret {
                    target += &format!("T%6fken=SECRET{value}&");
                    expected += "T%6fken=***&";
                } else {
                    target += &format!("{junk}={value}&");
                    expected += &format!("{junk}={value}&");
                }
            }
            prop_assert_eq!(redact(&target, &["token"]), expected);
        }
    }
}
