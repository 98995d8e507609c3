//! Request methods, and sets of them.

/// A request method (RFC 9110, section 9). Anything beyond the registered core is [`Method::Other`]: it is passed on by
/// its bytes and counted as `OTHER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Method {
    Get = 0,
    Head = 1,
    Post = 2,
    Put = 3,
    Delete = 4,
    Patch = 5,
    Options = 6,
    Trace = 7,
    Connect = 8,
    Other = 9,
}

impl Method {
    /// How many there are: what a table indexed by `method as usize` needs.
    pub const COUNT: usize = 10;

    /// Every method, in the order of its discriminant.
    pub const ALL: [Method; Method::COUNT] = [
        Method::Get,
        Method::Head,
        Method::Post,
        Method::Put,
        Method::Delete,
        Method::Patch,
        Method::Options,
        Method::Trace,
        Method::Connect,
        Method::Other,
    ];

    /// Reads a method token. Methods are case-sensitive.
    pub fn from_bytes(token: &[u8]) -> Method {
        match token {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"PATCH" => Method::Patch,
            b"OPTIONS" => Method::Options,
            b"TRACE" => Method::Trace,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        }
    }

    /// The token, `OTHER` for [`Method::Other`]: the metrics' `method` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Patch => "PATCH",
            Method::Options => "OPTIONS",
            Method::Trace => "TRACE",
            Method::Connect => "CONNECT",
            Method::Other => "OTHER",
        }
    }

    /// Whether sending it twice means the same as sending it once (RFC 9110, section 9.2.2).
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Method::Post | Method::Patch | Method::Connect | Method::Other)
    }
}

/// A set of methods, as in `services.<name>.methods`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodSet(u16);

impl MethodSet {
    /// Every method, extension methods too: what a service without `methods` accepts.
    pub const ALL: MethodSet = MethodSet((1 << Method::COUNT) - 1);
    /// No method.
    pub const EMPTY: MethodSet = MethodSet(0);

    /// This set with `method` in it.
    #[must_use]
    pub const fn with(self, method: Method) -> MethodSet {
        MethodSet(self.0 | 1 << method as u16)
    }

    /// Whether `method` is in the set.
    pub fn contains(self, method: Method) -> bool {
        self.0 & 1 << method as u16 != 0
    }

    /// The methods of the set that have a name, in the order of [`Method::ALL`]: the `Allow` header's list.
    pub fn named(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |&method| method != Method::Other && self.contains(method))
    }
}
