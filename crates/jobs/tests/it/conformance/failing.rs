use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use expect_test::{Expect, expect};
use greenwave_jobs::{BoxError, DeadJob, DeadReason, Job, JobContext, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::support::{Fixture, Note, note, quick, recorder, settled, start, sticker, within};

/// A dead job without what differs from run to run.
fn check(job: &DeadJob, expected: Expect) {
    let DeadJob { queue, name, payload, attempts, reason, .. } = job;
    let mut text = format!("{queue}/{name} {payload}: {reason:?} after {attempts}\n");
    for error in &job.errors {
        text += &format!("{}: {}\n", error.attempt, error.error);
        assert!(error.at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() > 1_600_000_000);
    }
    expected.assert_eq(&text);
}

pub(crate) async fn a_failing_job_is_retried_and_dies_with_its_errors<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let id = queue.push(&note("x")).await.unwrap().id;
    let (report, mut attempts) = mpsc::unbounded_channel();
    let worker = Worker::new(queue.clone(), quick()).handle(move |_: Note, context: JobContext| {
        report.send(context.attempt).unwrap();
        async move { Err::<(), _>(format!("no luck \0 in attempt {}", context.attempt)) }
    });
    let worker = start(worker);
    for expected in 1..=3 {
        assert_eq!(within(attempts.recv()).await.unwrap(), expected);
    }
    settled(&queue, |stats| stats.dead == 1 && stats.live() == 0).await;
    worker.stop().await;

    let dead = queue.dead_jobs(10).await.unwrap();
    assert_eq!((dead.len(), dead[0].id), (1, id));
    check(
        &dead[0],
        expect![[r#"
            default/note {"text":"x"}: Exhausted after 3
            1: no luck � in attempt 1
            2: no luck � in attempt 2
            3: no luck � in attempt 3
        "#]],
    );
}

pub(crate) async fn the_wait_between_attempts_comes_from_the_config<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    // Full jitter may draw a short wait: of twenty jobs, hardly all.
    queue.push_many(&(0..20).map(note).collect::<Vec<_>>()).await.unwrap();
    let hour = Duration::from_secs(3600);
    let config = WorkerConfig { retry_base: hour, retry_max: hour, ..quick() };
    let worker = Worker::new(queue.clone(), config).handle(|_: Note, _| async { Err::<(), _>("no luck") });
    let worker = start(worker);
    let stats = settled(&queue, |stats| stats.ready + stats.running == 0).await;
    worker.stop().await;
    assert!(stats.scheduled >= 18, "{stats:?}");
}

pub(crate) async fn a_panic_is_a_failure<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("boom")).await.unwrap();
    let worker = Worker::new(queue.clone(), quick()).handle(|note: Note, context: JobContext| {
        // The first panics when it is called, the others when they are polled.
        assert!(context.attempt > 1, "{} at once", note.text);
        async move {
            if note.text == "boom" {
                panic!("{} later", note.text);
            }
            Ok::<(), BoxError>(())
        }
    });
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1).await;
    worker.stop().await;
    check(
        &queue.dead_jobs(1).await.unwrap()[0],
        expect![[r#"
            default/note {"text":"boom"}: Exhausted after 3
            1: panicked: boom at once
            2: panicked: boom later
            3: panicked: boom later
        "#]],
    );
}

pub(crate) async fn a_timeout_is_a_failure<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("slow")).await.unwrap();
    let config = WorkerConfig { attempt_timeout: Duration::from_millis(50), ..quick() };
    let (worker, mut runs) = sticker(queue.clone(), config);
    let worker = start(worker);
    let (_, first) = within(runs.recv()).await.unwrap();
    within(first.cancellation().cancelled()).await;
    settled(&queue, |stats| stats.dead == 1).await;
    worker.stop().await;
    check(
        &queue.dead_jobs(1).await.unwrap()[0],
        expect![[r#"
            default/note {"text":"slow"}: Exhausted after 3
            1: timed out after 50ms
            2: timed out after 50ms
            3: timed out after 50ms
        "#]],
    );
}

/// A job in the note's queue that the note's workers do not know.
#[derive(Serialize, Deserialize)]
struct Stranger {
    n: u32,
}

impl Job for Stranger {
    const NAME: &'static str = "stranger";
}

pub(crate) async fn an_unknown_job_is_parked<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&Stranger { n: 1 }).await.unwrap();
    queue.push(&note("known")).await.unwrap();
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    settled(&queue, |stats| stats.dead == 1 && stats.live() == 0).await;
    worker.stop().await;
    check(
        &queue.dead_jobs(1).await.unwrap()[0],
        expect![[r#"
            default/stranger {"n":1}: UnknownJob after 1
            1: no handler for job `stranger` in a worker of queue `default`
        "#]],
    );
}

/// What a note was in an earlier release.
#[derive(Serialize, Deserialize)]
struct OldNote {
    title: String,
}

impl Job for OldNote {
    const NAME: &'static str = Note::NAME;
}

pub(crate) async fn an_undecodable_job_is_parked<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&OldNote { title: "Dear diary".to_owned() }).await.unwrap();
    let (worker, _runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1 && stats.live() == 0).await;
    worker.stop().await;
    check(
        &queue.dead_jobs(1).await.unwrap()[0],
        expect![[r#"
            default/note {"title":"Dear diary"}: Undecodable after 1
            1: the payload does not decode: missing field `text` at line 1 column 22
        "#]],
    );
}

pub(crate) async fn a_dead_job_comes_back_with_all_its_attempts<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let id = queue.push(&note("again")).await.unwrap().id;
    let failing = Worker::new(queue.clone(), quick()).handle(|_: Note, _| async { Err::<(), _>("no luck") });
    let failing = start(failing);
    settled(&queue, |stats| stats.dead == 1).await;
    failing.stop().await;

    assert!(queue.retry_dead(id).await.unwrap());
    assert!(!queue.retry_dead(id).await.unwrap(), "it is no longer dead");
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    let (ran, context) = within(runs.recv()).await.unwrap();
    assert_eq!((ran, context.id, context.attempt), (note("again"), id, 1));
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

/// A job with more attempts than errors are kept.
#[derive(Serialize, Deserialize)]
struct Stubborn;

impl Job for Stubborn {
    const NAME: &'static str = "stubborn";
    const MAX_ATTEMPTS: u32 = 12;
}

pub(crate) async fn only_the_last_ten_errors_are_kept<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&Stubborn).await.unwrap();
    let config = WorkerConfig { retry_max: Duration::from_millis(1), ..quick() };
    let worker =
        Worker::new(queue.clone(), config).handle(|_: Stubborn, _| async { Err::<(), _>("no luck") });
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1).await;
    worker.stop().await;
    let errors = &queue.dead_jobs(1).await.unwrap()[0].errors;
    assert_eq!(errors.iter().map(|error| error.attempt).collect::<Vec<_>>(), (3..=12).collect::<Vec<_>>());
}

pub(crate) async fn a_job_that_kills_its_workers_is_parked<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    let id = queue.push(&note("poison")).await.unwrap().id;
    let config = WorkerConfig { lease: Duration::from_millis(200), max_crashes: 3, ..quick() };
    for crash in 1..=3 {
        let (worker, mut runs) = sticker(fixture.connect(), config.clone());
        let worker = start(worker);
        let (_, context) = within(runs.recv()).await.unwrap();
        assert_eq!((context.id, context.attempt), (id, 1), "crash {crash} is not counted as an attempt");
        worker.kill().await;
    }
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let worker = Worker::new(queue.clone(), config).handle(move |_: Note, _| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok::<(), BoxError>(()) }
    });
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1 && stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    let dead = &queue.dead_jobs(1).await.unwrap()[0];
    assert_eq!((dead.id, dead.reason, dead.attempts, dead.errors.len()), (id, DeadReason::Crashed, 0, 3));
}

/// Once, kills of all workers added up over a job's life, until a healthy job was dead.
pub(crate) async fn an_attempt_that_ends_forgives_crashes<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    queue.push(&note("unlucky")).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_millis(200), max_crashes: 3, ..quick() };
    for attempt in 1..=2 {
        for _ in 0..2 {
            let (worker, mut runs) = sticker(fixture.connect(), config.clone());
            let worker = start(worker);
            assert_eq!(within(runs.recv()).await.unwrap().1.attempt, attempt);
            worker.kill().await;
        }
        if attempt == 2 {
            break;
        }
        // It fails once; then its worker is stopped, in whatever comes next.
        let (report, mut runs) = mpsc::unbounded_channel();
        let worker =
            Worker::new(queue.clone(), config.clone()).handle(move |_: Note, context: JobContext| {
                report.send(context.attempt).unwrap();
                async move {
                    if context.attempt > 1 {
                        context.cancellation().cancelled().await;
                    }
                    Err::<(), _>("no luck")
                }
            });
        let worker = start(worker);
        while within(runs.recv()).await.unwrap() == 1 {}
        worker.stop().await;
    }
    let (worker, mut runs) = recorder(queue.clone(), config);
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 2);
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}
