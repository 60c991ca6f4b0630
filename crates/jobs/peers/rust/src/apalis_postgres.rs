use anyhow::{Result, anyhow};
use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use serde::{Deserialize, Serialize};

use crate::{Peer, Seen};

#[derive(Clone)]
pub struct Apalis {
    pool: PgPool,
}

const QUEUE: &str = "noop";

#[derive(Clone, Serialize, Deserialize)]
struct Noop {
    n: usize,
}

async fn handle(_job: Noop, seen: Data<Seen>) -> Result<(), BoxDynError> {
    seen.hit();
    Ok(())
}

impl Apalis {
    async fn store(&self, jobs: std::ops::Range<usize>) -> Result<()> {
        let tasks = jobs
            .map(|n| Ok(TaskBuilder::new(serde_json::to_vec(&Noop { n })?).build()))
            .collect::<Result<Vec<_>>>()?;
        let mut conn = self.pool.acquire().await?;
        apalis_postgres::queries::push_tasks(&mut *conn, QUEUE, tasks)
            .await
            .map_err(|error| anyhow!("{error}"))?;
        Ok(())
    }
}

impl Peer for Apalis {
    async fn open(url: &str) -> Result<Apalis> {
        Ok(Apalis { pool: PgPool::connect(url).await? })
    }

    async fn setup(&self) -> Result<()> {
        PostgresStorage::setup(&self.pool).await.map_err(|error| anyhow!("{error}"))
    }

    async fn bulk(&self, jobs: std::ops::Range<usize>) -> Result<()> {
        self.store(jobs).await
    }

    async fn push(&self, n: usize) -> Result<()> {
        self.store(n..n + 1).await
    }

    async fn work(&self, seen: Seen) -> Result<()> {
        let config = Config::default().queue(QUEUE).batch_size(1000);
        let backend = PostgresStorage::new(&self.pool).with_config(config).with_pubsub();
        let worker = WorkerBuilder::new("bench").backend(backend).data(seen).concurrency(500).build(handle);
        tokio::spawn(async move { worker.run().await.map_err(|error| eprintln!("{error}")) });
        Ok(())
    }
}
