//! Until the limits are there.
use super::limits::LimitStore;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use crate::Error;
use crate::error::postgres;
use crate::limits::QueueLimits;
use rusqlite::Connection;

impl LimitStore for Postgres {
    async fn set_limits(&self, _: &str, _: Option<&QueueLimits>) -> Result<(), Error> {
        Ok(())
    }
    async fn limits(&self, _: &str) -> Result<Option<QueueLimits>, Error> {
        Ok(None)
    }
    async fn set_paused(&self, queue: &str, paused: bool) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO greenwave_jobs_queues (name, paused) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET paused = excluded.paused";
        sqlx::query(SET).bind(queue).bind(paused).execute(&self.pool).await.map_err(postgres)?;
        Ok(())
    }
    async fn paused(&self) -> Result<Vec<String>, Error> {
        const PAUSED: &str = "SELECT name FROM greenwave_jobs_queues WHERE paused ORDER BY name";
        sqlx::query_scalar(PAUSED).fetch_all(&self.pool).await.map_err(postgres)
    }
}
impl LimitStore for Sqlite {
    async fn set_limits(&self, _: &str, _: Option<&QueueLimits>) -> Result<(), Error> {
        Ok(())
    }
    async fn limits(&self, _: &str) -> Result<Option<QueueLimits>, Error> {
        Ok(None)
    }
    async fn set_paused(&self, queue: &str, paused: bool) -> Result<(), Error> {
        let queue = queue.to_owned();
        self.owner.write(super::sqlite::Durability::Synced, move |conn: &Connection| {
            conn.execute("INSERT INTO greenwave_jobs_queues (name, paused) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET paused = excluded.paused", rusqlite::params![queue, paused]).map(drop)
        }).await
    }
    async fn paused(&self) -> Result<Vec<String>, Error> {
        self.owner
            .read(|conn| {
                conn.prepare("SELECT name FROM greenwave_jobs_queues WHERE paused ORDER BY name")?
                    .query_map([], |row| row.get(0))?
                    .collect()
            })
            .await
    }
}
