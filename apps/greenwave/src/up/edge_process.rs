//! One edge process, as its supervisor sees it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use greenwave_edge::{InstanceStatus, Upstreams};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::{Notify, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::{
    child,
    control::{FromEdge, Question, Reader, Start, ToEdge, send},
};

/// The first inherited descriptor, by the convention of `LISTEN_FDS`.
const FIRST_FD: i32 = 3;
/// How long an edge may take to answer, an export of its cache included.
const ANSWER: Duration = Duration::from_secs(30);
/// An edge that has not read what it was told within this time hangs, and is killed.
const HEARING: Duration = Duration::from_secs(10);
/// How often the dashboard hears of all instances.
const INSTANCES: Duration = Duration::from_secs(1);

/// What an edge is told of the world.
#[derive(Clone)]
pub(super) struct World {
    pub upstreams: watch::Receiver<BTreeMap<String, Upstreams>>,
    pub instances: Arc<dyn Fn() -> Vec<InstanceStatus> + Send + Sync>,
}

/// Where it stands in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Ready,
    Draining,
    /// Why it does not serve.
    Failed(String),
}

struct Seen {
    phase: Phase,
    /// How it ended.
    ended: Option<String>,
    released: HashSet<SocketAddr>,
}

enum Order {
    Drain { last: bool },
    Ask(Question, oneshot::Sender<Result<u64, String>>),
}

/// A running edge; dropping it kills it.
pub(super) struct EdgeProcess {
    pub pid: Option<u32>,
    orders: mpsc::Sender<Order>,
    seen: watch::Receiver<Seen>,
    _life: AbortOnDropHandle<()>,
}

impl EdgeProcess {
    /// Starts one from the program on disk, with these sockets: the dashboard's, then those for requests. `changed` is
    /// told whenever something about it changes.
    pub(super) fn start(
        sockets: &[TcpListener],
        start: Start,
        world: World,
        changed: Arc<Notify>,
    ) -> Result<EdgeProcess> {
        let (ours, theirs) =
            std::os::unix::net::UnixStream::pair().context("cannot make a pair of sockets")?;
        let child = spawn(sockets, theirs).context("cannot start the edge")?;
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        let (orders, receiver) = mpsc::channel(16);
        let (sender, seen) =
            watch::channel(Seen { phase: Phase::Starting, ended: None, released: HashSet::new() });
        let pid = child.id();
        let life =
            Life { orders: receiver, world, seen: sender, changed, questions: HashMap::new(), asked: 0 };
        let life = AbortOnDropHandle::new(tokio::spawn(life.run(child, stream, start)));
        Ok(EdgeProcess { pid, orders, seen, _life: life })
    }

    /// Waits until it serves.
    pub(super) async fn ready(&self, within: Duration) -> Result<()> {
        let mut seen = self.seen.clone();
        let settled = seen.wait_for(|seen| seen.phase != Phase::Starting || seen.ended.is_some());
        match timeout(within, settled).await {
            Err(_) => bail!("the edge was not ready within {}", humantime::format_duration(within)),
            Ok(Err(_)) => bail!("the edge is lost"),
            Ok(Ok(seen)) => match (&seen.phase, &seen.ended) {
                (Phase::Failed(why), _) => bail!("{why}"),
                (_, Some(how)) => bail!("the edge ended as it started: {how}"),
                _ => Ok(()),
            },
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        let mut seen = self.seen.clone();
        // When nobody looks after it any more, it has been killed.
        let _ = seen.wait_for(|seen| seen.ended.is_some()).await;
    }

    /// How it ended, in words.
    pub(super) fn end(&self) -> String {
        let seen = self.seen.borrow();
        match (&seen.phase, &seen.ended) {
            (Phase::Failed(why), _) => format!("failed ({why})"),
            (_, Some(how)) => format!("ended ({how})"),
            _ => "runs".into(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.seen.borrow().phase.clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.seen.borrow().ended.is_some()
    }

    /// Whether no request of its is in flight at this address, which is draining.
    pub(super) fn has_released(&self, address: &SocketAddr) -> bool {
        self.has_ended() || self.seen.borrow().released.contains(address)
    }

    pub(super) fn released(&self) -> HashSet<SocketAddr> {
        self.seen.borrow().released.clone()
    }

    /// Tells it to finish what is in flight, and to end.
    pub(super) async fn drain(&self, last: bool) {
        // One that is gone has nothing to finish.
        let _ = self.orders.send(Order::Drain { last }).await;
    }

    pub(super) async fn ask(&self, question: Question) -> Result<u64> {
        let (sender, answer) = oneshot::channel();
        let asked = async {
            let sent = self.orders.send(Order::Ask(question, sender)).await;
            if sent.is_ok() { answer.await.ok() } else { None }
        };
        let answer = timeout(ANSWER, asked).await.context("the edge does not answer")?;
        answer.context("the edge ended before it answered")?.map_err(anyhow::Error::msg)
    }
}

fn spawn(sockets: &[TcpListener], link: std::os::unix::net::UnixStream) -> Result<Child> {
    let program = child::this_program()?;
    let mappings = sockets.iter().zip(FIRST_FD..).map(|(socket, child_fd)| {
        let parent_fd = OwnedFd::from(socket.try_clone()?);
        Ok(FdMapping { parent_fd, child_fd })
    });
    let mut command = Command::new(&program);
    command.args(child::wrapper()?.into_iter().skip(1)).args([&program, "edge"]);
    command.stdin(Stdio::from(OwnedFd::from(link)));
    // A group of its own: a Ctrl-C in the terminal is for the supervisor.
    command.process_group(0).kill_on_drop(true).env("LISTEN_FDS", sockets.len().to_string());
    // What systemd says to the supervisor alone.
    command.env_remove("LISTEN_FDNAMES").env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_PID");
    command.fd_mappings(mappings.collect::<io::Result<_>>()?)?;
    Ok(command.spawn()?)
}

/// Talks with the process to its end.
struct Life {
    orders: mpsc::Receiver<Order>,
    world: World,
    seen: watch::Sender<Seen>,
    changed: Arc<Notify>,
    questions: HashMap<u64, oneshot::Sender<Result<u64, String>>>,
    asked: u64,
}

impl Life {
    async fn run(mut self, mut child: Child, stream: UnixStream, start: Start) {
        let (read, mut write) = stream.into_split();
        let mut messages = Reader::new(read);
        let mut instances = interval(INSTANCES);
        instances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One that cannot be told is noticed by its end.
        let _ = send(&mut write, &ToEdge::Start(Box::new(start))).await;
        let mut listens = true;
        let status = loop {
            let message = tokio::select! {
                status = child.wait() => break status,
                message = messages.next::<FromEdge>(), if listens => {
                    listens = self.note(message);
                    continue;
                }
                Some(order) = self.orders.recv() => self.message(order),
                Ok(()) = self.world.upstreams.changed() => {
                    ToEdge::Upstreams(self.world.upstreams.borrow_and_update().clone())
                }
                _ = instances.tick() => ToEdge::Instances((self.world.instances)()),
            };
            if timeout(HEARING, send(&mut write, &message)).await.is_err() {
                error!("the edge hears nothing, and is killed");
                let _ = child.start_kill();
            }
        };
        // What it said last may still be unread.
        while listens {
            listens = self.note(messages.next().await);
        }
        self.end(status);
    }

    fn message(&mut self, order: Order) -> ToEdge {
        match order {
            Order::Drain { last } => {
                self.set(Phase::Draining);
                ToEdge::Drain { last }
            }
            Order::Ask(question, answer) => {
                self.asked += 1;
                self.questions.retain(|_, asker| !asker.is_closed());
                self.questions.insert(self.asked, answer);
                ToEdge::Ask { id: self.asked, question }
            }
        }
    }

    /// Takes in what the edge says; whether there may be more.
    fn note(&mut self, message: io::Result<Option<FromEdge>>) -> bool {
        match message {
            Ok(Some(FromEdge::Ready)) => self.set(Phase::Ready),
            Ok(Some(FromEdge::Failed(why))) => self.set(Phase::Failed(why)),
            Ok(Some(FromEdge::Released(addresses))) => {
                self.seen.send_modify(|seen| seen.released = addresses.into_iter().collect());
                self.changed.notify_one();
            }
            Ok(Some(FromEdge::Answer { id, answer })) => {
                if let Some(asker) = self.questions.remove(&id) {
                    // Whoever asked may have left.
                    let _ = asker.send(answer);
                }
            }
            Ok(None) => return false,
            Err(error) => {
                error!("the edge cannot be understood: {error}");
                return false;
            }
        }
        true
    }

    fn set(&self, phase: Phase) {
        self.seen.send_modify(|seen| seen.phase = phase);
        self.changed.notify_one();
    }

    fn end(&self, status: io::Result<ExitStatus>) {
        let how = status.map_or_else(|error| format!("lost: {error}"), |status| status.to_string());
        self.seen.send_modify(|seen| seen.ended = Some(how));
        self.changed.notify_one();
    }
}
