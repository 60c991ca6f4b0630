//! A process's snapshot at a private Unix socket, and its reader.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::{Error, Monitor, Snapshot, export};

const FETCH_DEADLINE: Duration = Duration::from_secs(1);
/// A thousand histograms of a few hundred buckets each are some 4 MB.
const MAX_ANSWER_BYTES: usize = 16 << 20;
const BACKLOG: u32 = 64;

pub(crate) async fn serve(monitor: Monitor, path: &Path, cancel: CancellationToken) -> Result<(), Error> {
    let (listener, _removed_at_the_end) = bind(path).await?;
    let for_metrics = monitor.clone();
    let router = Router::new()
        .route("/snapshot", get(async move || Json(monitor.snapshot())))
        .route("/metrics", get(async move || export::response(export::prometheus(&for_metrics.snapshot()))));
    let served = axum::serve(listener, router).with_graceful_shutdown(cancel.clone().cancelled_owned());
    // A reader that stalls must not hold the process's end up.
    let overdue = async {
        cancel.cancelled().await;
        tokio::time::sleep(FETCH_DEADLINE).await;
    };
    tokio::select! {
        served = served => served.map_err(|source| Error::Serve { path: path.to_owned(), source }),
        () = overdue => Ok(()),
    }
}

async fn bind(path: &Path) -> Result<(UnixListener, Remove), Error> {
    let failed = |source| Error::Serve { path: path.to_owned(), source };
    make_room(path).await?;
    let socket = UnixSocket::new_stream().map_err(failed)?;
    socket.bind(path).map_err(failed)?;
    // Until `listen`, nobody can connect: there is no moment at which others could.
    let metadata = std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .and_then(|()| std::fs::symlink_metadata(path))
        .map_err(failed)?;
    let remove = Remove { path: path.to_owned(), inode: metadata.ino() };
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    Ok((listener, remove))
}

/// Removes a socket on which nobody listens any more.
async fn make_room(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Serve { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let refused = |connected: &io::Result<UnixStream>| matches!(connected, Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound));
    match tokio::time::timeout(FETCH_DEADLINE, UnixStream::connect(path)).await {
        Ok(connected) if refused(&connected) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok(_)) | Err(_) => Err(Error::SocketInUse { path: path.to_owned() }),
    }
}

/// Removes the socket at the end, unless another has taken its place.
struct Remove {
    path: PathBuf,
    inode: u64,
}

impl Drop for Remove {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

pub(crate) async fn fetch(path: &Path) -> Result<Snapshot, Error> {
    match tokio::time::timeout(FETCH_DEADLINE, exchange(path)).await {
        Ok(Ok(snapshot)) => Ok(snapshot),
        Ok(Err(source)) => Err(Error::Fetch { path: path.to_owned(), source }),
        Err(_) => Err(Error::Timeout { path: path.to_owned() }),
    }
}

async fn exchange(path: &Path) -> Result<Snapshot, Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(path).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        Request::get("/snapshot").header(header::HOST, "localhost").body(Empty::<bytes::Bytes>::new())?;
    let ask = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer's status is {}", response.status()).into());
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::pin!(ask);
    // The connection moves only while it is polled. Its own errors reach the request too.
    tokio::select! {
        answer = &mut ask => answer,
        _ = connection => ask.await,
    }
}
