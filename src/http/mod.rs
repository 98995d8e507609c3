//! HTTP/1.1, pure: bytes to messages and back (RFC 9110, RFC 9112).

pub mod body;
pub mod headers;
pub mod method;
pub mod problem;
pub mod request;
pub mod response;
pub mod text;
pub mod trace_context;

#[cfg(test)]
mod tests;
