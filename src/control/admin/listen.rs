//! `admin.listen`: the management endpoints on a listener of their own, off the public port.
//!
//! Clients come to the control thread itself here, so what they may take of it is bounded: so many connections, and so long
//! for a head, idle connections among them, and for taking what they asked for.

use std::io;
use std::net::TcpListener as StdListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::snapshot::{Phase, Seam};

/// The most connections; others wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 256;

/// How long a connection may take for its first byte, and how long for a head, the first or another.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// How long a client may take none of what waits for it. The kernel ends the connection then, also one whose peer answers
/// and keeps its window closed (tcp(7), TCP_USER_TIMEOUT).
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// How often a drain is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long clients may hold up the process's end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// How long those may hold it up who have connected and not asked yet: what they ask may be on its way.
const ASKS_WITHIN: Duration = Duration::from_millis(500);

/// Answers with `routes` until the process drains: the next one, if there is one, accepts from the same listener by then.
/// Returns when everybody who was being answered, or has connected and asks yet, has their answer, or their time is over.
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
    let (end, ending) = watch::channel(false);
    tokio::select! {
        () = accept(&listener, &routes, &ending) => {}
        () = draining => {}
    }
    drop((listener, ending));
    end.send_replace(true);
    // What is still open then is a stream, or a client that does not read, or one that has begun to ask and does not go on.
    let _ = timeout(ENDS_WITHIN, end.closed()).await;
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(TAKEN_WITHIN))
}

async fn accept(listener: &TcpListener, routes: &Router, ending: &watch::Receiver<bool>) {
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
        let (routes, ending) = (routes.clone(), ending.clone());
        tokio::spawn(async move {
            answer(stream, routes, ending).await;
            drop(place);
        });
    }
}

/// Serves a connection until its client or the process ends it; in the latter case after the answer to what has been read.
async fn answer(stream: TcpStream, routes: Router, mut ending: watch::Receiver<bool>) {
    // hyper closes a connection from which it has read nothing when the end comes, though something may have come.
    let mut first = [0];
    let asked = tokio::select! {
        // In this order: on a busy machine both may be there at once.
        biased;
        peeked = timeout(HEAD_WITHIN, stream.peek(&mut first)) => peeked.is_ok_and(|peeked| peeked.is_ok()),
        () = async { ends(&mut ending).await; sleep(ASKS_WITHIN).await } => false,
    };
    if !asked {
        return;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        // Who asks after the end is told that there is no more.
        .keep_alive(!*ending.borrow())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let result = tokio::select! {
        // First, so that it has begun to read when the end comes.
        biased;
        result = connection.as_mut() => result,
        () = ends(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Whoever breaks off is nobody's loss.
    let _ = result;
}

/// Waits for the process's end.
async fn ends(ending: &mut watch::Receiver<bool>) {
    // A sender that is gone has no other news.
    let _ = ending.wait_for(|&ends| ends).await;
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::control::build;

    async fn connect(address: std::net::SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }

    async fn answer_to(client: &mut TcpStream) -> String {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("open");
        let mut answer = vec![0; 4096];
        let length = client.read(&mut answer).await.expect("open");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    async fn is_closed(client: &mut TcpStream) -> bool {
        client.read(&mut [0]).await.is_ok_and(|read| read == 0)
    }

    #[tokio::test]
    async fn who_connected_before_the_end_may_still_ask() {
        let listener = StdListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let seam = build::seam_without_services(1, 1);
        let routes = Router::new().route("/", get(|| async { "ok" }));
        let serving = tokio::spawn(serve(listener, routes, Arc::clone(&seam)));
        let mut late = connect(address).await.expect("a listener");
        let mut silent = connect(address).await.expect("a listener");
        let mut idle = connect(address).await.expect("a listener");
        // They are accepted in their order.
        assert!(answer_to(&mut idle).await.starts_with("HTTP/1.1 200 "));

        seam.advance(Phase::Draining);
        while connect(address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
        let ended = Instant::now();
        let answer = answer_to(&mut late).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
        for client in [&mut late, &mut silent, &mut idle] {
            assert!(is_closed(client).await);
        }
        serving.await.expect("no panic");
        assert!(ended.elapsed() < HEAD_WITHIN / 2, "the end came, not their time");
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_has_so_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a listener");
        let (stream, _) = listener.accept().await.expect("a client");
        configure(&stream).expect("options");
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().expect("an option"), Some(TAKEN_WITHIN));
    }
}
