//! The sockets that clients come in by: given by the process before or by systemd, or opened here.

use std::io;
use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use ringway::control::handover::{self, Inherited, Predecessor};
use ringway::proxy::accept;

/// Connections that the kernel queues for the management endpoints' own listener.
const ADMIN_BACKLOG: u32 = 128;

/// Where clients come in.
pub struct Listeners {
    /// Each worker's own.
    pub shares: Vec<Vec<TcpListener>>,
    /// Every socket once.
    pub sockets: Vec<TcpListener>,
    /// Whether somebody else goes on holding them.
    pub is_shared: bool,
    /// Whether they were given to this process.
    pub are_inherited: bool,
    /// Those that are still to listen.
    pub deaf: Vec<TcpListener>,
    /// Who waits to be told that this process serves.
    pub predecessor: Option<Predecessor>,
}

/// The sockets that this process was given, where they fit, or else its own.
pub fn open(
    inherited: Option<Inherited>,
    address: SocketAddr,
    workers: usize,
    backlog: u32,
) -> anyhow::Result<Listeners> {
    let (fitting, predecessor) = match inherited {
        Some(inherited) if inherited.fits(address) => (Some(inherited), None),
        Some(Inherited { predecessor, .. }) => {
            tracing::warn!(%address, "the address is another one: the sockets of the process before are not used");
            (None, predecessor)
        }
        None => (None, None),
    };
    let Some(Inherited { mut sockets, is_shared, predecessor: own, .. }) = fitting else {
        // Beside the process before, which still listens, the address may well be in use.
        let bound = match predecessor {
            Some(_) => (0..workers).map(|_| accept::bind_another(address)).collect(),
            None => accept::bind(address, workers, backlog),
        };
        let sockets: Vec<TcpListener> = bound.with_context(|| {
            format!("cannot listen on {address}; free the address or set server.host and server.port (HOST, PORT)")
        })?;
        let shares = handover::share_out(&sockets, workers, || Ok(None))?;
        let deaf = if predecessor.is_some() { clones(&sockets)? } else { Vec::new() };
        return Ok(Listeners { shares, sockets, is_shared: false, are_inherited: false, deaf, predecessor });
    };
    let at = sockets.first().context("there is no socket")?.local_addr()?;
    let mut opened = Vec::new();
    let shares = handover::share_out(&sockets, workers, || {
        if is_shared {
            return Ok(None);
        }
        let socket = accept::bind_another(at)?;
        opened.push(socket.try_clone()?);
        Ok(Some(socket))
    })?;
    let deaf = clones(&opened)?;
    sockets.append(&mut opened);
    Ok(Listeners { shares, sockets, is_shared, are_inherited: true, deaf, predecessor: own })
}

/// Where management requests come in by themselves: the socket of the process before, where it fits.
pub fn open_admin(address: SocketAddr, given: Option<TcpListener>) -> anyhow::Result<TcpListener> {
    let bound = match given {
        Some(socket) if handover::is_at(&socket, address) => Ok(socket),
        // It may be open to the same port still, at another of its addresses.
        Some(_) => {
            accept::bind_another(address).and_then(|socket| accept::listen(&socket, ADMIN_BACKLOG).map(|()| socket))
        }
        None => accept::bind(address, 1, ADMIN_BACKLOG)
            .and_then(|mut sockets| sockets.pop().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))),
    };
    let listener =
        bound.with_context(|| format!("cannot listen on {address}; free the address or set admin.listen"))?;
    tracing::info!(address = %listener.local_addr()?, "the management endpoints listen here");
    Ok(listener)
}

fn clones(sockets: &[TcpListener]) -> io::Result<Vec<TcpListener>> {
    sockets.iter().map(TcpListener::try_clone).collect()
}
