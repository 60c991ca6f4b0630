use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use greenwave_jobs::{
    Backend, BoxError, Job, JobContext, Missed, Queue, Schedule, ScheduleStatus, SqlBackend, Unique, Worker,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::flows::SqlFixture;
use crate::support::{Note, note, quick, recorder, settled, sleepy, start, within};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// All that a recorder has received.
fn drain(runs: &mut mpsc::UnboundedReceiver<(Note, JobContext)>) -> Vec<(Note, SystemTime)> {
    let mut all = Vec::new();
    while let Ok((note, context)) = runs.try_recv() {
        all.push((note, context.scheduled_for.unwrap()));
    }
    all
}

async fn only<B: SqlBackend>(queue: &Queue<B>) -> ScheduleStatus {
    let [schedule] = queue.schedules().await.unwrap().try_into().unwrap();
    schedule
}

/// Lets a worker run until no tick is due and all that was pushed is done; answers with what ran.
async fn work<B: SqlBackend>(queue: &Queue<B>) -> Vec<(Note, SystemTime)> {
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    while only(queue).await.next < SystemTime::now() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    settled(queue, |stats| stats.live() == 0).await;
    worker.stop().await;
    let mut ran = drain(&mut runs);
    ran.sort_unstable_by_key(|(_, tick)| *tick);
    ran
}

pub(crate) async fn each_tick_runs_once_in_the_whole_fleet<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let schedule = Schedule::every(SECOND).missed(Missed::RunAll(500));
    queue.schedule("often", schedule, &note("tick")).await.unwrap();
    let first = only(&queue).await.next;
    // Four workers that meet two hundred ticks at once, and then one a second.
    fixture.sleep_through(200 * SECOND).await;
    let (mut workers, mut all) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (worker, runs) = recorder(fixture.connect(), quick());
        workers.push(start(worker));
        all.push(runs);
    }
    let mut times = BTreeMap::new();
    let last = first + 2 * SECOND;
    within(async {
        while !times.contains_key(&last) {
            for (_, time) in all.iter_mut().flat_map(drain) {
                *times.entry(time).or_insert(0) += 1;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
    for (_, time) in all.iter_mut().flat_map(drain) {
        *times.entry(time).or_insert(0) += 1;
    }
    for number in 0..=202 {
        assert_eq!(times.get(&(first + number * SECOND - 200 * SECOND)), Some(&1), "tick {number}");
    }
    assert!(times.values().all(|runs| *runs == 1));
}

pub(crate) async fn missed_ticks_run_as_asked<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    for (missed, runs) in
        [(Missed::Skip, 0), (Missed::RunOnce, 1), (Missed::RunAll(3), 3), (Missed::RunAll(9), 5)]
    {
        queue.unschedule("hourly").await.unwrap();
        queue.schedule("hourly", Schedule::every(HOUR).missed(missed), &note("tick")).await.unwrap();
        let before = only(&queue).await;
        assert_eq!(before.last, None);
        // Ticks are due that are 4.5, 3.5, 2.5, 1.5 and half an hour old.
        fixture.sleep_through(HOUR * 11 / 2).await;
        let ran = work(&queue).await;
        let latest = before.next - HOUR * 3 / 2;
        let expected: Vec<_> = (0..runs).rev().map(|ago| (note("tick"), latest - ago * HOUR)).collect();
        assert_eq!(ran, expected, "{missed:?}");
        let after = only(&queue).await;
        assert_eq!(after.next, before.next - HOUR / 2, "{missed:?}");
        assert_eq!(after.last, (runs > 0).then_some(latest), "{missed:?}");
    }
}

/// A deployment at three o'clock is not to cost the night's report.
pub(crate) async fn a_tick_that_is_a_little_late_is_not_missed<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    queue.schedule("hourly", Schedule::every(HOUR), &note("tick")).await.unwrap();
    fixture.sleep_through(HOUR + 30 * SECOND).await;
    assert_eq!(work(&queue).await.len(), 1);
}

pub(crate) async fn the_same_schedule_changes_nothing_and_another_counts_from_now<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let daily = || Schedule::cron("0 3 * * *").unwrap().in_time_zone("Europe/Zurich").unwrap();
    assert!(queue.schedule("report", daily(), &note("a")).await.unwrap());
    fixture.sleep_through(48 * HOUR).await;
    let due = only(&queue).await;
    assert_eq!((due.schedule.as_str(), due.job.as_str()), ("0 3 * * * Europe/Zurich", "note"));
    assert_eq!((due.queue.as_str(), due.paused), ("default", false));

    let elsewhere = fixture.connect();
    assert!(!elsewhere.schedule("report", daily(), &note("a")).await.unwrap());
    assert_eq!(only(&queue).await, due, "the ticks that are due stay due");
    assert!(elsewhere.schedule("report", daily(), &note("b")).await.unwrap());
    assert_eq!(only(&queue).await, due, "another job is for the same tick");
    assert!(elsewhere.schedule("report", daily().missed(Missed::RunOnce), &note("b")).await.unwrap());
    let changed = only(&queue).await;
    assert!(changed.next > SystemTime::now(), "{changed:?}");
    assert!(queue.unschedule("report").await.unwrap());
    assert!(!queue.unschedule("report").await.unwrap());
    assert_eq!(queue.schedules().await.unwrap(), []);
}

pub(crate) async fn a_paused_schedule_passes_its_ticks_over<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    assert!(!queue.pause_schedule("hourly").await.unwrap());
    queue.schedule("hourly", Schedule::every(HOUR).missed(Missed::RunAll(9)), &note("tick")).await.unwrap();
    assert!(queue.pause_schedule("hourly").await.unwrap());
    fixture.sleep_through(5 * HOUR).await;
    let paused = only(&queue).await;
    assert!(paused.paused);
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    queue.push(&note("pushed")).await.unwrap();
    assert_eq!(within(runs.recv()).await.unwrap().0, note("pushed"));
    assert_eq!(only(&queue).await, paused);

    assert!(queue.resume_schedule("hourly").await.unwrap());
    let resumed = only(&queue).await;
    assert!(!resumed.paused && resumed.next > SystemTime::now());
    worker.stop().await;
    assert_eq!(drain(&mut runs), []);
}

/// Between two polls an hour apart it knows when the next tick is.
pub(crate) async fn a_worker_wakes_for_the_tick<F: SqlFixture>() {
    let (_fixture, queue) = F::ready().await;
    queue.schedule("often", Schedule::every(SECOND), &note("tick")).await.unwrap();
    let (worker, mut runs) = recorder(queue, sleepy());
    let worker = start(worker);
    for _ in 0..2 {
        let (_, context) = within(runs.recv()).await.unwrap();
        let late = SystemTime::now().duration_since(context.scheduled_for.unwrap()).unwrap();
        assert!(late < Duration::from_millis(500), "it ran {late:?} after its tick");
    }
    worker.stop().await;
}

pub(crate) async fn every_attempt_knows_its_tick<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let schedule = Schedule::every(HOUR).missed(Missed::RunOnce);
    queue.schedule("hourly", schedule, &note("tick")).await.unwrap();
    let tick = only(&queue).await.next - HOUR / 2;
    fixture.sleep_through(HOUR / 2).await;
    fixture.sleep_through(HOUR).await;
    let tick = tick - HOUR;
    let (worker, mut times) = failing(queue.clone());
    let worker = start(worker);
    for _ in 0..3 {
        assert_eq!(within(times.recv()).await.unwrap(), Some(tick));
    }
    settled(&queue, |stats| stats.dead == 1).await;
    let dead = queue.dead_jobs(1).await.unwrap()[0].id;
    queue.retry_dead(dead).await.unwrap();
    assert_eq!(within(times.recv()).await.unwrap(), Some(tick), "a job that came back from the dead");
    worker.stop().await;
}

fn failing<B: Backend>(queue: Queue<B>) -> (Worker<B>, mpsc::UnboundedReceiver<Option<SystemTime>>) {
    let (report, times) = mpsc::unbounded_channel();
    let worker = Worker::new(queue, quick()).handle(move |_: Note, context: JobContext| {
        report.send(context.scheduled_for).ok();
        async { Err::<(), _>("no luck") }
    });
    (worker, times)
}

pub(crate) async fn jitter_delays_a_start_and_no_tick<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let schedule = Schedule::every(SECOND).missed(Missed::RunAll(100)).with_jitter(24 * HOUR);
    queue.schedule("often", schedule, &note("tick")).await.unwrap();
    fixture.sleep_through(100 * SECOND).await;
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    let stats = settled(&queue, |stats| stats.live() >= 100).await;
    worker.stop().await;
    // One in a thousand of a day's jitter starts within these seconds.
    assert!(stats.scheduled >= 95, "{stats:?}");
    assert!(drain(&mut runs).len() <= 5);
}

/// One at a time.
#[derive(Serialize, Deserialize)]
struct Report;

impl Job for Report {
    const NAME: &'static str = "report";

    fn unique(&self) -> Option<Unique> {
        Some(Unique::by("the only one"))
    }
}

pub(crate) async fn unique_runs_do_not_overlap<F: SqlFixture>() {
    let (fixture, queue) = F::ready().await;
    let schedule = Schedule::every(SECOND).missed(Missed::RunAll(100));
    queue.schedule("often", schedule, &Report).await.unwrap();
    fixture.sleep_through(100 * SECOND).await;
    let (report, mut runs) = mpsc::unbounded_channel();
    let worker = Worker::new(queue.clone(), quick()).handle(move |_: Report, context: JobContext| {
        report.send(context.scheduled_for).ok();
        std::future::pending::<Result<(), BoxError>>()
    });
    let worker = start(worker);
    let first = within(runs.recv()).await.unwrap();
    // The next tick finds it running.
    let before = only(&queue).await.last;
    within(async {
        while only(&queue).await.last == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(first.is_some() && runs.try_recv().is_err());
    assert_eq!(queue.stats().await.unwrap().live(), 1);
    worker.kill().await;
}
