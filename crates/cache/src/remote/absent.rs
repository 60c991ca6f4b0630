//! Stands in for the remote when the crate is built without the feature `redis`: there is never one.

use std::{convert::Infallible, marker::PhantomData};

pub(crate) struct Tier<K, V> {
    never: Infallible,
    _types: PhantomData<fn(K, V)>,
}

impl<K, V> Tier<K, V> {
    pub(crate) async fn get(&self, _: &K) -> Option<V> {
        match self.never {}
    }

    pub(crate) async fn lease(&self, _: &K) -> Option<Infallible> {
        match self.never {}
    }

    pub(crate) async fn fill(&self, _: &K, _: Option<&V>, _: Infallible) {
        match self.never {}
    }

    pub(crate) async fn set(&self, _: &K, _: &V) {
        match self.never {}
    }

    pub(crate) async fn delete(&self, _: &K) {
        match self.never {}
    }
}
