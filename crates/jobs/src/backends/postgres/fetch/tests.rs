//! What the marks of a session skip while transactions are open, one look at a time.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::*;
use crate::backends::Upkeep;
use crate::backends::postgres::lanes::Lanes;
use crate::backends::postgres::{Postgres, upkeep};
use crate::backoff::Backoff;
use crate::{Job, JobId, PushOptions, Queue};

#[derive(Serialize, Deserialize)]
struct Plain;

impl Job for Plain {
    const NAME: &'static str = "plain";
}

const PRIORITY: usize = Plain::PRIORITY as usize;

/// A queue, and a session of its own.
async fn ready() -> (PgPool, Queue<Postgres>, Lane) {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let queue = Queue::postgres(pool.clone());
    queue.migrate().await.unwrap();
    let lane = Lanes::new(pool.clone(), 1).take().await.unwrap();
    (pool, queue, lane)
}

/// Leases what there is.
async fn fetched(lane: &mut Lane) -> Vec<JobId> {
    let want = Want { queue: "default", limit: 100, lease: Duration::from_secs(3600) };
    let exchanged = exchange(lane, &Rules::default(), Vec::new(), Some(want)).await.unwrap();
    exchanged.jobs.into_iter().map(|job| job.lease.job).collect()
}

/// Two sweeps: the second skips what the first has seen settled. Answers where the next look begins.
async fn floor(lane: &mut Lane) -> i64 {
    let (conn, marks) = lane.parts();
    sweep(conn, marks, "default").await.unwrap();
    sweep(conn, marks, "default").await.unwrap();
    marks.floors("default")[PRIORITY]
}

#[tokio::test]
async fn a_sweep_skips_nothing_that_an_open_transaction_has_drawn() {
    let (pool, queue, mut lane) = ready().await;
    let mut before = pool.begin().await.unwrap();
    let first = queue.push_in(&mut before, &Plain).await.unwrap().id;
    let other = queue.push(&Plain).await.unwrap().id;
    assert_eq!(fetched(&mut lane).await, [other]);
    assert!(floor(&mut lane).await <= 1, "it may have drawn anything");

    // This one is seen by its first look.
    let mut after = pool.begin().await.unwrap();
    let second = queue.push_in(&mut after, &Plain).await.unwrap().id;
    let mut undone = pool.begin().await.unwrap();
    queue.push_in(&mut undone, &Plain).await.unwrap();
    let other = queue.push(&Plain).await.unwrap().id;
    assert_eq!(fetched(&mut lane).await, [other]);
    assert!(floor(&mut lane).await <= 1);

    before.commit().await.unwrap();
    assert_eq!(fetched(&mut lane).await, [first]);
    let risen = floor(&mut lane).await;
    assert!(risen > 1, "what only the other may have drawn begins later");
    undone.rollback().await.unwrap();
    assert_eq!(floor(&mut lane).await, risen);
    after.commit().await.unwrap();
    assert_eq!(fetched(&mut lane).await, [second]);
    assert!(floor(&mut lane).await > risen);
    let last = queue.push(&Plain).await.unwrap().id;
    assert_eq!(fetched(&mut lane).await, [last]);
}

#[tokio::test]
async fn upkeep_skips_no_time_that_an_open_transaction_has_set() {
    let (pool, queue, mut lane) = ready().await;
    let backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO };
    let settings = Upkeep { max_crashes: 3, backoff };
    let soon = PushOptions { delay: Some(Duration::from_millis(1)), ..Default::default() };
    let mut open = pool.begin().await.unwrap();
    queue.push_in_with(&mut open, &Plain, soon).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    for _ in 0..3 {
        assert_eq!(upkeep::upkeep(&mut lane, settings).await.unwrap().0.promoted, 0);
    }
    open.commit().await.unwrap();
    assert_eq!(upkeep::upkeep(&mut lane, settings).await.unwrap().0.promoted, 1);
}
