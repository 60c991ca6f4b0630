//! What is known of a connection, and of a request besides its head and body.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::{HeaderValue, request};
use tokio::time::Instant;

use super::body::InFlight;
use super::headers;
use super::upstream::Switched;
use super::worker::Worker;
use crate::access_log::Entry;
use crate::trace_context;

/// Fields that a request is given here, at most.
const ADDED: usize = 8;

/// One client's connection, as its requests share it.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: SocketAddr,
    /// Where the client connected to.
    pub(crate) local: SocketAddr,
    /// Whether the peer is a proxy that is believed.
    pub(crate) trusted: bool,
    /// Whether the client speaks TLS.
    pub(crate) secure: bool,
    /// Whether it speaks HTTP/2.
    pub(crate) http2: bool,
    /// Requests whose answer has not ended.
    pub(crate) open: Cell<u32>,
    /// Requests that were taken up.
    pub(crate) taken: Cell<u64>,
    /// How many of them, from the first on, can be read in one way only.
    pub(crate) sound: Cell<u64>,
    /// What an answer's body did last, for whoever drives it.
    pub(crate) moved: Cell<Option<Moved>>,
    /// Where the connection goes on when its protocol was switched.
    pub(crate) upgrade: RefCell<Option<(Box<Switched>, InFlight)>>,
    peer_value: OnceCell<HeaderValue>,
    /// The last `Host`, and the `Forwarded` made of it: most clients name one host only.
    pub(super) forwarded: RefCell<Option<(HeaderValue, HeaderValue)>>,
}

/// What the body of an answer did last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It gave a part, which the client has to take.
    Given,
    /// It had nothing to give.
    Waits,
}

impl Connection {
    pub(super) fn new(worker: Rc<Worker>, peer: SocketAddr, local: SocketAddr) -> Self {
        let trusted = worker.trusts(peer.ip());
        Self {
            worker,
            peer,
            local,
            trusted,
            secure: false,
            http2: false,
            open: Cell::new(0),
            taken: Cell::new(0),
            sound: Cell::new(u64::MAX),
            moved: Cell::new(None),
            upgrade: RefCell::new(None),
            peer_value: OnceCell::new(),
            forwarded: RefCell::new(None),
        }
    }

    /// Counts a request, and says whether it can be read in one way only.
    pub(super) fn take_up(&self) -> bool {
        let number = self.taken.get();
        self.taken.set(number + 1);
        number < self.sound.get()
    }

    /// The peer's address in text.
    pub(super) fn peer_value(&self) -> &HeaderValue {
        self.peer_value.get_or_init(|| headers::address_value(self.peer.ip().to_canonical()))
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// What the connection, and those who are believed, say of a request.
pub(crate) struct RequestContext {
    /// The client, behind the proxies that are believed.
    pub(crate) client: IpAddr,
    /// When the head was there.
    pub(crate) started: Instant,
    /// What the access log will say, if there is one.
    pub(crate) entry: RefCell<Option<Box<Entry>>>,
    pub(crate) connection: Rc<Connection>,
}

impl RequestContext {
    pub(super) fn new(head: &mut request::Parts, connection: Rc<Connection>) -> Rc<Self> {
        // An address mapped into IPv6 is still the IPv4 address that upstreams know.
        let peer = connection.peer.ip().to_canonical();
        let client = match connection.trusted {
            true => headers::client_behind(&head.headers, |ip| connection.worker.trusts(ip)).unwrap_or(peer),
            false => peer,
        };
        // What is said of a request on its way on has room at once, not by and by.
        head.headers.reserve(ADDED);
        let trace = trace_context::follow_or_begin(&mut head.headers);
        let logged = connection.worker.shared().access_log.is_some();
        let entry = RefCell::new(logged.then(|| Entry::new(head, client, trace)));
        Rc::new(Self { client, started: Instant::now(), entry, connection })
    }
}
