use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use expect_test::{Expect, expect};
use greenwave_jobs::{
    BoxError, DeadJob, DeadReason, Discard, Job, JobContext, RetryIn, Snooze, Worker, WorkerConfig,
};
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

/// Once, all that was fetched together with a job that kills its workers came back together with it, until all were
/// dead.
pub(crate) async fn those_that_ran_beside_a_killer_are_parted_from_it<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    let mut notes: Vec<_> = (0..60).map(note).collect();
    notes[30] = note("killer");
    queue.push_many(&notes).await.unwrap();
    let config = WorkerConfig {
        lease: Duration::from_millis(300),
        concurrency: 100,
        retry_base: Duration::from_millis(1),
        ..quick()
    };
    let ran = Arc::new(AtomicU32::new(0));
    loop {
        let (report, mut kills) = mpsc::unbounded_channel();
        let count = Arc::clone(&ran);
        let worker = Worker::new(fixture.connect(), config.clone()).handle(move |note: Note, _| {
            let (report, count) = (report.clone(), Arc::clone(&count));
            async move {
                if note.text == "killer" {
                    report.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                // The killer is faster than the others.
                tokio::time::sleep(Duration::from_millis(20)).await;
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<(), BoxError>(())
            }
        });
        let worker = start(worker);
        tokio::select! {
            _ = within(kills.recv()) => worker.kill().await,
            _ = settled(&queue, |stats| stats.live() == 0) => break worker.stop().await,
        }
    }
    let dead = queue.dead_jobs(100).await.unwrap();
    assert_eq!(dead.len(), 1, "{} innocent jobs were parked with it", dead.len() - 1);
    assert_eq!((dead[0].reason, dead[0].payload.as_str()), (DeadReason::Crashed, r#"{"text":"killer"}"#));
    assert!(ran.load(Ordering::Relaxed) >= 59);
}

pub(crate) async fn a_snoozed_job_runs_later_and_counts_no_attempt<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("not yet")).await.unwrap();
    let (report, mut runs) = mpsc::unbounded_channel();
    let nap = Duration::from_millis(50);
    let worker = Worker::new(queue.clone(), quick()).handle(move |_: Note, context: JobContext| {
        report.send((Instant::now(), context.attempt)).unwrap();
        async move { Err::<(), _>(BoxError::from(Snooze(nap))) }
    });
    let worker = start(worker);
    let mut last: Option<Instant> = None;
    // More often than it has attempts.
    for _ in 0..5 {
        let (at, attempt) = within(runs.recv()).await.unwrap();
        assert_eq!(attempt, 1);
        assert!(last.is_none_or(|last| at.duration_since(last) >= nap - Duration::from_millis(10)));
        last = Some(at);
    }
    worker.stop().await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.live(), stats.dead), (1, 0));
}

pub(crate) async fn an_error_may_set_the_wait_itself<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("later")).await.unwrap();
    let worker = Worker::new(queue.clone(), quick()).handle(|_: Note, _| async {
        Err::<(), _>(BoxError::from(RetryIn(Duration::from_secs(3600), "ask again in an hour".into())))
    });
    let worker = start(worker);
    settled(&queue, |stats| stats.scheduled == 1).await;
    // By the config it would have come back long since.
    tokio::time::sleep(Duration::from_millis(200)).await;
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap().scheduled, 1);
}

/// Its second attempt comes at once, its third in an hour.
#[derive(Serialize, Deserialize)]
struct Scheduled;

impl Job for Scheduled {
    const NAME: &'static str = "scheduled";

    fn retry_after(failures: u32) -> Option<Duration> {
        Some(if failures == 1 { Duration::ZERO } else { Duration::from_secs(3600) })
    }
}

pub(crate) async fn a_type_may_have_a_schedule_of_its_own<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&Scheduled).await.unwrap();
    let hour = Duration::from_secs(3600);
    let config = WorkerConfig { retry_base: hour, retry_max: hour, ..quick() };
    let (report, mut runs) = mpsc::unbounded_channel();
    let worker = Worker::new(queue.clone(), config).handle(move |_: Scheduled, context: JobContext| {
        report.send(context.attempt).unwrap();
        async { Err::<(), _>("no luck") }
    });
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap(), 1);
    assert_eq!(within(runs.recv()).await.unwrap(), 2);
    settled(&queue, |stats| stats.scheduled == 1).await;
    worker.stop().await;
}

pub(crate) async fn a_discarded_job_is_dead_at_once<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("hopeless")).await.unwrap();
    let worker = Worker::new(queue.clone(), quick())
        .handle(|_: Note, _| async { Err::<(), _>(BoxError::from(Discard("there is no such user".into()))) });
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1 && stats.live() == 0).await;
    worker.stop().await;
    check(
        &queue.dead_jobs(1).await.unwrap()[0],
        expect![[r#"
            default/note {"text":"hopeless"}: Discarded after 1
            1: there is no such user
        "#]],
    );
}

/// A job whose attempts are short.
#[derive(Serialize, Deserialize)]
struct Hasty;

impl Job for Hasty {
    const NAME: &'static str = "hasty";
    const MAX_ATTEMPTS: u32 = 1;
    const TIMEOUT: Option<Duration> = Some(Duration::from_millis(30));
}

pub(crate) async fn a_type_may_have_a_timeout_of_its_own<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&Hasty).await.unwrap();
    let worker = Worker::new(queue.clone(), quick())
        .handle(|_: Hasty, _| std::future::pending::<Result<(), BoxError>>());
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 1).await;
    worker.stop().await;
    check(
        &queue.dead_jobs(1).await.unwrap()[0],
        expect![[r#"
            default/hasty null: Exhausted after 1
            1: timed out after 30ms
        "#]],
    );
}
