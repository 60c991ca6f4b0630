//! How PostgreSQL keeps completed jobs: by the day on which they expire.

use std::time::Duration;

use greenwave_jobs::{BoxError, Job, Worker};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::support::{Fixture, PostgresFixture, note, quick, settled, start, within};

#[derive(Serialize, Deserialize)]
struct Remembered;

impl Job for Remembered {
    const NAME: &'static str = "remembered";
    const KEEP: Duration = Duration::from_secs(24 * 3600);
}

#[derive(Serialize, Deserialize)]
struct ForAYear;

impl Job for ForAYear {
    const NAME: &'static str = "for-a-year";
    const KEEP: Duration = Duration::from_secs(365 * 24 * 3600);
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_goes_to_its_day_and_a_day_that_is_over_is_dropped() {
    const LATER: &str = "SELECT count(*) FROM greenwave_jobs_done_later";
    const YESTERDAY: &str = "SELECT count(*) FROM pg_class WHERE relname = 'greenwave_jobs_done_20010203'";
    let (fixture, queue) = PostgresFixture::ready().await;
    let pool = &fixture.pool;
    queue.push(&Remembered).await.unwrap();
    queue.push(&ForAYear).await.unwrap();
    queue.push(&note("not kept")).await.unwrap();
    let worker = Worker::new(queue.clone(), quick())
        .handle(|_: Remembered, _| async { Ok::<_, BoxError>("the answer") })
        .handle(|_: ForAYear, _| async { Ok::<_, BoxError>(()) })
        .handle(|_: crate::support::Note, _| async { Ok::<_, BoxError>(()) });
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    let result: Option<String> =
        sqlx::query_scalar("SELECT result::text FROM greenwave_jobs_done WHERE name = 'remembered'")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(result.as_deref(), Some("\"the answer\""));
    assert_eq!(count(pool, "SELECT count(*) FROM greenwave_jobs_done").await, 2);
    assert_eq!(count(pool, LATER).await, 1, "only what is kept for longer than there are days ahead");

    let over = "
        CREATE TABLE greenwave_jobs_done_20010203 PARTITION OF greenwave_jobs_done
            FOR VALUES FROM ('2001-02-03 00:00:00+00') TO ('2001-02-04 00:00:00+00');
        INSERT INTO greenwave_jobs_done
            SELECT id, queue, name, version, payload, result, attempts, pushed_at, completed_at, day
            FROM greenwave_jobs_done, unnest('{2001-02-03 12:00:00+00, 2002-01-01 00:00:00+00}'::timestamptz[]) AS day
            WHERE name = 'remembered'";
    sqlx::raw_sql(over).execute(pool).await.unwrap();
    assert_eq!(count(pool, LATER).await, 2);
    // Another process looks when it starts.
    let worker = start(
        Worker::new(fixture.connect(), quick())
            .handle(|_: crate::support::Note, _| async { Ok::<_, BoxError>(()) }),
    );
    let cleaned = async {
        while count(pool, YESTERDAY).await > 0 || count(pool, LATER).await > 1 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(cleaned).await;
    worker.stop().await;
    assert_eq!(count(pool, "SELECT count(*) FROM greenwave_jobs_done").await, 2);
}
