//! Jobs that are pushed to a database and worked on from NATS.

use std::collections::HashMap;
use std::time::Duration;

use greenwave_jobs::{
    BoxError, DeadReason, Error, ForwardConfig, Job, Nats, PushOptions, Queue, Worker, WorkerConfig,
};
use greenwave_test_servers::Server;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::nats::blocking;
use crate::support::{
    Fixture, NatsFixture, Note, SqliteFixture, note, quick, recorder, settled, start, within,
};

fn often() -> ForwardConfig {
    ForwardConfig {
        poll_interval: Duration::from_millis(20),
        lease: Duration::from_secs(15),
        ..Default::default()
    }
}

struct Forwarding {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Forwarding {
    fn start<F: Fixture>(database: &F, nats: &Queue<Nats>, config: ForwardConfig) -> Self
    where
        F::Backend: greenwave_jobs::SqlBackend,
    {
        let cancel = CancellationToken::new();
        let (database, nats, stop) = (database.connect(), nats.clone(), cancel.clone());
        let task =
            tokio::spawn(async move { database.forward_to(&nats, Note::QUEUE, "test", config, stop).await });
        Forwarding { cancel, task }
    }

    async fn stop(self) {
        self.cancel.cancel();
        within(self.task).await.unwrap().unwrap();
    }
}

async fn forwards_what_a_transaction_pushed<F: Fixture>()
where
    F::Backend: greenwave_jobs::SqlBackend,
{
    let (database, queue) = F::ready().await;
    let (_nats, target) = NatsFixture::ready().await;
    let forwarding = Forwarding::start(&database, &target, often());
    database.push_in_transaction(&queue, &[note("never"), note("nor this")], false).await;
    database.push_in_transaction(&queue, &[note("a"), note("b")], true).await;
    let (worker, mut runs) = recorder(target.clone(), WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    for expected in ["a", "b"] {
        let (ran, context) = within(runs.recv()).await.unwrap();
        assert_eq!((ran, context.attempt, context.max_attempts), (note(expected), 1, 3));
    }
    settled(&target, |stats| stats.live() == 0).await;
    settled(&queue, |stats| stats == Default::default()).await;
    worker.stop().await;
    forwarding.stop().await;
    assert!(runs.try_recv().is_err());
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_pushed_goes_from_postgres() {
    forwards_what_a_transaction_pushed::<crate::support::PostgresFixture>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_pushed_goes_from_sqlite() {
    forwards_what_a_transaction_pushed::<SqliteFixture>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_job_goes_when_it_is_due_and_an_urgent_one_first() {
    let (database, queue) = SqliteFixture::ready().await;
    let (_nats, target) = NatsFixture::ready().await;
    let delay = Duration::from_millis(300);
    let began = Instant::now();
    for (text, options) in [
        ("late", PushOptions { delay: Some(delay), ..Default::default() }),
        ("then", PushOptions::default()),
        ("first", PushOptions { priority: Some(0), ..Default::default() }),
    ] {
        queue.push_with(&note(text), options).await.unwrap();
    }
    let forwarding = Forwarding::start(&database, &target, often());
    let (worker, mut runs) = recorder(target, WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    for expected in ["first", "then", "late"] {
        assert_eq!(within(runs.recv()).await.unwrap().0, note(expected));
    }
    assert!(began.elapsed() >= delay - Duration::from_millis(50));
    worker.stop().await;
    forwarding.stop().await;
}

/// In the queue of the notes, but kept when it is completed.
#[derive(Serialize, Deserialize)]
struct Keepsake;

impl Job for Keepsake {
    const NAME: &'static str = "keepsake";
    const KEEP: Duration = Duration::from_secs(60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_go_is_dead_where_it_was() {
    let (database, queue) = SqliteFixture::ready().await;
    let (_nats, target) = NatsFixture::ready().await;
    let kept = queue.push(&Keepsake).await.unwrap().id;
    let large = queue.push(&note("x".repeat(2 << 20))).await.unwrap().id;
    queue.push(&note("small")).await.unwrap();
    let forwarding = Forwarding::start(&database, &target, often());
    settled(&target, |stats| stats.ready == 1).await;
    settled(&queue, |stats| stats.dead == 2 && stats.live() == 0).await;
    forwarding.stop().await;
    let mut dead = queue.dead_jobs(10).await.unwrap();
    dead.sort_by_key(|job| job.id);
    assert_eq!(dead.iter().map(|job| job.id).collect::<Vec<_>>(), [kept, large]);
    assert!(dead.iter().all(|job| job.reason == DeadReason::Discarded));
    assert!(dead[0].errors[0].error.contains("kept") && dead[1].errors[0].error.contains("max_payload"));
}

/// A forwarder that dies between the publish and the completion leaves a job that another publishes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_published_twice_is_stored_once() {
    let (database, queue) = SqliteFixture::ready().await;
    let (nats, target) = NatsFixture::ready().await;
    let id = queue.push(&note("once")).await.unwrap().id;
    let context = async_nats::jetstream::new(nats.client.clone());
    let first = async_nats::jetstream::message::PublishMessage::build()
        .payload(r#"{"name":"note","payload":{"text":"once"}}"#.into())
        .message_id(format!("test-{id}"));
    let subject = format!("{}.default", nats.config.stream);
    context.send_publish(subject, first).await.unwrap().await.unwrap();

    let forwarding = Forwarding::start(&database, &target, often());
    settled(&queue, |stats| stats == Default::default()).await;
    forwarding.stop().await;
    assert_eq!(target.stats().await.unwrap().ready, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_is_dropped_leaves_its_jobs_to_the_next() {
    let (database, queue) = SqliteFixture::ready().await;
    let (_nats, target) = NatsFixture::ready().await;
    queue.push_many(&(0..2000).map(note).collect::<Vec<_>>()).await.unwrap();
    let config = ForwardConfig { max_batch: 100, ..often() };
    let first = Forwarding::start(&database, &target, config.clone());
    settled(&target, |stats| stats.ready >= 500).await;
    first.task.abort();
    within(first.task).await.unwrap_err();
    let next = Forwarding::start(&database, &target, config);
    settled(&queue, |stats| stats.live() == 0).await;
    next.stop().await;
    assert_eq!(target.stats().await.unwrap().ready, 2000, "none is lost, and none is there twice");
}

/// The server is killed in the middle of it: nothing is lost, and within the window nothing is there twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_server_is_killed_while_jobs_are_forwarded() {
    const JOBS: usize = 4000;
    let mut server = blocking(Server::nats).await;
    let nats = NatsFixture::on(&server.url()).await;
    let target = nats.connect();
    target.migrate().await.unwrap();
    let (database, queue) = SqliteFixture::ready().await;
    let forwarding = Forwarding::start(&database, &target, ForwardConfig { max_batch: 50, ..often() });
    let pushing = {
        let queue = queue.clone();
        tokio::spawn(async move {
            for batch in 0..JOBS / 100 {
                let notes: Vec<_> = (0..100).map(|n| note(batch * 100 + n)).collect();
                queue.push_many(&notes).await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let (report, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let config = WorkerConfig { lease: Duration::from_secs(2), max_crashes: 100, ..quick() };
    let worker = Worker::new(nats.connect(), config).handle(move |note: Note, _| {
        let sent = report.send(note.text);
        async move { sent.map_err(BoxError::from) }
    });
    let worker = start(worker);
    let mut ran: HashMap<String, u32> = HashMap::new();
    for round in 1..=3 {
        while ran.len() < round * 500 {
            *ran.entry(within(runs.recv()).await.unwrap()).or_default() += 1;
        }
        server = blocking(move || {
            server.kill();
            server.start();
            server
        })
        .await;
    }
    within(pushing).await.unwrap();
    while ran.len() < JOBS {
        *ran.entry(within(runs.recv()).await.unwrap()).or_default() += 1;
    }
    settled(&queue, |stats| stats == Default::default()).await;
    settled(&target, |stats| stats.live() == 0).await;
    worker.stop().await;
    forwarding.stop().await;
    let again: u32 = ran.values().map(|times| times - 1).sum();
    println!("{JOBS} jobs ran, {again} runs were repeated");
    // A run is repeated when its completion was not acknowledged before the kill; a job is not there twice.
    assert_eq!(target.stats().await.unwrap().dead, 0);
}

#[tokio::test]
async fn a_forwarder_that_cannot_work_says_so() {
    let (_database, queue) = SqliteFixture::ready().await;
    let nats = NatsFixture::empty().await;
    let target = nats.connect();
    let run = |config| queue.forward_to(&target, "default", "test", config, CancellationToken::new());
    assert!(matches!(run(often()).await, Err(Error::NotMigrated)));
    let window = ForwardConfig { lease: Duration::from_secs(600), ..often() };
    let error = run(window).await.unwrap_err();
    assert!(error.to_string().contains("duplicate_window"), "{error}");
    let empty = ForwardConfig { max_batch: 0, ..often() };
    assert!(matches!(run(empty).await, Err(Error::Worker(_))));
}
