//! The instructions that a request's pure work takes, counted by callgrind: `benches/check`.

#![allow(missing_docs, reason = "gungraun's macros make items without any")]

mod support;

use gungraun::prelude::*;
use gungraun::{Callgrind, main};
use ringway::snapshot::LogFormat;
use ringway::traffic::balance::Algorithm;

use support::{Work, auth, decisions, exchange, heads, records};

#[library_benchmark]
#[bench::request_head(heads::request())]
#[bench::request_parse(heads::request_parse())]
#[bench::request_rewrite(heads::request_rewrite())]
#[bench::response_head(heads::response())]
#[bench::response_rewrite(heads::response_rewrite())]
#[bench::chunked_body(heads::chunked())]
#[bench::trace_context(heads::trace_context())]
fn http(work: Work) -> Work {
    once(work)
}

#[library_benchmark]
#[bench::token_warm(auth::warm_token())]
#[bench::token_cold(auth::cold_token())]
#[bench::token_forged(auth::forged_token())]
#[bench::api_key(auth::known_key(100))]
#[bench::api_key_unknown(auth::unknown_key())]
fn identity(work: Work) -> Work {
    once(work)
}

#[library_benchmark]
#[bench::route(decisions::route())]
#[bench::balance_round_robin(decisions::balance(Algorithm::RoundRobin))]
#[bench::balance_least_connections(decisions::balance(Algorithm::LeastConnections))]
#[bench::balance_random(decisions::balance(Algorithm::Random))]
#[bench::breaker_closed(decisions::breaker_closed())]
#[bench::breaker_open(decisions::breaker_open())]
#[bench::limit_granted(decisions::limit_granted())]
#[bench::limit_denied(decisions::limit_denied())]
fn decision(work: Work) -> Work {
    once(work)
}

#[library_benchmark]
#[bench::log_line_json(records::log_line(LogFormat::Json))]
#[bench::log_line_text(records::log_line(LogFormat::Text))]
#[bench::counters(records::counted())]
fn record(work: Work) -> Work {
    once(work)
}

#[library_benchmark]
#[bench::bare(exchange::bare())]
#[bench::every_policy(exchange::guarded())]
fn forward(work: Work) -> Work {
    once(work)
}

/// What is given back is dropped behind the count.
fn once(mut work: Work) -> Work {
    work();
    work
}

library_benchmark_group!(name = pure_work, benchmarks = [http, identity, decision, record, forward]);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = pure_work
);
