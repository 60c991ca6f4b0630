//! What only PostgreSQL does: it wakes workers of other processes, and it can be killed.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use greenwave_jobs::{BoxError, Error, Job, JobContext, PushOptions, Queue, Schedule, Worker, WorkerConfig};
use greenwave_test_servers::Server;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::support::{
    Fixture, Note, PostgresFixture, note, quick, recorder, settled, sleepy, start, sticker, within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_wakes_the_workers_of_another_process() {
    let (fixture, queue) = PostgresFixture::ready().await;
    let (worker, mut runs) = recorder(fixture.connect(), sleepy());
    let worker = start(worker);
    // Whether it listens already cannot be seen; once it does, each push arrives although it never polls.
    let wait = async {
        loop {
            queue.push(&note("hello")).await.unwrap();
            if timeout(Duration::from_millis(200), runs.recv()).await.is_ok() {
                break;
            }
        }
    };
    within(wait).await;
    while let Ok(Some(_)) = timeout(Duration::from_millis(100), runs.recv()).await {}
    for _ in 0..3 {
        queue.push(&note("at once")).await.unwrap();
        assert_eq!(within(runs.recv()).await.unwrap().0, note("at once"));
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pushed_job_completes_although_postgres_is_killed() {
    let mut server = spawn_blocking(Server::postgres).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(2));
    let queue = Queue::postgres(pool.connect_lazy(&server.url()).unwrap());
    queue.migrate().await.unwrap();

    let completed = Arc::new(Mutex::new(HashSet::new()));
    let done = Arc::clone(&completed);
    // A short lease: what the server gave out in its last moment, and nobody received, is soon free again.
    let config = WorkerConfig { lease: Duration::from_secs(2), max_crashes: 100, ..quick() };
    let worker = start(Worker::new(queue.clone(), config).handle(move |_: Note, context: JobContext| {
        let done = Arc::clone(&done);
        async move {
            sleep(Duration::from_millis(5)).await;
            done.lock().unwrap().insert(context.id);
            Ok::<(), BoxError>(())
        }
    }));

    // Two rounds; one pusher goes on all the time, and remembers what was acknowledged.
    let pushing = queue.clone();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let pusher = tokio::spawn(async move {
        let mut acknowledged = HashSet::new();
        while stopped.try_recv().is_err() {
            match pushing.push_many(&[note("a"), note("b"), note("c")]).await {
                Ok(pushed) => acknowledged.extend(pushed.into_iter().map(|pushed| pushed.id)),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
        acknowledged
    });
    for _ in 0..2 {
        let before = completed.lock().unwrap().len();
        let wait = async {
            while completed.lock().unwrap().len() < before + 50 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        within(wait).await;
        server = spawn_blocking(move || {
            server.kill();
            server.start();
            server
        })
        .await
        .unwrap();
    }
    stop.send(()).unwrap();
    let acknowledged = within(pusher).await.unwrap();
    let wait = async {
        while !queue.stats().await.is_ok_and(|stats| stats.live() == 0) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(wait).await;
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap().dead, 0);
    let completed = completed.lock().unwrap();
    let lost: Vec<_> = acknowledged.difference(&completed).collect();
    assert!(lost.is_empty(), "{} of {} jobs were lost", lost.len(), acknowledged.len());
    assert!(acknowledged.len() > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_start_before_its_database() {
    let mut server = spawn_blocking(Server::postgres).await.unwrap();
    let pool = PgPoolOptions::new().acquire_timeout(Duration::from_secs(2));
    let queue = Queue::postgres(pool.connect_lazy(&server.url()).unwrap());
    queue.migrate().await.unwrap();
    queue.push(&note("patient")).await.unwrap();
    server.kill();
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    let _server = spawn_blocking(move || {
        server.start();
        server
    })
    .await
    .unwrap();
    assert_eq!(within(runs.recv()).await.unwrap().0, note("patient"));
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_cut_off_from_its_database_drops_its_jobs_when_their_leases_end() {
    let server = spawn_blocking(Server::postgres).await.unwrap();
    let queue = Queue::postgres(PgPoolOptions::new().connect_lazy(&server.url()).unwrap());
    queue.migrate().await.unwrap();
    queue.push(&note("held")).await.unwrap();
    // The first crash would be the last: the worker lives, so an outage is none.
    let hour = Duration::from_secs(3600);
    let lease = Duration::from_secs(1);
    let config = WorkerConfig { lease, max_crashes: 1, retry_base: hour, retry_max: hour, ..quick() };
    let (worker, mut runs) = sticker(queue.clone(), config);
    let worker = start(worker);
    let (_, mut context) = within(runs.recv()).await.unwrap();
    for _ in 0..3 {
        server.pause();
        within(context.cancellation().cancelled()).await;
        assert!(runs.try_recv().is_err(), "the job started again while its database was away");
        server.resume();
        context = within(runs.recv()).await.unwrap().1;
        assert_eq!(context.attempt, 1);
    }
    worker.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_database_hangs_stops_all_the_same() {
    let server = spawn_blocking(Server::postgres).await.unwrap();
    let queue = Queue::postgres(PgPoolOptions::new().connect_lazy(&server.url()).unwrap());
    queue.migrate().await.unwrap();
    queue.push(&note("endless")).await.unwrap();
    let (worker, mut runs) = sticker(queue, quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    server.pause();
    worker.stop().await;
    server.resume();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_fetch_took_most_of_its_lease_is_given_back() {
    let (fixture, queue) = PostgresFixture::ready().await;
    queue.push(&note("late")).await.unwrap();
    // Only the first fetch is slow: four fifths of a lease.
    let slow = "
        CREATE SEQUENCE fetches;
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF nextval(''fetches'') = 1 THEN PERFORM pg_sleep(1.6); END IF; RETURN NEW; END';
        CREATE TRIGGER slow BEFORE UPDATE ON greenwave_jobs
            FOR EACH ROW WHEN (OLD.state = 0 AND NEW.state = 2) EXECUTE FUNCTION slow()";
    sqlx::raw_sql(slow).execute(&fixture.pool).await.unwrap();
    let (worker, mut runs) = sticker(queue, WorkerConfig { lease: Duration::from_secs(2), ..quick() });
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    let fetches: i64 =
        sqlx::query_scalar("SELECT last_value FROM fetches").fetch_one(&fixture.pool).await.unwrap();
    assert!(fetches > 1, "it runs under a lease that ends before it is first extended");
    worker.kill().await;
}

/// Polls a future so often, and answers with its output if that was enough.
async fn polled<F: Future>(future: F, mut times: u32) -> Option<F::Output> {
    let mut future = Box::pin(future);
    poll_fn(|context| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // What is ready only when the caller is gone is the point: nobody waits for it.
            Poll::Pending if times == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// sqlx gives back a connection with an open transaction if BEGIN is dropped before its answer.
#[tokio::test]
async fn a_migration_dropped_anywhere_leaves_no_open_transaction() {
    const OPEN: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    let fixture = PostgresFixture::empty().await;
    // With one connection, what is acquired after the drop is what the migration had.
    let options = fixture.pool.connect_options().as_ref().clone();
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let queue = Queue::postgres(pool.clone());
    for times in 1.. {
        if let Some(done) = within(polled(queue.migrate(), times)).await {
            done.unwrap();
            break;
        }
        let _back = within(pool.acquire()).await.unwrap();
        let open: i64 = sqlx::query_scalar(OPEN).fetch_one(&fixture.pool).await.unwrap();
        assert_eq!(open, 0, "dropped after {times} polls, it left a transaction open");
    }
    assert!(queue.push(&note("works")).await.is_ok());
}

#[tokio::test]
async fn a_migration_that_waits_for_ever_is_given_up() {
    const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let fixture = PostgresFixture::empty().await;
    // Another process migrates and hangs; it holds the advisory lock of migrations.
    let mut hanging = fixture.pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(x'677265656e776176'::bigint)")
        .execute(&mut *hanging)
        .await
        .unwrap();
    let queue = fixture.connect();
    let migration = tokio::spawn(async move { queue.migrate().await });
    let waits = async {
        while sqlx::query_scalar::<_, i64>(WAITING).fetch_one(&fixture.pool).await.unwrap() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within(waits).await;
    tokio::time::pause();
    let given_up = timeout(Duration::from_secs(3600), migration).await.expect("it has a deadline").unwrap();
    let error = given_up.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert_eq!(error.to_string(), "the queue's database did not answer within 300s");
}

/// Chrono knows no such time.
#[tokio::test]
async fn a_job_that_was_put_off_for_ever_by_hand_stops_no_worker() {
    for time in ["infinity", "290000-01-01"] {
        let (fixture, queue) = PostgresFixture::ready().await;
        let hour = PushOptions { delay: Some(Duration::from_secs(3600)), ..Default::default() };
        queue.push_with(&note("put off"), hour).await.unwrap();
        sqlx::query("UPDATE greenwave_jobs SET run_at = $1::text::timestamptz")
            .bind(time)
            .execute(&fixture.pool)
            .await
            .unwrap();
        let (worker, mut runs) = recorder(queue.clone(), quick());
        let worker = start(worker);
        // Each is delayed, so that it takes an upkeep.
        for n in 0..3 {
            let soon = PushOptions { delay: Some(Duration::from_millis(1)), ..Default::default() };
            let pushed = queue.push_with(&note(n), soon).await.unwrap();
            while within(runs.recv()).await.unwrap().1.id != pushed.id {}
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_schedule_whose_next_tick_was_set_by_hand_ticks_once() {
    let (fixture, queue) = PostgresFixture::ready().await;
    queue.schedule("hourly", Schedule::every(Duration::from_secs(3600)), &note("tick")).await.unwrap();
    fixture
        .execute("UPDATE greenwave_jobs_schedules SET next_at = date_trunc('milliseconds', now()) - interval '1.5 ms'")
        .await;
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().0, note("tick"));
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert!(runs.try_recv().is_err());
}

/// It would have all others wait behind it.
#[tokio::test]
async fn a_migration_that_waits_for_a_transaction_holds_nobody_up() {
    const RELEASED: &str = concat!(
        include_str!("../../migrations/postgres/0001_jobs.sql"),
        "CREATE TABLE greenwave_jobs_migrations (
            version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
        INSERT INTO greenwave_jobs_migrations (version) VALUES (1)"
    );
    const PUSH: &str =
        "INSERT INTO greenwave_jobs (queue, name, payload, priority, state, run_at, max_attempts)
        VALUES ('default', 'note', '{\"text\": \"old\"}', 0, 0, now(), 3)";
    let fixture = PostgresFixture::empty().await;
    fixture.execute(RELEASED).await;
    let mut open = fixture.pool.begin().await.unwrap();
    sqlx::raw_sql(PUSH).execute(&mut *open).await.unwrap();
    let queue = fixture.connect();
    let migrating = tokio::spawn({
        let queue = queue.clone();
        async move { queue.migrate().await }
    });
    let waits = "SELECT pid::text FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted";
    within(async { while fixture.text(waits).await.is_none() {} }).await;
    for _ in 0..3 {
        timeout(Duration::from_secs(20), fixture.execute(PUSH)).await.expect("pushes go on");
    }
    assert!(!migrating.is_finished());
    open.commit().await.unwrap();
    within(migrating).await.unwrap().unwrap();
    assert_eq!(queue.stats().await.unwrap().ready, 4);
}

/// Arrays within arrays, deeper than PostgreSQL's parser goes.
#[derive(Serialize, Deserialize)]
struct Deep(Box<serde_json::value::RawValue>);

impl Job for Deep {
    const NAME: &'static str = "deep";
}

#[tokio::test]
async fn a_payload_that_is_nested_too_deeply_fails_alone() {
    let (_fixture, queue) = PostgresFixture::ready().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let queue = queue.clone();
        tasks.spawn(async move {
            if n != 20 {
                return queue.push(&note(n)).await.is_ok();
            }
            let nested = "[".repeat(100_000) + &"]".repeat(100_000);
            let deep = Deep(serde_json::value::RawValue::from_string(nested).unwrap());
            queue.push(&deep).await.is_err()
        });
    }
    assert_eq!(within(tasks.join_all()).await, [true; 40]);
    assert_eq!(queue.stats().await.unwrap().ready, 39);
}
