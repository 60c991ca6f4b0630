//! What is run.

use std::{collections::BTreeMap, num::NonZeroU16, path::PathBuf, time::Duration};

use greenwave_edge::StopSignal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The service that is supervised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct App {
    /// The command and its arguments, in any language; each instance listens on the port in its `PORT`.
    /// Default: `[]`, the shop.
    pub command: Vec<String>,
    /// How many instances run: a number, or "max" for one a core. Default: `2`.
    pub instances: Instances,
    /// How an instance learns where to listen: "env" for a free port in `PORT`, "socket" for a listening socket as
    /// under systemd (`LISTEN_FDS`), "none" for a worker, which gets no requests. Default: "env".
    pub port: Port,
    /// What tells that an instance is well: "tcp", a path that answers 2xx to GET, or "notify" for its own `READY=1` to
    /// `NOTIFY_SOCKET`. A worker needs nothing but to live. Default: "tcp" (the shop: "/health").
    pub health: String,
    /// Variables of the environment, over those of Greenwave's own; none by default.
    pub env: BTreeMap<String, String>,
    /// Files of `NAME=value` lines, which stand below `env`; none by default. Read again at each reload.
    pub env_files: Vec<PathBuf>,
    /// Where the command runs. Default: "", where Greenwave does.
    pub working_dir: PathBuf,
    /// Resident memory in bytes at which an instance is replaced by a new one. Default: `0`, without limit.
    pub max_memory: u64,
    /// Files and folders whose change replaces the instances, one after the other; none by default.
    pub watch: Vec<PathBuf>,
    /// How long a start may take; an instance that takes longer than this, and than a minute, is started anew. Default: `30s`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ready_timeout: Duration,
    /// How many instances are replaced at once by a reload, each by a new one beside it. Default: `1`.
    pub max_surge: u16,
    /// The signal that asks an instance to end. Default: "TERM".
    pub stop_signal: StopSignal,
    /// How long an instance may finish its work after that, before SIGKILL. Default: `10s`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub grace: Duration,
}

/// How an instance learns where to listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Port {
    /// By `PORT`.
    #[default]
    Env,
    /// By socket activation.
    Socket,
    /// Not at all: it is a worker.
    None,
}

impl Default for App {
    fn default() -> Self {
        App {
            command: Vec::new(),
            instances: Instances::Count(NonZeroU16::MIN.saturating_add(1)),
            port: Port::Env,
            health: "tcp".into(),
            env: BTreeMap::new(),
            env_files: Vec::new(),
            working_dir: PathBuf::new(),
            max_memory: 0,
            watch: Vec::new(),
            ready_timeout: Duration::from_secs(30),
            max_surge: 1,
            stop_signal: StopSignal::Term,
            grace: Duration::from_secs(10),
        }
    }
}

/// How many instances run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number from 1 to 65535, or \"max\"")]
pub(crate) enum Instances {
    /// So many.
    Count(NonZeroU16),
    /// One a core.
    Max(Max),
}

/// The word `max`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Max {
    /// One a core.
    Max,
}

impl Instances {
    /// The number, on this machine.
    pub(crate) fn count(self) -> usize {
        match self {
            Instances::Count(count) => usize::from(count.get()),
            Instances::Max(_) => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl std::str::FromStr for Instances {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count) => Ok(Instances::Count(count)),
            Err(_) if text == "max" => Ok(Instances::Max(Max::Max)),
            Err(_) => Err("a number from 1 to 65535, or \"max\"".into()),
        }
    }
}
