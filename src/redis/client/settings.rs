//! What a client is told about its Redis.

use std::fmt;
use std::time::Duration;

use crate::snapshot::Address;

/// `redis.url` and `redis.timeout`, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where Redis is at first, see [`Client::set_address`](super::Client::set_address).
    pub address: Address,
    /// The ACL user; empty means the default one.
    pub username: Box<str>,
    /// Its password; none means that nothing is said about who is calling.
    pub password: Option<Secret>,
    /// The database, from 0; a server has 16 unless it is told otherwise.
    pub database: u32,
    /// From a call to its reply. Checked to the millisecond, so at least that.
    pub timeout: Duration,
    /// From the start of connecting to the first call. Nobody waits for it: while it lasts, calls fail at once.
    pub connect_timeout: Duration,
}

impl Settings {
    /// A server without passwords, its first database, 50 ms for a call, a second to connect.
    pub fn new(address: Address) -> Settings {
        Settings {
            address,
            username: Box::default(),
            password: None,
            database: 0,
            timeout: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Hides `text`.
    pub fn new(text: &str) -> Secret {
        Secret(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let mut settings = Settings::new(Address::Tcp(([127, 0, 0, 1], 6379).into()));
        settings.password = Some(Secret::new("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
