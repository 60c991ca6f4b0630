//! Connections that wait for their next request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use crate::proxy::sweep;

/// The idle connections of one core, of each address the last used first.
#[derive(Debug)]
pub(super) struct Idle {
    max: usize,
    timeout: Duration,
    by_address: RefCell<HashMap<SocketAddr, Vec<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    connection: Connection,
    since: Instant,
}

/// Where a connection belongs when it is free. The pool may have ended by then.
#[derive(Clone, Debug)]
pub(super) struct Home {
    idle: Weak<Idle>,
    address: SocketAddr,
}

impl Idle {
    pub(super) fn new(max: usize, timeout: Duration) -> Rc<Self> {
        Rc::new(Self { max, timeout, by_address: RefCell::default() })
    }

    pub(super) fn home(self: &Rc<Self>, address: SocketAddr) -> Home {
        Home { idle: Rc::downgrade(self), address }
    }

    /// A connection that can be used at once. Those that were closed meanwhile, or on which the upstream said
    /// something unasked, are closed.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Connection> {
        let mut by_address = self.by_address.borrow_mut();
        let waiting = by_address.get_mut(&address)?;
        std::iter::from_fn(|| waiting.pop()).map(|waiting| waiting.connection).find(Connection::is_quiet)
    }

    /// Closes all connections to an address: its server has shown that it does not keep them.
    pub(super) fn forget(&self, address: SocketAddr) {
        self.by_address.borrow_mut().remove(&address);
    }

    /// Closes what has waited too long.
    pub(super) fn sweep(&self) {
        let now = sweep::now();
        self.by_address.borrow_mut().retain(|_, waiting| {
            // The longest stand first.
            let over = waiting.partition_point(|waiting| now.duration_since(waiting.since) >= self.timeout);
            waiting.drain(..over);
            !waiting.is_empty()
        });
    }
}

impl Home {
    pub(super) fn put(&self, connection: Connection) {
        let Some(idle) = self.idle.upgrade() else { return };
        let mut by_address = idle.by_address.borrow_mut();
        let waiting = by_address.entry(self.address).or_default();
        if waiting.len() < idle.max {
            waiting.push(Waiting { connection, since: sweep::now() });
        }
    }
}
