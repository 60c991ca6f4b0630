//! This library's part: the same actions as the others'.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenwave_jobs::{Backend, BoxError, Job, JobContext, Queue, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const BATCH: usize = 5000;
const TASKS: usize = 256;

#[derive(Serialize, Deserialize)]
struct Noop {
    n: usize,
}

impl Job for Noop {
    const NAME: &'static str = "noop";
}

pub(super) fn act(action: &str, url: &str, count: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match url.strip_prefix("sqlite://") {
        Some(path) => runtime.block_on(act_on(Queue::sqlite(path).unwrap(), action, count)),
        None => {
            let _runtime = runtime.enter();
            let pool = PgPoolOptions::new().max_connections(20).connect_lazy(url).unwrap();
            runtime.block_on(act_on(Queue::postgres(pool), action, count));
        }
    }
    // As the others: no graceful end is measured.
    std::process::exit(0);
}

async fn act_on<B: Backend>(queue: Queue<B>, action: &str, count: usize) {
    match action {
        "setup" => queue.migrate().await.unwrap(),
        "fill" => fill(&queue, count).await,
        "insert" => {
            println!("begin");
            fill(&queue, count).await;
            println!("end");
        }
        "push" => push(queue, count).await,
        "drain" => drain(queue, count).await,
        "latency" => latency(queue, count).await,
        other => panic!("no action is called {other}"),
    }
}

async fn fill<B: Backend>(queue: &Queue<B>, count: usize) {
    for from in (0..count).step_by(BATCH) {
        let jobs: Vec<Noop> = (from..count.min(from + BATCH)).map(|n| Noop { n }).collect();
        queue.push_many(&jobs).await.unwrap();
    }
}

async fn push<B: Backend>(queue: Queue<B>, count: usize) {
    queue.push(&Noop { n: 0 }).await.unwrap();
    println!("begin");
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let (queue, next) = (queue.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                queue.push(&Noop { n }).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    println!("end");
}

async fn drain<B: Backend>(queue: Queue<B>, count: usize) {
    let (left, all) = (Arc::new(AtomicUsize::new(count)), Arc::new(Notify::new()));
    let done = Arc::clone(&all);
    let worker = Worker::new(queue, WorkerConfig { concurrency: 500, ..Default::default() }).handle(
        move |_: Noop, _: JobContext| {
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                done.notify_one();
            }
            async { Ok::<(), BoxError>(()) }
        },
    );
    println!("begin");
    tokio::spawn(worker.run(CancellationToken::new()));
    all.notified().await;
    println!("end");
}

async fn latency<B: Backend>(queue: Queue<B>, count: usize) {
    let (starts, mut started) = mpsc::unbounded_channel();
    let worker = Worker::new(queue.clone(), WorkerConfig::default()).handle(move |_: Noop, _: JobContext| {
        starts.send(Instant::now()).ok();
        async { Ok::<(), BoxError>(()) }
    });
    tokio::spawn(worker.run(CancellationToken::new()));
    sleep(Duration::from_millis(1500)).await;
    let mut taken = Vec::new();
    for n in 0..count {
        let pushed = Instant::now();
        queue.push(&Noop { n }).await.unwrap();
        let start = started.recv().await.unwrap();
        taken.push(start.saturating_duration_since(pushed).as_micros().to_string());
        sleep(Duration::from_millis(10 + (n as u64 * 7919) % 20)).await;
    }
    println!("latency {}", taken.join(" "));
}
