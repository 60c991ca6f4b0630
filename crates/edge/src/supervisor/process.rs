//! One running process of an instance, with its process group and its pipes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::AsyncRead;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::context::Seat;
use super::logs::{LogLine, LogStream, read_lines};
use super::notices::{Heard, Notices};
use super::status::InstanceState;
use super::table::Tail;
use super::{Instance, SupervisorConfig, sockets};
use crate::{Error, Health};

// How long the pipes of an ended process are read on: a descendant that left the group may hold them open.
const LAST_LINES: Duration = Duration::from_secs(1);
// How often a group whose leader has ended is looked at. No event tells when its last process has.
const GROUP_POLL: Duration = Duration::from_millis(20);
// What another supervisor, such as systemd, told this process alone.
const NOT_INHERITED: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Dropping it kills the whole group.
pub(super) struct Process {
    seat: Arc<Seat>,
    child: Child,
    group: Option<Pid>,
    logs: JoinSet<()>,
    notices: Option<Notices>,
}

impl Process {
    /// Starts the seat's process; its row then says `Starting`.
    pub(super) fn start(seat: &Arc<Seat>) -> Result<Self, Error> {
        let (context, config) = (&seat.context, &seat.plan.config);
        let row = context.table.get(seat.id);
        let address = address(seat)?;
        let restarts = row.as_ref().map_or(0, |row| row.restarts);
        let instance = Instance { name: seat.name.to_string(), index: seat.index, address, restarts };
        let notices =
            config.notify.then(|| Notices::open(&context.notices)).transpose().map_err(Error::Socket)?;
        let mut command = command(seat, &instance, notices.as_ref())?;
        let mut child = command.spawn().map_err(|source| not_started(config, source))?;
        // The child leads a group of its own, so its id is the group's. It is there until the child is reaped.
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let tail = row.map(|row| row.tail).unwrap_or_default();
        let mut logs = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            logs.spawn(copy_lines(Arc::clone(seat), tail.clone(), LogStream::Stdout, stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(copy_lines(Arc::clone(seat), tail, LogStream::Stderr, stderr));
        }
        context.table.update(seat.id, |row| {
            row.becomes(InstanceState::Starting);
            row.pid = group;
            row.address = address;
            row.started = Some(Instant::now());
        });
        Ok(Self { seat: Arc::clone(seat), child, group, logs, notices })
    }

    /// What the process says of itself, if it is to say anything.
    pub(super) fn heard(&self) -> Option<watch::Receiver<Heard>> {
        self.notices.as_ref().map(Notices::heard)
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
        self.seat.context.table.update(self.seat.id, |row| {
            row.pid = None;
            row.started = None;
        });
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

async fn copy_lines(seat: Arc<Seat>, tail: Tail, stream: LogStream, pipe: impl AsyncRead + Unpin) {
    let (context, config) = (&seat.context, &seat.plan.config);
    read_lines(pipe, config.max_log_line, |bytes| {
        tail.push(bytes);
        let line = LogLine { instance: &seat.name, stream, time: SystemTime::now(), bytes };
        context.book.push(&seat.name, &line, config.max_kept_log);
        (context.sink)(&line);
    })
    .await;
}

/// Where the process is to listen.
fn address(seat: &Seat) -> Result<Option<SocketAddr>, Error> {
    if seat.plan.config.health == Health::None {
        return Ok(None);
    }
    if let Some(socket) = &seat.socket {
        return socket.local_addr().map(Some).map_err(Error::Socket);
    }
    let rows = seat.context.table.rows();
    let taken = |address: &SocketAddr| rows.iter().any(|row| row.address == Some(*address));
    sockets::free_address(taken).map(Some).map_err(Error::Port)
}

/// The command with all that it is given.
fn command(seat: &Seat, instance: &Instance, notices: Option<&Notices>) -> Result<Command, Error> {
    let (context, config) = (&seat.context, &seat.plan.config);
    let own = seat.socket.iter().map(|socket| (sockets::HTTP, socket.as_fd()));
    let further = context.sockets.iter().map(|(name, socket)| (name.as_str(), socket.as_fd()));
    let inherited: Vec<_> = own.chain(further).collect();
    let mut words: Vec<&str> = context.wrapper.iter().map(String::as_str).collect();
    if words.is_empty() && !inherited.is_empty() {
        words.extend(sockets::SHIM);
    }
    if !words.is_empty() {
        // What comes before the command is there; only it would find out that the command is not.
        find(seat)?;
    }
    words.extend(config.command.iter().map(String::as_str));
    let (program, arguments) = words.split_first().ok_or(Error::NoCommand)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    if !config.working_dir.as_os_str().is_empty() {
        command.current_dir(&config.working_dir);
    }
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    command.envs(seat.plan.environment.iter().map(|(name, value)| (name, value)));
    if let (Some(address), None) = (instance.address, &seat.socket) {
        command.env("PORT", address.port().to_string());
    }
    if let Some(notices) = notices {
        command.env("NOTIFY_SOCKET", notices.path());
        if !config.watchdog.is_zero() {
            command.env("WATCHDOG_USEC", config.watchdog.as_micros().to_string());
        }
    }
    if !inherited.is_empty() {
        sockets::pass(&mut command, &inherited).map_err(Error::Socket)?;
    }
    command.envs((context.env)(instance));
    Ok(command)
}

/// Fails when the command is none, as its start would.
fn find(seat: &Seat) -> Result<(), Error> {
    let plan = &seat.plan;
    let program = plan.config.command.first().ok_or(Error::NoCommand)?;
    let executable = |file: PathBuf| file.is_file() && access(&file, Access::EXEC_OK).is_ok();
    let found = if program.contains('/') {
        executable(plan.config.working_dir.join(program))
    } else {
        let given = plan.environment.iter().rev().find(|(name, _)| name == "PATH");
        let path =
            given.map_or_else(|| std::env::var_os("PATH").unwrap_or_default(), |(_, path)| path.into());
        std::env::split_paths(&path).any(|folder| executable(folder.join(program)))
    };
    if found { Ok(()) } else { Err(Error::CommandNotFound { command: program.clone() }) }
}

fn not_started(config: &SupervisorConfig, source: io::Error) -> Error {
    let folder = &config.working_dir;
    if !folder.as_os_str().is_empty() && !folder.is_dir() {
        return Error::WorkingDir { path: folder.clone() };
    }
    let command = config.command.first().cloned().unwrap_or_default();
    // A script whose interpreter is missing is also "not found", though the script itself is there.
    let missing = source.kind() == io::ErrorKind::NotFound && !Path::new(&command).exists();
    if missing { Error::CommandNotFound { command } } else { Error::Start { command, source } }
}
