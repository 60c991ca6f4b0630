//! What is told of each instance.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where an instance stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InstanceState {
    /// It runs and has not shown that it is ready yet.
    Starting,
    /// It runs and passes its health checks.
    Ready,
    /// It was ready and fails its health checks now. It gets no requests and is not stopped.
    Unhealthy,
    /// It has ended and is about to be started again.
    Restarting,
    /// Another is ready in its place, or it is not wanted any more: it gets no further requests and finishes those
    /// that it has.
    Draining,
    /// It was told to end, or says itself that it does.
    Stopping,
    /// It has ended and is not started again.
    Stopped,
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Restarting => "restarting",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// One instance at one moment, for dashboards and `ps`.
///
/// While an instance is replaced there are two of its name: the old one and the new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceStatus {
    /// Its name, the same through all restarts.
    pub name: String,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// Where it listens; `None` for a worker. Each start gets a new port, unless the socket is inherited.
    pub address: Option<SocketAddr>,
    /// Where it stands in its life.
    pub state: InstanceState,
    /// How often it has been started again.
    pub restarts: u32,
    /// Whether it ends again and again soon after it is started.
    pub crash_looping: bool,
    /// How it last ended, in words.
    pub last_exit: Option<String>,
    /// How long its process has been running, in seconds.
    pub uptime_seconds: Option<u64>,
    /// Resident memory of its process group; `None` where it cannot be read.
    pub memory_bytes: Option<u64>,
}
