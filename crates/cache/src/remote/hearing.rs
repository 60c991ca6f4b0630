//! Who in this process is told of changes, besides the stamps.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, Weak},
};

use redis::{Cmd, Value};

use super::coherence::Coherence;

/// Called with the key in Redis that changed, or with none for all of them.
pub(crate) type OnChange = dyn Fn(Option<&[u8]>) + Send + Sync;

#[derive(Default)]
pub(super) struct Hearers {
    changes: Mutex<Vec<Weak<OnChange>>>,
    /// What clears each cache that there was, by its packed form: what they have in the remote outlives them. They are
    /// no more than there are names of caches.
    clearings: Mutex<HashMap<Vec<u8>, Cmd>>,
}

impl Hearers {
    pub(super) fn on_change(&self, hearer: Weak<OnChange>) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.retain(|hearer| hearer.strong_count() > 0);
        changes.push(hearer);
    }

    pub(super) fn is_cleared_by(&self, clearing: Cmd) {
        let mut clearings = self.clearings.lock().unwrap_or_else(PoisonError::into_inner);
        clearings.insert(clearing.get_packed_command(), clearing);
    }

    pub(super) fn changed(&self, redis_key: Option<&[u8]>) {
        let hearers: Vec<_> = {
            let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            changes.iter().filter_map(Weak::upgrade).collect()
        };
        for hearer in hearers {
            hearer(redis_key);
        }
    }

    pub(super) fn clearing(&self) -> Vec<Cmd> {
        self.clearings.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The stamp moves before the hearers are told.
    pub(super) fn tell(&self, coherence: &Coherence, redis_key: Option<&[u8]>) {
        match redis_key {
            Some(key) => coherence.changed(key),
            None => coherence.changed_all(),
        }
        self.changed(redis_key);
    }

    /// What Redis pushes under the name `invalidate`: a list of keys, or nothing for all of them.
    pub(super) fn invalidated(&self, coherence: &Coherence, data: &[Value]) {
        match data.first() {
            Some(Value::Array(keys)) => {
                for key in keys {
                    match key {
                        Value::BulkString(key) => self.tell(coherence, Some(key)),
                        Value::SimpleString(key) => self.tell(coherence, Some(key.as_bytes())),
                        // Unknown is worse than all.
                        _ => self.tell(coherence, None),
                    }
                }
            }
            _ => self.tell(coherence, None),
        }
    }
}
