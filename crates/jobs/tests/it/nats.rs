//! What only NATS does, and what it does otherwise than a database.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread;
use std::time::Duration;

use greenwave_jobs::{
    BoxError, DeadReason, Error, Job, JobContext, NatsConfig, ObjectiveConfig, PushOptions, Queue, Unique,
    Worker, WorkerConfig,
};
use greenwave_test_servers::Server;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Fixture, NatsFixture, Note, note, quick, recorder, settled, sleepy, start, sticker, within,
};

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// As a note, but it shall be kept.
#[derive(Serialize, Deserialize)]
struct Keepsake;

impl Job for Keepsake {
    const NAME: &'static str = "keepsake";
    const KEEP: Duration = Duration::from_secs(60);
}

/// As a note, but before others.
#[derive(Serialize, Deserialize)]
struct Urgent;

impl Job for Urgent {
    const NAME: &'static str = "urgent";
    const PRIORITY: u8 = 0;
}

#[tokio::test]
async fn what_jetstream_cannot_do_is_refused() {
    let (_fixture, queue) = NatsFixture::ready().await;
    let plain = note("x");
    let with = |options| queue.push_with(&plain, options);
    let delay = PushOptions { delay: Some(Duration::from_secs(1)), ..Default::default() };
    let at = PushOptions { at: Some(std::time::SystemTime::now()), ..Default::default() };
    let priority = PushOptions { priority: Some(0), ..Default::default() };
    let key = PushOptions { key: Some("ada".to_owned()), ..Default::default() };
    let unique = PushOptions { unique: Some(Unique::by("ada")), ..Default::default() };
    for (options, what) in [
        (delay, "a delay"),
        (at, "a delay"),
        (priority, "a priority"),
        (key, "a key"),
        (unique, "unique jobs"),
    ] {
        let error = with(options).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        assert!(error.to_string().contains(what) && error.to_string().contains("PostgreSQL"), "{error}");
    }
    assert!(matches!(queue.push(&Keepsake).await, Err(Error::Unsupported(_))));
    assert!(matches!(queue.push_many(&[Urgent, Urgent]).await, Err(Error::Unsupported(_))));
    assert_eq!(queue.stats().await.unwrap(), Default::default());

    let worker =
        Worker::new(queue.clone(), quick()).handle(|_: Keepsake, _| async { Ok::<(), BoxError>(()) });
    assert!(matches!(worker.run(CancellationToken::new()).await, Err(Error::Unsupported(_))));
    let worker = Worker::new(queue.clone(), quick()).handle(|_: Urgent, _| async { Ok::<(), BoxError>(()) });
    assert!(matches!(worker.run(CancellationToken::new()).await, Err(Error::Unsupported(_))));
    let objective = ObjectiveConfig { queue: "default".to_owned(), max_wait: Duration::from_secs(1) };
    let (worker, _runs) = recorder(queue, WorkerConfig { objectives: vec![objective], ..quick() });
    let error = worker.run(CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("objectives"), "{error}");
}

/// Whether a handler says how far it is, nobody knows before it does.
#[tokio::test]
async fn a_handler_is_told_that_its_progress_is_not_kept() {
    let (_fixture, queue) = NatsFixture::ready().await;
    let (report, mut reports) = mpsc::unbounded_channel();
    let worker = start(Worker::new(queue.clone(), quick()).handle(move |_: Note, context: JobContext| {
        let sent = report.send(context.progress(&0.5));
        async move { sent.map_err(BoxError::from) }
    }));
    queue.push(&note("long")).await.unwrap();
    let error = within(reports.recv()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_and_another_does_not() {
    let mut fixture = NatsFixture::empty().await;
    fixture.config.max_waiting = Some(2);
    let queue = fixture.connect();
    queue.migrate().await.unwrap();
    queue.push_many(&[note(1), note(2)]).await.unwrap();
    let error = queue.push(&note(3)).await.unwrap_err();
    assert!(matches!(error, Error::Full { max_waiting: 2, .. }), "{error:?}");
    assert_eq!(queue.stats().await.unwrap().ready, 2);

    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    for expected in 1..=2 {
        assert_eq!(within(runs.recv()).await.unwrap().0, note(expected));
    }
    settled(&queue, |stats| stats.live() == 0).await;
    queue.push(&note(3)).await.unwrap();
    assert_eq!(within(runs.recv()).await.unwrap().0, note(3));
    worker.stop().await;
}

#[tokio::test]
async fn a_job_that_the_server_would_not_take_is_refused_before_it_is_sent() {
    let (_fixture, queue) = NatsFixture::ready().await;
    let error = queue.push_many(&[note("small"), note("x".repeat(2 << 20))]).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert_eq!(queue.stats().await.unwrap().live(), 0);
}

#[tokio::test]
async fn a_message_that_is_no_job_is_parked() {
    let (fixture, queue) = NatsFixture::ready().await;
    let subject = format!("{}.default", fixture.config.stream);
    fixture.client.publish(subject, "Dear diary".into()).await.unwrap();
    queue.push(&note("a job")).await.unwrap();
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().0, note("a job"));
    settled(&queue, |stats| stats.dead == 1 && stats.live() == 0).await;
    worker.stop().await;
    let dead = &queue.dead_jobs(1).await.unwrap()[0];
    assert_eq!((dead.reason, dead.payload.as_str()), (DeadReason::Undecodable, "\"Dear diary\""));
}

#[tokio::test]
async fn a_stream_that_would_lose_jobs_is_refused() {
    let fixture = NatsFixture::empty().await;
    let stream = fixture.config.stream.clone();
    let made = async_nats::jetstream::stream::Config {
        subjects: vec![format!("{stream}.*")],
        name: stream,
        ..Default::default()
    };
    async_nats::jetstream::new(fixture.client.clone()).create_stream(made).await.unwrap();
    let error = fixture.connect().migrate().await.unwrap_err();
    assert!(matches!(&error, Error::Nats(why) if why.to_string().contains("workqueue")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_wakes_an_idle_worker_of_another_process() {
    let (fixture, queue) = NatsFixture::ready().await;
    let (worker, mut runs) = recorder(fixture.connect(), sleepy());
    let worker = start(worker);
    // The first may come before the worker listens, and is then found when it starts.
    for round in 0..3 {
        queue.push(&note(round)).await.unwrap();
        assert_eq!(within(runs.recv()).await.unwrap().0, note(round));
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_grace_runs_again_as_the_same_attempt() {
    let (_fixture, queue) = NatsFixture::ready().await;
    queue.push(&note("endless")).await.unwrap();
    let config = WorkerConfig { grace: Duration::from_millis(50), ..quick() };
    let (worker, mut runs) = sticker(queue.clone(), config);
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    worker.stop().await;
    // It was started before: JetStream does not say that nobody has it now.
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.scheduled, stats.live()), (1, 1));

    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 1, "the interrupted attempt is not counted");
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

/// A worker whose handler blocks its only thread until it is told to go on.
struct Blocked {
    thread: thread::JoinHandle<Result<(), Error>>,
    started: mpsc::UnboundedReceiver<()>,
    go_on: std_mpsc::Sender<()>,
    cancel: CancellationToken,
}

impl Blocked {
    /// Completes its job then, or never ends.
    fn start(fixture: &NatsFixture, config: WorkerConfig, completes: bool) -> Self {
        let (report, started) = mpsc::unbounded_channel();
        let (go_on, blocked) = std_mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let worker = Worker::new(fixture.connect(), config).handle(move |_: Note, _| {
            report.send(()).unwrap();
            let blocked = Arc::clone(&blocked);
            async move {
                blocked.lock().unwrap().recv().unwrap();
                if completes { Ok::<(), BoxError>(()) } else { std::future::pending().await }
            }
        });
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(worker.run(stop))
        });
        Blocked { thread, started, go_on, cancel }
    }

    /// Lets it go on, and stop.
    async fn go_on(self) {
        self.cancel.cancel();
        self.go_on.send(()).unwrap();
        within(blocking(move || self.thread.join().unwrap())).await.unwrap();
    }
}

/// A database would not let it. JetStream takes an acknowledgement by the number of the message, whoever sends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_still_completes_what_another_holds() {
    let (fixture, queue) = NatsFixture::ready().await;
    queue.push(&note("contested")).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_millis(500), ..quick() };
    let mut first = Blocked::start(&fixture, config.clone(), true);
    within(first.started.recv()).await.unwrap();

    let (report, mut taken) = mpsc::unbounded_channel();
    let (hands, mut handed) = mpsc::unbounded_channel();
    let second = Worker::new(queue.clone(), config).handle(move |_: Note, context: JobContext| {
        report.send(context.attempt).unwrap();
        let (hand, result) = oneshot::channel::<Result<(), &'static str>>();
        hands.send(hand).unwrap();
        async move { result.await.unwrap() }
    });
    let second = start(second);
    within(taken.recv()).await.unwrap();
    let hand = within(handed.recv()).await.unwrap();

    // The work is done, and the first says so.
    first.go_on().await;
    settled(&queue, |stats| stats.live() == 0).await;
    // The second's failure comes too late: the job is not tried again.
    hand.send(Err("no luck")).unwrap();
    second.stop().await;
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    queue.push(&note("after it")).await.unwrap();
    assert_eq!(within(runs.recv()).await.unwrap().0, note("after it"));
    worker.stop().await;
}

/// What sets a job free is not sent late, or it would take the job from whoever has it now.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_given_back_late_is_no_crash_and_disturbs_nobody() {
    let (fixture, queue) = NatsFixture::ready().await;
    queue.push(&note("healthy")).await.unwrap();
    let wait = Duration::from_secs(2);
    // The first crash would be the last.
    let config = WorkerConfig {
        lease: Duration::from_millis(500),
        max_crashes: 1,
        retry_base: wait,
        retry_max: wait,
        ..quick()
    };
    let mut first = Blocked::start(&fixture, config.clone(), false);
    within(first.started.recv()).await.unwrap();
    let (second, mut runs) = recorder(queue.clone(), config);
    let second = start(second);
    settled(&queue, |stats| stats.scheduled == 1).await;

    first.go_on().await;
    assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 1);
    second.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

/// Pushes and works while the server is killed again and again: what it acknowledged runs, each job in the end once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
    let mut server = blocking(Server::nats).await;
    let fixture = NatsFixture::on(&server.url()).await;
    let queue = fixture.connect();
    queue.migrate().await.unwrap();
    let config =
        WorkerConfig { lease: Duration::from_secs(2), concurrency: 100, max_crashes: 100, ..quick() };
    let (worker, mut runs) = recorder(fixture.connect(), config);
    let worker = start(worker);

    let pushing = {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut acknowledged = HashSet::new();
            for batch in 0..60 {
                let notes: Vec<Note> = (0..50).map(|n| note(batch * 50 + n)).collect();
                if queue.push_many(&notes).await.is_ok() {
                    acknowledged.extend(notes.into_iter().map(|note| note.text));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            acknowledged
        })
    };
    let mut ran = HashSet::new();
    let mut repeated = 0;
    for round in 1..=3 {
        while ran.len() < round * 200 {
            let (note, _) = within(runs.recv()).await.unwrap();
            repeated += usize::from(!ran.insert(note.text));
        }
        server = blocking(move || {
            server.kill();
            server.start();
            server
        })
        .await;
    }
    let acknowledged = within(pushing).await.unwrap();
    while !acknowledged.is_subset(&ran) {
        let (note, _) = within(runs.recv()).await.expect("the worker runs");
        repeated += usize::from(!ran.insert(note.text));
    }
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    println!("{} acknowledged, {} ran, {repeated} ran again", acknowledged.len(), ran.len());
    assert!(acknowledged.len() > 1000, "{}", acknowledged.len());
    assert_eq!(queue.stats().await.unwrap().dead, 0);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let fixture = NatsFixture::empty().await;
    let config = NatsConfig { stream: "a.b".to_owned(), ..Default::default() };
    assert!(matches!(Queue::nats(fixture.client, config), Err(Error::Nats(_))));
}
