//! Our side alone, on one PostgreSQL with fsync on: what changes its speed, and what must not. The arms of a
//! comparison take turns, round after round: `cargo bench -p greenwave-jobs --bench postgres [-- ARM…]`, where the arms
//! are `speed`, `backlog`, `kept` and `snapshot`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, Job, Postgres, Queue, Worker, WorkerConfig};
use greenwave_test_servers::Server;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Many tasks, each of which pushes one job after the other.
const PUSHERS: usize = 256;

/// How much each arm does; a trial, as `cargo test --benches` runs it, only sees that all works.
struct Size {
    jobs: usize,
    rounds: usize,
    backlog: usize,
    kept: usize,
}

#[derive(Serialize, Deserialize)]
struct NoOp {
    number: usize,
}

impl Job for NoOp {
    const NAME: &'static str = "no-op";
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let size = if arguments.iter().any(|argument| argument == "--bench") {
        Size { jobs: 50_000, rounds: 5, backlog: 1_000_000, kept: 10_000_000 }
    } else {
        Size { jobs: 1000, rounds: 1, backlog: 2000, kept: 2000 }
    };
    let arms: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |arm: &str| arms.is_empty() || arms.iter().any(|chosen| *chosen == arm);
    let server = Server::postgres_with(&["fsync=on", "max_wal_size=8GB", "shared_buffers=1GB"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if chosen("speed") {
            speed(&server, &size).await;
        }
        if chosen("backlog") {
            backlog(&server, &size).await;
        }
        if chosen("kept") {
            kept(&server, &size).await;
        }
        if chosen("snapshot") {
            snapshot(&server, &size).await;
        }
    });
}

/// A queue in a fresh database.
struct Arm {
    queue: Queue<Postgres>,
    pool: PgPool,
}

impl Arm {
    async fn new(server: &Server, name: &str) -> Arm {
        let root = PgPool::connect(&server.url()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&root).await.unwrap();
        let url = server.url();
        let base = url.rsplit_once('/').unwrap().0;
        let pool = PgPoolOptions::new().connect(&format!("{base}/{name}")).await.unwrap();
        let queue = Queue::postgres(pool.clone());
        queue.migrate().await.unwrap();
        Arm { queue, pool }
    }

    async fn fill(&self, jobs: usize) -> Duration {
        let jobs: Vec<NoOp> = (0..jobs).map(|number| NoOp { number }).collect();
        let began = Instant::now();
        self.queue.push_many(&jobs).await.unwrap();
        began.elapsed()
    }

    /// Works until so many jobs are done.
    async fn drain(&self, jobs: usize) -> Duration {
        let (done, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ended = Arc::clone(&all);
        let config = WorkerConfig { concurrency: 1000, max_batch: 1000, ..Default::default() };
        let worker = Worker::new(self.queue.clone(), config).handle(move |_: NoOp, _| {
            if done.fetch_add(1, Ordering::Relaxed) + 1 == jobs {
                ended.notify_one();
            }
            std::future::ready(Ok::<(), BoxError>(()))
        });
        let cancel = CancellationToken::new();
        let began = Instant::now();
        let running = tokio::spawn(worker.run(cancel.clone()));
        all.notified().await;
        cancel.cancel();
        running.await.unwrap().unwrap();
        began.elapsed()
    }

    async fn run(&self, sql: String) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }
}

async fn speed(server: &Server, size: &Size) {
    let arm = Arm::new(server, "speed").await;
    let (mut fills, mut drains, mut pushes, mut costs) = (Vec::new(), Vec::new(), Vec::new(), [0.0; 3]);
    for _ in 0..size.rounds {
        let marks = [server.cpu()];
        fills.push(rate(size.jobs, arm.fill(size.jobs).await));
        let marks = [marks[0], server.cpu()];
        drains.push(rate(size.jobs, arm.drain(size.jobs).await));
        let marks = [marks[0], marks[1], server.cpu()];
        pushes.push(rate(size.jobs, push_singly(&arm.queue, size.jobs).await));
        let marks = [marks[0], marks[1], marks[2], server.cpu()];
        for (cost, pair) in costs.iter_mut().zip(marks.windows(2)) {
            *cost += (pair[1] - pair[0]).as_secs_f64() * 1e6 / (size.jobs * size.rounds) as f64;
        }
        arm.drain(size.jobs).await;
    }
    println!(
        "{} no-op jobs, medians of {} rounds\n\n| | jobs/s | database CPU µs a job |\n|---|---|---|",
        size.jobs, size.rounds
    );
    for (name, rates, cost) in [
        ("insert in bulk", fills, costs[0]),
        ("drain, one worker", drains, costs[1]),
        ("single pushes from 256 tasks", pushes, costs[2]),
    ] {
        println!("| {name} | {:.0} | {cost:.1} |", median(rates));
    }
}

async fn push_singly(queue: &Queue<Postgres>, jobs: usize) -> Duration {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for pusher in 0..PUSHERS {
        let queue = queue.clone();
        let own = jobs / PUSHERS + usize::from(pusher < jobs % PUSHERS);
        tasks.spawn(async move {
            for number in 0..own {
                queue.push(&NoOp { number }).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    began.elapsed()
}

/// Drains with many more jobs waiting, and with none.
async fn backlog(server: &Server, size: &Size) {
    let (full, empty) = (Arm::new(server, "backlog").await, Arm::new(server, "no_backlog").await);
    full.run(format!(
        "INSERT INTO greenwave_jobs (queue, name, payload, priority, state, run_at, max_attempts)
         SELECT 'default', 'no-op', '{{\"number\":0}}', 5, 0, now(), 20 FROM generate_series(1, {})",
        size.backlog
    ))
    .await;
    compare(size, &full, &empty, &format!("drain, {} jobs waiting ÷ none", size.backlog)).await;
}

/// Drains with many completed jobs kept, and with none.
async fn kept(server: &Server, size: &Size) {
    let (full, empty) = (Arm::new(server, "kept").await, Arm::new(server, "none_kept").await);
    full.run(format!(
        "INSERT INTO greenwave_jobs_done
            (id, queue, name, version, payload, attempts, pushed_at, completed_at, expires_at)
         SELECT -n, 'default', 'no-op', 1, '{{\"number\":0}}', 1, now(), now(), now() + n % 30 * interval '1 day'
         FROM generate_series(1, {}) AS n",
        size.kept
    ))
    .await;
    compare(size, &full, &empty, &format!("drain, {} completed jobs kept ÷ none", size.kept)).await;
}

async fn compare(size: &Size, one: &Arm, other: &Arm, name: &str) {
    let mut ratios = Vec::new();
    for _ in 0..size.rounds {
        let mut took = Vec::new();
        for arm in [one, other] {
            arm.fill(size.jobs).await;
            took.push(arm.drain(size.jobs).await.as_secs_f64());
        }
        ratios.push(took[1] / took[0]);
    }
    println!("\n{name}: {:.2}", median(ratios));
}

/// Six rounds of filling and draining, with a snapshot held open elsewhere all along, and without.
async fn snapshot(server: &Server, size: &Size) {
    const ROUNDS: usize = 6;
    let (held, free) = (Arm::new(server, "held").await, Arm::new(server, "free").await);
    let mut reader = held.pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *reader).await.unwrap();
    sqlx::query("SELECT count(*) FROM greenwave_jobs").execute(&mut *reader).await.unwrap();
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let mut took = Vec::new();
        for arm in [&held, &free] {
            arm.fill(size.jobs).await;
            took.push(arm.drain(size.jobs).await.as_secs_f64());
        }
        ratios.push(took[1] / took[0]);
    }
    reader.rollback().await.unwrap();
    let ratios: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    println!("\ndrain, a snapshot held ÷ none, round by round: {}", ratios.join(" "));
}

fn rate(jobs: usize, took: Duration) -> f64 {
    jobs as f64 / took.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
