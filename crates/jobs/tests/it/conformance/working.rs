use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, Job, JobContext, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use crate::support::{Fixture, Note, note, quick, recorder, settled, start, sticker, within};

/// The greeting of three releases.
macro_rules! greeting {
    ($name:ident, $version:literal, { $field:ident: $type:ty }, $upcast:expr) => {
        #[derive(Debug, Serialize, Deserialize)]
        struct $name {
            $field: $type,
        }

        impl Job for $name {
            const NAME: &'static str = "greeting";
            const VERSION: u32 = $version;

            fn upcast(version: u32, payload: serde_json::Value) -> Result<Self, BoxError> {
                let upcast: fn(u32, serde_json::Value) -> Result<Self, BoxError> = $upcast;
                upcast(version, payload)
            }
        }
    };
}
greeting!(GreetingV1, 1, { name: String }, |_, payload| Ok(serde_json::from_value(payload)?));
greeting!(GreetingV2, 2, { names: Vec<String> }, |version, payload| {
    assert_eq!(version, 1);
    let GreetingV1 { name } = serde_json::from_value(payload)?;
    Ok(GreetingV2 { names: vec![name] })
});
greeting!(GreetingV3, 3, { crowd: u32 }, |_, payload| Ok(serde_json::from_value(payload)?));

pub(crate) async fn an_old_payload_is_upcast_and_a_newer_waits_for_a_newer_worker<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&GreetingV1 { name: "Ada".to_owned() }).await.unwrap();
    queue.push(&GreetingV3 { crowd: 7 }).await.unwrap();
    let (report, mut runs) = mpsc::unbounded_channel();
    let worker = Worker::new(queue.clone(), quick()).handle(move |greeting: GreetingV2, _| {
        let sent = report.send(greeting.names);
        async move { sent.map_err(BoxError::from) }
    });
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap(), ["Ada"]);
    settled(&queue, |stats| stats.scheduled == 1).await;
    worker.stop().await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.live(), stats.dead), (1, 0), "the newer one is neither run nor lost");
    assert!(runs.try_recv().is_err());

    let (report, mut runs) = mpsc::unbounded_channel();
    let newer = Worker::new(queue, quick()).handle(move |greeting: GreetingV3, context: JobContext| {
        let sent = report.send((greeting.crowd, context.attempt));
        async move { sent.map_err(BoxError::from) }
    });
    let newer = start(newer);
    assert_eq!(within(runs.recv()).await.unwrap(), (7, 1));
    newer.stop().await;
}

/// Kept for a while, with what its handler returns.
#[derive(Serialize, Deserialize)]
struct Sum(u32, u32);

impl Job for Sum {
    const NAME: &'static str = "sum";
    const KEEP: Duration = Duration::from_secs(3600);
}

pub(crate) async fn a_result_is_kept_where_the_type_says_so<F: Fixture>() {
    const KEPT: &str = "SELECT CAST(result AS text) FROM greenwave_jobs_done";
    let (fixture, queue) = F::ready().await;
    queue.push(&Sum(2, 3)).await.unwrap();
    let worker = Worker::new(queue.clone(), quick())
        .handle(|Sum(a, b): Sum, _| async move { Ok::<_, BoxError>(a + b) });
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(fixture.text(KEPT).await.as_deref(), Some("5"));
}

pub(crate) async fn progress_is_written_while_the_job_runs<F: Fixture>() {
    const PROGRESS: &str = "SELECT CAST(progress AS text) FROM greenwave_jobs WHERE state = 2";
    let (fixture, queue) = F::ready().await;
    queue.push(&note("long")).await.unwrap();
    let worker = Worker::new(queue, quick()).handle(|_: Note, context: JobContext| async move {
        for done in 0..=3 {
            context.progress(&(done, 10))?;
        }
        std::future::pending::<Result<(), BoxError>>().await
    });
    let worker = start(worker);
    let written = async {
        while fixture.text(PROGRESS).await.as_deref() != Some("[3,10]") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(written).await;
    worker.kill().await;
}

pub(crate) async fn a_handler_knows_its_deadline_and_its_pusher<F: Fixture>() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (_fixture, queue) = F::ready().await;
    let queue = queue.with_traceparent(|| Some(TRACE.to_owned()));
    queue.push(&note("traced")).await.unwrap();
    let (worker, mut runs) =
        sticker(queue, WorkerConfig { attempt_timeout: Duration::from_secs(60), ..quick() });
    let worker = start(worker);
    let (_, context) = within(runs.recv()).await.unwrap();
    assert_eq!((context.name, context.queue, context.trace.as_deref()), ("note", "default", Some(TRACE)));
    let left = context.deadline().unwrap().duration_since(Instant::now());
    assert!(left > Duration::from_secs(30) && left <= Duration::from_secs(60), "{left:?}");
    worker.stop().await;
    assert!(context.cancellation().is_cancelled());
    assert_eq!(context.deadline(), None);
}

/// As the note, but in a queue of its own.
#[derive(Serialize, Deserialize)]
struct Elsewhere;

impl Job for Elsewhere {
    const NAME: &'static str = "elsewhere";
    const QUEUE: &'static str = "elsewhere";
}

/// How many run, and how many ran at once at most.
#[derive(Default)]
struct Crowd {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Crowd {
    async fn join(self: Arc<Self>) -> Result<(), BoxError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        sleep(Duration::from_millis(5)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

pub(crate) async fn a_queue_takes_no_more_places_than_it_may<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..60).map(note).collect::<Vec<_>>()).await.unwrap();
    queue.push_many(&(0..60).map(|_| Elsewhere).collect::<Vec<_>>()).await.unwrap();
    let (notes, others) = (Arc::new(Crowd::default()), Arc::new(Crowd::default()));
    let queues = BTreeMap::from([("default".to_owned(), 2)]);
    let worker = Worker::new(queue.clone(), WorkerConfig { concurrency: 6, queues, ..quick() })
        .handle_with(Arc::clone(&notes), |notes: Arc<Crowd>, _: Note, _| notes.join())
        .handle_with(Arc::clone(&others), |others: Arc<Crowd>, _: Elsewhere, _| others.join());
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(notes.most(), 2);
    assert!(others.most() > 2 && others.most() <= 6, "{}", others.most());
}

/// In the note's queue.
#[derive(Serialize, Deserialize)]
struct Heavy;

impl Job for Heavy {
    const NAME: &'static str = "heavy";
}

pub(crate) async fn a_type_takes_no_more_places_than_it_may<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..40).map(|_| Heavy).collect::<Vec<_>>()).await.unwrap();
    queue.push_many(&(0..40).map(note).collect::<Vec<_>>()).await.unwrap();
    let (notes, heavy) = (Arc::new(Crowd::default()), Arc::new(Crowd::default()));
    let worker = Worker::new(queue.clone(), WorkerConfig { concurrency: 10, ..quick() })
        .handle_with(Arc::clone(&notes), |notes: Arc<Crowd>, _: Note, _| notes.join())
        .handle_with(Arc::clone(&heavy), |heavy: Arc<Crowd>, _: Heavy, _| heavy.join())
        .at_most::<Heavy>(2);
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(heavy.most(), 2);
    assert!(notes.most() > 2, "{}", notes.most());
}

pub(crate) async fn long_jobs_are_left_to_other_workers<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..100).map(note).collect::<Vec<_>>()).await.unwrap();
    let (worker, mut runs) = sticker(queue.clone(), WorkerConfig { concurrency: 3, ..quick() });
    let worker = start(worker);
    for _ in 0..3 {
        within(runs.recv()).await.unwrap();
    }
    sleep(Duration::from_millis(200)).await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.running, stats.ready), (3, 97));
    worker.kill().await;
}

pub(crate) async fn what_was_fetched_ahead_and_cannot_start_goes_back<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    // Short jobs, so that it fetches ahead, and then one that never ends.
    let mut notes: Vec<_> = (0..1000).map(note).collect();
    notes[900] = note("stuck");
    queue.push_many(&notes).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let pass = Arc::clone(&gate);
    let first = Worker::new(queue.clone(), WorkerConfig { concurrency: 1, ..quick() });
    let (report, mut stuck) = mpsc::unbounded_channel();
    let first = start(first.handle(move |note: Note, _| {
        let (report, pass) = (report.clone(), Arc::clone(&pass));
        async move {
            if note.text == "stuck" {
                report.send(()).unwrap();
                pass.acquire().await?.forget();
            }
            Ok::<(), BoxError>(())
        }
    }));
    within(stuck.recv()).await.unwrap();
    // Long before the leases end, another worker has the others.
    let (second, _runs) = recorder(fixture.connect(), quick());
    let second = start(second);
    let stats = settled(&queue, |stats| stats.live() == 1).await;
    assert_eq!(stats.running, 1);
    gate.add_permits(1);
    settled(&queue, |stats| stats.live() == 0).await;
    first.stop().await;
    second.stop().await;
}
