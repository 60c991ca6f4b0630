use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use greenwave_jobs::{BoxError, Error, Job, JobContext, PushOptions, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Fixture, note, quick, recorder, settled, sleepy, start, within};

pub(crate) async fn a_pushed_job_runs<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let id = queue.push(&note("hello")).await.unwrap().id;
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    let (ran, context) = within(runs.recv()).await.unwrap();
    assert_eq!((ran, context.id, context.attempt, context.max_attempts), (note("hello"), id, 1, 3));
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default(), "a completed job leaves the table");
}

pub(crate) async fn a_rolled_back_transaction_pushes_nothing<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    fixture.push_in_transaction(&queue, &[note("a"), note("b")], false).await;
    assert_eq!(queue.stats().await.unwrap().live(), 0);
}

pub(crate) async fn a_committed_transaction_pushes_all<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    fixture.push_in_transaction(&queue, &[note("a"), note("b"), note("c")], true).await;
    assert_eq!(queue.stats().await.unwrap().ready, 3);
}

pub(crate) async fn a_delayed_job_waits<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let delay = Duration::from_millis(500);
    let pushed = Instant::now();
    queue.push_with(&note("late"), PushOptions { delay: Some(delay), ..Default::default() }).await.unwrap();
    queue.push(&note("soon")).await.unwrap();
    assert_eq!(queue.stats().await.unwrap().scheduled, 1);

    let (worker, mut runs) = recorder(queue, quick());
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().0, note("soon"));
    assert_eq!(within(runs.recv()).await.unwrap().0, note("late"));
    // The clock that counts is the database's; it may read a little ahead of this one.
    assert!(pushed.elapsed() >= delay - Duration::from_millis(50), "it ran after {:?}", pushed.elapsed());
    worker.stop().await;
}

pub(crate) async fn urgent_jobs_start_first<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    for (text, priority) in [("later", 9), ("first", 0), ("then", 5), ("then this", 5)] {
        queue
            .push_with(&note(text), PushOptions { priority: Some(priority), ..Default::default() })
            .await
            .unwrap();
    }
    let (worker, mut runs) = recorder(queue, WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    for expected in ["first", "then", "then this", "later"] {
        assert_eq!(within(runs.recv()).await.unwrap().0, note(expected));
    }
    worker.stop().await;
}

pub(crate) async fn five_thousand_pushed_at_once_all_run<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    assert_eq!(queue.push_many::<crate::support::Note>(&[]).await.unwrap(), []);
    let notes: Vec<_> = (0..5000).map(note).collect();
    let ids = queue.push_many(&notes).await.unwrap();
    assert_eq!(ids.len(), 5000);
    let ids: Vec<_> = ids.into_iter().map(|pushed| pushed.id).collect();
    assert!(ids.is_sorted(), "the ids come in the order of the jobs");

    let (worker, mut runs) = recorder(queue.clone(), WorkerConfig { concurrency: 1000, ..quick() });
    let began = Instant::now();
    let worker = start(worker);
    let mut texts = BTreeSet::new();
    for _ in 0..5000 {
        let (note, context) = within(runs.recv()).await.unwrap();
        assert_eq!(ids[note.text.parse::<usize>().unwrap()], context.id);
        texts.insert(note.text);
    }
    println!("drained 5000 jobs at {:.0} a second", 5000.0 / began.elapsed().as_secs_f64());
    assert_eq!(texts.len(), 5000);
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap().live(), 0);
}

pub(crate) async fn any_text_survives<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let awkward = "'; DROP TABLE jobs; -- \0 \\ \" \u{1f30a} \u{202e}\n{}";
    queue.push(&note(awkward)).await.unwrap();
    queue.push_many(&[note(awkward), note("")]).await.unwrap();
    let (worker, mut runs) = recorder(queue, WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    for expected in [awkward, awkward, ""] {
        assert_eq!(within(runs.recv()).await.unwrap().0, note(expected));
    }
    worker.stop().await;
}

pub(crate) async fn a_push_wakes_an_idle_worker<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let (worker, mut runs) = recorder(queue.clone(), sleepy());
    let worker = start(worker);
    for round in 0..3 {
        queue.push(&note(round)).await.unwrap();
        assert_eq!(within(runs.recv()).await.unwrap().0, note(round));
    }
    worker.stop().await;
}

pub(crate) async fn a_wake_after_the_commit_wakes_an_idle_worker<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    let (worker, mut runs) = recorder(queue.clone(), sleepy());
    let worker = start(worker);
    queue.push(&note("first")).await.unwrap();
    within(runs.recv()).await.unwrap();
    fixture.push_in_transaction(&queue, &[note("second")], true).await;
    queue.wake();
    assert_eq!(within(runs.recv()).await.unwrap().0, note("second"));
    worker.stop().await;
}

/// As the note, but in a queue of its own.
#[derive(Serialize, Deserialize)]
struct Elsewhere;

impl Job for Elsewhere {
    const NAME: &'static str = "elsewhere";
    const QUEUE: &'static str = "elsewhere";
}

pub(crate) async fn a_worker_leaves_other_queues_alone<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push(&Elsewhere).await.unwrap();
    queue.push(&note("mine")).await.unwrap();
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    settled(&queue, |stats| stats.running == 0).await;
    worker.stop().await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.dead), (1, 0));
}

pub(crate) async fn every_queue_of_a_worker_gets_its_turn<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..100).map(note).collect::<Vec<_>>()).await.unwrap();
    queue.push(&Elsewhere).await.unwrap();
    let (report, mut runs) = mpsc::unbounded_channel();
    let also = report.clone();
    let config = WorkerConfig { concurrency: 1, ..quick() };
    let worker = Worker::new(queue, config)
        .handle(move |_: crate::support::Note, _| {
            let sent = report.send("note");
            async move {
                // Long enough for the other queue to be asked meanwhile.
                sleep(Duration::from_millis(20)).await;
                sent.map_err(BoxError::from)
            }
        })
        .handle(move |_: Elsewhere, _: JobContext| {
            let sent = also.send("elsewhere");
            async move { sent.map_err(BoxError::from) }
        });
    let worker = start(worker);
    let mut before = 0;
    while within(runs.recv()).await.unwrap() == "note" {
        before += 1;
    }
    assert!(before < 10, "the other queue waited for {before} jobs of the first");
    worker.stop().await;
}

pub(crate) async fn eight_may_migrate_at_once<F: Fixture>() {
    let fixture = F::empty().await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let queue = fixture.connect();
        tasks.spawn(async move { queue.migrate().await });
    }
    for result in within(tasks.join_all()).await {
        result.unwrap();
    }
    let queue = fixture.connect();
    queue.migrate().await.unwrap();
    queue.push(&note("works")).await.unwrap();
}

pub(crate) async fn a_worker_without_tables_says_so<F: Fixture>() {
    let fixture = F::empty().await;
    let (worker, _runs) = recorder(fixture.connect(), quick());
    let error = within(worker.run(CancellationToken::new())).await.unwrap_err();
    assert!(matches!(error, Error::NotMigrated), "{error:?}");
}

pub(crate) async fn pushes_of_many_tasks_are_each_answered_with_their_own<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let mut tasks = JoinSet::new();
    for n in 0..500 {
        let queue = queue.clone();
        tasks.spawn(async move { (queue.push(&note(n)).await.unwrap().id, n.to_string()) });
    }
    let pushed: HashMap<_, _> = within(tasks.join_all()).await.into_iter().collect();
    assert_eq!(pushed.len(), 500);
    assert_eq!(queue.stats().await.unwrap().ready, 500);
    let (worker, mut runs) = recorder(queue, quick());
    let worker = start(worker);
    for _ in 0..500 {
        let (note, context) = within(runs.recv()).await.unwrap();
        assert_eq!(pushed.get(&context.id), Some(&note.text));
    }
    worker.stop().await;
}

pub(crate) async fn a_job_that_the_database_refuses_fails_alone<F: Fixture>() {
    let (fixture, queue) = F::ready().await;
    fixture.execute(F::REFUSE).await;
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let queue = queue.clone();
        let text = if n % 20 == 7 { "bad".to_owned() } else { n.to_string() };
        tasks.spawn(async move { (queue.push(&note(&text)).await.is_err(), text) });
    }
    for (failed, text) in within(tasks.join_all()).await {
        assert_eq!(failed, text == "bad", "{text}");
    }
    assert_eq!(queue.stats().await.unwrap().ready, 190);
}

pub(crate) async fn a_dropped_pusher_changes_nothing_for_the_others<F: Fixture>() {
    let (_fixture, queue) = F::ready().await;
    let mut stay = JoinSet::new();
    let mut go = JoinSet::new();
    for n in 0..400 {
        let queue = queue.clone();
        let push = async move { queue.push(&note(n)).await.map(|pushed| pushed.id) };
        if n % 2 == 0 {
            stay.spawn(push)
        } else {
            go.spawn(push)
        };
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    go.abort_all();
    let mut ids = HashSet::new();
    for id in within(stay.join_all()).await {
        ids.insert(id.unwrap());
    }
    assert_eq!(ids.len(), 200);
    // And the next finds all in order.
    within(queue.push(&note("after"))).await.unwrap();
    assert!(queue.stats().await.unwrap().ready >= 201);
}
