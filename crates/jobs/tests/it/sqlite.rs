//! What only SQLite does: its writers share one lock.

use std::thread;
use std::time::Duration;

use greenwave_jobs::{BoxError, Job, JobContext, Queue, Worker, WorkerConfig};
use rusqlite::types::Value;
use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::support::{Fixture, Note, SqliteFixture, note, quick, recorder, settled, sleepy, start, within};

/// A writer that lets go of the lock for a moment only.
fn rival(fixture: &SqliteFixture, stop: CancellationToken) -> thread::JoinHandle<()> {
    let mut conn = Connection::open(fixture.path()).unwrap();
    conn.pragma_update(None, "synchronous", "OFF").unwrap();
    conn.execute("CREATE TABLE rival (n INTEGER)", []).unwrap();
    conn.busy_timeout(Duration::ZERO).unwrap();
    thread::spawn(move || {
        while !stop.is_cancelled() {
            let Ok(tx) = conn.transaction_with_behavior(TransactionBehavior::Immediate) else { continue };
            tx.execute("INSERT INTO rival VALUES (1)", []).unwrap();
            thread::sleep(Duration::from_millis(5));
            tx.commit().unwrap();
            thread::sleep(Duration::from_micros(50));
        }
    })
}

/// SQLite's own busy timeout sleeps ever longer, and once some pushes failed after its five seconds.
#[tokio::test]
async fn a_push_gets_its_turn_against_a_writer_that_hardly_rests() {
    let (fixture, queue) = SqliteFixture::ready().await;
    let stop = CancellationToken::new();
    let ends = stop.clone().drop_guard();
    let rival = rival(&fixture, stop);
    for n in 0..100 {
        queue.push(&note(n)).await.unwrap();
    }
    drop(ends);
    rival.join().unwrap();
}

/// In a process of its own, it would poll once an hour.
#[tokio::test]
async fn a_worker_hears_of_what_another_process_pushes() {
    let (fixture, queue) = SqliteFixture::ready().await;
    let (worker, mut runs) = recorder(queue.clone(), sleepy());
    let worker = start(worker);
    queue.push(&note("first")).await.unwrap();
    within(runs.recv()).await.unwrap();
    let elsewhere = fixture.connect();
    for round in 0..3 {
        elsewhere.push(&note(round)).await.unwrap();
        assert_eq!(within(runs.recv()).await.unwrap().0, note(round));
    }
    worker.stop().await;
}

#[tokio::test]
async fn the_tables_of_the_first_release_are_brought_up_to_date_with_their_jobs() {
    let fixture = SqliteFixture::empty().await;
    let old = Connection::open(fixture.path()).unwrap();
    old.execute_batch(include_str!("../../migrations/sqlite/0001_jobs.sql")).unwrap();
    old.execute_batch(
        "CREATE TABLE greenwave_jobs_migrations (version INTEGER PRIMARY KEY, applied_at TEXT) STRICT;
        INSERT INTO greenwave_jobs_migrations (version) VALUES (1);
        UPDATE greenwave_jobs_lease SET last = 3;
        INSERT INTO greenwave_jobs (id, queue, name, payload, priority, state, run_at, max_attempts, created_at)
        VALUES (5, 'default', 'note', '{\"text\":\"old\"}', 0, 0, 0, 3, 0),
            (7, 'default', 'note', '{\"text\":\"urgent\"}', -2, 0, 0, 3, 0);
        DELETE FROM greenwave_jobs WHERE id = 8;
        INSERT INTO greenwave_jobs_dead
        VALUES (9, 'default', 'note', '{\"text\":\"dead\"}', 0, 3, 3, 'exhausted', '[]', 0, 0);",
    )
    .unwrap();
    drop(old);
    let queue = fixture.connect();
    queue.migrate().await.unwrap();
    let new = queue.push(&note("new")).await.unwrap().id;
    assert!(new.get() > 9, "{new} may have been another's");
    assert!(queue.retry_dead(9.into()).await.unwrap());
    let (worker, mut runs) = recorder(queue, WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    for expected in ["urgent", "old", "new", "dead"] {
        assert_eq!(within(runs.recv()).await.unwrap().0, note(expected));
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_job_comes_back_from_the_dead_as_it_was_pushed() {
    let (fixture, queue) = SqliteFixture::ready().await;
    let conn = Connection::open(fixture.path()).unwrap();
    let columns =
        "id, queue, name, version, payload, priority, max_attempts, timeout_ms, keep_ms, awaited, created_at,
        key, trace, progress";
    let rows = || {
        let row = |row: &rusqlite::Row<'_>| {
            (0..14).map(|at| row.get::<_, Value>(at)).collect::<Result<Vec<_>, _>>()
        };
        conn.query_row(&format!("SELECT {columns} FROM greenwave_jobs"), [], row).unwrap()
    };
    let id = queue.push(&note("x")).await.unwrap().id;
    conn.execute_batch(
        "UPDATE greenwave_jobs SET version = 3, priority = 2, timeout_ms = 4, keep_ms = 5, awaited = 1, key = 'k',
            trace = 't', progress = '6', crashes = 9, state = 1, run_at = 0",
    )
    .unwrap();
    let before = rows();
    let (worker, _runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1).await;
    worker.stop().await;
    assert!(queue.retry_dead(id).await.unwrap());
    assert_eq!(rows(), before);
}

/// Pushes that gather are dropped with it, and whoever carried the others must not wait for itself.
#[test]
fn a_runtime_ends_although_pushes_gather() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let queue = Queue::sqlite(&path).unwrap();
    runtime().block_on(queue.migrate()).unwrap();
    // So that it is known to have no bound.
    runtime().block_on(queue.push(&note("first"))).unwrap();
    let mut rival = Connection::open(&path).unwrap();
    let lock = rival.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let (ended, wait) = std::sync::mpsc::channel();
    let pushing = queue.clone();
    thread::spawn(move || {
        let runtime = runtime();
        for n in 0..5 {
            let queue = pushing.clone();
            runtime.spawn(async move { queue.push(&note(n)).await });
        }
        runtime.block_on(async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        });
        drop(runtime);
        ended.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(20)).expect("the runtime has ended");
    drop(lock);
    runtime().block_on(within(queue.push(&note("later")))).unwrap();
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Clumsy;

impl Job for Clumsy {
    const NAME: &'static str = "clumsy";

    fn retry_after(_: u32) -> Option<Duration> {
        panic!("it cannot count")
    }
}

/// An error that cannot even say what it is.
#[derive(Debug)]
struct Mute;

impl std::fmt::Display for Mute {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Mute {}

#[tokio::test]
async fn a_job_whose_error_or_wait_panics_is_tried_again_and_keeps_no_place() {
    let (_fixture, queue) = SqliteFixture::ready().await;
    queue.push(&Clumsy).await.unwrap();
    queue.push(&note("mute")).await.unwrap();
    let config = WorkerConfig { concurrency: 1, ..quick() };
    let fail = |attempt: u32| if attempt == 1 { Err(BoxError::from(Mute)) } else { Ok(()) };
    let worker = Worker::new(queue.clone(), config)
        .handle(move |_: Clumsy, context: JobContext| async move { fail(context.attempt) })
        .handle(move |_: Note, context: JobContext| async move { fail(context.attempt) });
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0 && stats.dead == 0).await;
    worker.stop().await;
}
