//! The control socket's protocol: a [`Call`], then [`Reply`]s until one that ends it.

use greenwave_edge::InstanceStatus;
use serde::{Deserialize, Serialize};

/// Raised when an older program would misunderstand.
pub(crate) const VERSION: u32 = 1;

/// What a client sends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub version: u32,
    pub request: Request,
}

/// What it wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// Answered by [`Reply::Status`].
    Ps,
    /// The last lines, of one app or of all, and with `follow` those to come.
    Logs { app: Option<String>, lines: usize, follow: bool },
    /// Reads the config again and replaces the edge, the instances of an app, or everything.
    Reload { edge: bool, app: Option<String> },
    /// Drains and ends everything.
    Stop,
    /// Runs another number of instances; `app` may be left out where there is only one.
    Scale { app: Option<String>, instances: usize },
    /// Drops answers from the response cache.
    Purge(Purge),
}

/// Which answers are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Purge {
    /// That of one URL, in all its variants.
    Url(String),
    /// Those of all URLs that begin so.
    Prefix(String),
    /// Those that carry a tag.
    Tag(String),
    /// All.
    All,
}

/// What the supervisor sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    /// What runs.
    Status(Box<Status>),
    /// A line that an instance wrote.
    Log { instance: String, line: String },
    /// Something was done; more follows.
    Progress(String),
    /// How many answers were dropped.
    Purged(u64),
    /// The end: all went well.
    Done,
    /// The end: it failed, and nothing is worse than before.
    Error(String),
}

/// Everything that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub version: u32,
    /// Of the supervisor.
    pub pid: u32,
    pub edge: EdgeStatus,
    pub apps: Vec<AppStatus>,
}

/// The process that serves requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EdgeStatus {
    pub pid: Option<u32>,
    pub state: String,
    pub restarts: u32,
    pub listen: Option<String>,
    pub dashboard: Option<String>,
    /// Earlier ones that still finish requests.
    pub draining: usize,
}

/// An app's instances.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AppStatus {
    pub name: String,
    pub instances: Vec<InstanceStatus>,
}
