use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use greenwave_jobs::{
    BoxError, DeadReason, Error, Job, PushOptions, Queue, SqlBackend, Unique, Worker, WorkerConfig,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Fixture, note, quick, recorder, settled, start, sticker, within};

/// What these tests ask of a database beside its queue.
pub(crate) trait Database: Fixture<Backend: SqlBackend> {
    /// Pushes in a transaction of the caller's, in which `meanwhile` happens, and which then ends as asked.
    async fn export_in_transaction(
        &self,
        queue: &Queue<Self::Backend>,
        exports: &[Export],
        commit: bool,
    ) -> Vec<bool>;

    /// How many keys are kept.
    async fn keys(&self) -> i64;
}

#[cfg(feature = "postgres")]
impl Database for crate::support::PostgresFixture {
    async fn export_in_transaction(
        &self,
        queue: &Queue<Self::Backend>,
        exports: &[Export],
        commit: bool,
    ) -> Vec<bool> {
        let mut tx = self.pool.begin().await.unwrap();
        let pushed = queue.push_many_in(&mut tx, exports).await.unwrap();
        if commit {
            tx.commit().await.unwrap()
        } else {
            tx.rollback().await.unwrap()
        }
        pushed.into_iter().map(|pushed| pushed.existed).collect()
    }

    async fn keys(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM greenwave_jobs_unique").fetch_one(&self.pool).await.unwrap()
    }
}

#[cfg(feature = "sqlite")]
impl Database for crate::support::SqliteFixture {
    async fn export_in_transaction(
        &self,
        queue: &Queue<Self::Backend>,
        exports: &[Export],
        commit: bool,
    ) -> Vec<bool> {
        let mut conn = rusqlite::Connection::open(self.path()).unwrap();
        conn.busy_timeout(Duration::from_secs(60)).unwrap();
        let tx = conn.transaction().unwrap();
        let pushed = queue.push_many_in(&tx, exports).unwrap();
        if commit {
            tx.commit().unwrap()
        } else {
            tx.rollback().unwrap()
        }
        pushed.into_iter().map(|pushed| pushed.existed).collect()
    }

    async fn keys(&self) -> i64 {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        conn.query_row("SELECT count(*) FROM greenwave_jobs_unique", [], |row| row.get(0)).unwrap()
    }
}

/// One at a time for each customer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Export {
    customer: String,
}

impl Job for Export {
    const NAME: &'static str = "export";
    const MAX_ATTEMPTS: u32 = 1;

    fn unique(&self) -> Option<Unique> {
        Some(Unique::by(&self.customer))
    }
}

fn export(customer: impl ToString) -> Export {
    Export { customer: customer.to_string() }
}

fn unique(unique: Unique) -> PushOptions {
    PushOptions { unique: Some(unique), ..Default::default() }
}

pub(crate) async fn a_unique_job_is_stored_once_while_it_lives<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let first = queue.push_with(&note(1), unique(Unique::by("k"))).await.unwrap();
    let second = queue.push_with(&note(2), unique(Unique::by("k"))).await.unwrap();
    assert_eq!((first.existed, second.existed, second.id), (false, true, first.id));
    assert_eq!(queue.stats().await.unwrap().ready, 1);

    // Running, it still has the key.
    let (worker, mut held) = sticker(queue.clone(), quick());
    let worker = start(worker);
    within(held.recv()).await.unwrap();
    assert!(queue.push_with(&note(3), unique(Unique::by("k"))).await.unwrap().existed);
    worker.kill().await;

    // Done, it has not.
    let (_fixture, queue) = F::ready().await;
    let first = queue.push_with(&note(1), unique(Unique::by("k"))).await.unwrap();
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    let next = queue.push_with(&note(2), unique(Unique::by("k"))).await.unwrap();
    assert!(!next.existed && next.id != first.id);
    assert_eq!(within(runs.recv()).await.unwrap().0, note(2));
    worker.stop().await;
}

pub(crate) async fn a_key_may_outlive_its_job_for_its_window<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let window = Duration::from_millis(1500);
    let hourly = || unique(Unique::by("k").within(window).also_completed());
    let pushed = Instant::now();
    let first = queue.push_with(&note(1), hourly()).await.unwrap();
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    settled(&queue, |stats| stats.live() == 0).await;
    let second = queue.push_with(&note(2), hourly()).await.unwrap();
    assert_eq!((second.existed, second.id), (true, first.id), "it is done, and its window is not over");
    let next = async {
        loop {
            let next = queue.push_with(&note(3), hourly()).await.unwrap();
            if !next.existed {
                return next;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert_ne!(within(next).await.id, first.id);
    assert!(pushed.elapsed() >= window - Duration::from_millis(50), "after {:?}", pushed.elapsed());
    worker.stop().await;
}

pub(crate) async fn a_window_ends_while_the_job_waits<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let short = || unique(Unique::by("k").within(Duration::from_millis(300)));
    queue.push_with(&note(1), short()).await.unwrap();
    assert!(queue.push_with(&note(2), short()).await.unwrap().existed);
    let next = async {
        while queue.push_with(&note(3), short()).await.unwrap().existed {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(next).await;
    assert_eq!(queue.stats().await.unwrap().ready, 2);
}

pub(crate) async fn a_running_job_may_let_one_follow_it<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let follow = || unique(Unique::by("k").only_waiting());
    let first = queue.push_with(&note(1), follow()).await.unwrap();
    let (worker, mut held) = sticker(queue.clone(), WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    within(held.recv()).await.unwrap();
    let second = queue.push_with(&note(2), follow()).await.unwrap();
    assert!(!second.existed && second.id != first.id);
    let third = queue.push_with(&note(3), follow()).await.unwrap();
    assert_eq!((third.existed, third.id), (true, second.id), "only one");
    worker.kill().await;
}

pub(crate) async fn a_dead_job_holds_its_key_if_asked_to<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let dead = || PushOptions { max_attempts: Some(1), ..unique(Unique::by("dead").also_dead()) };
    let gone = || PushOptions { max_attempts: Some(1), ..unique(Unique::by("gone")) };
    let first = queue.push_with(&note(1), dead()).await.unwrap();
    queue.push_with(&note(2), gone()).await.unwrap();
    let worker = start(
        Worker::new(queue.clone(), quick())
            .handle(|_: crate::support::Note, _| async { Err::<(), BoxError>("no".into()) }),
    );
    settled(&queue, |stats| stats.dead == 2).await;
    worker.stop().await;
    assert_eq!(queue.dead_jobs(1).await.unwrap()[0].reason, DeadReason::Exhausted);
    let again = queue.push_with(&note(3), dead()).await.unwrap();
    assert_eq!((again.existed, again.id), (true, first.id));
    assert!(!queue.push_with(&note(4), gone()).await.unwrap().existed);
}

pub(crate) async fn keys_of_different_names_never_meet<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    assert!(!queue.push_with(&note(1), unique(Unique::by("k"))).await.unwrap().existed);
    assert!(!queue.push(&export("k")).await.unwrap().existed);
    assert!(queue.push(&export("k")).await.unwrap().existed);
}

pub(crate) async fn of_those_with_one_key_in_a_batch_the_first_is_stored<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let there = queue.push(&export("there")).await.unwrap().id;
    let batch: Vec<_> = ["a", "there", "b", "a", "there", "b", "c"].map(export).to_vec();
    let pushed = queue.push_many(&batch).await.unwrap();
    let existed: Vec<_> = pushed.iter().map(|pushed| pushed.existed).collect();
    assert_eq!(existed, [false, true, false, true, true, true, false]);
    let ids: Vec<_> = pushed.iter().map(|pushed| pushed.id).collect();
    assert_eq!((ids[1], ids[4], ids[3], ids[5]), (there, there, ids[0], ids[2]));
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(queue.stats().await.unwrap().ready, 4);
}

/// Each is another process, as far as the database knows.
pub(crate) async fn of_many_that_push_one_key_at_once_one_stores_it<F: Database>() {
    let (fixture, queue) = F::ready().await;
    for round in 0..10 {
        let mut pushes = JoinSet::new();
        for _ in 0..8 {
            let queue = fixture.connect();
            pushes.spawn(async move { queue.push(&export(round)).await.unwrap() });
        }
        let pushed = within(pushes.join_all()).await;
        assert_eq!(pushed.iter().filter(|pushed| !pushed.existed).count(), 1);
        assert_eq!(pushed.iter().map(|pushed| pushed.id).collect::<HashSet<_>>().len(), 1);
    }
    assert_eq!(queue.stats().await.unwrap().ready, 10);
}

pub(crate) async fn batches_with_the_same_keys_in_other_orders_do_not_deadlock<F: Database>() {
    let (fixture, queue) = F::ready().await;
    // Half of the keys are held by jobs that are done, so that they are taken over.
    queue.push_many(&(0..20).map(export).collect::<Vec<_>>()).await.unwrap();
    let worker = Worker::new(queue.clone(), quick()).handle(|_: Export, _| async { Ok::<(), BoxError>(()) });
    let worker = start(worker);
    settled(&queue, |stats| stats.live() == 0).await;
    worker.stop().await;

    let mut pushes = JoinSet::new();
    for process in 0..6 {
        let queue = fixture.connect();
        pushes.spawn(async move {
            let mut stored = 0;
            for round in 0..5 {
                // 7 and 13 are prime to 40: each walks the keys in an order of its own.
                let step = [1, 39, 7, 33, 13, 27][process];
                let batch: Vec<_> = (0..40).map(|at| export((round + at * step) % 40)).collect();
                let pushed = queue.push_many(&batch).await.unwrap();
                stored += pushed.iter().filter(|pushed| !pushed.existed).count();
            }
            stored
        });
    }
    assert_eq!(within(pushes.join_all()).await.iter().sum::<usize>(), 40);
    assert_eq!(queue.stats().await.unwrap().ready, 40);
}

pub(crate) async fn a_transaction_that_rolls_back_gives_its_keys_back<F: Database>() {
    let (fixture, queue) = F::ready().await;
    let exports = [export("a"), export("b"), export("a")];
    let expected = [false, false, true];
    assert_eq!(fixture.export_in_transaction(&queue, &exports, false).await, expected);
    assert_eq!(fixture.export_in_transaction(&queue, &exports, true).await, expected);
    assert_eq!(fixture.export_in_transaction(&queue, &exports, true).await, [true; 3]);
    assert!(queue.push(&export("a")).await.unwrap().existed);
    assert_eq!(queue.stats().await.unwrap().ready, 2);
}

pub(crate) async fn what_makes_no_sense_as_a_key_is_refused<F: Database>() {
    let (_fixture, queue) = F::ready().await;
    let refused = async |options: PushOptions| match queue.push_with(&note(1), options).await {
        Err(Error::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    let for_ever = refused(unique(Unique::by("k").also_completed())).await;
    assert_eq!(
        for_ever,
        "job `note` would hold its unique key for ever once it is completed: give it a window"
    );
    let long = "k".repeat(1025);
    assert!(refused(unique(Unique::by(&long))).await.contains("longer than 1024 bytes"));
    assert!(refused(unique(Unique::by("\0"))).await.contains("NUL"));
    assert!(refused(PushOptions { key: Some(long), ..Default::default() }).await.contains("longer than"));
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

pub(crate) async fn keys_that_nobody_holds_leave_the_table<F: Database>() {
    let (fixture, queue) = F::ready().await;
    queue.push_many(&(0..100).map(export).collect::<Vec<_>>()).await.unwrap();
    let kept = Unique::by("kept").within(Duration::from_secs(3600)).also_completed();
    let late = PushOptions { delay: Some(Duration::from_secs(3600)), ..unique(Unique::by("late")) };
    queue.push_with(&note("kept"), unique(kept)).await.unwrap();
    queue.push_with(&note("late"), late).await.unwrap();
    let worker = |queue| {
        start(
            Worker::new(queue, quick())
                .handle(|_: Export, _| async { Ok::<(), BoxError>(()) })
                .handle(|_: crate::support::Note, _| async { Ok::<(), BoxError>(()) }),
        )
    };
    let first = worker(queue.clone());
    settled(&queue, |stats| stats.live() == 1).await;
    first.stop().await;

    // A worker looks when it starts, and from time to time.
    let second = worker(fixture.connect());
    let swept = async {
        while fixture.keys().await > 2 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(swept).await;
    second.stop().await;
    assert_eq!(fixture.keys().await, 2, "one is held for an hour after its end, one by a job that waits");
}
