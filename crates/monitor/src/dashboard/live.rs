//! The one task that asks the source, and the streams of those who follow it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::overview::Point;
use super::sampler::Sampler;
use super::{DashboardConfig, Link, Overview, Sources};
use crate::export;

const INTERVAL: Duration = Duration::from_secs(1);
/// A source that takes longer is said to be stale.
const SOURCE_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Live {
    title: String,
    links: Vec<Link>,
    // The latest overview as an event, made once for all who follow; whoever is slow skips some.
    latest: watch::Receiver<Bytes>,
    sampler: Arc<Mutex<Sampler>>,
    viewers: Arc<Semaphore>,
    _task: AbortOnDropHandle<()>,
}

/// What a page is told when it connects.
#[derive(Serialize)]
struct Hello<'a> {
    title: &'a str,
    links: &'a [Link],
    history: Vec<Point>,
}

impl Live {
    pub(super) fn start<F, Fut>(config: &DashboardConfig, source: F, cancel: CancellationToken) -> Live
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Sources> + Send + 'static,
    {
        let (publish, latest) = watch::channel(Bytes::new());
        let sampler = Arc::new(Mutex::new(Sampler::default()));
        let produce = produce(source, sampler.clone(), publish);
        let task = tokio::spawn(async move {
            cancel.run_until_cancelled(produce).await;
        });
        let viewers = Arc::new(Semaphore::new(config.max_viewers.min(Semaphore::MAX_PERMITS)));
        let (title, links) = (config.title.clone(), config.links.clone());
        Live { title, links, latest, sampler, viewers, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn is_running(&self) -> bool {
        self.latest.has_changed().is_ok()
    }

    pub(super) fn prometheus(&self) -> String {
        let sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let (metrics, descriptions) = sampler.total();
        export::render(metrics, descriptions)
    }

    /// A stream of events for one page, unless too many follow already.
    pub(super) fn follow(&self) -> Option<Body> {
        let place = self.viewers.clone().try_acquire_owned().ok()?;
        let mut latest = self.latest.clone();
        let now = latest.borrow_and_update().clone();
        let sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let history = sampler.history().iter().copied().collect();
        let hello = Hello { title: &self.title, links: &self.links, history };
        let hello = event("retry: 2000\nevent: hello\n", &hello);
        let updates = stream::unfold((latest, place), next);
        let events = stream::iter([hello, now]).chain(updates).filter(|event| {
            let is_one = !event.is_empty();
            async move { is_one }
        });
        Some(Body::from_stream(events.map(Ok::<_, Infallible>)))
    }
}

type Following = (watch::Receiver<Bytes>, OwnedSemaphorePermit);

async fn next((mut latest, place): Following) -> Option<(Bytes, Following)> {
    latest.changed().await.ok()?; // an error: the task has ended, and the stream ends with it
    let event = latest.borrow_and_update().clone();
    Some((event, (latest, place)))
}

async fn produce<F, Fut>(source: F, sampler: Arc<Mutex<Sampler>>, publish: watch::Sender<Bytes>)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Sources>,
{
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<Instant> = None;
    let mut overview = Overview::default();
    loop {
        ticks.tick().await;
        if let Ok(sources) = tokio::time::timeout(SOURCE_DEADLINE, source()).await {
            let now = Instant::now();
            let elapsed = last.map_or(Duration::ZERO, |last| now - last);
            last = Some(now);
            let now_ms =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            let mut sampler = sampler.lock().unwrap_or_else(PoisonError::into_inner);
            overview = sampler.observe(sources, now_ms, elapsed);
        } else {
            tracing::warn!(deadline = ?SOURCE_DEADLINE, "the dashboard's source did not answer in time");
            overview.stale = true;
        }
        publish.send_replace(event("", &overview));
    }
}

/// JSON has no line breaks of its own, so it fits on an event's one line.
fn event(head: &str, data: &impl Serialize) -> Bytes {
    match serde_json::to_string(data) {
        Ok(json) => Bytes::from(format!("{head}data: {json}\n\n")),
        Err(_) => Bytes::new(),
    }
}
