use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use greenwave_jobs::{
    BoxError, Error, Job, JobContext, PushOptions, Queue, QueueLimits, Rate, SqlBackend, Worker, WorkerConfig,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::unique::Database;
use crate::support::{Running, note, quick, settled, sleepy, start, within};

/// A job of a tenant, or of nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Task {
    tenant: String,
}

const QUEUE: &str = "tasks";

impl Job for Task {
    const NAME: &'static str = "task";
    const QUEUE: &'static str = QUEUE;

    fn key(&self) -> Option<String> {
        Some(self.tenant.clone())
    }
}

fn tasks(tenant: &str, count: usize) -> Vec<Task> {
    vec![Task { tenant: tenant.to_owned() }; count]
}

/// Another kind in the same queue.
#[derive(Serialize, Deserialize)]
struct Report;

impl Job for Report {
    const NAME: &'static str = "report";
    const QUEUE: &'static str = QUEUE;
}

/// What runs right now in any worker, and the most that ever did.
#[derive(Default)]
struct Arena {
    running: Mutex<HashMap<String, usize>>,
    most: Mutex<HashMap<String, usize>>,
}

impl Arena {
    fn change(&self, what: &str, by: isize) {
        let mut running = self.running.lock().unwrap();
        let count = running.entry(what.to_owned()).or_default();
        *count = count.checked_add_signed(by).unwrap();
        let mut most = self.most.lock().unwrap();
        let most = most.entry(what.to_owned()).or_default();
        *most = (*most).max(*count);
    }

    async fn enter(&self, tenant: &str, name: &str) {
        let what = [format!("tenant {tenant}"), format!("name {name}"), "all".to_owned()];
        what.iter().for_each(|what| self.change(what, 1));
        sleep(Duration::from_millis(5)).await;
        what.iter().for_each(|what| self.change(what, -1));
    }

    fn most(&self, what: &str) -> usize {
        self.most.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

/// A worker for tasks and reports.
fn worker<B: SqlBackend>(queue: Queue<B>, arena: &Arc<Arena>, config: WorkerConfig) -> Running {
    let (tasks, reports) = (Arc::clone(arena), Arc::clone(arena));
    start(
        Worker::new(queue, config)
            .handle(move |task: Task, _| {
                let arena = Arc::clone(&tasks);
                async move {
                    arena.enter(&task.tenant, Task::NAME).await;
                    Ok::<(), BoxError>(())
                }
            })
            .handle(move |_: Report, _| {
                let arena = Arc::clone(&reports);
                async move {
                    arena.enter("", Report::NAME).await;
                    Ok::<(), BoxError>(())
                }
            }),
    )
}

/// Runs all jobs in two workers that share nothing but the database.
async fn drain<F: Database>(fixture: &F, queue: &Queue<F::Backend>) -> Arc<Arena> {
    let arena = Arc::default();
    let workers = [worker(queue.clone(), &arena, quick()), worker(fixture.connect(), &arena, quick())];
    settled(queue, |stats| stats.live() == 0).await;
    for worker in workers {
        worker.stop().await;
    }
    arena
}

pub(crate) async fn a_queue_runs_no_more_than_its_limit_in_all_workers<F: Database>() {
    let (fixture, queue) = F::ready().await;
    queue.set_limits(QUEUE, QueueLimits { max_running: Some(3), ..Default::default() }).await.unwrap();
    queue.push_many(&tasks("", 60)).await.unwrap();
    queue.push_many(&tasks("keyed", 20)).await.unwrap();
    assert_eq!(drain(&fixture, &queue).await.most("all"), 3);
    queue.clear_limits(QUEUE).await.unwrap();
    queue.push_many(&tasks("", 60)).await.unwrap();
    assert!(drain(&fixture, &queue).await.most("all") > 3, "the limit is gone");
}

/// Not at the next poll, which is an hour away.
pub(crate) async fn a_job_that_ends_under_a_limit_makes_room_at_once<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    queue.set_limits(QUEUE, QueueLimits { max_running: Some(1), ..Default::default() }).await.unwrap();
    let worker = worker(queue.clone(), &Arc::default(), sleepy());
    queue.push_many(&tasks("", 10)).await.unwrap();
    queue.push_many(&tasks("keyed", 10)).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
}

pub(crate) async fn a_key_runs_no_more_than_its_limit_in_all_workers<F: Database>() {
    let (fixture, queue) = F::ready().await;
    queue
        .set_limits(QUEUE, QueueLimits { max_running_per_key: Some(1), ..Default::default() })
        .await
        .unwrap();
    for tenant in ["a", "b", "c"] {
        queue.push_many(&tasks(tenant, 20)).await.unwrap();
    }
    queue.push_many(&tasks("", 40)).await.unwrap();
    let arena = drain(&fixture, &queue).await;
    for tenant in ["a", "b", "c"] {
        assert_eq!(arena.most(&format!("tenant {tenant}")), 1);
    }
    assert!(arena.most("tenant ") > 1, "what has no key is free of it");
    assert!(arena.most("all") > 3, "keys run beside each other");
}

pub(crate) async fn a_name_runs_no_more_than_its_limit_and_others_pass_it<F: Database>() {
    let (fixture, queue) = F::ready().await;
    let max_running_per_job = BTreeMap::from([(Task::NAME.to_owned(), 2)]);
    queue.set_limits(QUEUE, QueueLimits { max_running_per_job, ..Default::default() }).await.unwrap();
    for tenant in ["", "a", "b"] {
        queue.push_many(&tasks(tenant, 20)).await.unwrap();
    }
    for _ in 0..40 {
        queue.push(&Report).await.unwrap();
    }
    let arena = drain(&fixture, &queue).await;
    assert_eq!(arena.most("name task"), 2);
    assert!(arena.most("name report") > 2, "they waited behind those at their limit");
}

/// Once a fetch looked no further than at as many keys as it wanted jobs.
pub(crate) async fn keys_that_are_held_back_do_not_hold_up_the_others<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let max_running_per_job = BTreeMap::from([(Task::NAME.to_owned(), 1)]);
    queue.set_limits(QUEUE, QueueLimits { max_running_per_job, ..Default::default() }).await.unwrap();
    for tenant in ["", "a", "b", "c", "d"] {
        queue.push_many(&tasks(tenant, 3)).await.unwrap();
    }
    let keyed = PushOptions { key: Some("e".to_owned()), ..Default::default() };
    queue.push_with(&Report, keyed).await.unwrap();
    let (report, mut started) = mpsc::unbounded_channel();
    let reported = report.clone();
    let config = WorkerConfig { concurrency: 2, ..quick() };
    let worker = start(
        Worker::new(queue, config)
            .handle(move |_: Task, _| {
                report.send(Task::NAME).unwrap();
                std::future::pending::<Result<(), BoxError>>()
            })
            .handle(move |_: Report, _| {
                let sent = reported.send(Report::NAME);
                async move { sent.map_err(BoxError::from) }
            }),
    );
    let mut both = [within(started.recv()).await.unwrap(), within(started.recv()).await.unwrap()];
    both.sort_unstable();
    assert_eq!(both, [Report::NAME, Task::NAME]);
    worker.kill().await;
}

pub(crate) async fn a_rate_holds_in_all_workers<F: Database>() {
    let (fixture, queue) = F::ready().await;
    let rate = Rate { jobs: 10, per: Duration::from_millis(500) };
    queue.set_limits(QUEUE, QueueLimits { rate: Some(rate), ..Default::default() }).await.unwrap();
    queue.push_many(&tasks("", 30)).await.unwrap();
    let began = Instant::now();
    drain(&fixture, &queue).await;
    // A full bucket at once, then twenty more at twenty a second.
    let least = Duration::from_millis(950);
    assert!(began.elapsed() >= least, "30 jobs took {:?}", began.elapsed());
}

/// Slots that nobody gives back are free when the leases end.
pub(crate) async fn the_slots_of_a_killed_worker_are_free_again<F: Database>() {
    let (fixture, queue) = F::ready().await;
    queue.set_limits(QUEUE, QueueLimits { max_running: Some(2), ..Default::default() }).await.unwrap();
    queue.push_many(&tasks("", 4)).await.unwrap();
    let config = WorkerConfig { lease: Duration::from_secs(1), ..quick() };
    let (report, mut held) = mpsc::unbounded_channel();
    let victim = start(Worker::new(queue.clone(), config).handle(move |_: Task, _| {
        report.send(()).unwrap();
        std::future::pending::<Result<(), BoxError>>()
    }));
    within(held.recv()).await.unwrap();
    within(held.recv()).await.unwrap();
    victim.kill().await;
    assert_eq!(drain(&fixture, &queue).await.most("all"), 2);
}

/// The order in which tenants' jobs start where one place serves them all.
async fn order<F: Database>(queue: &Queue<F::Backend>, count: usize) -> Vec<String> {
    let (report, mut runs) = mpsc::unbounded_channel();
    let config = WorkerConfig { concurrency: 1, ..quick() };
    let worker = start(Worker::new(queue.clone(), config).handle(move |task: Task, _: JobContext| {
        let sent = report.send(task.tenant);
        async move { sent.map_err(BoxError::from) }
    }));
    let mut tenants = Vec::new();
    for _ in 0..count {
        tenants.push(within(runs.recv()).await.unwrap());
    }
    worker.stop().await;
    tenants
}

pub(crate) async fn no_tenant_waits_for_the_backlog_of_another<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&tasks("m", 3000)).await.unwrap();
    let order_of_the_first = order::<F>(&queue, 5).await;
    assert_eq!(order_of_the_first, ["m"; 5]);
    queue.push_many(&tasks("a", 10)).await.unwrap();
    queue.push_many(&tasks("z", 10)).await.unwrap();
    queue.push_many(&tasks("", 10)).await.unwrap();
    let tenants = order::<F>(&queue, 40).await;
    // All four by turns, whatever the batches are; a batch that was fetched before may come first.
    let turns = |tenant: &str| tenants.iter().filter(|own| *own == tenant).count();
    for tenant in ["a", "z", ""] {
        assert!(turns(tenant) >= 9, "{tenant:?} had {} turns of 40: {tenants:?}", turns(tenant));
    }
}

pub(crate) async fn jobs_of_a_key_start_by_priority_and_age<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let mut expected = Vec::new();
    for (at, priority) in [9, 0, 5, 5].into_iter().enumerate() {
        let options = PushOptions { priority: Some(priority), ..Default::default() };
        expected.push((priority, queue.push_with(&tasks("a", 1)[0], options).await.unwrap().id, at));
    }
    expected.sort_unstable();
    let (report, mut runs) = mpsc::unbounded_channel();
    let config = WorkerConfig { concurrency: 1, ..quick() };
    let worker = start(Worker::new(queue, config).handle(move |_: Task, context: JobContext| {
        let sent = report.send(context.id);
        async move { sent.map_err(BoxError::from) }
    }));
    for (_, id, _) in expected {
        assert_eq!(within(runs.recv()).await.unwrap(), id);
    }
    worker.stop().await;
}

/// Keys are not known before the first job has one, and a worker that sleeps must not miss it.
pub(crate) async fn the_first_keyed_job_of_a_queue_wakes_an_idle_worker<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let arena = Arc::default();
    let worker = worker(queue.clone(), &arena, sleepy());
    queue.push_many(&tasks("", 1)).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    queue.push_many(&tasks("keyed", 1)).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    assert_eq!(arena.most("tenant keyed"), 1);
}

pub(crate) async fn limits_are_kept_and_checked<F: Database>() {
    let (fixture, queue) = F::ready().await;
    let limits = QueueLimits {
        max_running: Some(10),
        max_running_per_key: Some(1),
        max_running_per_job: BTreeMap::from([("task".to_owned(), 2)]),
        rate: Some(Rate { jobs: 100, per: Duration::from_secs(60) }),
        max_waiting: Some(1000),
    };
    assert_eq!(queue.limits(QUEUE).await.unwrap(), QueueLimits::default());
    queue.set_limits(QUEUE, limits.clone()).await.unwrap();
    assert_eq!(fixture.connect().limits(QUEUE).await.unwrap(), limits);
    assert_eq!(queue.limits("another").await.unwrap(), QueueLimits::default());
    let zero = Some(Rate { jobs: 1, per: Duration::ZERO });
    for senseless in [
        QueueLimits { max_running: Some(0), ..Default::default() },
        QueueLimits { max_waiting: Some(0), ..Default::default() },
        QueueLimits { rate: zero, ..Default::default() },
    ] {
        let refused = queue.set_limits(QUEUE, senseless).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    }
    assert_eq!(queue.limits(QUEUE).await.unwrap(), limits);
    queue.clear_limits(QUEUE).await.unwrap();
    assert_eq!(queue.limits(QUEUE).await.unwrap(), QueueLimits::default());
}

pub(crate) async fn a_full_queue_refuses_pushes_until_it_has_room<F: Database>() {
    let (fixture, queue) = F::ready().await;
    let bound = QueueLimits { max_waiting: Some(10), ..Default::default() };
    queue.set_limits(QUEUE, bound).await.unwrap();
    queue.push_many(&tasks("", 4)).await.unwrap();
    queue.push_many(&tasks("keyed", 5)).await.unwrap();
    let full = |result: Result<_, Error>| match result {
        Err(Error::Full { queue, max_waiting }) => assert_eq!((queue.as_str(), max_waiting), (QUEUE, 10)),
        Ok(()) => panic!("it was stored"),
        Err(error) => panic!("{error:?}"),
    };
    full(queue.push_many(&tasks("", 2)).await.map(drop));
    queue.push(&tasks("", 1)[0]).await.unwrap();
    full(queue.push(&tasks("", 1)[0]).await.map(drop));
    let late = PushOptions { delay: Some(Duration::from_secs(3600)), ..Default::default() };
    full(queue.push_with(&tasks("", 1)[0], late).await.map(drop));
    full(fixture.connect().push(&Report).await.map(drop));
    assert_eq!(queue.stats().await.unwrap().ready, 10);
    queue.push(&note("another queue")).await.unwrap();

    let arena = Arc::default();
    let worker = worker(queue.clone(), &arena, quick());
    let room = async {
        while let Err(error) = queue.push(&Report).await {
            full(Err(error));
            sleep(Duration::from_millis(10)).await;
        }
    };
    within(room).await;
    worker.stop().await;
}
