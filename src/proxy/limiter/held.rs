//! What is asked of the limits for a request, what they say, and what the request has of each.

use std::time::Duration;

use super::seat::Seat;
use crate::policy::rate_limit::identity::Identity;
use crate::policy::rate_limit::{Standing, Token};
use crate::traffic::window::{Limit, LimitKey};

/// Whom a request counts against.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The verified user or API key.
    pub identity: Option<Identity<'a>>,
    /// The client's address.
    pub ip: Identity<'a>,
    /// The limit of the API key itself.
    pub own: Option<Limit>,
}

/// What a request has of one of its limits.
#[derive(Debug)]
pub struct Held {
    /// Which of the service's limits.
    pub index: usize,
    /// How many in how long.
    pub limit: Limit,
    /// Whether the limit is this process's share of the configured one already.
    pub(super) is_share: bool,
    pub(super) key: LimitKey,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Place {
    /// It may pass.
    Token(Token, Standing),
    /// It waits.
    Seat(Seat),
    /// It may pass and holds nothing: Redis is away.
    Passed,
}

impl Held {
    /// Where the request stands under the limit; `None` while nobody counts.
    pub fn standing(&self) -> Option<Standing> {
        match self.place {
            Place::Token(_, standing) => Some(standing),
            Place::Seat(_) | Place::Passed => None,
        }
    }
}

/// What the limits say at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It passes.
    Pass,
    /// It is refused.
    Deny(Denial),
    /// It waits for [`Limiter::wait`](super::Limiter::wait).
    Wait,
}

/// A refusal. Nothing was taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Which of the service's limits refused.
    pub index: usize,
    /// The earliest time that it can let somebody pass.
    pub retry_after: Duration,
}
