//! Sockets and threads: who accepts a connection, and how that ends.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use super::{Shared, converse, sweep};
use crate::telemetry::PROXY_TARGET;

// A listener that cannot accept, mostly for lack of file descriptors, is left alone for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
// How long after its cancel a listener is emptied: connections that the system made already show up at once.
const LAST_ACCEPTS: Duration = Duration::from_millis(20);
// Connections that the system holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Opens `threads` sockets that listen on one address, among which the system spreads connections (`SO_REUSEPORT`); 0
/// for one a core. With port 0 the system chooses one port for all.
///
/// # Errors
/// What the system says: the address is taken, is not this machine's, or needs a privilege.
///
/// # Example
///
/// ```
/// let listeners = greenwave_edge::listen("127.0.0.1:0".parse()?, 2)?;
/// assert_eq!(listeners[0].local_addr()?, listeners[1].local_addr()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn listen(address: SocketAddr, threads: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::new();
    for _ in 0..cores_or(threads) {
        let listener = bind(address)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

pub(super) fn cores_or(threads: usize) -> usize {
    if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, Into::into) }
}

/// Until when a thread serves.
#[derive(Clone)]
pub(super) struct Ends {
    /// It drains, and then returns.
    pub(super) drain: CancellationToken,
    /// It returns at once.
    pub(super) kill: CancellationToken,
    /// Whether a successor goes on to accept from the listener, so that it is not emptied.
    pub(super) succeeded: bool,
}

/// Serves on this thread, and says how many connections were cut at the end.
pub(super) fn run(shared: Arc<Shared>, listener: std::net::TcpListener, ends: Ends) -> io::Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::from_std(listener)?;
        let worker = Rc::new(Worker::new(shared));
        let sweeper = Rc::clone(&worker);
        tokio::select! {
            biased;
            () = ends.kill.cancelled() => Ok(0),
            cut = serve(worker, listener, &ends) => Ok(cut),
            () = sweep::run(|| sweeper.sweep()) => Ok(0),
        }
    })
}

async fn serve(worker: Rc<Worker>, listener: TcpListener, ends: &Ends) -> usize {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = ends.drain.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // Until there is room, further connections wait in the system.
                    let room = Arc::clone(&worker.shared().places).acquire_owned();
                    let place = tokio::select! {
                        biased;
                        place = room => place.ok(),
                        () = ends.drain.cancelled() => None,
                    };
                    let worker = Rc::clone(&worker);
                    connections.spawn_local(async move {
                        // Made here, as a future that is captured and then awaited takes its room twice.
                        converse::converse(worker, stream, peer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(target: PROXY_TARGET, %error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    worker.begin_drain();
    sweep::wake_all();
    if !ends.succeeded {
        // Clients whose connection was made before the listener closes believe that they are served.
        let last = async {
            while let Ok((stream, peer)) = listener.accept().await {
                connections.spawn_local(converse::converse(Rc::clone(&worker), stream, peer));
            }
        };
        let _ = tokio::time::timeout(LAST_ACCEPTS, last).await;
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(worker.config().drain_timeout, ended).await;
    connections.len()
}
