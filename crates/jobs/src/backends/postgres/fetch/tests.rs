//! What the marks of a session skip while transactions are open, one look at a time.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::*;
use crate::backends::Upkeep;
use crate::backends::postgres::lanes::{Lanes, Use};
use crate::backends::postgres::{Postgres, upkeep};
use crate::backoff::Backoff;
use crate::{Job, JobId, PushOptions, Queue};

#[derive(Serialize, Deserialize)]
struct Plain;

impl Job for Plain {
    const NAME: &'static str = "plain";
}

const PRIORITY: usize = Plain::PRIORITY as usize;

/// A queue in a database of its own, and a session.
async fn ready() -> (PgPool, Queue<Postgres>, Lane) {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    at(&url).await
}

async fn at(url: &str) -> (PgPool, Queue<Postgres>, Lane) {
    let pool = PgPool::connect(url).await.unwrap();
    let queue = Queue::postgres(pool.clone());
    queue.migrate().await.unwrap();
    let lane = Lanes::new(pool.clone(), Use::Fetching, 1).take().await.unwrap();
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

/// Prepared transactions have no session, and commit under another name.
#[tokio::test]
async fn a_sweep_skips_nothing_that_a_prepared_transaction_has_drawn() {
    let start = || greenwave_test_servers::Server::postgres_with(&["max_prepared_transactions=10"]);
    let server = tokio::task::spawn_blocking(start).await.unwrap();
    let (pool, queue, mut lane) = at(&server.url()).await;
    let other = queue.push(&Plain).await.unwrap().id;
    assert_eq!(fetched(&mut lane).await, [other]);
    let before = floor(&mut lane).await;
    let mut conn = pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *conn).await.unwrap();
    let id = queue.push_in(&mut conn, &Plain).await.unwrap().id;
    floor(&mut lane).await;
    sqlx::raw_sql("PREPARE TRANSACTION 'later'").execute(&mut *conn).await.unwrap();
    let other = queue.push(&Plain).await.unwrap().id;
    assert_eq!(fetched(&mut lane).await, [other]);
    assert_eq!(floor(&mut lane).await, before);
    sqlx::raw_sql("COMMIT PREPARED 'later'").execute(&mut *conn).await.unwrap();
    assert_eq!(fetched(&mut lane).await, [id]);
    assert!(floor(&mut lane).await > before);
}
