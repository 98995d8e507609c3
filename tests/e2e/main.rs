//! The gateway as its users meet it: the real binary, real sockets, one module a topic.

mod auth;
mod backends;
mod bodies;
mod breakers;
mod clients;
mod command_line;
mod cors;
mod dashboard;
mod deploy;
mod descriptors;
#[path = "../browser/devtools.rs"]
mod devtools;
mod dns;
mod docs;
mod drain;
mod drivers;
mod early_answers;
mod endpoints;
mod health;
mod identity;
mod kept;
mod leaving;
mod messages;
mod metrics;
mod observability;
mod overload;
mod paths;
mod pipelining;
mod pool;
mod rate_limits;
#[path = "../support/redis.rs"]
mod redis;
mod redis_slow;
mod refusals;
mod registration;
mod reload;
mod retries;
mod routing;
mod slow;
mod splicing;
mod status;
mod support;
mod systemd;
mod traces;
mod tunnel;
mod upgrade;
