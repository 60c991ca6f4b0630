use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use greenwave_jobs::{BoxError, Job, SqlBackend, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::support::{Fixture, Note, note, quick, recorder, settled, sleepy, start, within};

/// A note's, as its type says.
const QUEUE: &str = Note::QUEUE;

/// A job of another queue, whose run shows that a worker had its chance.
#[derive(Serialize, Deserialize)]
struct Tick;

impl Job for Tick {
    const NAME: &'static str = "tick";
    const QUEUE: &'static str = "ticks";
}

pub(crate) async fn a_paused_queue_starts_no_job<F: Fixture<Backend: SqlBackend>>() {
    let (fixture, queue) = F::ready().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let (report, mut ticks) = mpsc::unbounded_channel();
    let worker = |queue| {
        let (runs, report) = (Arc::clone(&runs), report.clone());
        start(
            Worker::new(queue, quick())
                .handle(move |_: Note, _| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    async { Ok::<(), BoxError>(()) }
                })
                .handle(move |_: Tick, _| {
                    let sent = report.send(());
                    async move { sent.map_err(BoxError::from) }
                }),
        )
    };
    let workers = [worker(queue.clone()), worker(fixture.connect())];
    queue.push_many(&(0..20).map(note).collect::<Vec<_>>()).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;

    // Paused by a third, while the workers know it as a queue like any other.
    fixture.connect().pause(QUEUE).await.unwrap();
    queue.push_many(&(0..20).map(note).collect::<Vec<_>>()).await.unwrap();
    for _ in 0..20 {
        queue.push(&Tick).await.unwrap();
        within(ticks.recv()).await.unwrap();
    }
    assert_eq!(runs.load(Ordering::SeqCst), 20);
    assert_eq!(queue.stats().await.unwrap().ready, 20);

    fixture.connect().resume(QUEUE).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    assert_eq!(runs.load(Ordering::SeqCst), 40);
    for worker in workers {
        worker.stop().await;
    }
}

pub(crate) async fn a_pause_in_full_flight_stops_the_flow<F: Fixture<Backend: SqlBackend>>() {
    let (fixture, queue) = F::ready().await;
    queue.push_many(&(0..1500).map(note).collect::<Vec<_>>()).await.unwrap();
    let (report, mut runs) = mpsc::unbounded_channel();
    let worker = |queue| {
        let report = report.clone();
        let config = WorkerConfig { concurrency: 5, ..quick() };
        start(Worker::new(queue, config).handle(move |_: Note, _| {
            let sent = report.send(());
            async move {
                sleep(Duration::from_millis(5)).await;
                sent.map_err(BoxError::from)
            }
        }))
    };
    let workers = [worker(queue.clone()), worker(fixture.connect())];
    for _ in 0..50 {
        within(runs.recv()).await.unwrap();
    }
    queue.pause(QUEUE).await.unwrap();
    let left = settled(&queue, |stats| stats.running == 0).await.ready;
    assert!(left > 0, "the workers were too quick for this test");
    // Both workers poll every 20 ms; what they do not start in ten times that, they do not start.
    sleep(Duration::from_millis(200)).await;
    assert_eq!(queue.stats().await.unwrap().ready, left);
    queue.resume(QUEUE).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    for worker in workers {
        worker.stop().await;
    }
}

pub(crate) async fn a_pause_outlives_every_process<F: Fixture<Backend: SqlBackend>>() {
    let (fixture, queue) = F::ready().await;
    assert_eq!(queue.paused().await.unwrap(), Vec::<String>::new());
    queue.pause(QUEUE).await.unwrap();
    queue.pause(QUEUE).await.unwrap();
    queue.pause("another").await.unwrap();
    drop(queue);
    let queue = fixture.connect();
    assert_eq!(queue.paused().await.unwrap(), ["another", QUEUE]);
    queue.resume(QUEUE).await.unwrap();
    queue.resume("never paused").await.unwrap();
    assert_eq!(queue.paused().await.unwrap(), ["another"]);
}

pub(crate) async fn a_resume_wakes_an_idle_worker<F: Fixture<Backend: SqlBackend>>() {
    let (_fixture, queue) = F::ready().await;
    let (worker, mut runs) = recorder(queue.clone(), sleepy());
    let worker = start(worker);
    queue.push(&note("before")).await.unwrap();
    within(runs.recv()).await.unwrap();
    queue.pause(QUEUE).await.unwrap();
    queue.push(&note("paused")).await.unwrap();
    queue.resume(QUEUE).await.unwrap();
    assert_eq!(within(runs.recv()).await.unwrap().0, note("paused"));
    worker.stop().await;
}
