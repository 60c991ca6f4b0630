//! What is known of a connection, and of a request besides its head and body.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tokio::time::Instant;

use super::upstream::Tunnel;
use super::worker::Worker;

/// One client's connection, as its requests share it.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: SocketAddr,
    /// Whether the client speaks TLS.
    pub(crate) secure: bool,
    /// Requests whose answer has not ended.
    pub(crate) open: Cell<u32>,
    /// Requests that were taken up.
    pub(crate) taken: Cell<u64>,
    /// How many of them, from the first on, can be read in one way only.
    pub(crate) sound: Cell<u64>,
    /// The upstream's side of an upgrade, once the answer to it is written.
    pub(crate) tunnel: Cell<Option<Tunnel>>,
}

impl Connection {
    pub(crate) fn new(worker: Rc<Worker>, peer: SocketAddr, secure: bool) -> Self {
        Self { worker, peer, secure, open: Cell::new(0), taken: Cell::new(0), sound: Cell::new(u64::MAX), tunnel: Cell::new(None) }
    }

    /// Counts a request, and says whether it can be read in one way only.
    pub(crate) fn take_up(&self) -> bool {
        let number = self.taken.get();
        self.taken.set(number + 1);
        number < self.sound.get()
    }
}

/// What the connection, and those who are believed, say of a request.
#[derive(Clone)]
pub(crate) struct RequestContext {
    /// The client, behind the proxies that are believed.
    pub(crate) client: IpAddr,
    /// When the head was there.
    pub(crate) started: Instant,
    pub(crate) connection: Rc<Connection>,
}

impl RequestContext {
    pub(crate) fn new(connection: Rc<Connection>) -> Rc<Self> {
        // An address mapped into IPv6 is still the IPv4 address that upstreams know.
        let client = connection.peer.ip().to_canonical();
        Rc::new(Self { client, started: Instant::now(), connection })
    }
}
