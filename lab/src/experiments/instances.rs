//! Instances of a service that waits, each a process of its own, and proxies before them.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use greenwave_edge::{BalanceConfig, OverloadConfig, ProxyConfig, Supervisor, SupervisorConfig};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::http::{self, Client};
use super::{INSTANCE, Source};
use crate::{BoxError, Setup, Workload};

/// Requests that an instance takes at once.
pub(super) const WORKERS: usize = 2;
/// How long each takes.
const WORK: Duration = Duration::from_millis(4);

/// Time in which an instance must listen.
const START: Duration = Duration::from_secs(30);

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The instances, for as long as the experiment runs.
pub(super) struct Service(Vec<SocketAddr>);

impl Service {
    /// Starts an instance for each of these, which say how many times slower than others it is.
    pub(super) async fn start(setup: &Setup, source: &Source, slowness: &[u32]) -> Result<Self, BoxError> {
        if source.instance.is_empty() {
            return Err("there is no command to start instances with: see `Source::instance`".into());
        }
        if env::var_os(INSTANCE).is_some() {
            return Err(format!("{INSTANCE} is set: this is an instance, and starts no others").into());
        }
        setup.fact("a request", format!("waits {WORK:?}"));
        let mut service = Self(Vec::new());
        for times in slowness {
            service.0.push(start(setup, source, WORK * *times).await?);
        }
        let ports: Vec<String> = service.0.iter().map(|address| address.port().to_string()).collect();
        setup.note(&format!("started instances on ports {}, which are ended at the end", ports.join(", ")));
        Ok(service)
    }

    /// Requests to the first instances through a proxy of their own.
    pub(super) fn behind(
        &self,
        setup: &Setup,
        count: usize,
        balance: BalanceConfig,
    ) -> Result<Workload, BoxError> {
        // What an overloaded service refuses is not what is asked here.
        let overload = OverloadConfig { enabled: false, ..OverloadConfig::default() };
        let config = ProxyConfig { balance, overload, ..ProxyConfig::default() };
        let client = Client::of_proxy(setup, self.0.iter().take(count).copied(), config)?;
        Ok(Workload::over(client, |client, _| async move { client.get("/").await.map(drop) }))
    }
}

/// Starts one instance, promises its end, and returns where it listens.
async fn start(setup: &Setup, source: &Source, work: Duration) -> Result<SocketAddr, BoxError> {
    let config = SupervisorConfig {
        name: "instance".to_owned(),
        command: source.instance.clone(),
        env: [(INSTANCE, humantime::format_duration(work).to_string())].into_iter().collect(),
        ..SupervisorConfig::default()
    };
    let supervisor = Supervisor::new(config).logs(|_| ()).start()?;
    let ready = supervisor.ready(START).await;
    let address = supervisor.upstreams().borrow().iter().next().map(|upstream| upstream.address);
    setup.on_end("stop an instance", async move {
        supervisor.shutdown().await;
        Ok(())
    });
    ready?;
    Ok(address.ok_or("an instance has no address")?)
}

/// Serves as an instance, if this process was started as one; else returns at once.
pub(crate) async fn serve_if_asked() -> anyhow::Result<bool> {
    let Ok(work) = env::var(INSTANCE) else { return Ok(false) };
    let work = humantime::parse_duration(&work).context(INSTANCE)?;
    let port = env::var("PORT").context("an instance finds its port in PORT")?;
    let port: u16 = port.parse().context("PORT")?;
    // However the lab ends.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie an instance to the lab")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let workers = Arc::new(Semaphore::new(WORKERS));
    let serving = http::serve(listener, move |_head| {
        let workers = Arc::clone(&workers);
        async move {
            let _worker = workers.acquire().await?;
            sleep(work).await;
            Ok(ANSWER.to_vec())
        }
    });
    serving.await;
    Ok(true)
}
