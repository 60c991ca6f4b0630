//! What the tests of schedules, workflows and results share.

use std::time::Duration;

use greenwave_jobs::{PushedWorkflow, Queue, SqlBackend, Workflow};

use crate::support::Fixture;

/// A database that the tests reach into.
pub(crate) trait SqlFixture: Fixture<Backend: SqlBackend> {
    /// As if no worker had been up for so long: all schedules stand where they would then.
    async fn sleep_through(&self, time: Duration);

    /// How many edges of workflows are stored.
    async fn edges(&self) -> i64;

    /// Pushes in a transaction of the caller's, which then ends as asked.
    async fn push_workflow_in(
        &self,
        queue: &Queue<Self::Backend>,
        flow: &Workflow,
        commit: bool,
    ) -> PushedWorkflow;
}

const SLEEP: &str = "UPDATE greenwave_jobs_schedules SET next_at = next_at - ";
const EDGES: &str = "SELECT count(*) FROM greenwave_jobs_dependency";

#[cfg(feature = "postgres")]
impl SqlFixture for crate::support::PostgresFixture {
    async fn sleep_through(&self, time: Duration) {
        let sql = format!("{SLEEP} interval '{} milliseconds'", time.as_millis());
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    async fn edges(&self) -> i64 {
        sqlx::query_scalar(EDGES).fetch_one(&self.pool).await.unwrap()
    }

    async fn push_workflow_in(
        &self,
        queue: &Queue<Self::Backend>,
        flow: &Workflow,
        commit: bool,
    ) -> PushedWorkflow {
        let mut tx = self.pool.begin().await.unwrap();
        let pushed = queue.push_workflow_in(&mut tx, flow).await.unwrap();
        if commit {
            tx.commit().await.unwrap()
        } else {
            tx.rollback().await.unwrap()
        }
        pushed
    }
}

#[cfg(feature = "sqlite")]
fn open(fixture: &crate::support::SqliteFixture) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(fixture.path()).unwrap();
    conn.busy_timeout(Duration::from_secs(60)).unwrap();
    conn
}

#[cfg(feature = "sqlite")]
impl SqlFixture for crate::support::SqliteFixture {
    async fn sleep_through(&self, time: Duration) {
        open(self).execute(&format!("{SLEEP} {}", time.as_millis()), []).unwrap();
    }

    async fn edges(&self) -> i64 {
        open(self).query_row(EDGES, [], |row| row.get(0)).unwrap()
    }

    async fn push_workflow_in(
        &self,
        queue: &Queue<Self::Backend>,
        flow: &Workflow,
        commit: bool,
    ) -> PushedWorkflow {
        let mut conn = open(self);
        let tx = conn.transaction().unwrap();
        let pushed = queue.push_workflow_in(&tx, flow).unwrap();
        if commit {
            tx.commit().unwrap()
        } else {
            tx.rollback().unwrap()
        }
        pushed
    }
}
