//! What a call to Redis costs a worker: `cargo bench --bench redis`. Starts a redis-server of its own.
//!
//! Prints, for each driver and number of calls in flight: calls a second (Redis and worker share the machine), processor time
//! of the worker's thread per call, and calls per write.

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringway::redis::client::{Client, Settings, State};
use ringway::redis::resp::{Arg, Script};
use ringway::snapshot::Address;

#[path = "../tests/support/redis.rs"]
mod server;

const ROUND: Duration = Duration::from_secs(2);

/// Processor time of this thread so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds"))
}

async fn measure(driver: &str, address: Address, in_flight: usize) {
    let script = Rc::new(Script::new("return {1, 2, 3}"));
    let mut settings = Settings::new(address);
    settings.timeout = Duration::from_secs(5);
    let client = Rc::new(Client::start(settings, &[Rc::clone(&script)], 1));
    while client.state() != State::Up {
        monoio::time::sleep(Duration::from_millis(1)).await;
    }
    let (start, cpu) = (Instant::now(), cpu_time());
    let tasks = (0..in_flight).map(|_| {
        let (client, script) = (Rc::clone(&client), Rc::clone(&script));
        monoio::spawn(async move {
            while start.elapsed() < ROUND {
                let args = [Arg::Integer(100), Arg::Integer(60)];
                let reply = client.eval(&script, &[b"ringway:{user-4711}:sms"], &args).await;
                assert_eq!(reply.expect("a reply").integers(), Some([1, 2, 3]));
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await;
    let (elapsed, cpu) = (start.elapsed(), cpu_time().saturating_sub(cpu));
    let (calls, writes) = (client.stats().calls.get(), client.stats().writes.get());
    println!(
        "{driver:8} {in_flight:4} in flight: {:7.0} calls/s, {:5.2} µs per call, {:6.1} calls per write",
        calls as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / calls as f64,
        calls as f64 / writes as f64,
    );
}

fn main() {
    let server = server::RedisServer::start(&[]);
    for in_flight in [1, 8, 64, 512] {
        let address = || Address::Tcp(server.address());
        if let Ok(mut runtime) = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build() {
            runtime.block_on(measure("io_uring", address(), in_flight));
        }
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll");
        runtime.block_on(measure("epoll", address(), in_flight));
    }
}
