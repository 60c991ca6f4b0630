//! Pushes a job, fails its first attempt, and completes it on the second. Needs no server: SQLite in a temporary folder.

use std::time::Duration;

use greenwave_jobs::{BoxError, Job, JobContext, Queue, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

#[derive(Serialize, Deserialize)]
struct SendWelcomeEmail {
    address: String,
}

impl Job for SendWelcomeEmail {
    const NAME: &'static str = "send-welcome-email";
    const QUEUE: &'static str = "mail";
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let queue = Queue::sqlite(folder.path().join("jobs.db"))?;
    queue.migrate().await?;

    let id = queue.push(&SendWelcomeEmail { address: "ada@example.org".to_owned() }).await?;
    println!("pushed job {}: {:?}", id.id, queue.stats().await?);

    let cancel = CancellationToken::new();
    let done = cancel.clone();
    let config = WorkerConfig { retry_base: Duration::from_millis(500), ..Default::default() };
    Worker::new(queue.clone(), config)
        .handle(move |job: SendWelcomeEmail, ctx: JobContext| {
            let done = done.clone();
            async move {
                println!("attempt {} of {}: mail to {}", ctx.attempt, ctx.max_attempts, job.address);
                if ctx.attempt == 1 {
                    println!("  the mail server is busy; the job will be tried again within half a second");
                    return Err(BoxError::from("the mail server is busy"));
                }
                println!("  sent");
                done.cancel();
                Ok(())
            }
        })
        .run(cancel)
        .await?;

    println!("after a graceful stop: {:?}", queue.stats().await?);
    Ok(())
}
