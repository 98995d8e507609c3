//! Why Redis is of no use to the registry, and what an operator is told.

use redis::{ErrorKind, RedisError};

use super::shared::TIMEOUT;

/// Why Redis was of no use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Away {
    /// Its name does not resolve.
    #[error("its address is not known")]
    Address,
    /// It was, and whether it is back is not known yet.
    #[error("the connection was lost")]
    Lost,
    /// It did not answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It cannot be reached, or refuses.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// It answered what nobody understands.
    #[error("an unexpected answer")]
    Answer,
    /// It is there, but not what it has of one service.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Away {
    /// Whether Redis is there, and refuses: it is full, read-only, or does not let us.
    pub fn is_answer(&self) -> bool {
        match self {
            Away::Redis(error) => error.code().is_some() || error.kind() == ErrorKind::AuthenticationFailed,
            Away::Unreadable(_) => true,
            Away::Address | Away::Lost | Away::Timeout | Away::Answer => false,
        }
    }

    /// Why nothing can be changed, and what to do, for whoever asked for a change. What Redis itself says is for the log.
    pub fn advice(&self) -> String {
        match self {
            Away::Unreadable(unreadable) => {
                format!("Instances of this service cannot be changed: {unreadable}. {}.", unreadable.remedy())
            }
            Away::Redis(error) if self.is_answer() => format!(
                "Redis refuses ({}), so nothing can be changed. The gateway's log has what it says; try again when that \
                 is mended.",
                error.code().unwrap_or("the gateway's credentials")
            ),
            _ => "The registry is not available, so nothing can be changed. Try again later.".to_owned(),
        }
    }
}

/// The key of one service cannot be read, while Redis is well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Redis key {key} cannot be read: {why}")]
pub struct Unreadable {
    /// The key.
    pub key: String,
    /// What Redis says, its code first.
    pub why: String,
}

impl Unreadable {
    /// What an operator is to do, a sentence without its end.
    pub fn remedy(&self) -> &'static str {
        match self.why.starts_with("NOPERM") {
            true => "Let the gateway's user of Redis read and write the keys of redis.prefix (ACL SETUSER)",
            false => "Delete the key (DEL), or set another redis.prefix; the instances are then brought back",
        }
    }
}
