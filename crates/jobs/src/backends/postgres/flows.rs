use sqlx::PgConnection;

use super::{Postgres, begin, schedules, workflow};
use crate::backends::flows::{Edge, FlowStore, Found, FoundBefore, found};
use crate::error::postgres;
use crate::job::{NewJob, Pushed};
use crate::schedule::{Schedule, ScheduleStatus};
use crate::workflow::{PushedWorkflow, Workflow};
use crate::{Error, JobId, Queue};

impl Queue<Postgres> {
    /// Stores a workflow in the caller's transaction: it exists if and when that commits.
    ///
    /// Call [`Queue::wake`] after the commit, so that no worker waits for its next poll.
    pub async fn push_workflow_in(
        &self,
        conn: &mut PgConnection,
        workflow: &Workflow,
    ) -> Result<PushedWorkflow, Error> {
        let (jobs, edges) = workflow.parts(self.traceparent.current().as_deref())?;
        for (queue, jobs) in workflow.first() {
            self.store.admit_in(conn, queue, jobs).await?;
        }
        let pushed = workflow::push(conn, jobs, &edges).await?;
        Ok(PushedWorkflow::new(workflow, pushed))
    }
}

impl FlowStore for Postgres {
    async fn put_schedule(&self, name: String, schedule: Schedule, job: NewJob) -> Result<bool, Error> {
        schedules::put(&self.pool, &name, &schedule, &job).await
    }

    async fn delete_schedule(&self, name: String) -> Result<bool, Error> {
        schedules::delete(&self.pool, &name).await.map_err(postgres)
    }

    async fn schedules(&self) -> Result<Vec<ScheduleStatus>, Error> {
        schedules::list(&self.pool).await.map_err(postgres)
    }

    async fn pause_schedule(&self, name: String, paused: bool) -> Result<bool, Error> {
        schedules::pause(&self.pool, &name, paused).await
    }

    async fn push_workflow(&self, jobs: Vec<NewJob>, edges: Vec<Edge>) -> Result<Vec<Pushed>, Error> {
        let mut tx = begin(&self.pool).await.map_err(postgres)?;
        let pushed = workflow::push(&mut tx, jobs, &edges).await?;
        tx.commit().await.map_err(postgres)?;
        Ok(pushed)
    }

    async fn find(&self, id: JobId) -> Result<Option<Found>, Error> {
        // One statement sees one state: a job is in one of the tables.
        const FIND: &str = "
            SELECT state, progress::text, NULL FROM greenwave_jobs WHERE id = $1
            UNION ALL SELECT 4::smallint, result::text, NULL FROM greenwave_jobs_done WHERE id = $1 AND expires_at > now()
            UNION ALL SELECT 5::smallint, reason, errors -> -1 ->> 'error' FROM greenwave_jobs_dead WHERE id = $1
            ORDER BY 1 LIMIT 1";
        type Row = (i16, Option<String>, Option<String>);
        let row: Option<Row> =
            sqlx::query_as(FIND).bind(id.get()).fetch_optional(&self.pool).await.map_err(postgres)?;
        Ok(row.map(|(state, text, error)| found(state, text, error)))
    }

    async fn find_before(&self, id: JobId) -> Result<Vec<FoundBefore>, Error> {
        const FIND: &str = "
            SELECT done.id, done.name, 4::smallint, done.result::text, NULL
            FROM greenwave_jobs_dependency d JOIN greenwave_jobs_done done ON done.id = d.before_id
            WHERE d.after_id = $1 AND done.expires_at > now()
            UNION ALL
            SELECT dead.id, dead.name, 5::smallint, dead.reason, dead.errors -> -1 ->> 'error'
            FROM greenwave_jobs_dependency d JOIN greenwave_jobs_dead dead ON dead.id = d.before_id
            WHERE d.after_id = $1
            ORDER BY 1";
        type Row = (i64, String, i16, Option<String>, Option<String>);
        let rows: Vec<Row> =
            sqlx::query_as(FIND).bind(id.get()).fetch_all(&self.pool).await.map_err(postgres)?;
        let before = |(id, name, state, text, error): Row| FoundBefore {
            id: id.into(),
            name,
            found: found(state, text, error),
        };
        Ok(rows.into_iter().map(before).collect())
    }
}
