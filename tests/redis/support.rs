//! What the tests of the client share: both drivers, and waiting for a condition.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringway::redis::client::{Call, CallError, Client, Reason, Settings, State};
use ringway::redis::resp::command::command;
use ringway::snapshot::Address;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on epoll, and on io_uring where the kernel has it.
pub fn on_both_drivers<F: Future<Output = ()>>(test: impl Fn() -> F) {
    RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll").block_on(test());
    if let Ok(mut runtime) = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build() {
        runtime.block_on(test());
    }
}

/// Settings for a server without passwords. The timeout is long enough for a machine that has other things to do.
pub fn settings(address: SocketAddr) -> Settings {
    let mut settings = Settings::new(Address::Tcp(address));
    settings.timeout = Duration::from_secs(5);
    settings
}

/// A client of a server, once it is up.
pub async fn client(settings: Settings) -> Client {
    let client = Client::start(settings, &[], 1);
    up(&client).await;
    client
}

/// Waits until calls are taken.
pub async fn up(client: &Client) {
    until(client, "up", |client| client.state() == State::Up).await;
}

/// Waits until calls are not taken, for this reason.
pub async fn down(client: &Client, reason: Reason) {
    until(client, "down", |client| client.state() == State::Down(reason)).await;
}

/// Waits until `condition` holds.
pub async fn until(client: &Client, what: &str, condition: impl Fn(&Client) -> bool) {
    let start = Instant::now();
    while !condition(client) {
        let (state, error) = (client.state(), client.last_error());
        assert!(start.elapsed() < PATIENCE, "not {what}: {state:?} {error:?} {:?}", client.stats());
        monoio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Calls a command.
pub fn call(client: &Client, parts: &[&str]) -> Call {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    client.call(|out| command(&parts, out))
}

/// What a command comes to: its text or number.
pub async fn ask(client: &Client, parts: &[&str]) -> Result<String, CallError> {
    let reply = call(client, parts).await?;
    Ok(match reply.integer() {
        Some(value) => value.to_string(),
        None => String::from_utf8_lossy(reply.text().unwrap_or(b"(other)")).into_owned(),
    })
}

/// A text, as [`ask`] has it.
pub fn said(text: &str) -> Result<String, CallError> {
    Ok(text.to_owned())
}
