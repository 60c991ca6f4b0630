use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Those who wait for a key of the remote to change.
#[derive(Default)]
pub(super) struct Waits {
    keys: Mutex<HashMap<Vec<u8>, Arc<Notify>>>,
}

/// A place among them.
pub(super) struct Wait<'w> {
    waits: &'w Waits,
    redis_key: Vec<u8>,
    changed: Arc<Notify>,
}

impl Waits {
    pub(super) fn enter(&self, redis_key: &[u8]) -> Wait<'_> {
        let changed = Arc::clone(self.keys().entry(redis_key.to_vec()).or_default());
        Wait { waits: self, redis_key: redis_key.to_vec(), changed }
    }

    /// `None` for all.
    pub(super) fn wake(&self, redis_key: Option<&[u8]>) {
        let keys = self.keys();
        match redis_key {
            Some(redis_key) => keys.get(redis_key).into_iter().for_each(|changed| changed.notify_waiters()),
            None => keys.values().for_each(|changed| changed.notify_waiters()),
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.keys().len()
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<Notify>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait<'_> {
    pub(super) fn key(&self) -> &[u8] {
        &self.redis_key
    }

    /// Hears of changes from its first poll, or its `enable`, on.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut keys = self.waits.keys();
        // This one's and the table's.
        if keys.get(&self.redis_key).is_some_and(|changed| Arc::strong_count(changed) <= 2) {
            keys.remove(&self.redis_key);
        }
    }
}
