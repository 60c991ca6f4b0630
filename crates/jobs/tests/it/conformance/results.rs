use std::time::Duration;

use greenwave_jobs::{
    BoxError, DeadReason, Error, Job, JobContext, Outcome, Queue, SqlBackend, Worker, Workflow,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::flows::SqlFixture;
use crate::support::{Running, note, quick, start, within};

/// Its result is the square.
#[derive(Serialize, Deserialize)]
struct Square(i64);

impl Job for Square {
    const NAME: &'static str = "square";
    const MAX_ATTEMPTS: u32 = 1;
    const KEEP: Duration = Duration::from_secs(3600);
}

/// Its result is the sum of the squares before it.
#[derive(Serialize, Deserialize)]
struct Sum;

impl Job for Sum {
    const NAME: &'static str = "sum";
    const KEEP: Duration = Duration::from_secs(3600);
}

/// Kept for a moment.
#[derive(Serialize, Deserialize)]
struct Brief;

impl Job for Brief {
    const NAME: &'static str = "brief";
    const KEEP: Duration = Duration::from_millis(1);
}

const LONG: Duration = Duration::from_secs(60);

/// Negative numbers have no square today.
fn squares<B: SqlBackend>(queue: &Queue<B>) -> Running {
    let sums = queue.clone();
    let worker = Worker::new(queue.clone(), quick())
        .handle(|Square(n): Square, _| async move {
            if n < 0 { Err(BoxError::from("negative")) } else { Ok(n * n) }
        })
        .handle(move |_: Sum, context: JobContext| {
            let queue = sums.clone();
            async move {
                let results = context.results(&queue).await?;
                let squares: Vec<i64> = results.of::<Square, _>()?;
                Ok::<_, BoxError>((squares.iter().sum::<i64>(), results.all().len()))
            }
        })
        .handle(|_: Brief, _| async { Ok::<_, BoxError>("soon gone") })
        .handle(|_: crate::support::Note, _| async { Ok::<_, BoxError>("not kept") });
    start(worker)
}

pub(crate) async fn whoever_waits_gets_the_result<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let id = queue.push(&Square(7)).await.unwrap().id;
    assert_eq!(queue.result::<i64>(id).await.unwrap(), Outcome::Waiting);
    assert_eq!(queue.wait_for::<i64>(id, Duration::from_millis(20)).await.unwrap(), Outcome::Waiting);
    let elsewhere = fixture.connect();
    let (here, there) = (
        tokio::spawn({
            let queue = queue.clone();
            async move { queue.wait_for::<i64>(id, LONG).await }
        }),
        tokio::spawn(async move { elsewhere.wait_for::<i64>(id, LONG).await }),
    );
    let worker = squares(&queue);
    assert_eq!(within(here).await.unwrap().unwrap(), Outcome::Completed(49));
    assert_eq!(within(there).await.unwrap().unwrap(), Outcome::Completed(49));
    assert_eq!(queue.result::<Option<i64>>(id).await.unwrap(), Outcome::Completed(Some(49)));
    let error = queue.result::<String>(id).await.unwrap_err();
    assert!(matches!(error, Error::Result { job, .. } if job == id), "{error}");
    worker.stop().await;
}

pub(crate) async fn whoever_waits_hears_of_a_death<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    let worker = squares(&queue);
    let id = queue.push(&Square(-1)).await.unwrap().id;
    let outcome = within(queue.wait_for::<i64>(id, LONG)).await.unwrap();
    assert_eq!(outcome, Outcome::Dead { reason: DeadReason::Exhausted, error: Some("negative".to_owned()) });
    worker.stop().await;
}

pub(crate) async fn a_result_is_unknown_once_it_is_kept_no_longer<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    assert_eq!(queue.result::<i64>(1_000_000.into()).await.unwrap(), Outcome::Unknown);
    let worker = squares(&queue);
    let id = queue.push(&note("not kept")).await.unwrap().id;
    assert_eq!(within(queue.wait_for::<String>(id, LONG)).await.unwrap(), Outcome::Unknown);
    let id = queue.push(&Brief).await.unwrap().id;
    within(async {
        while queue.result::<String>(id).await.unwrap() != Outcome::Unknown {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    worker.stop().await;
}

pub(crate) async fn a_job_reads_the_results_of_those_it_waited_for<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let worker = squares(&queue);
    let mut flow = Workflow::new();
    let some: Vec<_> = [1, 2, -3, 4].map(|n| flow.add(&Square(n))).into();
    flow.add(&Square(100));
    let sum = flow.add_after(&Sum, some);
    flow.run_anyway(sum);
    let pushed = queue.push_workflow(&flow).await.unwrap();
    let outcome = within(queue.wait_for::<(i64, usize)>(pushed.id(sum).unwrap(), LONG)).await.unwrap();
    assert_eq!(outcome, Outcome::Completed((1 + 4 + 16, 4)), "the dead one is among the ended");
    worker.stop().await;
    assert_eq!(fixture.edges().await, 0);
}

pub(crate) async fn whoever_looks_sees_how_far_a_job_has_come<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    let go = std::sync::Arc::new(tokio::sync::Notify::new());
    let released = go.clone();
    let worker = Worker::new(queue.clone(), quick()).handle(move |_: Square, context: JobContext| {
        let go = released.clone();
        async move {
            context.progress(&json!({"done": 3, "of": 9}))?;
            go.notified().await;
            Ok::<_, BoxError>(())
        }
    });
    let worker = start(worker);
    let id = queue.push(&Square(1)).await.unwrap().id;
    let expected = Outcome::Running { progress: Some(json!({"done": 3, "of": 9})) };
    within(async {
        while queue.result::<()>(id).await.unwrap() != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    go.notify_one();
    assert_eq!(within(queue.wait_for::<()>(id, LONG)).await.unwrap(), Outcome::Completed(()));
    worker.stop().await;
}
