//! Instances are replaced under load, and no client notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use greenwave_edge::{Proxy, ProxyConfig, Supervisor, SupervisorConfig};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::child::children;
use crate::clients::{LIMIT, listeners};

const CLIENTS: usize = 64;
const RUNS: usize = 5;

/// A proxy over the supervisor's instances, which tells it what is released.
struct Balanced {
    supervisor: Arc<Supervisor>,
    address: SocketAddr,
    cancel: CancellationToken,
    served: JoinHandle<Result<(), greenwave_edge::Error>>,
}

impl Balanced {
    async fn start(instances: usize) -> Self {
        let supervisor = SupervisorConfig { instances, ..Default::default() };
        let supervisor = Arc::new(children("serve", supervisor).start().unwrap());
        supervisor.ready(LIMIT).await.unwrap();
        let proxy = Proxy::new(ProxyConfig::default(), supervisor.upstreams()).unwrap();
        let mut released = proxy.released();
        let told = Arc::clone(&supervisor);
        tokio::spawn(async move {
            while released.changed().await.is_ok() {
                let addresses = released.borrow_and_update().clone();
                addresses.into_iter().for_each(|address| told.released(address));
            }
        });
        let listeners = listeners();
        let address = listeners[0].local_addr().unwrap();
        let cancel = CancellationToken::new();
        let served = tokio::spawn(proxy.serve(listeners, cancel.clone()));
        Self { supervisor, address, cancel, served }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.served.await.unwrap().unwrap();
        self.supervisor.shutdown().await;
    }
}

/// Clients that each keep one connection and ask again and again.
struct Load {
    done: CancellationToken,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Result<(), String>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (done, answered) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(ask_again_and_again(
                address,
                number,
                KINDS[number % KINDS.len()],
                done.clone(),
                Arc::clone(&answered),
            ));
        }
        Self { done, answered, clients }
    }

    /// Lets the clients be served for a while.
    async fn serve_some(&self) {
        let wanted = self.answered.load(Ordering::SeqCst) + 10 * CLIENTS as u64;
        tokio::time::timeout(LIMIT, async {
            while self.answered.load(Ordering::SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("clients are no longer served");
    }

    async fn end_without_a_failure(self) {
        self.done.cancel();
        let ended = tokio::time::timeout(LIMIT, self.clients.join_all()).await.unwrap();
        let failures: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
        let answered = self.answered.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "{} failed of {answered}: {failures:#?}", failures.len());
    }
}

/// A method, a path and a body.
type Kind = (&'static str, &'static str, &'static str);
/// What the clients ask, in turn: also what may not be sent twice, and what is in flight for a while.
const KINDS: [Kind; 4] =
    [("GET", "/", ""), ("POST", "/length", "twelve bytes"), ("POST", "/slow", ""), ("GET", "/slow", "")];

async fn ask_again_and_again(
    address: SocketAddr,
    number: usize,
    (method, path, body): Kind,
    done: CancellationToken,
    answered: Arc<AtomicU64>,
) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("client {number}: {what}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed("no connection", &error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed("no handshake", &error))?;
    let _connection = tokio::spawn(connection);
    while !done.is_cancelled() {
        let request = Request::builder().method(method).uri(path).header("host", "app");
        let request = request
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .map_err(|error| failed("request", &error))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(path, &error))?;
        let status = answer.status();
        let text = answer.into_body().collect().await.map_err(|error| failed(path, &error))?.to_bytes();
        if status != 200 || text.is_empty() {
            return Err(failed(path, &format!("{status}: {text:?}")));
        }
        answered.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_four_instances_fails_no_request() {
    let balanced = Balanced::start(4).await;
    let load = Load::start(balanced.address);
    load.serve_some().await;
    for run in 1..=RUNS {
        let before = balanced.supervisor.instances();
        let begun = std::time::Instant::now();
        balanced.supervisor.reload().await.unwrap();
        // Released by the proxy, and not by the timeout.
        assert!(begun.elapsed() < SupervisorConfig::default().drain_timeout, "run {run}");
        let after = balanced.supervisor.instances();
        assert!(before.iter().zip(&after).all(|(old, new)| old.pid != new.pid), "run {run}");
        load.serve_some().await;
    }
    load.end_without_a_failure().await;
    balanced.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_up_and_down_fails_no_request() {
    let balanced = Balanced::start(1).await;
    let load = Load::start(balanced.address);
    for instances in [4, 1, 3, 1] {
        load.serve_some().await;
        balanced.supervisor.scale(instances).await.unwrap();
        balanced.supervisor.ready(LIMIT).await.unwrap();
    }
    load.end_without_a_failure().await;
    balanced.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_fails_fails_no_request() {
    let balanced = Balanced::start(2).await;
    let load = Load::start(balanced.address);
    load.serve_some().await;
    let broken = SupervisorConfig { command: vec!["false".into()], instances: 2, ..Default::default() };
    balanced.supervisor.reload_with(broken).await.unwrap_err();
    load.serve_some().await;
    load.end_without_a_failure().await;
    balanced.end().await;
}
