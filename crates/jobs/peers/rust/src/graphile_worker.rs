use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, WorkerContext, WorkerOptions,
    WorkerUtils,
};
use serde::{Deserialize, Serialize};

use crate::{Peer, Seen};

#[derive(Clone)]
pub struct Graphile {
    url: String,
    utils: Arc<WorkerUtils>,
}

#[derive(Serialize, Deserialize)]
struct Noop {
    n: usize,
}

#[derive(Clone)]
struct Handled(Seen);

impl std::fmt::Debug for Handled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handled")
    }
}

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, ctx: WorkerContext) -> impl IntoTaskHandlerResult {
        if let Some(handled) = ctx.get_ext::<Handled>() {
            handled.0.hit();
        }
        Ok::<(), String>(())
    }
}

fn options(url: &str) -> WorkerOptions {
    WorkerOptions::default().database_url(url).schema("graphile_worker").max_pg_conn(20)
}

impl Peer for Graphile {
    async fn open(url: &str) -> Result<Graphile> {
        let worker = options(url).define_job::<Noop>().init().await?;
        Ok(Graphile { url: url.to_owned(), utils: Arc::new(worker.create_utils()) })
    }

    async fn setup(&self) -> Result<()> {
        Ok(self.utils.migrate().await?)
    }

    async fn bulk(&self, jobs: std::ops::Range<usize>) -> Result<()> {
        let jobs: Vec<RawJobSpec> = jobs
            .map(|n| RawJobSpec {
                identifier: "noop".to_string(),
                payload: serde_json::json!({ "n": n }),
                spec: JobSpec::default(),
            })
            .collect();
        self.utils.add_raw_jobs(&jobs).await?;
        Ok(())
    }

    async fn push(&self, n: usize) -> Result<()> {
        self.utils.add_job(Noop { n }, JobSpec::default()).await?;
        Ok(())
    }

    /// With the settings of its own benchmark.
    async fn work(&self, seen: Seen) -> Result<()> {
        let worker = options(&self.url)
            .concurrency(500)
            .poll_interval(Duration::from_millis(5))
            .complete_job_batch_delay(Duration::from_millis(5))
            .local_queue(LocalQueueConfig::default().with_size(5000))
            .add_extension(Handled(seen))
            .define_job::<Noop>()
            .init()
            .await?;
        tokio::spawn(async move { worker.run().await });
        Ok(())
    }
}
