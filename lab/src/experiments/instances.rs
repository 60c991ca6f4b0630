//! Instances of a service that waits, and proxies before them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use greenwave_edge::{BalanceConfig, OverloadConfig, Proxy, ProxyConfig, Upstreams, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{BoxError, Setup, Workload};

/// Requests that an instance takes at once.
pub(crate) const WORKERS: usize = 2;
/// How long each takes.
const WORK: Duration = Duration::from_millis(4);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const END: &[u8] = b"\r\n\r\n";

/// The instances, for as long as the experiment runs.
pub(crate) struct Service(Vec<SocketAddr>);

impl Service {
    /// Starts an instance for each of these, which say how many times slower than others it is.
    pub(crate) async fn start(setup: &Setup, slowness: &[u32]) -> Result<Self, BoxError> {
        setup.fact("a request", format!("waits {WORK:?}"));
        let mut instances = JoinSet::new();
        let mut addresses = Vec::new();
        for times in slowness {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?);
            instances.spawn(serve(listener, WORK * *times));
        }
        setup.on_end("stop the instances", async move {
            instances.shutdown().await;
            Ok(())
        });
        Ok(Self(addresses))
    }

    /// Requests to the first instances through a proxy of their own.
    pub(crate) fn behind(
        &self,
        setup: &Setup,
        count: usize,
        balance: BalanceConfig,
    ) -> Result<Workload, BoxError> {
        let upstreams = Upstreams::fixed(self.0.iter().take(count).copied()).into_watch();
        // What an overloaded service refuses is not what is asked here.
        let overload = OverloadConfig { enabled: false, ..OverloadConfig::default() };
        let proxy = Proxy::new(ProxyConfig { balance, overload, ..ProxyConfig::default() }, upstreams)?;
        let listeners = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1)?;
        let address = listeners.first().ok_or("no listener was opened")?.local_addr()?;
        let served = tokio::spawn(proxy.serve(listeners, CancellationToken::new()));
        setup.on_end("stop the proxy", async move {
            served.abort();
            Ok(())
        });
        let idle = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
        Ok(Workload::over(idle, move |idle, _| async move {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut stream = match kept {
                Some(stream) => stream,
                None => TcpStream::connect(address).await?,
            };
            stream.write_all(REQUEST).await?;
            let head = read_head(&mut stream).await?;
            if !head.starts_with(b"HTTP/1.1 200") {
                return Err(String::from_utf8_lossy(&head).into());
            }
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            Ok(())
        }))
    }
}

async fn serve(listener: TcpListener, work: Duration) {
    let workers = Arc::new(Semaphore::new(WORKERS));
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let workers = Arc::clone(&workers);
        connections.spawn(async move {
            while read_head(&mut stream).await.is_ok() {
                let _worker = workers.acquire().await;
                sleep(work).await;
                if stream.write_all(ANSWER).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Reads one message, which has no body.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(END) {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}
