//! Tests code that pushes a job and the job's handler, without waiting for either's delays. What stands in `main` would
//! be the body of a `#[tokio::test]`.

use std::time::Duration;

use greenwave_jobs::testing::TestQueue;
use greenwave_jobs::{
    BoxError, Error, Job, JobContext, PushOptions, Queue, Sqlite, Worker, WorkerConfig, assert_pushed,
    refute_pushed,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct SendInvoice {
    order: u64,
}

impl Job for SendInvoice {
    const NAME: &'static str = "send-invoice";
    const MAX_ATTEMPTS: u32 = 3;
}

#[derive(Debug, Serialize, Deserialize)]
struct Remind {
    order: u64,
}

impl Job for Remind {
    const NAME: &'static str = "remind";
}

const TWO_WEEKS: Duration = Duration::from_secs(14 * 24 * 3600);

/// The code that is tested: an order is sent an invoice at once …
async fn place_order(queue: &Queue<Sqlite>, order: u64) -> Result<(), Error> {
    queue.push(&SendInvoice { order }).await.map(drop)
}

/// … whose handler fails the first time, and then sees to a reminder.
async fn send_invoice(queue: Queue<Sqlite>, invoice: SendInvoice, ctx: JobContext) -> Result<(), BoxError> {
    if ctx.attempt == 1 {
        return Err("the printer is out of paper".into());
    }
    let options = PushOptions { delay: Some(TWO_WEEKS), ..Default::default() };
    queue.push_with(&Remind { order: invoice.order }, options).await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let test = TestQueue::new().await?;
    let queue = test.queue();
    place_order(&queue, 7).await?;
    assert_pushed!(test, SendInvoice, |invoice| invoice.order == 7);

    let worker = Worker::new(test.queue(), WorkerConfig::default())
        .handle(move |invoice: SendInvoice, ctx| send_invoice(queue.clone(), invoice, ctx))
        .handle(|_: Remind, _| async { Ok::<(), BoxError>(()) });

    // What is due now: the first attempt, which fails.
    test.run_due(&worker).await?;
    refute_pushed!(test, Remind);
    println!("after the first attempt: {:?}", test.queue().stats().await?);

    // The clock stands still, so the retry waits until it is moved on.
    test.clock().advance(Duration::from_secs(1));
    test.run_due(&worker).await?;
    assert_pushed!(test, Remind, |reminder| reminder.order == 7);
    println!("after the second: {:?}", test.queue().stats().await?);

    // Or all at once: the clock jumps to what is due next, until nothing waits.
    test.run_until_idle(&worker).await?;
    println!("two weeks later: {:?}", test.queue().stats().await?);
    Ok(())
}
