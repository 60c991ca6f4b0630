//! Workers and PostgreSQL are killed at random while jobs are pushed and run: nothing acknowledged is lost, and effects
//! that a job guards by its id happen once.
//!
//! Each worker is this test binary again, told by its environment to run one test: [`worker`]. CI runs a short form;
//! `GREENWAVE_KILL_ROUNDS=20 GREENWAVE_KILL_JOBS=100000` the long one, `GREENWAVE_KILL_SEED` one that was printed.

use std::env;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, Job, JobContext, Postgres, Queue, Worker, WorkerConfig};
use greenwave_test_servers::Server;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(2);
const WORKERS: usize = 2;
/// How much later than its lease a job may start again: the others look every poll, and a busy machine is late.
const SLACK: Duration = Duration::from_secs(3);
/// How long no job may end before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct Pay {
    n: i64,
}

impl Job for Pay {
    const NAME: &'static str = "pay";
}

fn pool(url: &str) -> PgPool {
    let options = PgPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(2));
    options.connect_lazy(url).unwrap()
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A worker, when it is started as one: each job counts its runs, and pays once. Started in any other way it has nothing
/// to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker() {
    let Ok(url) = env::var("KILLED_WORKER") else { return };
    let pool = pool(&url);
    let config = WorkerConfig { lease: LEASE, concurrency: 32, max_batch: 200, ..Default::default() };
    let worker =
        Worker::new(Queue::postgres(pool.clone()), config).handle(move |job: Pay, context: JobContext| {
            let pool = pool.clone();
            async move {
                let mut tx = pool.begin().await?;
                let first = sqlx::query("INSERT INTO inbox (job) VALUES ($1) ON CONFLICT DO NOTHING")
                    .bind(context.id.get())
                    .execute(&mut *tx)
                    .await?
                    .rows_affected();
                sqlx::query("INSERT INTO runs (n, paid) VALUES ($1, $2)")
                    .bind(job.n)
                    .bind(i64::try_from(first)?)
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                Ok::<(), BoxError>(())
            }
        });
    worker.run(CancellationToken::new()).await.unwrap();
}

/// A worker's process; no worker outlives its test.
struct Process(Child);

impl Process {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start_worker(url: &str) -> Process {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "kill_rounds::worker"])
        .env("KILLED_WORKER", url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Process(child)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_workers_and_postgres_are_killed_at_random() {
    let rounds = number("GREENWAVE_KILL_ROUNDS", 4);
    let jobs = i64::try_from(number("GREENWAVE_KILL_JOBS", 6_000)).unwrap();
    let seed = number("GREENWAVE_KILL_SEED", rand::random());
    println!("GREENWAVE_KILL_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);

    let mut server = spawn_blocking(Server::postgres).await.unwrap();
    let url = server.url();
    let pool = pool(&url);
    let queue = Queue::postgres(pool.clone());
    queue.migrate().await.unwrap();
    let tables = "CREATE TABLE inbox (job bigint PRIMARY KEY); CREATE TABLE runs (n bigint NOT NULL, paid bigint NOT NULL)";
    sqlx::raw_sql(tables).execute(&pool).await.unwrap();

    let mut workers: Vec<Process> = (0..WORKERS).map(|_| start_worker(&url)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let overdue = tokio::spawn(watch(pool.clone(), Arc::clone(&stop)));
    let pushing = tokio::spawn(push(queue.clone(), jobs));
    for round in 1..=rounds {
        sleep(Duration::from_millis(random.random_range(300..1500))).await;
        let target = random.random_range(0..=WORKERS + 1);
        println!("round {round}: {}", if target <= WORKERS { "workers" } else { "PostgreSQL" });
        if target > WORKERS {
            server = spawn_blocking(move || {
                server.kill();
                server.start();
                server
            })
            .await
            .unwrap();
        } else {
            // One of them, or all.
            for (at, worker) in workers.iter_mut().enumerate() {
                if target == WORKERS || target == at {
                    worker.kill();
                    *worker = start_worker(&url);
                }
            }
        }
    }
    pushing.await.unwrap();
    let (mut least, mut since) = (u64::MAX, Instant::now());
    while least > 0 {
        if let Ok(stats) = queue.stats().await
            && stats.live() < least
        {
            (least, since) = (stats.live(), Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{least} jobs are left, and none of them ends");
        sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let overdue = overdue.await.unwrap();
    drop(workers);

    let lost: i64 = sqlx::query_scalar("SELECT $1 - count(DISTINCT n) FILTER (WHERE n < $1) FROM runs")
        .bind(jobs)
        .fetch_one(&pool)
        .await
        .unwrap();
    let (runs, paid, inbox): (i64, i64, i64) =
        sqlx::query_as("SELECT count(*), sum(paid)::bigint, (SELECT count(*) FROM inbox) FROM runs")
            .fetch_one(&pool)
            .await
            .unwrap();
    println!("{jobs} jobs, {runs} runs, {inbox} stored; the longest held {overdue:?} beyond its lease");
    assert_eq!(lost, 0, "each acknowledged job has run");
    assert_eq!(paid, inbox, "each stored job has paid once");
    assert_eq!(queue.stats().await.unwrap().dead, 0);
    assert!(overdue < SLACK, "a job was held {overdue:?} beyond its lease");
}

/// Pushes each number until that is acknowledged: one whose answer was lost may be stored twice.
async fn push(queue: Queue<Postgres>, jobs: i64) {
    for from in (0..jobs).step_by(100) {
        let batch: Vec<Pay> = (from..jobs.min(from + 100)).map(|n| Pay { n }).collect();
        while queue.push_many(&batch).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// How far beyond its lease a job was ever held while there was a database to ask.
async fn watch(pool: PgPool, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = 0.0_f64;
    while !stop.load(Ordering::Relaxed) {
        let query = "SELECT coalesce(max(extract(epoch FROM now() - lease_until)), 0)::float8 FROM greenwave_jobs WHERE state = 2";
        if let Ok(late) = sqlx::query_scalar::<_, f64>(query).fetch_one(&pool).await {
            longest = longest.max(late);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Duration::from_secs_f64(longest.max(0.0))
}
