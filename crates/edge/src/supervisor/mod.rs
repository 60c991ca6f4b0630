//! Runs instances of a command and keeps them running.

mod config;
mod context;
mod env_file;
mod file_watch;
mod keeper;
mod log_book;
mod log_file;
mod logs;
mod memory;
mod memory_limit;
mod notices;
mod process;
mod roll;
mod sockets;
mod status;
mod table;

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use config::{Environment, Port, StopSignal, SupervisorConfig};
pub use file_watch::{FileWatch, WatchConfig};
pub use log_book::{LogEvent, Logs};
pub use log_file::{LogFile, LogFileConfig};
pub use logs::{LogFormat, LogLine, LogRecord, LogStream};
pub use status::{InstanceState, InstanceStatus};

use crate::{Error, Upstreams};
use context::{Context, Plan};
use logs::Sink;
use table::Row;

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

/// A [`Supervisor`] about to start.
#[must_use = "nothing runs before `start`"]
pub struct SupervisorBuilder {
    config: SupervisorConfig,
    env: Env,
    sink: Sink,
    wrapper: Vec<String>,
    sockets: Vec<(String, OwnedFd)>,
}

impl SupervisorBuilder {
    /// Gives each instance further environment variables, asked for at each start.
    ///
    /// Instances inherit the environment of this process; over it come the configuration's files and variables, then
    /// `PORT` unless they are workers or inherit their socket, then these.
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

    /// Words before the command: a program that prepares and then becomes it, by `exec`, so that its process is the
    /// command's; none by default.
    ///
    /// Where sockets are inherited, `LISTEN_PID` must be the command's pid, which is not known before it runs. Without
    /// a wrapper, `sh` sets it; a wrapper must do so itself when it finds `LISTEN_FDS`.
    pub fn wrapper(mut self, words: Vec<String>) -> Self {
        self.wrapper = words;
        self
    }

    /// Lets every instance inherit a socket, by systemd's protocol: in the order of these calls, after the
    /// instance's own where [`Port::Socket`] gives it one, which is called `http`.
    ///
    /// The socket stays open as long as the supervisor, so that connections wait while an instance starts again.
    /// The name may not contain a colon.
    pub fn socket(mut self, name: impl Into<String>, socket: impl Into<OwnedFd>) -> Self {
        self.sockets.push((name.into(), socket.into()));
        self
    }

    /// Starts all instances and returns at once; [`Supervisor::ready`] waits for them.
    ///
    /// What cannot be started at all is an error here: no command, a command that does not exist or may not
    /// be run, an environment file that cannot be read. What starts and then ends is started again, see
    /// [`Supervisor`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Result<Supervisor, Error> {
        let plan = Plan::new(self.config)?;
        let context = Context::new(plan, self.env, self.sink, self.wrapper, self.sockets);
        let plan = context.plan();
        roll::start(&context, &plan, 0..plan.config.instances)?;
        context.tasks.spawn(memory_limit::keep(Arc::clone(&context)));
        context.tasks.close();
        Ok(Supervisor { context })
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
/// [`reload`](Self::reload), [`restart`](Self::restart) and [`scale`](Self::scale) change what runs, one at a time:
/// a second one waits for the first. Once called, each goes on even if its future is dropped.
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
}

impl Supervisor {
    /// Begins with a configuration; [`SupervisorBuilder::start`] starts what it says.
    #[allow(clippy::new_ret_no_self)] // `Supervisor::new(config).env(…).start()` reads as what it does.
    pub fn new(config: SupervisorConfig) -> SupervisorBuilder {
        let (wrapper, sockets) = (Vec::new(), Vec::new());
        SupervisorBuilder { config, env: Arc::new(|_| Vec::new()), sink: logs::to_stderr(), wrapper, sockets }
    }

    /// Waits until all instances are ready, apart from those that are being replaced and the new ones beside them.
    ///
    /// Fails when one of them is not within `timeout`, and at once when one is in a crash loop. The error
    /// names the instance and holds its exit status and its last lines. The instances live on either way.
    ///
    /// Cancel safe: dropping the future changes nothing.
    pub async fn ready(&self, timeout: Duration) -> Result<(), Error> {
        let mut rows = self.context.table.subscribe();
        let settled = |rows: &Vec<Row>| {
            let mut slots = rows.iter().filter(|row| row.holds_slot());
            slots.clone().all(is_ready) || slots.any(is_lost)
        };
        // The outcome is read from the rows themselves.
        let _ = tokio::time::timeout(timeout, rows.wait_for(settled)).await;
        let rows = rows.borrow();
        let mut slots = rows.iter().filter(|row| row.holds_slot());
        let Some(row) = slots.clone().find(|row| is_lost(row)).or_else(|| slots.find(|row| !is_ready(row)))
        else {
            return Ok(());
        };
        let instance = row.name.to_string();
        let (last_exit, last_lines) = (row.last_exit.clone(), row.tail.lines());
        Err(if row.crash_looping {
            Error::CrashLoop { instance, last_exit, last_lines }
        } else if is_lost(row) {
            Error::Stopped { instance }
        } else {
            Error::NotReady { instance, within: timeout, last_exit, last_lines }
        })
    }

    /// All instances as they are now, in the order of their numbers; while one is replaced, the old before the new.
    pub fn instances(&self) -> Vec<InstanceStatus> {
        self.context.table.statuses()
    }

    /// The instances as upstreams of a [`Proxy`](crate::Proxy). Workers are none.
    pub fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.context.table.upstreams()
    }

    /// The last lines of all instances, or of the one of that name, and those that follow.
    ///
    /// At most `last` lines, of what [`max_kept_log`](SupervisorConfig::max_kept_log) keeps for each.
    pub fn logs(&self, instance: Option<&str>, last: usize) -> Logs {
        self.context.book.read(instance, last)
    }

    /// Tells the supervisor that nothing is in flight at the address of an instance that drains, so that it need not
    /// wait any longer before it ends it. Whoever runs the proxy calls this; at other times it means nothing.
    pub fn released(&self, address: SocketAddr) {
        self.context.table.released(address);
    }

    /// Replaces all instances by new ones, a few at a time ([`max_surge`](SupervisorConfig::max_surge)), without a
    /// moment in which there are fewer. Environment files are read anew.
    ///
    /// A new instance is started beside the old. Once it is ready, the old one drains: it is marked so in
    /// [`upstreams`](Self::upstreams), and told to end when [`released`](Self::released) is called with its address,
    /// or after [`drain_timeout`](SupervisorConfig::drain_timeout). Returns when the last old one has ended.
    ///
    /// # Errors
    /// [`Error::Reload`] when a new instance does not become ready within
    /// [`start_timeout`](SupervisorConfig::start_timeout), or ends before. It is ended, the reload stops, and old
    /// instances that were not yet replaced live on as if nothing had happened. What could not be started or read at
    /// all is told as by [`SupervisorBuilder::start`], and changes nothing.
    pub async fn reload(&self) -> Result<(), Error> {
        self.in_turn(async move |context: Arc<Context>| {
            let plan = Plan::new(context.plan().config.clone())?;
            roll::reload(&context, plan).await
        })
        .await
    }

    /// As [`reload`](Self::reload), with another configuration for the new instances: another command, other
    /// variables, as many instances as it says. The name stays what it was.
    ///
    /// When the reload stops, instances that were not replaced go on with the old configuration, and so do all that
    /// are started later.
    pub async fn reload_with(&self, config: SupervisorConfig) -> Result<(), Error> {
        self.in_turn(async move |context: Arc<Context>| {
            let name = context.plan().config.name.clone();
            roll::reload(&context, Plan::new(SupervisorConfig { name, ..config })?).await
        })
        .await
    }

    /// Replaces one instance, in the way and with the errors of [`reload`](Self::reload).
    pub async fn restart(&self, instance: &str) -> Result<(), Error> {
        let instance = instance.to_owned();
        self.in_turn(async move |context: Arc<Context>| {
            let row = context.table.slots().into_iter().find(|row| *row.name == *instance);
            let row = row.ok_or(Error::NoSuchInstance { instance })?;
            roll::restart(&context, &row).await
        })
        .await
    }

    /// Makes the instances that many. New ones are started, and [`ready`](Self::ready) waits for them; those that are
    /// too many, of the highest numbers, drain as in a [`reload`](Self::reload). Returns when these have ended.
    ///
    /// # Errors
    /// [`Error::NoInstances`] for 0; or a new instance could not be started, and then none is.
    pub async fn scale(&self, instances: usize) -> Result<(), Error> {
        self.in_turn(async move |context: Arc<Context>| {
            let plan = context.plan().with_instances(instances)?;
            roll::scale(&context, Arc::new(plan)).await
        })
        .await
    }

    /// Runs a change when those before it have ended, in a task of its own: half a change is nothing to leave behind.
    async fn in_turn<F>(&self, change: impl FnOnce(Arc<Context>) -> F + Send + 'static) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let context = Arc::clone(&self.context);
        let stopped = Error::Stopped { instance: context.plan().config.name.clone() };
        let changed = self.context.tasks.spawn(async move {
            let _turn = context.turn.lock().await;
            if context.stop.is_cancelled() { None } else { Some(change(Arc::clone(&context)).await) }
        });
        match changed.await {
            Ok(result) => result.unwrap_or(Err(stopped)),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends.
                Err(_) => Err(stopped),
            },
        }
    }

    /// Ends all instances: the [`stop_signal`](SupervisorConfig::stop_signal) to each process group, SIGKILL to what
    /// is left after [`grace`](SupervisorConfig::grace). Returns when all have ended.
    ///
    /// Stop the proxy before, so that no request meets an instance that is ending.
    ///
    /// Once called, the stop goes on even if the future is dropped; call it again to wait for its end.
    pub async fn shutdown(&self) {
        self.context.stop.cancel();
        self.context.tasks.wait().await;
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
        f.debug_struct("Supervisor").field("config", &self.context.plan().config).finish_non_exhaustive()
    }
}

impl fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

fn is_ready(row: &Row) -> bool {
    row.state == InstanceState::Ready
}

/// Waiting on is of no use.
fn is_lost(row: &Row) -> bool {
    row.crash_looping || matches!(row.state, InstanceState::Stopping | InstanceState::Stopped)
}
