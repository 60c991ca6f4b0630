use std::time::{Duration, SystemTime};

use greenwave_jobs::{
    BoxError, DeadReason, Job, JobContext, JobFilter, JobId, JobState, PushOptions, Queue, SqlBackend,
    Worker, WorkerConfig,
};
use serde::{Deserialize, Serialize};

use crate::support::{Fixture, Note, note, quick, recorder, settled, start, sticker, within};

/// A job of another queue and type.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Job for Mail {
    const NAME: &'static str = "mail";
    const QUEUE: &'static str = "mails";
    const VERSION: u32 = 3;
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(7));

    fn key(&self) -> Option<String> {
        Some(self.to.clone())
    }
}

fn mail(to: &str) -> Mail {
    Mail { to: to.to_owned() }
}

/// A worker whose notes all fail at once and for good.
async fn kill_all<B: SqlBackend>(queue: &Queue<B>, dead: u64) {
    let config = WorkerConfig { retry_base: Duration::ZERO, ..quick() };
    let worker = Worker::new(queue.clone(), config)
        .handle(|note: Note, _: JobContext| async move { Err::<(), BoxError>(note.text.into()) });
    let worker = start(worker);
    settled(queue, |stats| stats.dead == dead && stats.live() == 0).await;
    worker.stop().await;
}

async fn ids<B: SqlBackend>(queue: &Queue<B>, filter: JobFilter) -> Vec<JobId> {
    queue.list(&filter).await.unwrap().jobs.iter().map(|job| job.id).collect()
}

pub(crate) async fn a_list_has_what_the_filter_means<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    let notes = queue.push_many(&[note("a"), note("b")]).await.unwrap();
    kill_all(&queue, 2).await;
    let mail_a = queue.push(&mail("a")).await.unwrap().id;
    let later =
        PushOptions { delay: Some(Duration::from_secs(3600)), priority: Some(1), ..Default::default() };
    let mail_b = queue.push_with(&mail("b"), later).await.unwrap().id;
    let (note_a, note_b) = (notes[0].id, notes[1].id);

    let any = JobFilter::default();
    assert_eq!(ids(&queue, any.clone()).await, [mail_b, mail_a, note_b, note_a]);
    let of = |state| JobFilter { state: Some(state), ..any.clone() };
    assert_eq!(ids(&queue, of(JobState::Dead)).await, [note_b, note_a]);
    assert_eq!(ids(&queue, of(JobState::Ready)).await, [mail_a]);
    assert_eq!(ids(&queue, of(JobState::Scheduled)).await, [mail_b]);
    assert_eq!(ids(&queue, of(JobState::Running)).await, []);
    assert_eq!(ids(&queue, JobFilter { queue: Some("mails".into()), ..any.clone() }).await, [mail_b, mail_a]);
    assert_eq!(ids(&queue, JobFilter { name: Some("note".into()), ..any.clone() }).await, [note_b, note_a]);
    assert_eq!(ids(&queue, JobFilter { key: Some("a".into()), ..any.clone() }).await, [mail_a]);
    let range = JobFilter { from: Some(note_b), to: Some(mail_a), ..any.clone() };
    assert_eq!(ids(&queue, range).await, [mail_a, note_b]);

    let listed = queue.list(&any).await.unwrap();
    assert_eq!(listed.next, None);
    let (live, dead) = (&listed.jobs[0], &listed.jobs[3]);
    assert_eq!((live.priority, live.key.as_deref(), live.failures), (Some(1), Some("b"), 0));
    assert!(live.at.duration_since(live.pushed_at).unwrap() >= Duration::from_secs(3599));
    assert_eq!(
        (dead.reason, dead.failures, dead.error.as_deref()),
        (Some(DeadReason::Exhausted), 3, Some("a"))
    );
}

pub(crate) async fn pages_follow_one_another_without_gap_or_repetition<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&[note("a"), note("b"), note("c")]).await.unwrap();
    kill_all(&queue, 3).await;
    // The newest are not those of one table.
    queue.push_many(&(0..20).map(note).collect::<Vec<_>>()).await.unwrap();
    let mut filter = JobFilter { limit: 4, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = queue.list(&filter).await.unwrap();
        assert!(page.jobs.len() <= 4);
        seen.extend(page.jobs.iter().map(|job| job.id));
        match page.next {
            Some(next) => filter.after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), 23);
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "{seen:?}");
}

pub(crate) async fn all_is_shown_of_a_job<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    let waiting = queue.push(&mail("ada")).await.unwrap().id;
    let shown = queue.show(waiting).await.unwrap().unwrap();
    assert_eq!((shown.version, shown.timeout, shown.lease), (3, Some(Duration::from_secs(7)), None));
    assert_eq!(shown.payload, serde_json::json!({ "to": "ada" }));
    assert!(shown.summary.pushed_at > SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000));

    let dead = queue.push(&note("no luck")).await.unwrap().id;
    let (worker, mut runs) = sticker(queue.clone(), quick());
    let worker = start(worker);
    within(runs.recv()).await.unwrap();
    let running = queue.show(dead).await.unwrap().unwrap();
    assert_eq!(running.summary.state, JobState::Running);
    assert!(running.lease.is_some() && running.summary.at > running.summary.pushed_at);
    worker.stop().await;
    queue.cancel(waiting).await.unwrap();
    kill_all(&queue, 2).await;
    let shown = queue.show(dead).await.unwrap().unwrap();
    assert_eq!(shown.errors.len(), 3);
    assert_eq!(shown.summary.state, JobState::Dead);
    // As it travels, and back.
    let json = serde_json::to_string(&shown).unwrap();
    assert!(json.contains(r#""state":"dead""#) && json.contains(r#""reason":"exhausted""#), "{json}");
    assert_eq!(serde_json::from_str::<greenwave_jobs::JobDetails>(&json).unwrap(), shown);
    assert_eq!(queue.show((dead.get() + 1000).into()).await.unwrap(), None);
}

pub(crate) async fn a_cancelled_job_does_not_run<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    let cancelled = queue.push(&note("cancelled")).await.unwrap().id;
    let kept = queue.push(&note("kept")).await.unwrap().id;
    assert!(queue.cancel(cancelled).await.unwrap());
    assert!(!queue.cancel(cancelled).await.unwrap());
    let (worker, mut runs) = recorder(queue.clone(), quick());
    let worker = start(worker);
    assert_eq!(within(runs.recv()).await.unwrap().1.id, kept);
    settled(&queue, |stats| stats.live() == 0 && stats.dead == 1).await;
    worker.stop().await;
    let shown = queue.show(cancelled).await.unwrap().unwrap();
    assert_eq!((shown.summary.reason, shown.summary.failures), (Some(DeadReason::Cancelled), 0));
}

pub(crate) async fn a_running_job_is_taken_from_its_worker<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    let id = queue.push(&note("stuck")).await.unwrap().id;
    // It hears of it by a notice, long before it next extends the lease.
    let config = WorkerConfig { lease: Duration::from_secs(3600), ..quick() };
    let (worker, mut runs) = sticker(queue.clone(), config);
    let worker = start(worker);
    let (_, context) = within(runs.recv()).await.unwrap();
    assert!(queue.cancel(id).await.unwrap());
    within(context.cancellation().cancelled()).await;
    worker.stop().await;
    let shown = queue.show(id).await.unwrap().unwrap();
    assert_eq!(shown.summary.reason, Some(DeadReason::Cancelled));
}

pub(crate) async fn actions_on_many_touch_what_the_filter_means<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..2500).map(note).collect::<Vec<_>>()).await.unwrap();
    queue.push_many(&[mail("a"), mail("b"), mail("c")]).await.unwrap();
    let of = |queue: &str| JobFilter { queue: Some(queue.into()), ..Default::default() };
    // More than a batch, and the limit of a list does not matter.
    assert_eq!(queue.cancel_where(&JobFilter { limit: 1, ..of("default") }).await.unwrap(), 2500);
    assert_eq!(queue.cancel_where(&JobFilter { key: Some("b".into()), ..of("mails") }).await.unwrap(), 1);
    let stats = settled(&queue, |stats| stats.dead == 2501).await;
    assert_eq!(stats.ready, 2);

    assert_eq!(queue.retry_where(&of("mails")).await.unwrap(), 1);
    let back = queue.list(&JobFilter { key: Some("b".into()), ..of("mails") }).await.unwrap().jobs;
    assert_eq!((back[0].state, back[0].key.as_deref()), (JobState::Ready, Some("b")));
    assert_eq!(queue.show(back[0].id).await.unwrap().unwrap().version, 3);
    let not_dead = JobFilter { state: Some(JobState::Ready), ..of("mails") };
    assert_eq!(queue.discard_where(&not_dead).await.unwrap(), 0);
    assert!(!queue.discard(back[0].id).await.unwrap(), "a live job cannot be discarded");
    assert_eq!(queue.discard_where(&of("default")).await.unwrap(), 2500);
    assert_eq!(queue.stats().await.unwrap().dead, 0);
}

pub(crate) async fn jobs_that_come_back_start_in_the_order_in_which_they_were_pushed<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&(0..10).map(note).collect::<Vec<_>>()).await.unwrap();
    queue.cancel_where(&JobFilter::default()).await.unwrap();
    assert_eq!(queue.retry_where(&JobFilter::default()).await.unwrap(), 10);
    let (worker, mut runs) = recorder(queue.clone(), WorkerConfig { concurrency: 1, ..quick() });
    let worker = start(worker);
    for n in 0..10 {
        assert_eq!(within(runs.recv()).await.unwrap().0, note(n));
    }
    worker.stop().await;
}

pub(crate) async fn stats_tell_queues_and_types_apart<F: Fixture>()
where
    F::Backend: SqlBackend,
{
    let (_fixture, queue) = F::ready().await;
    queue.push_many(&[note("a"), note("b"), note("c")]).await.unwrap();
    let later = PushOptions { delay: Some(Duration::from_secs(3600)), ..Default::default() };
    let cancelled = queue.push_with(&note("d"), later.clone()).await.unwrap().id;
    queue.push_with(&note("e"), later).await.unwrap();
    queue.push(&mail("a")).await.unwrap();
    queue.cancel(cancelled).await.unwrap();
    let stats = queue.stats_by_queue().await.unwrap();
    let [notes, mails] = &stats[..] else { panic!("{stats:?}") };
    assert_eq!((notes.queue.as_str(), mails.queue.as_str()), ("default", "mails"));
    let counts = notes.jobs["note"];
    assert_eq!(counts, notes.counts);
    assert_eq!((counts.ready, counts.scheduled, counts.running, counts.dead), (3, 1, 0, 1));
    assert_eq!((mails.jobs["mail"].ready, mails.paused), (1, false));
    assert!(mails.oldest_ready.is_some_and(|age| (0.0..60.0).contains(&age)));

    // Whoever asks again at once sees the same count; a little later, what is so.
    queue.cancel_where(&JobFilter { queue: Some("mails".into()), ..Default::default() }).await.unwrap();
    let wait = async {
        while queue.stats_by_queue().await.unwrap()[1].counts.ready > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(wait).await;
}
