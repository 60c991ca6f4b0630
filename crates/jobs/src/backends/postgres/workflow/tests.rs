use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{Job, Queue, Workflow};

#[derive(Serialize, Deserialize)]
struct Plain;

impl Job for Plain {
    const NAME: &'static str = "plain";
}

/// Two that free the same jobs deadlock unless they lock them in one order, whatever their plans are.
#[tokio::test]
async fn freed_jobs_are_locked_in_the_order_of_their_ids() {
    // A plan that reads rows as they stand in the table.
    const PLAN: &str = "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_indexscan = off;
        SET LOCAL enable_nestloop = off; SET LOCAL enable_mergejoin = off";
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let queue = Queue::postgres(pool.clone());
    queue.migrate().await.unwrap();
    let mut flow = Workflow::new();
    let root = flow.add(&Plain);
    let after: Vec<_> = (0..50).map(|_| flow.add_after(&Plain, [root])).collect();
    let pushed = queue.push_workflow(&flow).await.unwrap();
    let id = |step| pushed.id(step).unwrap().get();
    let (first, last) = (id(after[0]), id(after[49]));
    // A row that changes what an index holds moves to the end of the table: now the last comes first.
    for step in after.iter().rev() {
        let move_it = sqlx::query("UPDATE greenwave_jobs SET priority = 4 WHERE id = $1");
        move_it.bind(id(*step)).execute(&pool).await.unwrap();
    }
    let lock =
        |id: i64| sqlx::query("SELECT id FROM greenwave_jobs WHERE id = $1 FOR UPDATE NOWAIT").bind(id);
    let mut holder = pool.begin().await.unwrap();
    lock(first).execute(&mut *holder).await.unwrap();

    let mut freeing = pool.begin().await.unwrap();
    sqlx::raw_sql(PLAN).execute(&mut *freeing).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *freeing).await.unwrap();
    let root = id(root);
    let freed = tokio::spawn(async move {
        let queues = ended(&mut freeing, &[(root, false)]).await.unwrap();
        freeing.commit().await.unwrap();
        queues
    });
    let waits = async {
        const WAITS: &str =
            "SELECT coalesce(wait_event_type = 'Lock', false) FROM pg_stat_activity WHERE pid = $1";
        while !sqlx::query_scalar::<_, bool>(WAITS).bind(pid).fetch_one(&pool).await.unwrap() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), waits).await.unwrap();
    let mut other = pool.begin().await.unwrap();
    lock(last).execute(&mut *other).await.expect("it waits for the first, and holds none after it");
    drop(other);
    holder.rollback().await.unwrap();
    assert_eq!(timeout(Duration::from_secs(60), freed).await.unwrap().unwrap(), ["default"]);
}
