//! The sockets on which clients come in. They belong to the supervisor, so that no edge's end closes them.

use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
};

use anyhow::{Result, anyhow};

use crate::config::Config;

/// The dashboard's socket, then one for each of the edge's threads.
pub(super) struct Listeners {
    sockets: Vec<TcpListener>,
    // As they were asked for, and what they became.
    asked: (String, String),
    addresses: (SocketAddr, SocketAddr),
}

impl Listeners {
    pub(super) fn open(config: &Config) -> Result<Listeners> {
        let asked = (config.edge.listen.clone(), config.dashboard.listen.clone());
        let edge = listen(&asked.0, "--listen", config.edge.proxy.threads)?;
        let dashboard = listen(&asked.1, "--dashboard", 1)?;
        Listeners::new(dashboard, edge, asked)
    }

    fn new(
        dashboard: Vec<TcpListener>,
        edge: Vec<TcpListener>,
        asked: (String, String),
    ) -> Result<Listeners> {
        let address = |sockets: &[TcpListener]| match sockets {
            [first, ..] => Ok(first.local_addr()?),
            [] => Err(anyhow!("no socket was opened")),
        };
        let addresses = (address(&edge)?, address(&dashboard)?);
        Ok(Listeners { sockets: dashboard.into_iter().chain(edge).collect(), asked, addresses })
    }

    pub(super) fn sockets(&self) -> &[TcpListener] {
        &self.sockets
    }

    /// Where clients connect, and where the dashboard is.
    pub(super) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    /// Those of a config that wants others; `None` where these will do.
    ///
    /// Another number of threads alone changes nothing: closing a socket would lose the connections that wait in it.
    pub(super) fn moved(&self, config: &Config) -> Result<Option<Listeners>> {
        let asked = (config.edge.listen.clone(), config.dashboard.listen.clone());
        if asked == self.asked {
            return Ok(None);
        }
        let (dashboard, edge) = self.sockets.split_at(1);
        let same = |sockets: &[TcpListener]| {
            sockets.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()
        };
        let edge = match asked.0 == self.asked.0 {
            true => same(edge)?,
            false => listen(&asked.0, "--listen", config.edge.proxy.threads)?,
        };
        let dashboard = match asked.1 == self.asked.1 {
            true => same(dashboard)?,
            false => listen(&asked.1, "--dashboard", 1)?,
        };
        Listeners::new(dashboard, edge, asked).map(Some)
    }
}

fn listen(address: &str, flag: &str, threads: usize) -> Result<Vec<TcpListener>> {
    let opened = || -> io::Result<Vec<TcpListener>> {
        // Several sockets on one address would share it with any other process of ours that does the same, such as a
        // second Greenwave. One that shares with nobody shows whether it is free.
        let free = TcpListener::bind(address)?.local_addr()?;
        let sockets = greenwave_edge::listen(free, threads)?;
        sockets.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        Ok(sockets)
    };
    opened().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!("{address} is in use: stop what listens there, or choose another address with {flag}")
        }
        io::ErrorKind::InvalidInput => {
            anyhow!("{address} is no address: write HOST:PORT, as in 127.0.0.1:8080, for {flag}")
        }
        _ => anyhow!("cannot listen on {address}: {error}; choose another address with {flag}"),
    })
}

/// Whether everybody can reach this address; one that cannot be told is found out when it is opened.
pub(crate) fn is_public(address: &str) -> bool {
    let mut addresses = address.to_socket_addrs().into_iter().flatten();
    addresses.any(|address| !address.ip().is_loopback())
}
