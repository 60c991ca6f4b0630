//! The SQLite backend alone: 50,000 no-op jobs pushed and drained by one worker, in an empty file, behind a million
//! that wait, and beside ten million that are kept; and single pushes from 256 tasks against those from one.
//!
//! `cargo bench -p greenwave-jobs --bench sqlite`, with `-- ROUNDS` for other than 5 interleaved rounds. The files lie
//! in the system's directory for temporary files (`TMPDIR`), which needs 3 GB; its disk's syncs are what is measured.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, Job, Queue, Sqlite, Worker, WorkerConfig};
use rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const JOBS: usize = 50_000;
/// How many jobs one call pushes.
const BATCH: usize = 5_000;
const WAITING: u32 = 1_000_000;
const DONE: u32 = 10_000_000;
const TASKS: usize = 256;

#[derive(Serialize, Deserialize)]
struct Noop {
    n: usize,
}

impl Job for Noop {
    const NAME: &'static str = "noop";
}

/// The same, but kept when it is done.
#[derive(Serialize, Deserialize)]
struct Kept {
    n: usize,
}

impl Job for Kept {
    const NAME: &'static str = "kept";
    const KEEP: Duration = Duration::from_secs(3600);
}

/// What the rounds measured.
struct Arm {
    name: &'static str,
    /// Jobs a second.
    rates: Vec<f64>,
    /// Of this process, on all its threads, in µs a job.
    cpu: Vec<f64>,
}

struct Measured {
    jobs: usize,
    took: Duration,
    cpu: Duration,
}

struct Watch {
    began: Instant,
    cpu: Duration,
}

impl Watch {
    fn start() -> Self {
        Watch { began: Instant::now(), cpu: cpu() }
    }

    fn stop(&self, jobs: usize) -> Measured {
        Measured { jobs, took: self.began.elapsed(), cpu: cpu() - self.cpu }
    }
}

fn cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap()
}

impl Arm {
    fn new(name: &'static str) -> Self {
        Arm { name, rates: Vec::new(), cpu: Vec::new() }
    }

    fn add(&mut self, Measured { jobs, took, cpu }: &Measured) {
        self.rates.push(*jobs as f64 / took.as_secs_f64());
        self.cpu.push(cpu.as_secs_f64() * 1e6 / *jobs as f64);
    }

    /// Each round's own ratio, so that what else the machine does falls on both alike.
    fn print(&self, base: &Arm) {
        let ratio = |own: &[f64], base: &[f64]| {
            spread(&own.iter().zip(base).map(|(own, base)| own / base).collect::<Vec<_>>())
        };
        let [low, middle, high] = ratio(&self.rates, &base.rates);
        let [_, cpu, _] = ratio(&self.cpu, &base.cpu);
        let (rate, used) = (spread(&self.rates)[1], spread(&self.cpu)[1]);
        println!(
            "{:30} {rate:>8.0}/s {used:>5.1} µs CPU   ÷ {}: rate {middle:.2} ({low:.2} to {high:.2}), CPU {cpu:.2}",
            self.name, base.name
        );
    }
}

/// Least, median, most.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn main() {
    // Cargo adds `--bench`.
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(rounds));
}

async fn measure(rounds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (empty, waiting, done) = (
        open(&folder.path().join("empty.db")).await,
        open(&folder.path().join("waiting.db")).await,
        open(&folder.path().join("done.db")).await,
    );
    fill(&folder.path().join("waiting.db"), WAITING, 0);
    fill(&folder.path().join("done.db"), 0, DONE);

    let mut push = Arm::new("push, in batches of 5,000");
    let mut drain = Arm::new("drain");
    let mut behind = Arm::new("drain, a million waiting");
    let mut beside = Arm::new("drain, ten million kept");
    let mut keep = Arm::new("drain of jobs that are kept");
    let mut single = Arm::new("single pushes, one task");
    let mut singles = Arm::new("single pushes, 256 tasks");
    // The first round warms up.
    for round in 0..=rounds {
        let measured = [
            (&mut push, pushed(&empty, |n| Noop { n }).await),
            (&mut drain, drained(&empty).await),
            (&mut behind, {
                pushed(&waiting, |n| Noop { n }).await;
                drained(&waiting).await
            }),
            (&mut beside, {
                pushed(&done, |n| Noop { n }).await;
                drained(&done).await
            }),
            (&mut keep, {
                pushed(&empty, |n| Kept { n }).await;
                drained(&empty).await
            }),
            (&mut single, pushed_singly(&empty, 1, 250).await),
            (&mut singles, pushed_singly(&empty, TASKS, JOBS).await),
        ];
        for (arm, measured) in measured {
            if round > 0 {
                arm.add(&measured);
            }
        }
        drained_to(&empty, JOBS / TASKS * TASKS + 250).await;
    }
    println!("\n{JOBS} jobs, medians of {rounds} rounds; ratios: median (least to most)");
    for (arm, base) in [
        (&push, &drain),
        (&drain, &drain),
        (&behind, &drain),
        (&beside, &drain),
        (&keep, &drain),
        (&singles, &single),
    ] {
        arm.print(base);
    }
}

async fn open(path: &Path) -> Queue<Sqlite> {
    let queue = Queue::sqlite(path).unwrap();
    queue.migrate().await.unwrap();
    queue
}

/// Puts jobs into a file that waits for none of them to be pushed or run.
fn fill(path: &Path, waiting: u32, done: u32) {
    let conn = Connection::open(path).unwrap();
    conn.pragma_update(None, "synchronous", "OFF").unwrap();
    let ready = "
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT ?1)
        INSERT INTO greenwave_jobs
            (id, position, queue, name, version, payload, priority, max_attempts, state, run_at, created_at)
        SELECT n, n, 'default', 'noop', 1, '{\"n\":1}', 5, 20, 0, 0, 0 FROM n WHERE ?1 > 0";
    let kept = "
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT ?1)
        INSERT INTO greenwave_jobs_done
            (id, queue, name, version, payload, result, attempts, pushed_at, completed_at, expires_at)
        SELECT n, 'default', 'noop', 1, '{\"n\":1}', NULL, 1, 0, 0, 4000000000000 + n FROM n WHERE ?1 > 0";
    conn.execute(ready, [waiting]).unwrap();
    conn.execute(kept, [done]).unwrap();
    conn.execute("UPDATE greenwave_jobs_sequence SET last = last + ?1", [waiting + done]).unwrap();
    conn.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
}

async fn pushed<J: Job>(queue: &Queue<Sqlite>, job: fn(usize) -> J) -> Measured {
    let batches: Vec<Vec<J>> =
        (0..JOBS / BATCH).map(|batch| (0..BATCH).map(|n| job(batch * BATCH + n)).collect()).collect();
    let watch = Watch::start();
    for batch in &batches {
        queue.push_many(batch).await.unwrap();
    }
    watch.stop(JOBS)
}

async fn pushed_singly(queue: &Queue<Sqlite>, tasks: usize, jobs: usize) -> Measured {
    let watch = Watch::start();
    let mut pushers = JoinSet::new();
    for _ in 0..tasks {
        let queue = queue.clone();
        pushers.spawn(async move {
            for n in 0..jobs / tasks {
                queue.push(&Noop { n }).await.unwrap();
            }
        });
    }
    pushers.join_all().await;
    watch.stop(jobs / tasks * tasks)
}

async fn drained(queue: &Queue<Sqlite>) -> Measured {
    drained_to(queue, JOBS).await
}

/// Runs a worker until it has done so many jobs.
async fn drained_to(queue: &Queue<Sqlite>, jobs: usize) -> Measured {
    let (count, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let tally = {
        let (count, all) = (Arc::clone(&count), Arc::clone(&all));
        move || {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == jobs {
                all.notify_one();
            }
        }
    };
    let config = WorkerConfig { concurrency: 1000, max_batch: 1000, ..Default::default() };
    let also = tally.clone();
    let worker = Worker::new(queue.clone(), config)
        .handle(move |_: Noop, _| {
            tally();
            async { Ok::<(), BoxError>(()) }
        })
        .handle(move |_: Kept, _| {
            also();
            async { Ok::<(), BoxError>(()) }
        });
    let cancel = CancellationToken::new();
    let watch = Watch::start();
    let worker = tokio::spawn(worker.run(cancel.clone()));
    all.notified().await;
    let measured = watch.stop(jobs);
    cancel.cancel();
    worker.await.unwrap().unwrap();
    measured
}
