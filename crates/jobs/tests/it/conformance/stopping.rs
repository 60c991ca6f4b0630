use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use greenwave_jobs::{BoxError, JobContext, Worker};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use crate::support::{Fixture, Note, note, quick, recorder, settled, start, sticker, within};

pub(crate) async fn a_stopping_worker_lets_its_jobs_end<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..5).map(note).collect::<Vec<_>>()).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let (report, mut started) = mpsc::unbounded_channel();
    let pass = Arc::clone(&gate);
    let worker = start(Worker::new(queue.clone(), quick()).handle(move |_: Note, context: JobContext| {
        report.send(context).unwrap();
        let pass = Arc::clone(&pass);
        async move { pass.acquire().await.map(drop) }
    }));
    let mut contexts = Vec::new();
    for _ in 0..5 {
        contexts.push(within(started.recv()).await.unwrap());
    }
    worker.ask_to_stop();
    for context in &contexts {
        within(context.cancellation().cancelled()).await;
    }
    // It is stopping: what is pushed now stays.
    queue.push(&note("too late")).await.unwrap();
    gate.add_permits(5);
    worker.stop().await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.live(), stats.ready), (1, 1));
}

pub(crate) async fn what_outlasts_the_grace_returns_to_the_queue<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("endless")).await.unwrap();
    let (worker, mut runs) = sticker(queue.clone(), quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap().ready, 1);

    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 1, "the interrupted attempt is not counted");
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

pub(crate) async fn an_error_while_stopping_is_no_failure<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&note("careful")).await.unwrap();
    let (report, mut started) = mpsc::unbounded_channel();
    let worker = start(Worker::new(queue.clone(), quick()).handle(move |_: Note, context: JobContext| {
        report.send(context.attempt).unwrap();
        async move {
            context.cancellation().cancelled().await;
            Err::<(), _>("the worker stops")
        }
    }));
    within(started.recv()).await.unwrap();
    worker.stop().await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.live(), stats.dead), (1, 1, 0));
}

pub(crate) async fn a_stop_under_load_loses_and_repeats_nothing<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..500).map(note).collect::<Vec<_>>()).await.unwrap();
    let (report, mut runs) = mpsc::unbounded_channel();
    let worker = || {
        let report = report.clone();
        start(Worker::new(queue.clone(), quick()).handle(move |_: Note, context: JobContext| {
            let report = report.clone();
            async move {
                sleep(Duration::from_millis(2)).await;
                report.send(context.id).map_err(BoxError::from)
            }
        }))
    };
    let mut ids = HashSet::new();
    // Six workers, each stopped in the middle of its work, and one that does the rest.
    for _ in 0..6 {
        let worker = worker();
        for _ in 0..30 {
            let id = within(runs.recv()).await.unwrap();
            assert!(ids.insert(id), "job {id} ran twice");
        }
        worker.stop().await;
        assert_eq!(queue.stats().await.unwrap().running, 0);
    }
    let last = worker();
    settled(&queue, |stats| stats.live() == 0).await;
    last.stop().await;
    while let Ok(id) = runs.try_recv() {
        assert!(ids.insert(id), "job {id} ran twice");
    }
    assert_eq!(ids.len(), 500);
}
