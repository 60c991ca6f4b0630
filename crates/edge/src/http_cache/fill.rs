//! What comes of asking the origin.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::conditions::CONDITIONS;
use super::entry::{Entry, Head};
use super::flight::{Lead, Progress};
use super::growing::{Growing, Reader, Writer};
use super::key::Key;
use super::policy::{Arrival, is_silent};
use super::store::{Epoch, Store};
use crate::proxy::answer::Refusal;
use crate::proxy::body::{Body, RequestBody};
use crate::proxy::fetch::Fetch;

// What is not kept is read so far ahead of the slowest who takes it, in bytes.
const AHEAD: usize = 256 * 1024;

/// A request to the origin whose answer may be kept.
pub(super) struct Asking<F> {
    pub(super) store: Arc<Store>,
    pub(super) key: Arc<Key>,
    pub(super) epoch: Epoch,
    pub(super) fetch: F,
    /// The client's request.
    pub(super) head: request::Parts,
    /// Whether its conditions stay with the cache, so that a whole answer comes.
    pub(super) whole: bool,
    /// What is kept, and may still hold.
    pub(super) kept: Option<Entry>,
}

/// What the origin said.
pub(super) enum Outcome {
    /// Something for this request alone.
    Passed(Response<Body>),
    /// An answer that may be kept, its first reader, and the body to read it from.
    Coming(Arc<Growing>, Reader, Body),
    /// What is kept holds.
    Valid(Entry),
    /// It failed, and what is kept may stand in.
    Stale(Entry),
}

/// The same for whoever waits for it.
pub(super) enum Reply {
    Passed(Response<Body>),
    Growing(Arc<Growing>, Reader),
    Valid(Entry),
    Stale(Entry),
}

impl<F: Fetch> Asking<F> {
    /// Asks the origin, and keeps what a 304 confirms. The body of a new answer is still to be read: [`pump`].
    pub(super) async fn ask(&self) -> Result<Outcome, Refusal> {
        let mut kept = self.kept.as_ref();
        loop {
            let asked = Instant::now();
            let response = match self.fetch.fetch(self.request(kept)).await {
                Ok(response) => response,
                Err(refusal) => {
                    let stand_in = self.stand_in().filter(|_| refusal.is_upstream_failure());
                    return stand_in.map(Outcome::Stale).ok_or(refusal);
                }
            };
            let arrival = Arrival::now(asked);
            if matches!(response.status().as_u16(), 500 | 502 | 503 | 504)
                && let Some(stand_in) = self.stand_in()
            {
                return Ok(Outcome::Stale(stand_in));
            }
            let Some(entry) = kept.filter(|_| response.status() == StatusCode::NOT_MODIFIED) else {
                return Ok(self.judge(response, arrival));
            };
            if entry.is_meant_by(response.headers()) {
                return Ok(self.confirm(entry, response.headers(), arrival));
            }
            // It speaks of another answer (RFC 9111, section 4.3.4): ask for all of it.
            kept = None;
        }
    }

    fn request(&self, kept: Option<&Entry>) -> Request<RequestBody> {
        let mut head = self.head.clone();
        if self.whole || kept.is_some() {
            for name in &CONDITIONS {
                head.headers.remove(name);
            }
        }
        if let Some(entry) = kept {
            for (validator, condition) in [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)] {
                if let Some(value) = entry.head.headers.get(validator) {
                    head.headers.insert(condition, value.clone());
                }
            }
        }
        Request::from_parts(head, RequestBody::Empty)
    }

    /// What may be given in place of an error.
    fn stand_in(&self) -> Option<Entry> {
        self.kept.clone().filter(|entry| entry.head.freshness.covers_error(Instant::now()))
    }

    fn confirm(&self, entry: &Entry, news: &HeaderMap, arrival: Arrival) -> Outcome {
        match entry.updated(&self.store.config, &self.head.headers, news, arrival) {
            Some(updated) => {
                self.store.keep(&self.key, self.epoch, updated.clone());
                Outcome::Valid(updated)
            }
            None => {
                // It holds for this request, and is kept no longer.
                self.store.pass(&self.key, &self.head.headers, arrival.came, false);
                Outcome::Passed(entry.to_response(news))
            }
        }
    }

    fn judge(&self, response: Response<Body>, arrival: Arrival) -> Outcome {
        let (parts, body) = response.into_parts();
        let max_bytes = self.store.config.max_object_bytes;
        let fits = length(&parts.headers).is_none_or(|length| length <= max_bytes);
        let head = (fits && self.head.method == Method::GET)
            .then(|| {
                let headers = parts.headers.clone();
                Head::new(&self.store.config, &self.head.headers, parts.status, headers, arrival)
            })
            .flatten();
        match head {
            Some(head) => {
                let (growing, reader) = Growing::begin(Arc::new(head), &self.store.on_way);
                Outcome::Coming(growing, reader, body)
            }
            None => {
                // A failure says nothing of what the next answer is like; nor does one that the client's conditions made.
                let is_telling = !parts.status.is_server_error()
                    && !matches!(parts.status.as_u16(), 206 | 304 | 412 | 416);
                if is_telling && self.head.method == Method::GET {
                    let silent = is_silent(&parts.headers);
                    self.store.pass(&self.key, &self.head.headers, arrival.came, silent);
                }
                Outcome::Passed(Response::from_parts(parts, body))
            }
        }
    }
}

/// Asks the origin for all who want the same. To be spawned: it goes on when the one who began it leaves.
pub(super) async fn fly<F: Fetch>(
    asking: Asking<F>,
    lead: Lead,
    leader: Option<oneshot::Sender<Result<Reply, Refusal>>>,
) {
    let outcome = asking.ask().await;
    let (progress, reply, body) = match outcome {
        Err(refusal) => (Progress::Failed(refusal), Err(refusal), None),
        Ok(Outcome::Passed(response)) => (Progress::Alone, Ok(Reply::Passed(response)), None),
        Ok(Outcome::Valid(entry)) => (Progress::Valid(entry.clone()), Ok(Reply::Valid(entry)), None),
        Ok(Outcome::Stale(entry)) => (Progress::Kept(entry.clone()), Ok(Reply::Stale(entry)), None),
        Ok(Outcome::Coming(growing, reader, body)) => {
            // What has to be validated before each use is for nobody else, though it is kept.
            let is_shared = growing.head.freshness.is_fresh(Instant::now());
            let progress = if is_shared { Progress::Growing(Arc::clone(&growing)) } else { Progress::Alone };
            (progress, Ok(Reply::Growing(Arc::clone(&growing), reader)), Some((growing, body)))
        }
    };
    lead.publish(progress);
    if let Some(leader) = leader {
        // The one who began it may have left.
        let _ = leader.send(reply);
    } else {
        drop(reply);
    }
    if let Some((growing, body)) = body {
        pump(&asking, growing, body, Some(lead)).await;
    }
}

/// Reads a body to its end, to those who read along and into the cache.
pub(super) async fn pump<F>(
    asking: &Asking<F>,
    growing: Arc<Growing>,
    mut body: Body,
    mut lead: Option<Lead>,
) {
    let (store, key) = (&asking.store, &asking.key);
    let writer = Writer(growing);
    let growing = &writer.0;
    let max_bytes = usize::try_from(store.config.max_object_bytes).unwrap_or(usize::MAX);
    let mut is_kept = true;
    while let Some(frame) = body.frame().await {
        // The writer's end tells the readers that this is none.
        let Ok(frame) = frame else { return };
        // Trailers are for those who speak to the origin itself.
        let Ok(data) = frame.into_data() else { continue };
        let held = growing.push(data);
        let is_too_long = held > max_bytes;
        if is_kept && (is_too_long || store.is_flooded()) {
            is_kept = false;
            lead = None;
            if is_too_long {
                store.pass(key, &asking.head.headers, Instant::now(), false);
            }
        }
        if !is_kept && growing.pass_on(max_bytes.min(AHEAD)).await.is_err() {
            return;
        }
    }
    if is_kept {
        let whole = growing.whole();
        if length(&growing.head.headers).is_some_and(|length| length != whole.len() as u64) {
            return;
        }
        let head = growing.head.with_length(whole.len());
        store.keep(key, asking.epoch, Entry { head, body: whole });
    }
    growing.complete();
    // Whoever comes from here on finds it in the store.
    drop(lead);
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
