//! Who in this process is told of changes, besides the stamps.

use std::sync::{Mutex, PoisonError, Weak};

use redis::{Cmd, Value};

use super::coherence::Coherence;

/// Called with the key in Redis that changed, or with none for all of them.
pub(crate) type OnChange = dyn Fn(Option<&[u8]>) + Send + Sync;

/// Called when so many changes were missed that single ones are not known: returns what clears a cache in the remote.
pub(crate) type OnOverflow = dyn Fn() -> Vec<Cmd> + Send + Sync;

#[derive(Default)]
pub(super) struct Hearers {
    changes: Mutex<Vec<Weak<OnChange>>>,
    overflows: Mutex<Vec<Weak<OnOverflow>>>,
}

impl Hearers {
    pub(super) fn on_change(&self, hearer: Weak<OnChange>) {
        add(&self.changes, hearer);
    }

    pub(super) fn on_overflow(&self, hearer: Weak<OnOverflow>) {
        add(&self.overflows, hearer);
    }

    pub(super) fn changed(&self, redis_key: Option<&[u8]>) {
        for hearer in alive(&self.changes) {
            hearer(redis_key);
        }
    }

    pub(super) fn clearing(&self) -> Vec<Cmd> {
        alive(&self.overflows).iter().flat_map(|clear| clear()).collect()
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

fn add<T: ?Sized>(list: &Mutex<Vec<Weak<T>>>, hearer: Weak<T>) {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.retain(|hearer| hearer.strong_count() > 0);
    list.push(hearer);
}

fn alive<T: ?Sized>(list: &Mutex<Vec<Weak<T>>>) -> Vec<std::sync::Arc<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
}
