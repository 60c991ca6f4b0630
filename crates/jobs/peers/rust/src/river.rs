use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use riverqueue::migrate::{PostgresMigrator, SqliteMigrator};
use riverqueue::sqlx::postgres::PgPoolOptions;
use riverqueue::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use riverqueue::sqlx::{PgPool, SqlitePool};
use riverqueue::{BoxError, Client, Job, JobArgs, QueueConfig, WorkContext, WorkOutcome, Workers};
use serde::{Deserialize, Serialize};

use crate::{Peer, Seen};

#[derive(Clone)]
pub struct River {
    database: Database,
    client: Client,
}

#[derive(Clone)]
enum Database {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "noop")]
struct Noop {
    n: usize,
}

impl Database {
    fn client(&self, workers: Option<Workers>) -> Result<Client> {
        let mut builder = match self {
            Database::Postgres(pool) => Client::builder(pool.clone()),
            Database::Sqlite(pool) => Client::builder(pool.clone()),
        };
        if let Some(workers) = workers {
            builder = builder
                .workers(workers)
                .queue("default", QueueConfig::new(1000))
                .fetch_cooldown(Duration::from_millis(1));
        }
        Ok(builder.build()?)
    }
}

impl Peer for River {
    async fn open(url: &str) -> Result<River> {
        let database = if url.starts_with("postgres") {
            Database::Postgres(PgPoolOptions::new().max_connections(20).connect(url).await?)
        } else {
            let options = SqliteConnectOptions::from_str(url)?
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(5));
            Database::Sqlite(SqlitePoolOptions::new().connect_with(options).await?)
        };
        Ok(River { client: database.client(None)?, database })
    }

    async fn setup(&self) -> Result<()> {
        match &self.database {
            Database::Postgres(pool) => PostgresMigrator::new(pool.clone()).migrate_up().await.map(drop)?,
            Database::Sqlite(pool) => SqliteMigrator::new(pool.clone()).migrate_up().await.map(drop)?,
        }
        Ok(())
    }

    async fn bulk(&self, jobs: std::ops::Range<usize>) -> Result<()> {
        self.client.insert_many(jobs.map(|n| Noop { n })).await?;
        Ok(())
    }

    async fn push(&self, n: usize) -> Result<()> {
        self.client.insert(Noop { n }).await?;
        Ok(())
    }

    async fn work(&self, seen: Seen) -> Result<()> {
        let mut workers = Workers::new();
        workers.add_fn(move |_: WorkContext, _: Job<Noop>| {
            let seen = seen.clone();
            async move {
                seen.hit();
                Ok::<_, BoxError>(WorkOutcome::Complete)
            }
        })?;
        self.database.client(Some(workers))?.start()?.detach();
        Ok(())
    }
}
