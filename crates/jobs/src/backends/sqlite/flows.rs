use rusqlite::{Connection, OptionalExtension};

use super::owner::Durability::Synced;
use super::{Sqlite, now, schedules, workflow};
use crate::backends::flows::{Edge, FlowStore, Found, FoundBefore, found};
use crate::job::{NewJob, Pushed};
use crate::schedule::{Schedule, ScheduleStatus};
use crate::workflow::{PushedWorkflow, Workflow};
use crate::{Error, JobId, Queue};

impl Queue<Sqlite> {
    /// Stores a workflow in the caller's transaction, or in one of its own: it exists if and when that commits.
    ///
    /// Call [`Queue::wake`] after the commit, so that no worker waits for its next poll.
    pub fn push_workflow_in(&self, conn: &Connection, workflow: &Workflow) -> Result<PushedWorkflow, Error> {
        let (jobs, edges) = workflow.parts(self.traceparent.current().as_deref())?;
        for (queue, jobs) in workflow.first() {
            self.store.make_room_in(conn, queue, jobs)?;
        }
        let pushed = workflow::push(conn, &jobs, &edges).map_err(Error::Sqlite)?;
        Ok(PushedWorkflow::new(workflow, pushed))
    }
}

impl FlowStore for Sqlite {
    async fn put_schedule(&self, name: String, schedule: Schedule, job: NewJob) -> Result<bool, Error> {
        self.owner.write(Synced, move |conn| schedules::put(conn, &name, &schedule, &job)).await?
    }

    async fn delete_schedule(&self, name: String) -> Result<bool, Error> {
        self.owner.write(Synced, move |conn| schedules::delete(conn, &name)).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleStatus>, Error> {
        self.owner.read(schedules::list).await
    }

    async fn pause_schedule(&self, name: String, paused: bool) -> Result<bool, Error> {
        self.owner.write(Synced, move |conn| schedules::pause(conn, &name, paused)).await?
    }

    async fn push_workflow(&self, jobs: Vec<NewJob>, edges: Vec<Edge>) -> Result<Vec<Pushed>, Error> {
        self.owner.write(Synced, move |conn| workflow::push(conn, &jobs, &edges)).await
    }

    async fn find(&self, id: JobId) -> Result<Option<Found>, Error> {
        self.owner.read(move |conn| find(conn, id)).await
    }

    async fn find_before(&self, id: JobId) -> Result<Vec<FoundBefore>, Error> {
        self.owner.read(move |conn| find_before(conn, id)).await
    }
}

fn find(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Found>> {
    const FIND: &str = concat!(
        "SELECT state, progress, NULL FROM greenwave_jobs WHERE id = ?1
        UNION ALL SELECT 4, result, NULL FROM greenwave_jobs_done WHERE id = ?1 AND expires_at > ",
        now!(),
        "
        UNION ALL SELECT 5, reason, errors ->> '$[#-1].error' FROM greenwave_jobs_dead WHERE id = ?1
        ORDER BY 1 LIMIT 1"
    );
    let mut statement = conn.prepare_cached(FIND)?;
    statement.query_row([id.get()], |row| Ok(found(row.get(0)?, row.get(1)?, row.get(2)?))).optional()
}

fn find_before(conn: &Connection, id: JobId) -> rusqlite::Result<Vec<FoundBefore>> {
    const FIND: &str = concat!(
        "SELECT done.id, done.name, 4, done.result, NULL
        FROM greenwave_jobs_dependency d JOIN greenwave_jobs_done done ON done.id = d.before_id
        WHERE d.after_id = ?1 AND done.expires_at > ",
        now!(),
        "
        UNION ALL
        SELECT dead.id, dead.name, 5, dead.reason, dead.errors ->> '$[#-1].error'
        FROM greenwave_jobs_dependency d JOIN greenwave_jobs_dead dead ON dead.id = d.before_id WHERE d.after_id = ?1
        ORDER BY 1"
    );
    let mut statement = conn.prepare_cached(FIND)?;
    let before = statement.query_map([id.get()], |row| {
        let found = found(row.get(2)?, row.get(3)?, row.get(4)?);
        Ok(FoundBefore { id: row.get::<_, i64>(0)?.into(), name: row.get(1)?, found })
    })?;
    before.collect()
}
