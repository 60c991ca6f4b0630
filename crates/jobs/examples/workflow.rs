//! Cuts a film into scenes, encodes them side by side, and joins what came of them. Needs no server: SQLite in a
//! temporary folder.

use std::time::Duration;

use greenwave_jobs::{
    BoxError, Discard, Job, JobContext, Outcome, Queue, Sqlite, Worker, WorkerConfig, Workflow,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize, Deserialize)]
struct Encode {
    scene: u32,
}

impl Job for Encode {
    const NAME: &'static str = "encode";
    // So that those who wait for it can read what it returned.
    const KEEP: Duration = DAY;
}

#[derive(Serialize, Deserialize)]
struct Join;

impl Job for Join {
    const NAME: &'static str = "join";
    const KEEP: Duration = DAY;
}

#[derive(Serialize, Deserialize)]
struct Tell {
    address: String,
}

impl Job for Tell {
    const NAME: &'static str = "tell";
}

/// Three scenes, what joins them, and who is told how it went.
fn film(scenes: [u32; 3]) -> Workflow {
    let mut flow = Workflow::new();
    let scenes = scenes.map(|scene| flow.add(&Encode { scene }));
    let join = flow.add_after(&Join, scenes);
    let tell = flow.add_after(&Tell { address: "ada@example.org".to_owned() }, [join]);
    flow.run_anyway(tell);
    flow
}

/// Waits until there is nothing left to do.
async fn idle(queue: &Queue<Sqlite>) -> Result<(), BoxError> {
    while queue.stats().await?.live() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let queue = Queue::sqlite(folder.path().join("jobs.db"))?;
    queue.migrate().await?;

    let (joining, telling) = (queue.clone(), queue.clone());
    let worker = Worker::new(queue.clone(), WorkerConfig::default())
        .handle(|job: Encode, _: JobContext| async move {
            if job.scene == 7 { Err(Discard("the reel is lost".into())) } else { Ok(job.scene * 100) }
        })
        .handle(move |_: Join, context: JobContext| {
            let queue = joining.clone();
            async move {
                let frames: Vec<u32> = context.results(&queue).await?.of::<Encode, _>()?;
                Ok::<_, BoxError>(frames.iter().sum::<u32>())
            }
        })
        .handle(move |job: Tell, context: JobContext| {
            let queue = telling.clone();
            async move {
                let results = context.results(&queue).await?;
                match &results.all()[0].outcome {
                    Outcome::Completed(frames) => {
                        println!("to {}: your film has {frames} frames", job.address)
                    }
                    _ => println!("to {}: there is no film", job.address),
                }
                Ok::<(), BoxError>(())
            }
        });
    let cancel = CancellationToken::new();
    let worker = tokio::spawn(worker.run(cancel.clone()));

    let pushed = queue.push_workflow(&film([1, 2, 3])).await?;
    idle(&queue).await?;
    println!("the join: {:?}", queue.result::<u32>(pushed.ids()[3]).await?);

    let pushed = queue.push_workflow(&film([6, 7, 8])).await?;
    let lost = queue.wait_for::<u32>(pushed.ids()[1], Duration::from_secs(10)).await?;
    idle(&queue).await?;
    println!("scene 7: {lost:?}");

    cancel.cancel();
    worker.await??;
    println!("at the end: {:?}", queue.stats().await?);
    Ok(())
}
