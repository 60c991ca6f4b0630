use std::collections::BTreeMap;
use std::time::Duration;

use expect_test::expect;
use greenwave_jobs::{
    Backend, DeadReason, Error, Job, JobContext, JobFilter, JobId, PushOptions, Queue, QueueLimits,
    SqlBackend, Step, Unique, Worker, WorkerConfig, Workflow,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::flows::SqlFixture;
use crate::support::{Note, note, quick, recorder, settled, sleepy, start, sticker, within};

/// Fails as long as its world is broken.
#[derive(Clone, Default)]
struct Broken(std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>);

impl Broken {
    fn set(&self, broken: &[&'static str]) {
        *self.0.lock().unwrap() = broken.to_vec();
    }

    /// A worker that reports the notes it gets, and fails those that are broken for good.
    fn worker<B: Backend>(&self, queue: Queue<B>) -> (Worker<B>, mpsc::UnboundedReceiver<String>) {
        let (report, runs) = mpsc::unbounded_channel();
        let broken = self.clone();
        let worker = Worker::new(queue, quick()).handle(move |note: Note, _: JobContext| {
            let fails = broken.0.lock().unwrap().iter().any(|broken| *broken == note.text);
            report.send(note.text).ok();
            async move { if fails { Err(greenwave_jobs::Discard("broken".into())) } else { Ok(()) } }
        });
        (worker, runs)
    }
}

async fn next(runs: &mut mpsc::UnboundedReceiver<String>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(within(runs.recv()).await.unwrap());
    }
    texts.sort_unstable();
    texts
}

/// The dead by id: why, and the last they said.
async fn dead<B: SqlBackend>(queue: &Queue<B>) -> BTreeMap<JobId, (DeadReason, String)> {
    let dead = queue.dead_jobs(100).await.unwrap();
    let said =
        |job: &greenwave_jobs::DeadJob| job.errors.last().map(|last| last.error.clone()).unwrap_or_default();
    dead.iter().map(|job| (job.id, (job.reason, said(job)))).collect()
}

pub(crate) async fn a_job_starts_when_all_that_it_waits_for_are_done<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    let root = flow.add(&note("root"));
    let left = flow.add_after(&note("left"), [root]);
    let right = flow.add_after(&note("right"), [root, root]);
    flow.add_after(&note("join"), [left, right]);
    flow.add_after_all(&note("callback"));
    assert_eq!((flow.len(), flow.is_empty()), (5, false));
    // It polls once an hour, so each must be woken for the next.
    let (worker, mut runs) = recorder(queue.clone(), sleepy());
    let worker = start(worker);
    let pushed = queue.push_workflow(&flow).await.unwrap();
    let mut texts = Vec::new();
    for _ in 0..5 {
        texts.push(within(runs.recv()).await.unwrap().0.text);
    }
    texts[1..3].sort_unstable();
    assert_eq!(texts, ["root", "left", "right", "join", "callback"]);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
    assert_eq!(fixture.edges().await, 0, "nothing is left of it");
    assert_eq!(pushed.ids().len(), 5);
    assert!(pushed.ids().is_sorted());
    assert_eq!(pushed.id(left), Some(pushed.ids()[1]));
}

pub(crate) async fn a_workflow_is_pushed_in_a_transaction_or_not_at_all<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    let first = flow.add(&note("first"));
    flow.add_after(&note("second"), [first]);
    fixture.push_workflow_in(&queue, &flow, false).await;
    assert_eq!((queue.stats().await.unwrap().live(), fixture.edges().await), (0, 0));
    fixture.push_workflow_in(&queue, &flow, true).await;
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.blocked, fixture.edges().await), (1, 1, 1));
    assert_eq!(queue.push_workflow(&Workflow::new()).await.unwrap().ids(), []);
}

/// Both workers complete halves of every pair at the same time.
pub(crate) async fn predecessors_that_end_at_once_free_a_job_once<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    let halves: Vec<(Step, Step)> =
        (0..300).map(|n| (flow.add(&note(format!("l{n}"))), flow.add(&note(format!("r{n}"))))).collect();
    for (n, (left, right)) in halves.into_iter().enumerate() {
        // Each waits for its own pair, and a chain of them crosses the pairs.
        flow.add_after(&note(format!("join {n}")), [left, right]);
    }
    flow.add_after_all(&note("end"));
    queue.push_workflow(&flow).await.unwrap();
    let (mut workers, mut all) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (worker, runs) = recorder(fixture.connect(), WorkerConfig { concurrency: 7, ..quick() });
        workers.push(start(worker));
        all.push(runs);
    }
    settled(&queue, |stats| stats.live() == 0).await;
    for worker in workers {
        worker.stop().await;
    }
    let mut texts = Vec::new();
    for runs in &mut all {
        while let Ok((note, _)) = runs.try_recv() {
            texts.push(note.text);
        }
    }
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), 901, "each ran");
    assert_eq!((fixture.edges().await, queue.stats().await.unwrap().dead), (0, 0));
}

pub(crate) async fn what_waits_for_a_dead_job_is_abandoned_unless_it_runs_anyway<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let broken = Broken::default();
    broken.set(&["charge"]);
    let (worker, mut runs) = broken.worker(queue.clone());
    let mut flow = Workflow::new();
    let charge = flow.add(&note("charge"));
    let pack = flow.add(&note("pack"));
    let ship = flow.add_after(&note("ship"), [charge, pack]);
    let thank = flow.add_after(&note("thank"), [ship]);
    let tidy = flow.add_after(&note("tidy"), [charge, thank, pack]);
    flow.run_anyway(tidy);
    let pushed = queue.push_workflow(&flow).await.unwrap();
    let worker = start(worker);
    assert_eq!(next(&mut runs, 3).await, ["charge", "pack", "tidy"]);
    settled(&queue, |stats| stats.live() == 0).await;
    let id = |step| pushed.id(step).unwrap();
    let told = |because: JobId| format!("job {because}, for which this one waited, is dead");
    let expected = BTreeMap::from([
        (id(charge), (DeadReason::Discarded, "broken".to_owned())),
        (id(ship), (DeadReason::Abandoned, told(id(charge)))),
        (id(thank), (DeadReason::Abandoned, told(id(ship)))),
    ]);
    assert_eq!(dead(&queue).await, expected);

    // It brings back what it took along; what ran anyway has run.
    broken.set(&[]);
    assert!(queue.retry_dead(id(charge)).await.unwrap());
    assert_eq!(next(&mut runs, 3).await, ["charge", "ship", "thank"]);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(queue.stats().await.unwrap(), Default::default());
    assert_eq!(fixture.edges().await, 0);
}

pub(crate) async fn a_job_comes_back_when_nothing_it_waits_for_is_dead<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let broken = Broken::default();
    broken.set(&["one", "two"]);
    let (worker, mut runs) = broken.worker(queue.clone());
    let mut flow = Workflow::new();
    let (one, two) = (flow.add(&note("one")), flow.add(&note("two")));
    let both = flow.add_after(&note("both"), [one, two]);
    let alone = flow.add_after(&note("alone"), [two]);
    let pushed = queue.push_workflow(&flow).await.unwrap();
    let id = |step| pushed.id(step).unwrap();
    let worker = start(worker);
    assert_eq!(next(&mut runs, 2).await, ["one", "two"]);
    settled(&queue, |stats| stats.dead == 4).await;

    broken.set(&[]);
    assert!(queue.retry_dead(id(one)).await.unwrap());
    assert_eq!(next(&mut runs, 1).await, ["one"]);
    settled(&queue, |stats| stats.live() == 0).await;
    assert_eq!(dead(&queue).await.into_keys().collect::<Vec<_>>(), [id(two), id(both), id(alone)]);

    // Asked for by itself it waits for the dead no more.
    assert!(queue.retry_dead(id(alone)).await.unwrap());
    assert_eq!(next(&mut runs, 1).await, ["alone"]);
    assert!(queue.retry_dead(id(two)).await.unwrap());
    assert_eq!(next(&mut runs, 2).await, ["both", "two"]);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!((queue.stats().await.unwrap().dead, fixture.edges().await), (0, 0));
}

/// When both are brought back, the second waits for the first.
pub(crate) async fn an_abandoned_job_brought_back_with_its_cause_waits_for_it<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    let broken = Broken::default();
    broken.set(&["first"]);
    let mut flow = Workflow::new();
    let first = flow.add(&note("first"));
    let second = flow.add_after(&note("second"), [first]);
    let pushed = queue.push_workflow(&flow).await.unwrap();
    let (worker, mut runs) = broken.worker(queue.clone());
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 2).await;
    worker.stop().await;
    assert!(queue.retry_dead(pushed.id(first).unwrap()).await.unwrap());
    assert!(!queue.retry_dead(pushed.id(second).unwrap()).await.unwrap(), "it has come back already");
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.blocked, stats.dead), (1, 1, 0));
    assert_eq!(next(&mut runs, 1).await, ["first"]);
}

pub(crate) async fn a_job_that_kills_its_workers_abandons_what_waits_for_it<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    let poison = flow.add(&note("poison"));
    flow.add_after(&note("after"), [poison]);
    queue.push_workflow(&flow).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_millis(200), max_crashes: 1, ..quick() };
    let (worker, mut runs) = sticker(fixture.connect(), config.clone());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    worker.kill().await;
    let (worker, mut runs) = recorder(queue.clone(), config);
    let worker = start(worker);
    settled(&queue, |stats| stats.dead == 2).await;
    worker.stop().await;
    assert!(runs.try_recv().is_err());
    let reasons: Vec<_> = dead(&queue).await.into_values().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, [DeadReason::Crashed, DeadReason::Abandoned]);
}

/// A lost lease must not count down twice.
pub(crate) async fn a_job_that_runs_twice_ends_once<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    let (one, two) = (flow.add(&note("stuck")), flow.add(&note("stuck too")));
    flow.add_after(&note("after"), [one, two]);
    queue.push_workflow(&flow).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_millis(200), concurrency: 1, ..quick() };
    let (worker, mut runs) = sticker(fixture.connect(), config.clone());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    worker.kill().await;
    let (worker, mut runs) = recorder(queue.clone(), config);
    let worker = start(worker);
    let mut texts = Vec::new();
    for _ in 0..3 {
        texts.push(within(runs.recv()).await.unwrap().0.text);
    }
    assert_eq!(texts[2], "after");
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(fixture.edges().await, 0);
}

/// One job that waits for all the others; once, such a thing was quadratic elsewhere.
pub(crate) async fn ten_thousand_jobs_have_one_callback<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    for n in 0..10_000 {
        flow.add(&note(n));
    }
    flow.add_after_all(&note("all"));
    queue.push_workflow(&flow).await.unwrap();
    let (worker, mut runs) = recorder(queue.clone(), WorkerConfig { concurrency: 500, ..quick() });
    let worker = start(worker);
    for n in 0..=10_000 {
        let (note, _) = within(runs.recv()).await.unwrap();
        assert_eq!(note.text == "all", n == 10_000);
    }
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(fixture.edges().await, 0);
}

#[derive(Serialize, Deserialize)]
struct Single;

impl Job for Single {
    const NAME: &'static str = "single";

    fn unique(&self) -> Option<Unique> {
        Some(Unique::by("it"))
    }
}

pub(crate) async fn a_workflow_that_makes_no_sense_is_refused<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    let refusal = async |flow: Workflow| queue.push_workflow(&flow).await.unwrap_err().to_string();

    let (mut flow, mut other) = (Workflow::new(), Workflow::new());
    let elsewhere = other.add(&note("elsewhere"));
    flow.add_after(&note("lost"), [elsewhere]);
    expect!["the workflow cannot be pushed: job `note` waits for a step of another workflow"]
        .assert_eq(&refusal(flow).await);

    let mut flow = Workflow::new();
    flow.run_anyway(elsewhere);
    expect!["the workflow cannot be pushed: a step of another workflow was to run anyway"]
        .assert_eq(&refusal(flow).await);

    let mut flow = Workflow::new();
    flow.add(&Single);
    expect!["the workflow cannot be pushed: job `single` is unique, but a workflow's jobs must be its own"]
        .assert_eq(&refusal(flow).await);

    let mut flow = Workflow::new();
    let first = flow.add(&note("first"));
    let delay = PushOptions { delay: Some(Duration::from_secs(1)), ..Default::default() };
    flow.add_after_with(&note("second"), [first], delay);
    expect![
        "the workflow cannot be pushed: job `note` waits for others, so it cannot have a time of its own"
    ]
    .assert_eq(&refusal(flow).await);
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

pub(crate) async fn a_workflow_asks_for_room_for_its_first_jobs<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    let limits = QueueLimits { max_waiting: Some(2), ..Default::default() };
    queue.set_limits("default", limits).await.unwrap();
    let flow = |roots: usize| {
        let mut flow = Workflow::new();
        let roots: Vec<_> = (0..roots).map(|n| flow.add(&note(n))).collect();
        for n in 0..5 {
            flow.add_after(&note(n), roots.clone());
        }
        flow
    };
    let full = queue.push_workflow(&flow(3)).await.unwrap_err();
    assert!(matches!(full, Error::Full { max_waiting: 2, .. }), "{full}");
    assert_eq!(queue.stats().await.unwrap(), Default::default());
    queue.push_workflow(&flow(2)).await.unwrap();
    assert_eq!(queue.stats().await.unwrap().blocked, 5);
}

/// A person's answer to a workflow that went wrong.
pub(crate) async fn a_cancelled_or_discarded_job_takes_its_workflow_along<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let mut flow = Workflow::new();
    let first = flow.add(&note("first"));
    let second = flow.add_after(&note("second"), [first]);
    flow.add_after(&note("third"), [second]);
    let tidy = flow.add_after(&note("tidy"), [second]);
    flow.run_anyway(tidy);
    let pushed = queue.push_workflow(&flow).await.unwrap();
    assert!(queue.cancel(pushed.id(second).unwrap()).await.unwrap());
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.blocked, stats.dead), (2, 0, 2));
    let reasons: Vec<_> = dead(&queue).await.into_values().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, [DeadReason::Cancelled, DeadReason::Abandoned]);

    // What is brought back together waits as before.
    assert_eq!(queue.retry_where(&JobFilter::default()).await.unwrap(), 2);
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.blocked, stats.dead), (2, 2, 0));
    assert!(queue.cancel(pushed.id(second).unwrap()).await.unwrap());
    assert_eq!(queue.discard_where(&JobFilter::default()).await.unwrap(), 2);
    let (worker, _runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!((queue.stats().await.unwrap(), fixture.edges().await), (Default::default(), 0));
}
