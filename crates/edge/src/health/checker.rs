//! Checks of servers that nobody supervises.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::target::Place;
use super::{CheckConfig, Health, Judge, Target, check};
use crate::resolve::follow;
use crate::{Upstream, Upstreams};

/// Checks servers at given addresses or names, for a proxy without a supervisor.
///
/// A name stands for all its addresses. It is looked up again every [`resolve_interval`](CheckConfig::resolve_interval):
/// an address that has appeared is checked and gets requests once it passes, one that has disappeared gets no more.
/// While a name cannot be looked up its last addresses stay.
///
/// Dropping it ends checks and look-ups; the list then stays as it was last.
///
/// ```no_run
/// use greenwave_edge::{CheckConfig, Health, HealthChecker, Proxy, ProxyConfig, Target};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let targets = ["10.0.0.1:3000".parse::<Target>()?, "api.internal:3000".parse()?];
/// let checker = HealthChecker::start(targets, "/health".parse::<Health>()?, CheckConfig::default());
/// let proxy = Proxy::new(ProxyConfig::default(), checker.upstreams());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HealthChecker {
    upstreams: watch::Receiver<Upstreams>,
    // Held for its drop, which aborts the checks.
    _targets: JoinSet<()>,
}

impl HealthChecker {
    /// Starts checking at once. A server counts as sick until it has passed; with [`Health::None`] all
    /// count as healthy and nothing is checked.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        targets: impl IntoIterator<Item = impl Into<Target>>,
        health: Health,
        config: CheckConfig,
    ) -> Self {
        let (sender, upstreams) = watch::channel(Upstreams::default());
        let sender = Arc::new(sender);
        let mut tasks = JoinSet::new();
        for target in targets {
            let target: Target = target.into();
            let mut config = config.clone();
            if let (Place::Name(..), true) = (&target.place, config.host.is_empty()) {
                config.host = target.place.to_string();
            }
            let mut servers = Servers {
                target: target.place.to_string(),
                weight: target.weight,
                health: health.clone(),
                config: Arc::new(config),
                list: Arc::clone(&sender),
                checks: JoinSet::new(),
                known: HashMap::new(),
            };
            match target.place {
                Place::Address(address) => {
                    servers.are(&[address]);
                    tasks.spawn(async move { while servers.checks.join_next().await.is_some() {} });
                }
                Place::Name(name, port) => {
                    let interval = servers.config.resolve_interval;
                    tasks.spawn(async move {
                        let lookup = || {
                            let place = (name.clone(), port);
                            async { Ok(lookup_host(place).await?.collect()) }
                        };
                        follow(&name, interval, lookup, |addresses| servers.are(addresses)).await;
                    });
                }
            }
        }
        Self { upstreams, _targets: tasks }
    }

    /// The list as the checks see it.
    pub fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.upstreams.clone()
    }
}

/// The servers of one target.
struct Servers {
    target: String,
    weight: u32,
    health: Health,
    config: Arc<CheckConfig>,
    list: Arc<watch::Sender<Upstreams>>,
    checks: JoinSet<()>,
    known: HashMap<SocketAddr, AbortHandle>,
}

impl Servers {
    /// Says at which addresses they are from now on.
    fn are(&mut self, addresses: &[SocketAddr]) {
        for (address, checks) in self.known.extract_if(|address, _| !addresses.contains(address)) {
            checks.abort();
            let name = name(&self.target, address);
            self.list.send_modify(|list| {
                list.retain(|upstream| upstream.name != name);
            });
        }
        for &address in
            addresses.iter().filter(|address| !self.known.contains_key(address)).collect::<Vec<_>>()
        {
            let mut upstream = Upstream::new(name(&self.target, address), address);
            upstream.weight = self.weight;
            upstream.healthy = self.health == Health::None;
            let (name, list) = (upstream.name.clone(), Arc::clone(&self.list));
            self.list.send_modify(|list| list.push(upstream));
            let (health, config) = (self.health.clone(), Arc::clone(&self.config));
            let checks = self.checks.spawn(keep_checking(name, address, health, config, list));
            self.known.insert(address, checks);
        }
    }
}

/// An address by itself is its server's name.
fn name(target: &str, address: SocketAddr) -> String {
    let address = address.to_string();
    if address == target { address } else { format!("{target} at {address}") }
}

async fn keep_checking(
    name: String,
    address: SocketAddr,
    health: Health,
    config: Arc<CheckConfig>,
    list: Arc<watch::Sender<Upstreams>>,
) {
    if health == Health::None {
        return;
    }
    let mut judge = Judge::new(&config);
    loop {
        let result = check(&health, address, &config).await;
        let healthy = judge.record(&result);
        list.send_if_modified(|list| {
            let Some(upstream) = list.iter_mut().find(|upstream| upstream.name == name) else { return false };
            let changed = result.is_ok() || upstream.healthy != healthy;
            upstream.healthy = healthy;
            upstream.checks += u64::from(result.is_ok());
            changed
        });
        tokio::time::sleep(config.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn addresses_that_appear_are_checked_and_those_that_disappear_are_gone() {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let [one, other] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let (sender, mut list) = watch::channel(Upstreams::default());
        let mut servers = Servers {
            target: "api:80".into(),
            weight: 2,
            health: Health::Tcp,
            config: Arc::default(),
            list: Arc::new(sender),
            checks: JoinSet::new(),
            known: HashMap::new(),
        };
        let mut healthy = async |addresses: &[SocketAddr]| {
            let all = |list: &Upstreams| {
                list.iter().map(|upstream| upstream.address).eq(addresses.iter().copied())
                    && list.iter().all(|upstream| upstream.healthy && upstream.weight == 2)
            };
            tokio::time::timeout(Duration::from_secs(10), list.wait_for(all)).await.unwrap().unwrap();
        };
        servers.are(&[one]);
        healthy(&[one]).await;
        servers.are(&[one, other]);
        healthy(&[one, other]).await;
        servers.are(&[other]);
        healthy(&[other]).await;
    }
}
