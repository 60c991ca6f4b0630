//! What limits and fairness cost, on both databases, as ratios to a plain queue of the same database. The arms of a
//! comparison take turns: `cargo bench -p greenwave-jobs --bench limits [-- ARM…]`, where the arms are `speed`,
//! `backlog` and `turn`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, Job, Queue, QueueLimits, SqlBackend, Worker, WorkerConfig};
use greenwave_test_servers::Server;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// A trial, as `cargo test --benches` runs it, only sees that all works.
#[derive(Clone, Copy)]
struct Size {
    jobs: usize,
    rounds: usize,
    backlog: usize,
}

const QUEUE: &str = "bench";

#[derive(Clone, Serialize, Deserialize)]
struct NoOp {
    key: String,
}

impl Job for NoOp {
    const NAME: &'static str = "no-op";
    const QUEUE: &'static str = QUEUE;

    fn key(&self) -> Option<String> {
        Some(self.key.clone())
    }
}

/// What may make a queue slower.
#[derive(Clone, Copy)]
enum Arm {
    Plain,
    Limited,
    LimitedByKey,
    Keys(usize),
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let size = if arguments.iter().any(|argument| argument == "--bench") {
        Size { jobs: 50_000, rounds: 3, backlog: 1_000_000 }
    } else {
        Size { jobs: 500, rounds: 1, backlog: 2000 }
    };
    let server = Server::postgres_with(&["fsync=on", "max_wal_size=8GB", "shared_buffers=1GB"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let arms: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |arm: &str| arms.is_empty() || arms.iter().any(|chosen| *chosen == arm);
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut number = 0;
        for (name, run) in [("speed", 0), ("backlog", 1), ("turn", 2)] {
            if !chosen(name) {
                continue;
            }
            println!("\n{name}\n");
            number += 1;
            let url = database(&server, &format!("bench{number}")).await;
            let postgres = || Queue::postgres(PgPoolOptions::new().connect_lazy(&url).unwrap());
            compare("PostgreSQL", &postgres, size, run).await;
            let path = folder.path().join(format!("{number}.db"));
            compare("SQLite", &|| Queue::sqlite(&path).unwrap(), size, run).await;
        }
    });
}

async fn database(server: &Server, name: &str) -> String {
    let root = PgPool::connect(&server.url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&root).await.unwrap();
    format!("{}/{name}", server.url().rsplit_once('/').unwrap().0)
}

async fn compare<B: SqlBackend>(database: &str, connect: &dyn Fn() -> Queue<B>, size: Size, run: usize) {
    connect().migrate().await.unwrap();
    match run {
        0 => speed(database, connect, size).await,
        1 => backlog(database, connect, size).await,
        _ => turn(database, connect, size).await,
    }
}

/// The drain of a queue under rules ÷ that of a plain one.
async fn speed<B: SqlBackend>(database: &str, connect: &dyn Fn() -> Queue<B>, size: Size) {
    let queue = &connect();
    let arms = [
        ("plain", Arm::Plain),
        ("`max_running`", Arm::Limited),
        ("1 key", Arm::Keys(1)),
        ("1,000 keys", Arm::Keys(1000)),
        ("1,000 keys, `max_running_per_key`", Arm::LimitedByKey),
    ];
    let mut rates = vec![Vec::new(); arms.len()];
    for _ in 0..size.rounds {
        for ((_, arm), rates) in arms.iter().zip(&mut rates) {
            prepare(queue, *arm).await;
            fill(queue, *arm, size.jobs).await;
            rates.push(drain(connect(), size.jobs).await);
        }
    }
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    for ((name, _), rate) in arms.iter().zip(&rates) {
        println!("{database}: drain, {name} ÷ plain: {:.2}", rate / rates[0]);
    }
}

/// The first of very many ÷ as many alone.
async fn backlog<B: SqlBackend>(database: &str, connect: &dyn Fn() -> Queue<B>, size: Size) {
    let queue = &connect();
    let mut base = Vec::new();
    for _ in 0..size.rounds {
        fill(queue, Arm::Keys(1000), size.jobs).await;
        base.push(drain(connect(), size.jobs).await);
    }
    let base = median(base);
    for (name, keys) in [("one key", 1), ("a tenth as many keys", size.backlog / 10)] {
        fill(queue, Arm::Keys(keys), size.backlog).await;
        let mut rates = Vec::new();
        for _ in 0..size.rounds {
            rates.push(drain(connect(), size.jobs).await);
        }
        println!(
            "{database}: drain of {} while {} wait of {name} ÷ of 1,000 keys with none waiting: {:.2}",
            size.jobs,
            size.backlog,
            median(rates) / base
        );
        let left = queue.stats().await.unwrap().ready;
        drain(connect(), usize::try_from(left).unwrap()).await;
    }
}

/// How long a tenant's first job waits while another's backlog keeps every place busy.
async fn turn<B: SqlBackend>(database: &str, connect: &dyn Fn() -> Queue<B>, size: Size) {
    let queue = &connect();
    let wait = async || {
        let (report, mut started) = mpsc::unbounded_channel();
        let config = WorkerConfig { concurrency: 50, ..Default::default() };
        let worker = Worker::new(queue.clone(), config).handle(move |job: NoOp, _| {
            if job.key == "small" {
                report.send(Instant::now()).unwrap();
            }
            async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok::<(), BoxError>(())
            }
        });
        let cancel = CancellationToken::new();
        let running = tokio::spawn(worker.run(cancel.clone()));
        let mut waits = Vec::new();
        for _ in 0..20 * size.rounds {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let pushed = Instant::now();
            queue.push(&NoOp { key: "small".to_owned() }).await.unwrap();
            waits.push(started.recv().await.unwrap().duration_since(pushed).as_secs_f64());
        }
        cancel.cancel();
        running.await.unwrap().unwrap();
        waits.sort_by(f64::total_cmp);
        (waits[waits.len() / 2], waits[waits.len() - 1])
    };
    let (idle, idle_worst) = wait().await;
    fill(queue, Arm::Keys(1), size.backlog).await;
    let (busy, busy_worst) = wait().await;
    println!(
        "{database}: push to start of a small tenant's job, beside {} of another's in jobs of 2 ms ÷ alone: median \
         {:.1}, worst {:.1}",
        size.backlog,
        busy / idle,
        busy_worst / idle_worst
    );
}

async fn prepare<B: SqlBackend>(queue: &Queue<B>, arm: Arm) {
    let many = Some(1_000_000);
    match arm {
        Arm::Plain | Arm::Keys(_) => queue.clear_limits(QUEUE).await.unwrap(),
        Arm::Limited => {
            queue.set_limits(QUEUE, QueueLimits { max_running: many, ..Default::default() }).await.unwrap();
        }
        Arm::LimitedByKey => {
            let limits = QueueLimits { max_running_per_key: many, ..Default::default() };
            queue.set_limits(QUEUE, limits).await.unwrap();
        }
    }
}

async fn fill<B: SqlBackend>(queue: &Queue<B>, arm: Arm, jobs: usize) {
    let keys = match arm {
        Arm::Plain | Arm::Limited => 0,
        Arm::LimitedByKey => 1000,
        Arm::Keys(keys) => keys,
    };
    let key = |number: usize| if keys == 0 { String::new() } else { format!("tenant {:06}", number % keys) };
    let jobs: Vec<NoOp> = (0..jobs).map(|number| NoOp { key: key(number) }).collect();
    for batch in jobs.chunks(50_000) {
        queue.push_many(batch).await.unwrap();
    }
}

/// Jobs a second in a new process, until so many are done: one that has seen a key looks for keys ever after.
async fn drain<B: SqlBackend>(queue: Queue<B>, jobs: usize) -> f64 {
    let (done, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let ended = Arc::clone(&all);
    let config = WorkerConfig { concurrency: 1000, max_batch: 1000, ..Default::default() };
    let worker = Worker::new(queue, config).handle(move |_: NoOp, _| {
        if done.fetch_add(1, Ordering::Relaxed) + 1 == jobs {
            ended.notify_one();
        }
        std::future::ready(Ok::<(), BoxError>(()))
    });
    let cancel = CancellationToken::new();
    let began = Instant::now();
    let running = tokio::spawn(worker.run(cancel.clone()));
    all.notified().await;
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    cancel.cancel();
    running.await.unwrap().unwrap();
    rate
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
