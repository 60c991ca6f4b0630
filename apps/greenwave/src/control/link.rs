//! What the supervisor and the edge say to each other, over a pair of sockets that nobody else has.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use greenwave_edge::{InstanceStatus, Upstreams};
use serde::{Deserialize, Serialize};

use super::Purge;
use crate::config::Config;

/// To the edge.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToEdge {
    /// The first message.
    Start(Box<Start>),
    /// The instances of each app, whenever one changes.
    Upstreams(BTreeMap<String, Upstreams>),
    /// All instances, for the dashboard.
    Instances(Vec<InstanceStatus>),
    /// Answered by [`FromEdge::Answer`] with the same number.
    Ask { id: u64, question: Question },
    /// Finish what is in flight, then end; `last` says that there is no successor.
    Drain { last: bool },
}

/// What an edge needs to know before it serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub version: u32,
    pub config: Config,
    /// The apps that take requests, with what is known of their instances.
    pub upstreams: BTreeMap<String, Upstreams>,
    /// The folder in which instances serve what they measured.
    pub sockets: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// The response cache that a predecessor exported.
    pub import: Option<PathBuf>,
}

/// What the supervisor asks of an edge.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Question {
    /// Write the response cache to this file.
    Export(PathBuf),
    /// Drop answers from it.
    Purge(Purge),
}

/// From the edge.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FromEdge {
    /// It serves.
    Ready,
    /// It cannot serve, and ends.
    Failed(String),
    /// The draining addresses that have no request of its in flight.
    Released(Vec<SocketAddr>),
    /// To a [`Question`]: how many answers it was about.
    Answer { id: u64, answer: Result<u64, String> },
}
