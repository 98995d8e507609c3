//! `admin.listen`: the management endpoints on a listener of their own, off the public port.
//!
//! Clients come to the control thread itself here, so what they may take of it is bounded: so many connections, and so long
//! for a head, idle connections among them, and for taking what they asked for.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::snapshot::{Phase, Seam};

/// The most connections; others wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 256;

/// How long a head may take to come, the first or another.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// How long a client may take none of what waits for it. The kernel ends the connection then, also one whose peer answers
/// and keeps its window closed (tcp(7), TCP_USER_TIMEOUT).
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// How often a drain is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long clients who are being answered may hold up the process's end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Answers with `routes` until the process drains: the next one, if there is one, accepts from the same listener by then.
/// Returns when everybody who was being answered has their answer, or their time is over.
pub async fn serve(listener: StdListener, routes: Router, seam: Arc<Seam>) {
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the management endpoints are not available (admin.listen)");
            return;
        }
    };
    let draining = async {
        while seam.phase() < Phase::Draining {
            sleep(LOOK_EVERY).await;
        }
    };
    let connections = GracefulShutdown::new();
    tokio::select! {
        () = accept(&listener, &routes, &connections) => {}
        () = draining => {}
    }
    drop(listener);
    // What is still open then is a stream, or a client that does not read.
    let _ = timeout(ENDS_WITHIN, connections.shutdown()).await;
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(TAKEN_WITHIN))
}

async fn accept(listener: &TcpListener, routes: &Router, connections: &GracefulShutdown) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor, most likely: the next moment may be better.
            sleep(LOOK_EVERY).await;
            continue;
        };
        if configure(&stream).is_err() {
            // It is gone already.
            continue;
        }
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // Whoever breaks off is nobody's loss.
            let _ = connection.await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_has_so_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a listener");
        let (stream, _) = listener.accept().await.expect("a client");
        configure(&stream).expect("options");
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().expect("an option"), Some(TAKEN_WITHIN));
    }
}
