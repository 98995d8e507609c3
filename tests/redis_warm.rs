//! A warm call to Redis allocates nothing, whatever its reply: the client's side of invariant 6.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringway::redis::client::{Client, Settings, State};
use ringway::redis::resp::{Arg, Script};
use ringway::snapshot::Address;

#[path = "support/redis.rs"]
mod server;

/// Counts the allocations of the threads that ask for it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<Option<u64>> = const { Cell::new(None) };
}

fn count() {
    // A thread that is ending counts no more.
    let _ = ALLOCATIONS.try_with(|made| made.set(made.get().map(|made| made + 1)));
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations for 1,000 warm calls of a script.
async fn allocations(address: Address, text: &str) -> u64 {
    let mut settings = Settings::new(address);
    settings.timeout = Duration::from_secs(5);
    let script = Rc::new(Script::new(text));
    let client = Client::start(settings, &[Rc::clone(&script)], 1);
    let start = Instant::now();
    while client.state() != State::Up {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", client.state());
        monoio::time::sleep(Duration::from_millis(1)).await;
    }
    for round in 0..1_200 {
        if round == 200 {
            ALLOCATIONS.set(Some(0));
        }
        let reply = client.eval(&script, &[b"key"], &[Arg::Integer(round), Arg::Bytes(b"x")]).await;
        let value = reply.as_ref().map(|reply| (reply.integer(), reply.integers::<2>(), reply.text()));
        assert!(value.is_ok_and(|(integer, integers, text)| integer.is_some() || integers.is_some() || text.is_some()));
    }
    let made = ALLOCATIONS.take();
    made.expect("counted")
}

#[test]
fn a_warm_call_allocates_nothing() {
    let server = server::RedisServer::start(&[]);
    let address = || Address::Tcp(server.address());
    for text in ["return tonumber(ARGV[1])", "return ARGV[2]", "return {1, 2}", "return redis.status_reply('OK')"] {
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll");
        assert_eq!(runtime.block_on(allocations(address(), text)), 0, "epoll, {text}");
        if let Ok(mut runtime) = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build() {
            assert_eq!(runtime.block_on(allocations(address(), text)), 0, "io_uring, {text}");
        }
    }
}
