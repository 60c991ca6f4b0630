//! Where requests can go: all that the proxy knows of those who supply it with servers.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// One server that can answer requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Upstream {
    /// A name that stays the same when the server is restarted.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of the requests, beside others; 1 for all makes all alike, 0 is for when no other can.
    pub weight: u32,
    /// Whether it passes its health checks.
    pub healthy: bool,
    /// Whether it is about to end: it gets no further requests, and finishes those that it has.
    pub draining: bool,
    /// How many health checks it has passed. A proxy that found a healthy upstream refusing connections
    /// leaves it alone until this number has changed.
    pub checks: u64,
}

impl Upstream {
    /// An upstream that counts as healthy and has not been checked yet.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        Self { name: name.into(), address, weight: 1, healthy: true, draining: false, checks: 0 }
    }
}

/// A list of upstreams, as its supplier sees them now.
///
/// It travels in a [`tokio::sync::watch`] channel: whoever supplies it sends the whole list anew when
/// anything in it changes, and whoever reads it always sees the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Upstreams(Vec<Upstream>);

impl Upstreams {
    /// A list that never changes, of servers that nobody checks.
    ///
    /// A proxy over it still notices refused connections, and tries such a server again a second later.
    /// [`HealthChecker`](crate::HealthChecker) makes a list whose servers are checked.
    ///
    /// ```
    /// use greenwave_edge::{Proxy, ProxyConfig, Upstreams};
    ///
    /// let upstreams = Upstreams::fixed(["127.0.0.1:3000".parse()?, "127.0.0.1:3001".parse()?]);
    /// let proxy = Proxy::new(ProxyConfig::default(), upstreams.into_watch())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fixed(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        addresses.into_iter().map(|address| Upstream::new(address.to_string(), address)).collect()
    }

    /// The list as the receiving end of a channel whose sender is gone, so that it stays as it is.
    pub fn into_watch(self) -> watch::Receiver<Self> {
        watch::channel(self).1
    }

    /// All upstreams, healthy or not.
    pub fn iter(&self) -> std::slice::Iter<'_, Upstream> {
        self.0.iter()
    }

    /// How many of them are healthy.
    pub fn healthy(&self) -> usize {
        self.iter().filter(|upstream| upstream.healthy).count()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Upstream> {
        self.0.iter_mut()
    }

    pub(crate) fn push(&mut self, upstream: Upstream) {
        self.0.push(upstream);
    }

    pub(crate) fn retain(&mut self, stays: impl FnMut(&Upstream) -> bool) {
        self.0.retain(stays);
    }
}

impl FromIterator<Upstream> for Upstreams {
    fn from_iter<I: IntoIterator<Item = Upstream>>(upstreams: I) -> Self {
        Self(upstreams.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Upstreams {
    type Item = &'a Upstream;
    type IntoIter = std::slice::Iter<'a, Upstream>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
