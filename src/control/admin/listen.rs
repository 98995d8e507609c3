//! `admin.listen`: the management endpoints on a listener of their own, off the public port.
//!
//! Clients come to the control thread itself here, so what they may take of it is bounded: so many connections, and so long
//! for a head, idle connections among them.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::snapshot::{Phase, Seam};

/// The most connections; others wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 256;

/// How long a head may take to come, the first or another.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// How often a drain is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Answers with `routes` until the process drains: the next one, if there is one, has a listener of its own by then.
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
    tokio::select! {
        () = accept(&listener, &routes) => {}
        () = draining => {}
    }
}

async fn accept(listener: &TcpListener, routes: &Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor, most likely: the next moment may be better.
            sleep(LOOK_EVERY).await;
            continue;
        };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever breaks off is nobody's loss.
            let _ = connection.await;
            drop(place);
        });
    }
}
