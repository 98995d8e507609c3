//! The gateway as its users meet it: the real binary, real sockets, one module a topic.

mod backends;
mod bodies;
mod clients;
mod command_line;
mod drain;
mod drivers;
mod endpoints;
mod identity;
mod messages;
mod observability;
mod overload;
mod paths;
mod pool;
mod refusals;
mod routing;
mod support;
mod tunnel;
