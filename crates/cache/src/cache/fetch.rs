//! What becomes of a read that memory does not answer at once.

use std::{hash::Hash, sync::Arc};

use tokio::time::Instant;
use tracing::{Instrument, field::Empty, info_span};

use super::Inner;
use crate::{
    LoadError,
    invalidate::Entrance,
    landing::{Landing, fly, fly_many},
    memory::{Age, Look, Old},
    remote::{Seal, Standing},
    singleflight::{Flight, Heard, Load, LoadMany},
};

/// One who waits for a load.
pub(super) struct Waiter<V> {
    pub(super) flight: Arc<Flight<V>>,
    pub(super) leads: bool,
    /// The count of invalidated tags when the caller came.
    arrival: u64,
    /// Its key's, from when the caller came, where there is a remote.
    seal: Option<Seal>,
}

impl<V> Waiter<V> {
    /// Whether what was in the remote had been changed when the caller came.
    fn is_late_for(&self, found: Option<Seal>) -> bool {
        let came = found.zip(self.seal);
        !self.leads && came.is_some_and(|(found, came)| found.is_older(came))
    }
}

/// What a caller gets, `None` when it must ask anew.
pub(super) type Outcome<V, E> = Option<Result<Option<Arc<V>>, LoadError<E>>>;

/// How a caller comes to an answer.
pub(super) enum Way<K: Hash + Eq + Clone, V> {
    Present(Option<Arc<V>>),
    Join(Waiter<V>),
    Lead(Landing<K, V>, Waiter<V>),
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(super) async fn fetch<E, F>(
        self: &Arc<Self>,
        key: &K,
        old: Option<Old<V>>,
        load: F,
    ) -> Result<Option<Arc<V>>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Load<V>,
    {
        if let Some(old) = old.as_ref().filter(|old| old.is_served()) {
            if let Some(landing) = self.refresh(key, old) {
                self.launch(landing, load());
            }
            self.count_old(old);
            return Ok(old.value.clone());
        }
        let (arrival, patience) = (self.tags.now(), self.policy().patience());
        let mut refused = None;
        let (landing, waiter) = loop {
            match self.way(key, &old, refused.as_ref(), arrival) {
                Way::Present(value) => {
                    self.metrics.hits.increment(1);
                    return Ok(value);
                }
                Way::Join(waiter) => match self.heard(&waiter, old.as_ref(), patience).await {
                    Some(answer) => return answer,
                    None => refused = Some(waiter.flight),
                },
                Way::Lead(landing, waiter) => break (landing, waiter),
            }
        };
        self.launch(landing, load());
        // Our own load fails with an E, so there is always an answer.
        self.heard(&waiter, old.as_ref(), patience).await.unwrap_or(Err(LoadError::Aborted))
    }

    /// `refused` is a load that the caller has waited for, and cannot use.
    pub(super) fn way(
        self: &Arc<Self>,
        key: &K,
        old: &Option<Old<V>>,
        refused: Option<&Arc<Flight<V>>>,
        arrival: u64,
    ) -> Way<K, V> {
        let has_fallback = old.as_ref().is_some_and(|old| old.age != Age::Over);
        let joins = |flight: &Arc<Flight<V>>| {
            !refused.is_some_and(|refused| Arc::ptr_eq(refused, flight)) && self.joins(flight, has_fallback)
        };
        let seal = self.remote.as_ref().map(|remote| remote.seal(key));
        let look = || {
            let (look, held) = self.memory.look(key);
            (look.served(), held)
        };
        let entrance = self.table.join_or_lead(key, joins, look, self.begin());
        match entrance {
            Entrance::Present(value) => Way::Present(value),
            Entrance::Join(flight) => {
                flight.join();
                Way::Join(Waiter { flight, leads: false, arrival, seal })
            }
            Entrance::Lead(claim, flight) => {
                let landing = Landing::new(self, claim, &flight, old.clone());
                Way::Lead(landing, Waiter { flight, leads: true, arrival, seal })
            }
        }
    }

    /// Leads a load of what is served meanwhile, unless somebody does or it has just failed.
    pub(super) fn refresh(self: &Arc<Self>, key: &K, old: &Old<V>) -> Option<Landing<K, V>> {
        let look = || match self.memory.look(key) {
            (Look::Fresh(_), held) => (Some(()), held),
            (_, held) => (None, held),
        };
        match self.table.join_or_lead(key, |flight| self.joins(flight, true), look, self.begin()) {
            Entrance::Lead(claim, flight) => Some(Landing::new(self, claim, &flight, Some(old.clone()))),
            _ => None,
        }
    }

    fn begin(&self) -> impl FnOnce() -> Flight<V> + use<K, V> {
        let tags_seen = self.tags.now();
        move || Flight::new(tags_seen)
    }

    /// Whether what a load brings is of use to one who comes now.
    fn joins(&self, flight: &Flight<V>, has_fallback: bool) -> bool {
        match (flight.outcome(), self.coherence(), flight.seal.get()) {
            // That others ask the source by now, in their turn, makes no difference to this.
            (Some(Err(failed)), ..) => has_fallback || failed.still_answers(),
            (_, Some(coherence), Some(seal)) => coherence.standing(*seal) != Standing::Changed,
            // The source has not been asked yet.
            _ => true,
        }
    }

    pub(super) fn launch(&self, landing: Landing<K, V>, load: Load<V>) {
        let span = info_span!("cache.load", cache = self.name, waiters = Empty);
        landing.flight().set_span(&span);
        self.tasks.spawn(fly(landing, load).instrument(span));
    }

    pub(super) fn launch_many(&self, landings: Vec<Landing<K, V>>, load: LoadMany<K, V>) {
        if landings.is_empty() {
            return;
        }
        let span = info_span!("cache.load", cache = self.name, keys = landings.len(), waiters = Empty);
        for landing in &landings {
            landing.flight().set_span(&span);
        }
        self.tasks.spawn(fly_many(landings, load).instrument(span));
    }

    /// Waits for a load, and counts what the caller gets.
    pub(super) async fn heard<E: Send + Sync + 'static>(
        &self,
        waiter: &Waiter<V>,
        old: Option<&Old<V>>,
        patience: Option<Instant>,
    ) -> Outcome<V, E> {
        let metrics = &self.metrics;
        match waiter.flight.heard(old, patience).await {
            Heard::Landed(landed) if waiter.is_late_for(landed.seal) => None,
            Heard::Landed(landed) => {
                // A tag that was invalidated before the caller came makes what was read before that useless.
                let is_current = landed.tags.as_ref().is_none_or(|tags| tags.is_current());
                if !waiter.leads && !is_current && waiter.flight.tags_seen < waiter.arrival {
                    return None;
                }
                match (landed.seal.is_some(), waiter.leads) {
                    (true, true) => metrics.remote_hits.increment(1),
                    (false, true) => metrics.misses.increment(1),
                    (_, false) => metrics.coalesced.increment(1),
                }
                Some(Ok(landed.value.clone()))
            }
            Heard::Stale(_, seal) if waiter.is_late_for(seal) => None,
            Heard::Stale(old, _) => {
                self.count_old(&old);
                Some(Ok(old.value))
            }
            Heard::Failed(failure) => {
                let error = failure.to_error()?;
                metrics.errors.increment(1);
                Some(Err(error))
            }
        }
    }

    pub(super) fn count_old(&self, old: &Old<V>) {
        match old.age {
            Age::Ripe => self.metrics.hits.increment(1),
            _ => self.metrics.stale.increment(1),
        }
    }
}
