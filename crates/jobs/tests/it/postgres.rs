//! What only PostgreSQL does: it wakes workers of other processes, and it can be killed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenwave_jobs::{BoxError, JobContext, Queue, Worker, WorkerConfig};
use greenwave_test_servers::Server;
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
                Ok(ids) => acknowledged.extend(ids),
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
    let config = WorkerConfig { lease: Duration::from_secs(1), ..quick() };
    let (worker, mut runs) = sticker(queue.clone(), config);
    let worker = start(worker);
    let (_, context) = within(runs.recv()).await.unwrap();

    server.pause();
    within(context.cancellation.cancelled()).await;
    assert!(runs.try_recv().is_err(), "the job started again while its database was away");
    server.resume();
    assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 1);
    worker.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_database_hangs_stops_all_the_same() {
    let server = spawn_blocking(Server::postgres).await.unwrap();
    let queue = Queue::postgres(PgPoolOptions::new().connect_lazy(&server.url()).unwrap());
    queue.migrate().await.unwrap();
    queue.push(&note("endless")).await.unwrap();
    let (worker, mut runs) = sticker(queue, WorkerConfig { grace: Duration::from_millis(50), ..quick() });
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    server.pause();
    worker.stop().await;
    server.resume();
}
