//! Runs instances of a command and keeps them running.

mod config;
mod keeper;
mod logs;
mod process;
mod status;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::SupervisorConfig;
pub use logs::{LogLine, LogStream};
pub use status::{InstanceState, InstanceStatus};

use crate::{Error, Upstreams};
use logs::Sink;
use process::Process;
use status::{Slot, Table};

type Env = Arc<dyn Fn(&Instance) -> Vec<(String, String)> + Send + Sync>;

/// An instance that is about to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// Its name, the same through all restarts.
    pub name: String,
    /// Its number, from 0.
    pub index: usize,
    /// Where it is to listen; `None` for a worker.
    pub address: Option<SocketAddr>,
    /// How often it has been started again.
    pub restarts: u32,
}

/// What instances share.
struct Context {
    config: SupervisorConfig,
    env: Env,
    sink: Sink,
    table: Table,
    // Ends instances in order; and what is still there when nobody waits any more.
    stop: CancellationToken,
    kill: CancellationToken,
}

/// A [`Supervisor`] about to start.
#[must_use = "nothing runs before `start`"]
pub struct SupervisorBuilder {
    config: SupervisorConfig,
    env: Env,
    sink: Sink,
}

impl SupervisorBuilder {
    /// Gives each instance further environment variables, asked for at each start.
    ///
    /// Instances inherit the environment of this process, and get `PORT` unless they are workers.
    pub fn env(mut self, env: impl Fn(&Instance) -> Vec<(String, String)> + Send + Sync + 'static) -> Self {
        self.env = Arc::new(env);
        self
    }

    /// Where the lines go that instances write; by default to standard error, after `name | `.
    ///
    /// The closure runs on the runtime's threads for every line, so it must not block for long. While it
    /// does, the instance that writes too much waits on its pipe.
    ///
    /// The default does block: whoever reads this process's standard error slowly, such as a terminal on hold,
    /// holds up the runtime, and with it a proxy that runs there. A program that serves should hand the lines
    /// to a thread of its own here, through a queue with a bound.
    pub fn logs(mut self, sink: impl Fn(&LogLine<'_>) + Send + Sync + 'static) -> Self {
        self.sink = Arc::new(sink);
        self
    }

    /// Starts all instances and returns at once; [`Supervisor::ready`] waits for them.
    ///
    /// What cannot be started at all is an error here: no command, a command that does not exist or may not
    /// be run. What starts and then ends is started again, see [`Supervisor`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Result<Supervisor, Error> {
        let Self { config, env, sink } = self;
        if config.instances == 0 {
            return Err(Error::NoInstances);
        }
        let instances = config.instances;
        let table = Table::new(&config.name, instances);
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let context = Arc::new(Context { config, env, sink, table, stop, kill });
        // All of them before any is watched: when one cannot start, the others end by their drop.
        let processes: Vec<Process> =
            (0..instances).map(|index| Process::start(&context, index)).collect::<Result<_, _>>()?;
        let tasks = TaskTracker::new();
        for (index, process) in processes.into_iter().enumerate() {
            tasks.spawn(keeper::keep(Arc::clone(&context), index, process));
        }
        tasks.close();
        Ok(Supervisor { context, tasks })
    }
}

/// Keeps instances of a command running.
///
/// Each instance has a process group of its own, no standard input, and a free loopback port in `PORT`.
/// One that ends, with whatever status, is started again on another port: after
/// [`min_backoff`](SupervisorConfig::min_backoff) at first, then ever later. An instance that ends again and
/// again is marked as crash looping and still tried, ever
/// [`max_backoff`](SupervisorConfig::max_backoff).
///
/// Dropping the supervisor kills all instances at once, with their descendants;
/// [`shutdown`](Self::shutdown) lets them end in order.
///
/// ```no_run
/// use std::time::Duration;
/// use greenwave_edge::{Supervisor, SupervisorConfig};
///
/// # async fn run() -> Result<(), greenwave_edge::Error> {
/// let command = ["node", "server.js"].map(String::from).to_vec();
/// let supervisor = Supervisor::new(SupervisorConfig { command, instances: 2, ..Default::default() })
///     .env(|instance| vec![("INSTANCE".into(), instance.name.clone())])
///     .start()?;
/// supervisor.ready(Duration::from_secs(10)).await?;
/// # supervisor.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Supervisor {
    context: Arc<Context>,
    tasks: TaskTracker,
}

impl Supervisor {
    /// Begins with a configuration; [`SupervisorBuilder::start`] starts what it says.
    #[allow(clippy::new_ret_no_self)] // `Supervisor::new(config).env(…).start()` reads as what it does.
    pub fn new(config: SupervisorConfig) -> SupervisorBuilder {
        SupervisorBuilder { config, env: Arc::new(|_| Vec::new()), sink: logs::to_stderr() }
    }

    /// Waits until all instances are ready.
    ///
    /// Fails when one of them is not within `timeout`, and at once when one is in a crash loop. The error
    /// names the instance and holds its exit status and its last lines. The instances live on either way.
    ///
    /// Cancel safe: dropping the future changes nothing.
    pub async fn ready(&self, timeout: Duration) -> Result<(), Error> {
        let mut slots = self.context.table.subscribe();
        let settled = |slots: &Vec<Slot>| slots.iter().all(is_ready) || slots.iter().any(is_lost);
        // The outcome is read from the slots themselves.
        let _ = tokio::time::timeout(timeout, slots.wait_for(settled)).await;
        let slots = slots.borrow();
        let Some(slot) =
            slots.iter().find(|slot| is_lost(slot)).or_else(|| slots.iter().find(|slot| !is_ready(slot)))
        else {
            return Ok(());
        };
        let instance = slot.name.to_string();
        let (last_exit, last_lines) = (slot.last_exit.clone(), slot.tail.lines());
        Err(if slot.crash_looping {
            Error::CrashLoop { instance, last_exit, last_lines }
        } else if is_lost(slot) {
            Error::Stopped { instance }
        } else {
            Error::NotReady { instance, within: timeout, last_exit, last_lines }
        })
    }

    /// All instances as they are now.
    pub fn instances(&self) -> Vec<InstanceStatus> {
        self.context.table.statuses()
    }

    /// The instances as upstreams of a [`Proxy`](crate::Proxy). Workers are none.
    pub fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.context.table.upstreams()
    }

    /// Ends all instances: SIGTERM to each process group, SIGKILL to what is left after
    /// [`grace`](SupervisorConfig::grace). Returns when all have ended.
    ///
    /// Stop the proxy before, so that no request meets an instance that is ending.
    ///
    /// Once called, the stop goes on even if the future is dropped; call it again to wait for its end.
    pub async fn shutdown(&self) {
        self.context.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // In this order: a process started from now on finds `kill` cancelled, all others are in the table.
        self.context.kill.cancel();
        self.context.stop.cancel();
        self.context.table.kill_all();
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("config", &self.context.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

fn is_ready(slot: &Slot) -> bool {
    slot.state == InstanceState::Ready
}

/// Waiting on is of no use.
fn is_lost(slot: &Slot) -> bool {
    slot.crash_looping || matches!(slot.state, InstanceState::Stopping | InstanceState::Stopped)
}
