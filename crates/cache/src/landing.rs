//! The work of a load, in a task of its own: remote, source, memory, those who wait, and the remote again.
//!
//! A load belongs to its task and not to the caller that happened to be first. A client that hangs up would otherwise
//! take the load with it, and the next in line would begin it again.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::Span;

use crate::{
    Loaded,
    cache::Inner,
    invalidate::Claim,
    memory::{Age, Item, Old},
    policy::{Life, Weight},
    remote::{Kept, Lease, Tier, Turn},
    singleflight::{Failed, Failure, Flight, Landed, Load, LoadMany, within},
    tags::TagSet,
};

/// How long a failure is remembered at most, and how many are.
const MAX_LINGER: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_FAILED: usize = 100_000;

/// A leader's duty to tell those who wait, which holds whatever becomes of its task.
pub(crate) struct Landing<K: Hash + Eq + Clone, V> {
    cache: Arc<Inner<K, V>>,
    claim: Claim<K, Flight<V>>,
    flight: Arc<Flight<V>>,
    /// What there was before.
    prior: Option<Old<V>>,
    /// Others are to find that it has failed.
    stays: bool,
}

/// An answer that is to be kept.
pub(crate) struct Answered<V> {
    pub(crate) value: Option<Arc<V>>,
    pub(crate) tags: Option<Arc<TagSet>>,
    pub(crate) life: Life,
}

/// Brings the value of a key: from the remote, else by `load`.
pub(crate) async fn fly<K, V>(mut landing: Landing<K, V>, load: Load<V>)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let cache = Arc::clone(&landing.cache);
    let mut lease = None;
    if let Some(remote) = &cache.remote {
        let key = landing.claim.key().clone();
        let deadline = remote.deadline();
        if let Some(kept) = remote.until(deadline, remote.get(&key)).await
            && landing.found(kept)
        {
            return;
        }
        match remote.until(deadline, remote.turn(&key)).await {
            Turn::Found(kept) => {
                if landing.found(kept) {
                    return;
                }
            }
            Turn::Lead(given) => lease = given,
        }
    }
    landing.seal();
    let prior = landing.prior.as_ref().and_then(|prior| prior.value.clone());
    let loaded = timed(&cache, 1, within(cache.policy().load_timeout, load.with(prior))).await;
    let answered = landing.land(loaded);
    Span::current().record("waiters", landing.flight.waiters());
    landing.settle(lease, answered).await;
}

/// Brings the values of several keys: from the remote, and by one load those that it has not.
pub(crate) async fn fly_many<K, V>(mut landings: Vec<Landing<K, V>>, load: LoadMany<K, V>)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let Some(cache) = landings.first().map(|landing| Arc::clone(&landing.cache)) else { return };
    let mut leases = HashMap::new();
    if let Some(remote) = &cache.remote {
        let deadline = remote.deadline();
        let kept = remote.until(deadline, remote.get_many(&keys(&landings))).await;
        landings = without_found(landings, kept);
        let turns = remote.until(deadline, remote.turns(&keys(&landings))).await;
        let mut kept = Vec::with_capacity(turns.len());
        for (landing, turn) in landings.iter().zip(turns) {
            kept.push(match turn {
                Turn::Found(found) => Some(found),
                Turn::Lead(lease) => {
                    leases.extend(lease.map(|lease| (landing.claim.key().clone(), lease)));
                    None
                }
            });
        }
        landings = without_found(landings, kept);
    }
    if landings.is_empty() {
        return;
    }
    landings.iter().for_each(Landing::seal);
    let keys = keys(&landings);
    let mut loaded = timed(
        &cache,
        landings.len(),
        within(cache.policy().load_timeout, Box::pin(async move { load(keys).await })),
    )
    .await
    .map(HashMap::<K, Loaded<V>>::from_iter);
    let mut waiters = 0;
    for mut landing in landings {
        let lease = leases.remove(landing.claim.key());
        let answered = landing.land(match &mut loaded {
            Ok(answers) => Ok(answers.remove(landing.claim.key()).unwrap_or_else(Loaded::absent)),
            Err(failure) => Err(failure.clone()),
        });
        waiters += landing.flight.waiters();
        cache.tasks.spawn(landing.settle(lease, answered));
    }
    Span::current().record("waiters", waiters);
}

fn keys<K: Hash + Eq + Clone, V>(landings: &[Landing<K, V>]) -> Vec<K> {
    landings.iter().map(|landing| landing.claim.key().clone()).collect()
}

/// Lands those for which there is a fresh value.
fn without_found<K: Hash + Eq + Clone, V>(
    landings: Vec<Landing<K, V>>,
    kept: Vec<Option<Kept<V>>>,
) -> Vec<Landing<K, V>> {
    let kept = kept.into_iter().chain(std::iter::repeat_with(|| None));
    let found = landings.into_iter().zip(kept).filter_map(|(mut landing, kept)| {
        let found = kept.is_some_and(|kept| landing.found(kept));
        (!found).then_some(landing)
    });
    found.collect()
}

async fn timed<K, V, T>(
    cache: &Inner<K, V>,
    keys: usize,
    load: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let started = Instant::now();
    let loaded = load.await;
    cache.metrics.load_duration.record(started.elapsed());
    cache.metrics.keys_loaded.fetch_add(keys as u64, Ordering::Relaxed);
    if let Err(failure) = &loaded {
        // Those whom something stale is served do not hear of it.
        cache.metrics.failed_loads.increment(1);
        tracing::debug!(cache = cache.name, %failure, "a load failed");
    }
    loaded
}

impl<K: Hash + Eq + Clone, V> Landing<K, V> {
    pub(crate) fn new(
        cache: &Arc<Inner<K, V>>,
        claim: Claim<K, Flight<V>>,
        flight: &Arc<Flight<V>>,
        prior: Option<Old<V>>,
    ) -> Landing<K, V> {
        Landing { cache: Arc::clone(cache), claim, flight: Arc::clone(flight), prior, stays: false }
    }

    pub(crate) fn flight(&self) -> &Flight<V> {
        &self.flight
    }

    /// Takes what the remote has. Lands and says yes if it is fresh; otherwise it is offered to those who wait.
    fn found(&mut self, kept: Kept<V>) -> bool {
        // Nobody waits for a refresh, so it is not content with what is to be refreshed itself.
        if kept.due && self.prior.as_ref().is_some_and(Old::is_served) {
            return false;
        }
        let Inner { memory, metrics, .. } = &*self.cache;
        let key = self.claim.key();
        let (fresh_for, stale_for) = (kept.fresh_for, kept.stale_for);
        let weight = memory.weigh(key, kept.value.as_ref());
        let item = Item { value: kept.value, tags: kept.tags, seal: Some(kept.seal) };
        if fresh_for.is_zero() {
            let stored = self.claim.store(|| memory.insert_stale(key, item, weight, stale_for));
            if let Some((removed, old)) = stored {
                metrics.evictions.increment(removed.evicted);
                drop(removed);
                if old.age != Age::Over {
                    self.flight.offer(old.clone(), kept.seal);
                }
                self.prior = Some(old);
            }
            return false;
        }
        let ttl = self.cache.found_ttl(kept.seal, fresh_for);
        let landed = Landed { value: item.value.clone(), tags: item.tags.clone(), seal: Some(kept.seal) };
        let stored = self.claim.land(&self.flight, || memory.insert(key, item, weight, ttl));
        metrics.evictions.increment(stored.as_ref().map_or(0, |removed| removed.evicted));
        drop(stored);
        self.flight.land(Ok(landed));
        Span::current().record("waiters", self.flight.waiters());
        true
    }

    /// To be called when the source is about to be asked: what it says is good until a change that is heard of later.
    fn seal(&self)
    where
        V: 'static,
    {
        if let Some(remote) = &self.cache.remote {
            // It is asked once.
            let _ = self.flight.seal.set(remote.seal(self.claim.key()));
        }
    }

    /// Stores what was loaded, unless it was invalidated meanwhile, and tells those who wait.
    fn land(&mut self, loaded: Result<Loaded<V>, Failure>) -> Option<Answered<V>> {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(failure) => {
                self.fail(failure);
                return None;
            }
        };
        let cache = &*self.cache;
        let answered = cache.answered(loaded, self.prior.as_ref(), self.flight.tags_seen);
        let key = self.claim.key();
        let weight = cache.memory.weigh(key, answered.value.as_ref());
        match (weight, &answered.value) {
            (Weight::TooLarge, _) => cache.metrics.too_large.increment(1),
            (_, None) => cache.metrics.absent.increment(1),
            _ => {}
        }
        let ttl = cache.unconfirmed_ttl(answered.life.memory);
        let seal = self.flight.seal.get().copied();
        let item = Item { value: answered.value.clone(), tags: answered.tags.clone(), seal };
        let removed = self.claim.land(&self.flight, || cache.memory.insert(key, item, weight, ttl));
        match (&removed, &answered.value) {
            (Some(removed), _) => cache.metrics.evictions.increment(removed.evicted),
            (None, Some(_)) => cache.metrics.discarded.increment(1),
            (None, None) => {}
        }
        drop(removed);
        let (value, tags) = (answered.value.clone(), answered.tags.clone());
        self.flight.land(Ok(Landed { value, tags, seal: None }));
        Some(answered)
    }

    /// How long a failed load stays. While there is something to fall back on, the source is left alone for longer.
    fn lingers(&self) -> Duration {
        let policy = self.cache.policy();
        let has_fallback = self.prior.as_ref().is_some_and(|prior| prior.age != Age::Over);
        let lingers = match self.flight.outcome() {
            Some(Err(Failed { failure: Failure::Aborted, .. })) | Some(Ok(_)) | None => Duration::ZERO,
            Some(Err(_)) if has_fallback => policy.retry_after.max(policy.error_ttl),
            Some(Err(_)) => policy.error_ttl,
        };
        lingers.min(MAX_LINGER)
    }

    fn fail(&mut self, failure: Failure) {
        let error_ttl = self.cache.policy().error_ttl;
        let until = Instant::now() + error_ttl.min(MAX_LINGER);
        self.flight.land(Err(Failed { failure, until }));
        if self.lingers().is_zero() {
            self.claim.land(&self.flight, || ());
        }
    }

    /// Those who wait have their answer; the remote may take its time.
    async fn settle(mut self, lease: Option<Lease>, answered: Option<Answered<V>>)
    where
        K: Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        if let (Some(remote), Some(lease)) = (&self.cache.remote, lease) {
            match answered.filter(|_| self.claim.is_current()) {
                Some(answered) => self.fill(remote, lease, &answered).await,
                None => remote.give_back(self.claim.key(), lease).await,
            }
        }
        self.stay();
    }

    fn stay(&mut self)
    where
        K: Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let lingers = self.lingers();
        if lingers.is_zero() {
            return;
        }
        let mut failed = self.cache.failed.lock().unwrap_or_else(PoisonError::into_inner);
        while failed.try_join_next().is_some() {}
        if failed.len() < MAX_FAILED {
            // A claim of its own, so that it does not keep the cache alive.
            let (claim, flight) = (self.cache.table.claim(self.claim.key()), Arc::clone(&self.flight));
            failed.spawn(async move {
                sleep(lingers).await;
                claim.land(&flight, || ());
            });
            self.stays = true;
        }
    }

    async fn fill(&self, remote: &Tier<K, V>, lease: Lease, answered: &Answered<V>)
    where
        V: 'static,
    {
        let key = self.claim.key();
        let filled = remote.fill(key, lease, self.cache.outgoing(answered, &answered.names())).await;
        let removed = self.claim.store(|| self.cache.confirm(key, answered, filled));
        drop(removed);
    }
}

impl<V> Answered<V> {
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.tags.as_ref().map(|tags| tags.names()).unwrap_or_default()
    }
}

impl<K: Hash + Eq + Clone, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        if self.flight.outcome().is_none() {
            self.fail(Failure::Aborted);
        }
        if !self.stays {
            self.claim.land(&self.flight, || ());
        }
    }
}
