use std::collections::HashSet;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread;
use std::time::Duration;

use greenwave_jobs::{BoxError, JobContext, JobId, Worker, WorkerConfig};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Fixture, Note, note, quick, recorder, settled, start, sticker, within};

pub(crate) async fn the_jobs_of_a_killed_worker_start_again<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    queue.push_many(&(0..5).map(note).collect::<Vec<_>>()).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_secs(1), ..quick() };
    let (victim, mut held) = sticker(queue.clone(), config.clone());
    let victim = start(victim);
    for _ in 0..5 {
        within(held.recv()).await.unwrap();
    }
    victim.kill().await;
    assert_eq!(queue.stats().await.unwrap().running, 5);

    let (worker, mut runs) = recorder(fixture.connect(), config);
    let worker = start(worker);
    for _ in 0..5 {
        assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 1);
    }
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

pub(crate) async fn a_long_job_keeps_its_lease<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    queue.push(&note("long")).await.unwrap();
    let lease = Duration::from_secs(1);
    let config = WorkerConfig { lease, ..quick() };
    let (report, mut started) = mpsc::unbounded_channel();
    let worker = |queue| {
        let report = report.clone();
        start(Worker::new(queue, config.clone()).handle(move |_: Note, _| {
            report.send(()).unwrap();
            async move {
                sleep(lease * 3).await;
                Ok::<(), BoxError>(())
            }
        }))
    };
    let workers = [worker(queue.clone()), worker(fixture.connect())];
    within(started.recv()).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    for worker in workers {
        worker.stop().await;
    }
    assert!(started.try_recv().is_err(), "it started twice");
}

pub(crate) async fn a_worker_that_lost_its_lease_cannot_complete<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    queue.push(&note("contested")).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_millis(500), ..quick() };

    // The first worker has a runtime of one thread, which its handler blocks: it shows no sign of life.
    let (report, mut started) = mpsc::unbounded_channel();
    let (go_on, blocked) = std_mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let blocking = Worker::new(fixture.connect(), config.clone()).handle(move |_: Note, _| {
        report.send(()).unwrap();
        let blocked = Arc::clone(&blocked);
        async move {
            blocked.lock().unwrap().recv().unwrap();
            Ok::<(), BoxError>(())
        }
    });
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let first = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(blocking.run(stop))
    });
    within(started.recv()).await.unwrap();

    // The second takes the job when the lease has ended, and keeps it until it is told what to do.
    let (report, mut taken) = mpsc::unbounded_channel();
    let (hands, mut handed) = mpsc::unbounded_channel();
    let second = Worker::new(queue.clone(), config).handle(move |_: Note, context: JobContext| {
        report.send(context.attempt).unwrap();
        let (hand, result) = oneshot::channel::<Result<(), &'static str>>();
        hands.send(hand).unwrap();
        async move { result.await.unwrap() }
    });
    let second = start(second);
    within(taken.recv()).await.unwrap();
    let hand = within(handed.recv()).await.unwrap();

    // Now the first wakes up, has completed the job, and says so. It must not be believed.
    go_on.send(()).unwrap();
    cancel.cancel();
    within(tokio::task::spawn_blocking(move || first.join().unwrap())).await.unwrap().unwrap();
    assert_eq!(queue.stats().await.unwrap().running, 1, "the second still holds the job");

    // The second fails, and so the job is tried again: the first's result had no effect at all.
    hand.send(Err("no luck")).unwrap();
    assert_eq!(within(taken.recv()).await.unwrap(), 2);
    within(handed.recv()).await.unwrap().send(Ok(())).unwrap();
    settled(&queue, |stats| stats == Default::default()).await;
    second.stop().await;
}

/// Once, each outage longer than a lease counted as a crash, and few of them buried whatever ran.
pub(crate) async fn a_lease_that_a_living_worker_gives_back_late_is_no_crash<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    queue.push(&note("healthy")).await.unwrap();
    // The first crash would be the last, and what is taken for one waits for an hour.
    let hour = Duration::from_secs(3600);
    let config = WorkerConfig {
        lease: Duration::from_millis(500),
        max_crashes: 1,
        retry_base: hour,
        retry_max: hour,
        ..quick()
    };

    // The first worker shows no sign of life for a while, and then goes on.
    let (report, mut started) = mpsc::unbounded_channel();
    let (go_on, blocked) = std_mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let blocking = Worker::new(fixture.connect(), config.clone()).handle(move |_: Note, _| {
        report.send(()).unwrap();
        let blocked = Arc::clone(&blocked);
        async move {
            blocked.lock().unwrap().recv().unwrap();
            std::future::pending::<Result<(), BoxError>>().await
        }
    });
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let first = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(blocking.run(stop))
    });
    within(started.recv()).await.unwrap();

    // The second finds that the lease has ended, but does not start the job at once.
    let (second, mut runs) = recorder(queue.clone(), config);
    let second = start(second);
    settled(&queue, |stats| stats.scheduled == 1).await;

    // The first drops its attempt and says so: now the job is free, and has not crashed.
    cancel.cancel();
    go_on.send(()).unwrap();
    assert_eq!(within(runs.recv()).await.unwrap().1.attempt, 1);
    within(tokio::task::spawn_blocking(move || first.join().unwrap())).await.unwrap().unwrap();
    second.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

/// The jobs that run right now, in any worker.
#[derive(Default)]
struct Arena {
    running: Mutex<HashSet<JobId>>,
}

pub(crate) async fn two_workers_never_run_one_job_at_once<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    queue.push_many(&(0..500).map(note).collect::<Vec<_>>()).await.unwrap();
    let arena = Arc::new(Arena::default());
    let (report, mut runs) = mpsc::unbounded_channel();
    let worker = |queue| {
        let (arena, report) = (Arc::clone(&arena), report.clone());
        start(Worker::new(queue, quick()).handle(move |_: Note, context: JobContext| {
            let (arena, report) = (Arc::clone(&arena), report.clone());
            async move {
                let alone = arena.running.lock().unwrap().insert(context.id);
                sleep(Duration::from_millis(context.id.get().unsigned_abs() % 5)).await;
                arena.running.lock().unwrap().remove(&context.id);
                report.send((context.id, alone)).map_err(BoxError::from)
            }
        }))
    };
    let workers = [worker(queue.clone()), worker(fixture.connect())];
    settled(&queue, |stats| stats.live() == 0).await;
    for worker in workers {
        worker.stop().await;
    }
    let mut ids = HashSet::new();
    while let Ok((id, alone)) = runs.try_recv() {
        assert!(alone, "job {id} ran twice at once");
        assert!(ids.insert(id), "job {id} ran twice");
    }
    assert_eq!(ids.len(), 500);
}
