//! What PostgreSQL's queue skips: dead rows, and never a job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, JobContext, JobId, Postgres, PushOptions, Queue, Worker, WorkerConfig};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Fixture, Note, PostgresFixture, Running, note, quick, settled, sleepy, start, within};

/// Many at once, so that a few fetches reach the next sweep.
fn wide() -> WorkerConfig {
    WorkerConfig { concurrency: 1000, max_batch: 1000, ..sleepy() }
}

type Starts = Arc<Mutex<HashMap<JobId, Instant>>>;

/// A worker that notes when each job started.
fn timed(queue: Queue<Postgres>, config: WorkerConfig) -> (Running, Starts) {
    let starts = Starts::default();
    let noted = Arc::clone(&starts);
    let worker = Worker::new(queue, config).handle(move |_: Note, context: JobContext| {
        noted.lock().unwrap().insert(context.id, Instant::now());
        std::future::ready(Ok::<(), BoxError>(()))
    });
    (start(worker), starts)
}

/// Fills and drains until told to stop, so that the marks rise all the time.
async fn rush(queue: Queue<Postgres>, rounds: usize) {
    for _ in 0..rounds {
        queue.push_many(&(0..1500).map(note).collect::<Vec<_>>()).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
}

/// A position that is drawn before others, and seen after them, must not be below the mark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_whose_transactions_commit_out_of_order_all_start_and_soon() {
    const PUSHERS: u64 = 8;
    let (fixture, queue) = PostgresFixture::ready().await;
    let (worker, starts) = timed(queue.clone(), wide());
    let rushing = tokio::spawn(rush(queue.clone(), 20));
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(PUSHERS as u32)
        .connect_with(fixture.pool.connect_options().as_ref().clone())
        .await
        .unwrap();
    let mut pushers = JoinSet::new();
    for pusher in 0..PUSHERS {
        let (queue, pool) = (queue.clone(), pool.clone());
        pushers.spawn(async move {
            let mut committed = Vec::new();
            for round in 0..6 {
                let mut tx = pool.begin().await.unwrap();
                // Some draw one position before and one after they have slept.
                let first = queue.push_in(&mut tx, &note("early")).await.unwrap().id;
                sleep(Duration::from_millis((pusher * 37 + round * 61) % 200)).await;
                let second = queue.push_in(&mut tx, &note("late")).await.unwrap().id;
                if (pusher + round) % 5 == 0 {
                    tx.rollback().await.unwrap();
                    continue;
                }
                tx.commit().await.unwrap();
                let at = Instant::now();
                queue.wake();
                committed.extend([(first, at), (second, at)]);
            }
            committed
        });
    }
    let committed: Vec<_> = within(pushers.join_all()).await.into_iter().flatten().collect();
    within(rushing).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    let starts = starts.lock().unwrap();
    assert!(committed.len() > 60);
    for (id, at) in committed {
        let waited = starts[&id].saturating_duration_since(at);
        assert!(waited < Duration::from_secs(5), "job {id} started {waited:?} after its commit");
    }
}

/// How many rows scans of whole tables have read. Sessions report it when they have been idle for a moment.
async fn rows_scanned(pool: &PgPool) -> i64 {
    const SCANNED: &str =
        "SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relname = 'greenwave_jobs'";
    sqlx::query_scalar(SCANNED).fetch_one(pool).await.unwrap()
}

/// A plan that was made for an empty table would read it from end to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_of_an_empty_table_do_not_make_a_full_one_slow() {
    const ROWS: i64 = 100_000;
    let (fixture, queue) = PostgresFixture::ready().await;
    for sql in
        ["ALTER TABLE greenwave_jobs SET (autovacuum_enabled = false)", "VACUUM ANALYZE greenwave_jobs"]
    {
        sqlx::raw_sql(sql).execute(&fixture.pool).await.unwrap();
    }
    let (worker, _starts) = timed(queue.clone(), WorkerConfig { concurrency: 100, ..quick() });
    // So often that PostgreSQL settles on plans for all parameters.
    for round in 0..20 {
        queue.push(&note(round)).await.unwrap();
        settled(&queue, |stats| stats.live() == 0).await;
    }
    sqlx::query(
        "INSERT INTO greenwave_jobs (queue, name, payload, priority, state, run_at, max_attempts)
         SELECT 'default', 'note', '{\"text\":\"one of many\"}', 5, 0, now(), 3 FROM generate_series(1, $1)",
    )
    .bind(ROWS)
    .execute(&fixture.pool)
    .await
    .unwrap();
    let ready = "SELECT count(*) FROM (SELECT FROM greenwave_jobs WHERE state = 0 LIMIT 1) AS any_ready";
    let before = rows_scanned(&fixture.pool).await;
    let drained = async {
        while sqlx::query_scalar::<_, i64>(ready).fetch_one(&fixture.pool).await.unwrap() > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    within(drained).await;
    worker.stop().await;
    // Sessions that have ended have told all.
    drop(queue);
    sleep(Duration::from_millis(100)).await;
    let scanned = rows_scanned(&fixture.pool).await - before;
    assert!(scanned < 20 * ROWS, "{scanned} rows were read by scans to drain {ROWS}");
}

/// Times that are past are now: what is due is looked for from where the last look ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_for_a_time_that_is_past_is_ready_at_once() {
    let (_fixture, queue) = PostgresFixture::ready().await;
    let at = std::time::SystemTime::now() - Duration::from_secs(3600);
    queue.push_with(&note("past"), PushOptions { at: Some(at), ..Default::default() }).await.unwrap();
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.scheduled), (1, 0));
}
