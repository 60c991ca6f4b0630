use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use greenwave_monitor::{Error, Monitor, Snapshot};
use metrics::counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::monitor_of;

/// Serves until cancelled; returns once the socket answers.
async fn serve(monitor: &Monitor, path: &Path) -> (CancellationToken, JoinHandle<Result<(), Error>>) {
    let cancel = CancellationToken::new();
    let serving = tokio::spawn({
        let (monitor, path, cancel) = (monitor.clone(), path.to_owned(), cancel.clone());
        async move { monitor.serve_unix(path, cancel).await }
    });
    let answers = async {
        while UnixStream::connect(path).await.is_err() {
            assert!(!serving.is_finished(), "it does not serve");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answers).await.unwrap();
    (cancel, serving)
}

#[tokio::test]
async fn a_snapshot_travels_through_a_private_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    let monitor = monitor_of(|| counter!("visits").increment(3));
    let (cancel, serving) = serve(&monitor, &path).await;

    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Snapshot::fetch_unix(&path).await.unwrap(), monitor.snapshot());
    metrics::with_local_recorder(&monitor.recorder(), || counter!("visits").increment(1));
    assert_eq!(Snapshot::fetch_unix(&path).await.unwrap().counter("visits", &[]), 4);

    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("\nvisits_total 4\n"), "{text}");

    cancel.cancel();
    serving.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_dead_process_s_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    drop(UnixListener::bind(&path).unwrap()); // leaves its file, as a killed process does
    assert!(path.exists());
    let monitor = Monitor::new();
    let (cancel, serving) = serve(&monitor, &path).await;
    assert!(Snapshot::fetch_unix(&path).await.is_ok());

    // A living one is not.
    let second = Monitor::new().serve_unix(&path, CancellationToken::new()).await;
    assert!(matches!(second, Err(Error::SocketInUse { .. })), "{second:?}");
    assert!(Snapshot::fetch_unix(&path).await.is_ok());
    cancel.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(&path, "dear diary").unwrap();
    let served = Monitor::new().serve_unix(&path, CancellationToken::new()).await;
    assert!(matches!(served, Err(Error::NotASocket { .. })), "{served:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "dear diary");
}

#[tokio::test]
async fn a_dropped_server_leaves_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    let (_cancel, serving) = serve(&Monitor::new(), &path).await;
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_reader_that_stalls_does_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    let (cancel, serving) = serve(&Monitor::new(), &path).await;
    let mut stalled = UnixStream::connect(&path).await.unwrap();
    stalled.write_all(b"GET /snapshot HT").await.unwrap();
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap().unwrap().unwrap();
}

/// What a peer that answers `answer` makes of a fetch.
async fn fetch_from(answer: Vec<u8>) -> Result<Snapshot, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _request = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(&answer).await;
        std::future::pending::<()>().await;
    });
    let fetched = Snapshot::fetch_unix(&path).await;
    peer.abort();
    fetched
}

#[tokio::test]
async fn a_fetch_is_bounded_in_time_and_size() {
    let silent = fetch_from(Vec::new()).await;
    assert!(matches!(silent, Err(Error::Timeout { .. })), "{silent:?}");

    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(17 << 20, b' ');
    let source = match fetch_from(endless).await {
        Err(Error::Fetch { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(source.contains("length limit"), "{source}");
}

#[tokio::test]
async fn a_fetch_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = Snapshot::fetch_unix(directory.path().join("none.sock")).await.unwrap_err();
    assert!(nobody.to_string().starts_with("could not fetch a snapshot from "), "{nobody}");
    assert!(std::error::Error::source(&nobody).unwrap().to_string().contains("No such file"));

    let missing = fetch_from(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
    assert!(matches!(missing, Err(Error::Fetch { source, .. }) if source.to_string().contains("404")));
    let garbled = fetch_from(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]".to_vec()).await;
    assert!(matches!(garbled, Err(Error::Fetch { .. })), "{garbled:?}");
}
