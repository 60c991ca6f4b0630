//! The help for users' tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use expect_test::{Expect, expect};
use greenwave_jobs::testing::TestQueue;
use greenwave_jobs::{
    BoxError, Error, Job, JobContext, PushOptions, Worker, WorkerConfig, assert_pushed, refute_pushed,
};
use serde::{Deserialize, Serialize};

use crate::support::{Note, note, start, sticker, within};

/// A job of another type, in a queue of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    to: String,
}

impl Job for Letter {
    const NAME: &'static str = "letter";
    const QUEUE: &'static str = "post";
}

fn letter(to: &str) -> Letter {
    Letter { to: to.to_owned() }
}

fn in_(delay: Duration) -> PushOptions {
    PushOptions { delay: Some(delay), ..Default::default() }
}

fn noop(test: &TestQueue) -> Worker<greenwave_jobs::Sqlite> {
    Worker::new(test.queue(), WorkerConfig::default())
        .handle(|_: Note, _| async { Ok::<(), BoxError>(()) })
        .handle(|_: Letter, _| async { Ok::<(), BoxError>(()) })
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_was_pushed_can_be_asserted_before_and_after_it_ran() {
    let test = TestQueue::new().await.unwrap();
    test.queue().push(&letter("Ada")).await.unwrap();
    for _ in 0..2 {
        assert_pushed!(test, Letter);
        assert_pushed!(test, Letter, |letter| letter.to == "Ada");
        refute_pushed!(test, Letter, |letter| letter.to == "Bob");
        refute_pushed!(test, Note);
        test.run_due(&noop(&test)).await.unwrap();
        assert_eq!(test.queue().stats().await.unwrap(), Default::default());
    }
}

#[tokio::test]
async fn pushed_jobs_are_listed_with_their_options() {
    let test = TestQueue::new().await.unwrap();
    let options = PushOptions { priority: Some(2), key: Some("k".to_owned()), ..in_(HOUR) };
    test.queue().push(&letter("Ada")).await.unwrap();
    test.queue().push_with(&letter("Bob"), options).await.unwrap();
    let pushed = test.pushed::<Letter>().await.unwrap();
    assert_eq!(pushed.iter().map(|pushed| pushed.job.to.as_str()).collect::<Vec<_>>(), ["Ada", "Bob"]);
    let bob = &pushed[1];
    assert_eq!((bob.delay, bob.priority, bob.key.as_deref()), (HOUR, 2, Some("k")));
}

async fn check(assertion: impl Future<Output = ()> + Send + 'static, expected: Expect) {
    let panic = tokio::spawn(assertion).await.unwrap_err().into_panic();
    expected.assert_eq(panic.downcast_ref::<String>().unwrap());
}

#[tokio::test]
async fn a_failed_assertion_shows_what_was_pushed() {
    let test = Arc::new(TestQueue::new().await.unwrap());
    let asserted = Arc::clone(&test);
    check(
        async move { assert_pushed!(asserted, Note) },
        expect!["no job `note` was pushed; pushed were: none"],
    )
    .await;
    test.queue().push(&letter("Ada")).await.unwrap();
    test.queue().push_with(&letter("Bob"), in_(HOUR)).await.unwrap();
    let asserted = Arc::clone(&test);
    check(
        async move { assert_pushed!(asserted, Letter, |letter| letter.to == "Eve") },
        expect![[r#"
            no job `letter` of which `|letter| letter.to == "Eve"` holds was pushed; pushed were:
              1 `letter` {"to":"Ada"} in queue `post`
              2 `letter` {"to":"Bob"} in queue `post`, after 3600s"#]],
    )
    .await;
    check(
        async move { refute_pushed!(test, Letter, |letter| letter.to == "Ada") },
        expect![[r#"
            a job `letter` of which `|letter| letter.to == "Ada"` holds was pushed; pushed were:
              1 `letter` {"to":"Ada"} in queue `post`
              2 `letter` {"to":"Bob"} in queue `post`, after 3600s"#]],
    )
    .await;
}

#[tokio::test]
async fn a_delayed_job_runs_when_the_clock_says() {
    let test = TestQueue::new().await.unwrap();
    test.queue().push_with(&note("later"), in_(HOUR)).await.unwrap();
    let worker = noop(&test);
    test.clock().advance(HOUR - Duration::from_millis(1));
    test.run_due(&worker).await.unwrap();
    assert_eq!(test.queue().stats().await.unwrap().scheduled, 1);
    test.clock().advance(Duration::from_millis(1));
    test.run_due(&worker).await.unwrap();
    assert_eq!(test.queue().stats().await.unwrap(), Default::default());
}

#[tokio::test]
async fn run_until_idle_runs_retries_and_what_jobs_push() {
    let test = TestQueue::new().await.unwrap();
    let queue = test.queue();
    queue.push(&letter("Ada")).await.unwrap();
    let worker = Worker::new(test.queue(), WorkerConfig { retry_base: HOUR, ..Default::default() })
        .handle(move |_: Letter, context: JobContext| {
            let queue = queue.clone();
            async move {
                if context.attempt < 3 {
                    return Err(BoxError::from("no luck"));
                }
                queue.push_with(&note("follows"), in_(HOUR)).await.map(drop).map_err(BoxError::from)
            }
        })
        .handle(|_: Note, _| async { Err::<(), _>("never") });
    let began = test.clock().now();
    test.run_until_idle(&worker).await.unwrap();
    assert_pushed!(test, Note);
    assert!(test.clock().now().duration_since(began).unwrap() > HOUR, "the clock went along");
    let dead = test.queue().dead_jobs(10).await.unwrap();
    assert_eq!((dead.len(), dead[0].attempts, dead[0].died_at), (1, 3, test.clock().now()));
    assert_eq!(test.queue().stats().await.unwrap().live(), 0);
}

#[tokio::test]
async fn jobs_without_end_are_an_error() {
    let test = TestQueue::new().await.unwrap();
    let queue = test.queue();
    queue.push(&note("again")).await.unwrap();
    let worker = Worker::new(test.queue(), WorkerConfig::default()).handle(move |note: Note, _| {
        let queue = queue.clone();
        async move { queue.push_with(&note, in_(HOUR)).await.map(drop) }
    });
    let error = test.run_until_idle(&worker).await.unwrap_err();
    assert!(matches!(error, Error::Worker(_)), "{error:?}");
}

#[tokio::test]
async fn a_worker_that_makes_no_sense_is_refused_at_once() {
    let test = TestQueue::new().await.unwrap();
    let worker = Worker::new(test.queue(), WorkerConfig::default());
    assert!(matches!(test.run_due(&worker).await, Err(Error::Worker(_))));
}

#[tokio::test]
async fn a_lease_ends_when_the_clock_says() {
    let test = TestQueue::new().await.unwrap();
    test.queue().push(&note("held")).await.unwrap();
    let (victim, mut held) = sticker(test.queue(), WorkerConfig::default());
    let victim = start(victim);
    within(held.recv()).await.unwrap();
    victim.kill().await;

    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let worker = Worker::new(test.queue(), WorkerConfig::default()).handle(move |_: Note, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok::<(), BoxError>(()) }
    });
    test.clock().advance(WorkerConfig::default().lease + Duration::from_millis(1));
    test.run_until_idle(&worker).await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_queue_in_a_file_sees_what_a_transaction_pushes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let test = TestQueue::in_file(&path).await.unwrap();
    let mut conn = rusqlite::Connection::open(&path).unwrap();
    for commit in [false, true] {
        let tx = conn.transaction().unwrap();
        test.queue().push_in(&tx, &note(commit)).unwrap();
        if commit { tx.commit().unwrap() } else { tx.rollback().unwrap() }
    }
    let pushed = test.pushed::<Note>().await.unwrap();
    assert_eq!(pushed.iter().map(|pushed| &pushed.job).collect::<Vec<_>>(), [&note(true)]);
    test.run_due(&noop(&test)).await.unwrap();
    assert_eq!(test.queue().stats().await.unwrap(), Default::default());
}

/// A job that is kept for an hour.
#[derive(Serialize, Deserialize)]
struct Receipt {
    n: u32,
}

impl Job for Receipt {
    const NAME: &'static str = "receipt";
    const KEEP: Duration = Duration::from_secs(3600);
}

#[tokio::test]
async fn a_kept_job_is_deleted_when_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let test = TestQueue::in_file(&path).await.unwrap();
    // More than upkeep deletes in one transaction.
    test.queue().push_many(&(0..2500).map(|n| Receipt { n }).collect::<Vec<_>>()).await.unwrap();
    let worker = Worker::new(test.queue(), WorkerConfig { concurrency: 1000, ..Default::default() })
        .handle(|_: Receipt, _| async { Ok::<(), BoxError>(()) });
    let conn = rusqlite::Connection::open(&path).unwrap();
    let kept = || {
        conn.query_row("SELECT count(*) FROM greenwave_jobs_done", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    test.run_due(&worker).await.unwrap();
    assert_eq!(kept(), 2500);
    test.clock().advance(Receipt::KEEP - Duration::from_millis(1));
    test.run_due(&worker).await.unwrap();
    assert_eq!(kept(), 2500);
    test.clock().advance(Duration::from_millis(1));
    test.queue().push(&Receipt { n: 0 }).await.unwrap();
    test.run_due(&worker).await.unwrap();
    assert_eq!(kept(), 1);
}
