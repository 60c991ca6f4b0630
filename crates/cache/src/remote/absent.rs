//! Stands in for the remote when the crate is built without the feature `redis`: there is never one.

// Nobody makes what never is.
#![allow(dead_code)]

mod kept;

use std::{convert::Infallible, marker::PhantomData, sync::Arc, time::Duration};

use tokio::time::Instant;

pub(crate) use self::kept::{Filled, Kept, Outgoing, RemoteStats, Turn};

pub(crate) struct Tier<K, V> {
    never: Infallible,
    _types: PhantomData<fn(K, V)>,
}

#[derive(Clone, Copy)]
pub(crate) struct Seal(Infallible);

impl Seal {
    pub(crate) fn is_older(self, _: Seal) -> bool {
        match self.0 {}
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Standing {
    Current,
    Changed,
    Unheard,
}

pub(crate) struct Coherence(Infallible);

impl Coherence {
    pub(crate) fn standing(&self, _: Seal) -> Standing {
        match self.0 {}
    }

    pub(crate) fn bound(&self, _: Seal, _: Duration) -> Duration {
        match self.0 {}
    }

    pub(crate) fn unconfirmed(&self, _: Duration) -> Duration {
        match self.0 {}
    }
}

pub(crate) struct Lease(Infallible);

impl<K, V> Tier<K, V> {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.never {}
    }

    pub(crate) async fn until<T>(&self, _: Option<Instant>, _: impl Future<Output = T>) -> T {
        match self.never {}
    }

    pub(crate) async fn get(&self, _: &K) -> Option<Kept<V>> {
        match self.never {}
    }

    pub(crate) async fn get_many(&self, _: &[K]) -> Vec<Option<Kept<V>>> {
        match self.never {}
    }

    pub(crate) async fn turn(&self, _: &K) -> Turn<V> {
        match self.never {}
    }

    pub(crate) async fn turns(&self, _: &[K]) -> Vec<Turn<V>> {
        match self.never {}
    }

    pub(crate) fn seal(&self, _: &K) -> Seal {
        match self.never {}
    }

    pub(crate) fn coherence(&self) -> &Arc<Coherence> {
        match self.never {}
    }

    pub(crate) async fn fill(&self, _: &K, _: Lease, _: Outgoing<'_, V>) -> Filled {
        match self.never {}
    }

    pub(crate) async fn give_back(&self, _: &K, _: Lease) {
        match self.never {}
    }

    pub(crate) async fn set(&self, _: &K, _: Outgoing<'_, V>) -> Filled {
        match self.never {}
    }

    pub(crate) async fn delete(&self, _: &[K]) {
        match self.never {}
    }

    pub(crate) async fn invalidate_tag(&self, _: &Arc<str>) {
        match self.never {}
    }

    pub(crate) async fn clear(&self) {
        match self.never {}
    }

    pub(crate) fn on_clear(&self, _: Box<dyn Fn() + Send + Sync>) {
        match self.never {}
    }

    pub(crate) fn stats(&self) -> RemoteStats {
        match self.never {}
    }
}
