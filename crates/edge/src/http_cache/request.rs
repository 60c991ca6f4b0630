//! A request's way through the cache.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LOCATION, IF_MATCH, IF_UNMODIFIED_SINCE, LOCATION, PRAGMA, RANGE,
    UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, request};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::HttpCache;
use super::claims::Claims;
use super::directives::Wishes;
use super::entry::{Entry, drop_hidden};
use super::fill::{Asking, Outcome, Reply, fly, pump};
use super::flight::{Lead, Progress, Seat};
use super::key::{Key, KeyRef};
use super::policy::{Arrival, is_silent};
use super::respond::not_kept;
use super::stats::Answered;
use super::status::{self, Forward, Status};
use super::store::{Epoch, Found, Store};
use super::vary::Vary;
use crate::proxy::answer::Refusal;
use crate::proxy::body::{Body, RequestBody};
use crate::proxy::context::RequestContext;
use crate::proxy::fetch::Fetch;

impl HttpCache {
    /// Answers a request from what is kept, or by `fetch`.
    pub(crate) async fn answer<F: Fetch>(
        &self,
        request: Request<RequestBody>,
        context: &Rc<RequestContext>,
        fetch: F,
    ) -> Result<Response<Body>, Refusal> {
        let connection = &context.connection;
        let mut secure = connection.secure;
        if let Some(store) = self.store.as_ref().filter(|_| connection.trusted) {
            let claims = Claims::of(request.uri(), request.headers(), secure);
            secure = claims.secure;
            if !claims.plain {
                return pass(store, request, secure, fetch).await;
            }
        }
        self.ask(request, secure, context.started, fetch).await
    }

    pub(super) async fn ask<F: Fetch>(
        &self,
        request: Request<RequestBody>,
        secure: bool,
        now: Instant,
        fetch: F,
    ) -> Result<Response<Body>, Refusal> {
        let Some(store) = &self.store else { return Box::pin(fetch.fetch(request)).await };
        if !suits(&request) {
            return Box::pin(pass(store, request, secure, fetch)).await;
        }
        let (head, _) = request.into_parts();
        let Some(key) = KeyRef::of(&head.uri, &head.headers, secure, &store.config) else {
            return Box::pin(fetch.fetch(Request::from_parts(head, RequestBody::Empty))).await;
        };
        let found = store.find(&key, &head.headers, now);
        if let Found::Entry(entry) = &found
            && entry.head.freshness.is_fresh(now)
            && !head.headers.contains_key(CACHE_CONTROL)
            && !head.headers.contains_key(PRAGMA)
        {
            store.counters.answered(Answered::Hit);
            return Ok(entry.answer(&head, Status::Hit, now));
        }
        let key = key.to_key();
        if matches!(found, Found::Silent) && is_plain(&head) {
            return Box::pin(pass_again(Arc::clone(store), key, head, fetch)).await;
        }
        let key = Arc::new(key);
        // In a box, so that a hit carries nothing of it.
        Box::pin(Miss { store: Arc::clone(store), key, head, fetch, now }.answer(found)).await
    }
}

/// Whether an answer to such a request can come from what is kept.
fn suits(request: &Request<RequestBody>) -> bool {
    let headers = request.headers();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.body().is_empty()
        // These are for the origin alone to judge (RFC 9111, section 4.3.2).
        && !headers.contains_key(IF_MATCH)
        && !headers.contains_key(IF_UNMODIFIED_SINCE)
        && !headers.contains_key(UPGRADE)
        && reaches_origin(headers)
}

/// Whether the origin sees the fields that an answer may vary by. `Connection` can name any, which then ends here, and the
/// answer to a request without it would be kept for those who have it.
fn reaches_origin(headers: &HeaderMap) -> bool {
    let names =
        headers.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let harmless = [&b"keep-alive"[..], b"close", b"te", b""];
    names.map(<[u8]>::trim_ascii).all(|name| harmless.iter().any(|known| name.eq_ignore_ascii_case(known)))
}

/// Whether nothing in the request changes how it is to be answered from a cache.
fn is_plain(head: &request::Parts) -> bool {
    head.method == Method::GET
        && ![CACHE_CONTROL, PRAGMA, RANGE].iter().any(|name| head.headers.contains_key(name))
}

/// Sends a request on where the answer before said nothing of caching: the usual case for what is not kept, in which
/// nothing is prepared for keeping it. If this answer says something, the next is treated as the first of all.
async fn pass_again<F: Fetch>(
    store: Arc<Store>,
    key: Key,
    head: request::Parts,
    fetch: F,
) -> Result<Response<Body>, Refusal> {
    let response = fetch.fetch(Request::from_parts(head, RequestBody::Empty)).await?;
    store.counters.answered(Answered::Missed);
    if !is_silent(response.headers()) {
        store.forget_pass(&key);
    }
    Ok(passed(&store, response, Forward::UriMiss))
}

/// Sends a request on whose answer is not kept, and drops what it makes invalid.
async fn pass<F: Fetch>(
    store: &Store,
    request: Request<RequestBody>,
    secure: bool,
    fetch: F,
) -> Result<Response<Body>, Refusal> {
    store.counters.answered(Answered::Passed);
    let is_safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(request.method());
    let why = if is_safe { Forward::Bypass } else { Forward::Method };
    let own = KeyRef::of(request.uri(), request.headers(), secure, &store.config);
    let changes = own.filter(|_| !is_safe).map(|own| own.to_key());
    let response = fetch.fetch(request).await?;
    if let Some(own) = changes.filter(|_| response.status().as_u16() < 400) {
        invalidate(store, &own, response.headers());
    }
    Ok(passed(store, response, why))
}

fn passed(store: &Store, mut response: Response<Body>, why: Forward) -> Response<Body> {
    drop_hidden(&store.config, response.headers_mut());
    status::passed(response.headers_mut(), why);
    response
}

/// Drops what an unsafe request changed: its own URI, and what the answer names on the same host (RFC 9111, section 4.4).
fn invalidate(store: &Store, own: &Key, answer: &HeaderMap) {
    store.remove(&own.borrowed());
    for name in [LOCATION, CONTENT_LOCATION] {
        let Some(text) = answer.get(name).and_then(|value| value.to_str().ok()) else { continue };
        let Some(uri) = resolve(own, text) else { continue };
        if let Some(other) = KeyRef::of_uri(&uri, own.secure, &store.config)
            && other.host() == &*own.host
        {
            store.remove(&other);
        }
    }
}

/// What a reference means where it stands in the answer to a key's request. Dots in its path are taken as they are.
fn resolve(own: &Key, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default();
    let absolute = if reference.contains("://") {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("http:{reference}")
    } else if reference.starts_with('/') {
        format!("http://{}{reference}", own.host)
    } else {
        let path = own.target.split('?').next().unwrap_or("/");
        let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
        format!("http://{}{folder}{reference}", own.host)
    };
    absolute.parse().ok()
}

/// A request for which nothing is kept that can be given at once.
struct Miss<F> {
    store: Arc<Store>,
    key: Arc<Key>,
    head: request::Parts,
    fetch: F,
    now: Instant,
}

/// What to do about what is kept.
enum Use {
    Give(Answered),
    GiveAndRefresh,
    Ask(Forward),
}

fn judge(entry: &Entry, wishes: &Wishes, now: Instant) -> Use {
    let freshness = &entry.head.freshness;
    let ttl = freshness.ttl(now);
    let min_fresh = wishes.min_fresh.map_or(0, i64::from);
    if wishes.no_cache || wishes.max_age.is_some_and(|max_age| freshness.age(now) > max_age) {
        return Use::Ask(Forward::Request);
    }
    if freshness.is_fresh(now) {
        return if ttl >= min_fresh { Use::Give(Answered::Hit) } else { Use::Ask(Forward::Request) };
    }
    let is_welcome = wishes.max_stale.is_some_and(|max_stale| ttl + i64::from(max_stale) >= 0);
    if is_welcome && freshness.may_be_stale && min_fresh == 0 {
        return Use::Give(Answered::Stale);
    }
    if freshness.covers_revalidation(now) && min_fresh == 0 {
        return Use::GiveAndRefresh;
    }
    Use::Ask(Forward::Stale)
}

/// What following another's fetch brought.
enum Followed {
    Answered(Response<Body>),
    /// Its answer is for other requests; those for this one vary by these fields.
    Other(Vary),
    Failed(Refusal),
    Nothing,
}

impl<F: Fetch> Miss<F> {
    async fn answer(self, found: Found) -> Result<Response<Body>, Refusal> {
        let wishes = Wishes::of(&self.head.headers);
        if wishes.no_store {
            self.count(Answered::Passed);
            let request = Request::from_parts(self.head, RequestBody::Empty);
            return Ok(passed(&self.store, self.fetch.fetch(request).await?, Forward::Request));
        }
        let is_shared = !matches!(found, Found::Pass | Found::Silent);
        let (why, kept, vary) = match found {
            Found::Entry(entry) => match judge(&entry, &wishes, self.now) {
                Use::Give(how) => return Ok(self.give(&entry, how, Status::Hit)),
                Use::GiveAndRefresh => {
                    self.refresh(&entry);
                    return Ok(self.give(&entry, Answered::Stale, Status::Hit));
                }
                Use::Ask(why) => {
                    let vary = entry.head.vary.clone();
                    (why, Some(entry), vary)
                }
            },
            Found::Other(vary) => (Forward::VaryMiss, None, vary),
            Found::Pass | Found::Silent | Found::Nothing => (Forward::UriMiss, None, Vary::default()),
        };
        if wishes.only_if_cached {
            self.count(Answered::Missed);
            return Ok(not_kept());
        }
        if self.head.method == Method::HEAD {
            return self.head_alone(why, kept).await;
        }
        if kept.is_none() && self.head.headers.contains_key(RANGE) {
            return self.alone(Forward::Partial, None).await;
        }
        if !is_shared {
            return self.alone(why, None).await;
        }
        self.together(why, kept, vary, &wishes).await
    }

    fn count(&self, how: Answered) {
        self.store.counters.answered(how);
    }

    fn give(&self, entry: &Entry, how: Answered, status: Status) -> Response<Body> {
        self.count(how);
        entry.answer(&self.head, status, self.now)
    }

    /// Leads the one fetch of this, or follows it.
    async fn together(
        self,
        why: Forward,
        kept: Option<Entry>,
        mut vary: Vary,
        wishes: &Wishes,
    ) -> Result<Response<Body>, Refusal> {
        // Once more where the first answer shows by what answers vary, or there was none: one failure is not to be
        // everybody's, nor is everybody to ask a service that fails.
        for is_last in [false, true] {
            match self.store.board(&self.key, vary.clone()) {
                Seat::Lead(lead) => return self.lead(lead, why, kept, wishes).await,
                Seat::Follow(progress) => match self.follow(progress, why).await {
                    Followed::Answered(answer) => return Ok(answer),
                    Followed::Other(fields) => vary = fields,
                    Followed::Failed(refusal) if is_last => return Err(refusal),
                    Followed::Failed(_) => {}
                    Followed::Nothing => break,
                },
            }
        }
        self.alone(why, kept).await
    }

    async fn lead(
        self,
        lead: Lead,
        why: Forward,
        kept: Option<Entry>,
        wishes: &Wishes,
    ) -> Result<Response<Body>, Refusal> {
        // Between the look and the lead another may have brought it.
        if let Found::Entry(entry) = self.store.find(&self.key.borrowed(), &self.head.headers, self.now)
            && let Use::Give(how) = judge(&entry, wishes, self.now)
        {
            lead.publish(Progress::Kept(entry.clone()));
            return Ok(self.give(&entry, how, Status::Hit));
        }
        let (tell, told) = oneshot::channel();
        let asking = self.asking(lead.epoch, kept, true);
        tokio::task::spawn_local(fly(asking, lead, Some(tell)));
        // It is silent only when this thread's tasks are being dropped.
        let reply = told.await.unwrap_or(Err(Refusal::UpstreamFailed))?;
        Ok(self.reply(reply, why))
    }

    async fn follow(&self, mut progress: watch::Receiver<Progress>, why: Forward) -> Followed {
        let arrived = progress.wait_for(|progress| !matches!(progress, Progress::Asking));
        let Ok(Ok(progress)) = tokio::time::timeout(self.store.config.fill_wait, arrived).await else {
            return Followed::Nothing;
        };
        let progress = progress.clone();
        let now = Instant::now();
        let collapsed = |status| Status::Forwarded { why, status, stored: true, collapsed: true };
        let (status, entry) = match progress {
            Progress::Failed(refusal) => return Followed::Failed(refusal),
            Progress::Asking | Progress::Alone => return Followed::Nothing,
            Progress::Growing(growing) => {
                let vary = &growing.head.vary;
                if !vary.matches(&self.head.headers) {
                    return Followed::Other(vary.with_values_of(&self.head.headers));
                }
                let Some(reader) = growing.reader() else { return Followed::Nothing };
                self.count(Answered::Collapsed);
                return Followed::Answered(growing.answer(reader, &self.head, collapsed(None), now));
            }
            Progress::Valid(entry) if !entry.head.freshness.is_fresh(now) => return Followed::Nothing,
            Progress::Valid(entry) => (collapsed(Some(StatusCode::NOT_MODIFIED)), entry),
            Progress::Kept(entry) => (Status::Hit, entry),
        };
        if !entry.head.vary.matches(&self.head.headers) {
            return Followed::Other(entry.head.vary.with_values_of(&self.head.headers));
        }
        let is_stale = !entry.head.freshness.is_fresh(now);
        self.count(if is_stale { Answered::Stale } else { Answered::Collapsed });
        Followed::Answered(entry.answer(&self.head, status, now))
    }

    /// Asks for this request alone, with the conditions that it came with.
    async fn alone(self, why: Forward, kept: Option<Entry>) -> Result<Response<Body>, Refusal> {
        let asking = self.asking(self.store.epoch(&self.key), kept, false);
        let reply = match asking.ask().await? {
            Outcome::Passed(response) => Reply::Passed(response),
            Outcome::Valid(entry) => Reply::Valid(entry),
            Outcome::Stale(entry) => Reply::Stale(entry),
            Outcome::Coming(growing, reader, body) => {
                let writing = Arc::clone(&growing);
                tokio::task::spawn_local(async move { pump(&asking, writing, body, None).await });
                Reply::Growing(growing, reader)
            }
        };
        Ok(self.reply(reply, why))
    }

    fn reply(&self, reply: Reply, why: Forward) -> Response<Body> {
        let now = Instant::now();
        let forwarded = |status| Status::Forwarded { why, status, stored: true, collapsed: false };
        match reply {
            Reply::Passed(response) => {
                self.count(Answered::Missed);
                passed(&self.store, response, why)
            }
            Reply::Growing(growing, reader) => {
                self.count(Answered::Missed);
                growing.answer(reader, &self.head, forwarded(None), now)
            }
            Reply::Valid(entry) => {
                self.count(Answered::Revalidated);
                entry.answer(&self.head, forwarded(Some(StatusCode::NOT_MODIFIED)), now)
            }
            Reply::Stale(entry) => {
                self.count(Answered::Stale);
                entry.answer(&self.head, Status::Hit, now)
            }
        }
    }

    fn asking(&self, epoch: Epoch, kept: Option<Entry>, whole: bool) -> Asking<F> {
        let (store, key) = (Arc::clone(&self.store), Arc::clone(&self.key));
        Asking { store, key, epoch, fetch: self.fetch.clone(), head: self.head.clone(), whole, kept }
    }

    /// Fetches a new answer beside the request, unless one is being fetched.
    fn refresh(&self, entry: &Entry) {
        if let Seat::Lead(lead) = self.store.board(&self.key, entry.head.vary.clone()) {
            let mut asking = self.asking(lead.epoch, Some(entry.clone()), true);
            asking.head.method = Method::GET;
            tokio::task::spawn_local(fly(asking, lead, None));
        }
    }

    /// A HEAD is not shared, but tells of what is kept (RFC 9111, section 4.3.5).
    async fn head_alone(self, why: Forward, kept: Option<Entry>) -> Result<Response<Body>, Refusal> {
        self.count(Answered::Missed);
        let epoch = self.store.epoch(&self.key);
        let asked = Instant::now();
        let request = Request::from_parts(self.head.clone(), RequestBody::Empty);
        let response = self.fetch.fetch(request).await?;
        if let Some(entry) = kept.filter(|_| response.status() == StatusCode::OK) {
            let news = response.headers();
            let updated = entry
                .is_same_as(news)
                .then(|| entry.updated(&self.store.config, &self.head.headers, news, Arrival::now(asked)))
                .flatten();
            match updated {
                Some(updated) => {
                    self.store.keep(&self.key, epoch, updated);
                }
                None => {
                    self.store.remove(&self.key.borrowed());
                }
            }
        }
        Ok(passed(&self.store, response, why))
    }
}
