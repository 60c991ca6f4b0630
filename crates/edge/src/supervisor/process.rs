//! One running process of an instance, with its process group and its pipes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::AsyncRead;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::logs::{LogLine, LogStream, read_lines};
use super::status::{InstanceState, Slot};
use super::{Context, Instance};
use crate::{Error, Health};

const PORT_ATTEMPTS: usize = 16;
// How long the pipes of an ended process are read on: a descendant that left the group may hold them open.
const LAST_LINES: Duration = Duration::from_secs(1);
// How often a group whose leader has ended is looked at. No event tells when its last process has.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// Dropping it kills the whole group.
pub(super) struct Process {
    context: Arc<Context>,
    index: usize,
    child: Child,
    group: Option<Pid>,
    logs: JoinSet<()>,
}

impl Process {
    /// Starts the instance's process; its slot then says `Starting`.
    pub(super) fn start(context: &Arc<Context>, index: usize) -> Result<Self, Error> {
        let config = &context.config;
        let (program, arguments) = config.command.split_first().ok_or(Error::NoCommand)?;
        let slot = context.table.slot(index);
        let address = match config.health {
            Health::None => None,
            Health::Tcp | Health::Http { .. } => Some(free_address(&context.table.addresses())?),
        };
        let instance = Instance { name: slot.name.to_string(), index, address, restarts: slot.restarts };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        if let Some(address) = address {
            command.env("PORT", address.port().to_string());
        }
        command.envs((context.env)(&instance));
        let mut child = command.spawn().map_err(|source| not_started(program, source))?;
        // The child leads a group of its own, so its id is the group's. It is there until the child is reaped.
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let mut logs = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            logs.spawn(copy_lines(Arc::clone(context), slot.clone(), LogStream::Stdout, stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(copy_lines(Arc::clone(context), slot, LogStream::Stderr, stderr));
        }
        context.table.update(index, |slot| {
            slot.state = InstanceState::Starting;
            slot.pid = group;
            slot.address = address;
        });
        Ok(Self { context: Arc::clone(context), index, child, group, logs })
    }

    /// Waits for the process itself. Cancel safe.
    pub(super) async fn exited(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.let_go_if_empty();
        status
    }

    /// Waits until no process of the group is left. Cancel safe.
    pub(super) async fn group_exited(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.let_go_if_empty();
        while self.group.is_some() {
            tokio::time::sleep(GROUP_POLL).await;
            self.let_go_if_empty();
        }
        Ok(status)
    }

    /// Once the leader is reaped, the number is the group's for as long as anybody is left in it, and may then be
    /// another's: nobody is to signal it any more.
    fn let_go_if_empty(&mut self) {
        if self.group.is_none_or(|group| test_kill_process_group(group).is_err()) {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        self.group = None;
        self.context.table.update(self.index, |slot| slot.pid = None);
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // An error means that nobody is left to be told.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Ends what is left of the group, reaps its leader and reads its last lines.
    pub(super) async fn finish(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        let status = self.child.wait().await;
        // Whoever was left in the group has been killed.
        self.let_go();
        let last_lines = async { while self.logs.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_LINES, last_lines).await;
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.let_go();
    }
}

async fn copy_lines(context: Arc<Context>, slot: Slot, stream: LogStream, pipe: impl AsyncRead + Unpin) {
    read_lines(pipe, context.config.max_log_line, |bytes| {
        slot.tail.push(bytes);
        (context.sink)(&LogLine { instance: &slot.name, stream, bytes });
    })
    .await;
}

/// A loopback address whose port was free a moment ago and that none of ours has.
fn free_address(taken: &[SocketAddr]) -> Result<SocketAddr, Error> {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
    let mut address = free().map_err(Error::Port)?;
    for _ in 0..PORT_ATTEMPTS {
        if !taken.contains(&address) {
            break;
        }
        address = free().map_err(Error::Port)?;
    }
    Ok(address)
}

fn not_started(program: &str, source: io::Error) -> Error {
    // A script whose interpreter is missing is also "not found", though the script itself is there.
    let missing = source.kind() == io::ErrorKind::NotFound && !Path::new(program).exists();
    let command = program.to_owned();
    if missing { Error::CommandNotFound { command } } else { Error::Start { command, source } }
}
