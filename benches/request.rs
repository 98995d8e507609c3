//! The time that a request's pure work takes, without sockets: `cargo bench --bench request`.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::snapshot::LogFormat;
use ringway::traffic::balance::Algorithm;

use support::{Work, decisions, exchange, heads, records};

/// Names what is measured, and prepares it.
type Bench = (&'static str, fn() -> Work);

const BENCHES: [Bench; 20] = [
    ("request head: find, parse, rewrite", heads::request),
    ("request head: parse", heads::request_parse),
    ("request head: rewrite", heads::request_rewrite),
    ("response head: find, parse, rewrite", heads::response),
    ("response head: rewrite", heads::response_rewrite),
    ("chunked body: decode 16 chunks of 200 bytes", heads::chunked),
    ("trace context: check, join, name the parent", heads::trace_context),
    ("normalise a path and find its route among 16", decisions::route),
    ("balance over 4: RoundRobin", || decisions::balance(Algorithm::RoundRobin)),
    ("balance over 4: LeastConnections", || decisions::balance(Algorithm::LeastConnections)),
    ("balance over 4: Random", || decisions::balance(Algorithm::Random)),
    ("breaker: closed, through and back", decisions::breaker_closed),
    ("breaker: open, refused", decisions::breaker_open),
    ("rate limit: granted from a lease", decisions::limit_granted),
    ("rate limit: denied without asking", decisions::limit_denied),
    ("access-log line, JSON", || records::log_line(LogFormat::Json)),
    ("access-log line, text", || records::log_line(LogFormat::Text)),
    ("counters of a request", records::counted),
    ("a forwarded request, bare", exchange::bare),
    ("a forwarded request, every policy", exchange::guarded),
];

fn requests(c: &mut Criterion) {
    for (name, prepare) in BENCHES {
        let mut work = prepare();
        c.bench_function(name, |b| b.iter(&mut work));
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
