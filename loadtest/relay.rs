//! The floor: a relay that looks at no byte, on the ring flags that a worker runs with. For each client it holds a connection to the
//! backend, and passes on what comes from either side. What a gateway costs above it is what it knows about HTTP.
//!
//! `relay PORT BACKEND_PORT`, both on loopback; one thread; runs until it is killed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

const BUFFER_BYTES: usize = 16 * 1024;

fn main() -> io::Result<()> {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [port, backend] = ports[..] else {
        return Err(io::Error::other("usage: relay PORT BACKEND_PORT"));
    };
    let mut ring = io_uring::IoUring::builder();
    ring.setup_coop_taskrun().setup_cqsize(8192);
    let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(1024).uring_builder(ring);
    builder.enable_timer().build()?.block_on(async move {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        loop {
            let (client, _) = listener.accept().await?;
            monoio::spawn(async move {
                // Whoever closes ends it.
                let _ = relay(client, (Ipv4Addr::LOCALHOST, backend).into()).await;
            });
        }
    })
}

/// Passes on what comes, in turns: a request, then its answer, each of which comes in one piece here.
async fn relay(mut client: TcpStream, backend: SocketAddr) -> io::Result<()> {
    let mut backend = TcpStream::connect_addr(backend).await?;
    client.set_nodelay(true)?;
    backend.set_nodelay(true)?;
    let mut buf = Vec::with_capacity(BUFFER_BYTES);
    loop {
        buf = pass(&mut client, &mut backend, buf).await?;
        buf = pass(&mut backend, &mut client, buf).await?;
    }
}

/// One piece from one side to the other.
async fn pass(from: &mut TcpStream, to: &mut TcpStream, mut buf: Vec<u8>) -> io::Result<Vec<u8>> {
    buf.clear();
    let (result, buf) = from.read(buf).await;
    if result? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (result, buf) = to.write_all(buf).await;
    result?;
    Ok(buf)
}
