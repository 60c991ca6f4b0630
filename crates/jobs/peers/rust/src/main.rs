//! One queue, one action: `peers SYSTEM ACTION URL COUNT`. Prints `begin` and `end` around what is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

mod apalis_postgres;
mod graphile_worker;
mod river;

/// Jobs that one bulk insert stores.
const BATCH: usize = 5000;
/// Tasks that push single jobs at once.
const TASKS: usize = 256;

/// What a handler of a no-op job calls.
#[derive(Clone)]
pub struct Seen(Arc<Counter>);

struct Counter {
    left: AtomicUsize,
    all: Notify,
    starts: mpsc::UnboundedSender<Instant>,
}

impl Seen {
    fn new(count: usize) -> (Seen, mpsc::UnboundedReceiver<Instant>) {
        let (starts, started) = mpsc::unbounded_channel();
        (Seen(Arc::new(Counter { left: AtomicUsize::new(count), all: Notify::new(), starts })), started)
    }

    pub fn hit(&self) {
        if self.0.left.load(Ordering::Relaxed) == usize::MAX {
            self.0.starts.send(Instant::now()).ok();
        } else if self.0.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.all.notify_one();
        }
    }
}

/// A queue to be measured.
#[allow(async_fn_in_trait)]
pub trait Peer: Sized + Clone + Send + Sync + 'static {
    async fn open(url: &str) -> Result<Self>;
    async fn setup(&self) -> Result<()>;
    fn bulk(&self, jobs: std::ops::Range<usize>) -> impl Future<Output = Result<()>> + Send;
    fn push(&self, job: usize) -> impl Future<Output = Result<()>> + Send;
    /// Starts a worker that calls `seen` for each job, and ends with the process.
    async fn work(&self, seen: Seen) -> Result<()>;
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [system, action, url, count] = arguments.as_slice() else {
        bail!("peers SYSTEM ACTION URL COUNT");
    };
    let count = count.parse().context("COUNT is a number")?;
    match system.as_str() {
        "graphile_worker_rs" => act(graphile_worker::Graphile::open(url).await?, action, count).await?,
        "apalis-postgres" => act(apalis_postgres::Apalis::open(url).await?, action, count).await?,
        "riverqueue" | "riverqueue-sqlite" => act(river::River::open(url).await?, action, count).await?,
        other => bail!("no peer is called {other}"),
    }
    // Workers are not asked to stop: that is not measured.
    std::process::exit(0);
}

async fn act(peer: impl Peer, action: &str, count: usize) -> Result<()> {
    match action {
        "setup" => peer.setup().await,
        "fill" => fill(&peer, count).await,
        "insert" => {
            println!("begin");
            fill(&peer, count).await?;
            println!("end");
            Ok(())
        }
        "push" => push(peer, count).await,
        "drain" => {
            let (seen, _starts) = Seen::new(count);
            println!("begin");
            peer.work(seen.clone()).await?;
            seen.0.all.notified().await;
            println!("end");
            Ok(())
        }
        "latency" => latency(peer, count).await,
        other => bail!("no action is called {other}"),
    }
}

async fn fill(peer: &impl Peer, count: usize) -> Result<()> {
    for from in (0..count).step_by(BATCH) {
        peer.bulk(from..count.min(from + BATCH)).await?;
    }
    Ok(())
}

async fn push(peer: impl Peer, count: usize) -> Result<()> {
    peer.push(0).await?;
    println!("begin");
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let (peer, next) = (peer.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                if job >= count {
                    return Ok::<(), anyhow::Error>(());
                }
                peer.push(job).await?;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    println!("end");
    Ok(())
}

async fn latency(peer: impl Peer, count: usize) -> Result<()> {
    let (seen, mut starts) = Seen::new(usize::MAX);
    peer.work(seen).await?;
    sleep(Duration::from_millis(1500)).await;
    let mut taken = Vec::new();
    for job in 0..count {
        let pushed = Instant::now();
        peer.push(job).await?;
        let started = starts.recv().await.context("the worker has ended")?;
        taken.push(started.saturating_duration_since(pushed).as_micros().to_string());
        sleep(Duration::from_millis(10 + (job as u64 * 7919) % 20)).await;
    }
    println!("latency {}", taken.join(" "));
    Ok(())
}
