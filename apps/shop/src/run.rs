//! The shop as a process: the API, the workers, and their common end.

use std::{path::PathBuf, time::Duration};

use greenwave_monitor::Monitor;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{Error, Shop, http, store::Store};

/// How long writes may still take whose clients have gone, when the process ends.
const WRITES_GRACE: Duration = Duration::from_secs(1);

/// What a process does.
#[derive(Debug)]
#[non_exhaustive]
pub enum Role {
    /// The API, and the handlers of events and jobs.
    Everything(TcpListener),
    /// The API alone.
    Api(TcpListener),
    /// The handlers of events and jobs alone.
    Worker,
}

/// Plays the role until the token is cancelled. Then it stops accepting, finishes the requests that run, stops the
/// handlers, and returns.
pub async fn run(shop: Shop, role: Role, monitor: &Monitor, cancel: CancellationToken) -> Result<(), Error> {
    let (listener, works) = match role {
        Role::Everything(listener) => (Some(listener), true),
        Role::Api(listener) => (Some(listener), false),
        Role::Worker => (None, true),
    };
    let stop_working = CancellationToken::new();
    let mut work = works.then(|| spawn_work(shop.store(), &stop_working));

    // Handlers return early only when they could not begin: then the process is not what it was asked to be.
    let failed = cancel.child_token();
    let serve = async {
        match listener {
            Some(listener) => {
                http::serve(listener, http::router(shop.clone(), monitor), failed.clone()).await;
                // Each of their statements has a deadline of its own; what is not done by now is rolled back.
                let _ = timeout(WRITES_GRACE, shop.settled()).await;
            }
            None => failed.cancelled().await,
        }
    };
    tokio::pin!(serve);
    let early = tokio::select! {
        () = &mut serve => None,
        ended = join(&mut work) => {
            failed.cancel();
            serve.await;
            Some(ended)
        }
    };
    stop_working.cancel();
    match early {
        Some(ended) => ended,
        None if work.is_some() => join(&mut work).await,
        None => Ok(()),
    }
}

fn spawn_work(store: &Store, cancel: &CancellationToken) -> JoinHandle<Result<(), Error>> {
    let (store, cancel) = (store.clone(), cancel.clone());
    tokio::spawn(async move { store.run_effects(cancel).await })
}

/// Waits for the task's end; for ever, if there is none.
async fn join(task: &mut Option<JoinHandle<Result<(), Error>>>) -> Result<(), Error> {
    match task {
        Some(task) => task.await.unwrap_or_else(|error| Err(Error::Database(error.into()))),
        None => std::future::pending().await,
    }
}

/// Serves what the monitor has measured at a socket, for whoever supervises the process.
pub(crate) async fn serve_monitor(monitor: Monitor, path: PathBuf, cancel: CancellationToken) {
    if let Err(error) = monitor.serve_unix(&path, cancel).await {
        tracing::warn!(error = %crate::error::chain(&error), "no measurements are served");
    }
}
