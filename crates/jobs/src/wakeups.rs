use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use crate::results::Waiters;

/// Wakes the idle workers of this process when their queues have something new.
#[derive(Debug, Default)]
pub struct Wakeups {
    pub(crate) waiters: Waiters,
    sleepers: Mutex<Vec<Weak<Sleeper>>>,
}

/// One worker's bell. A ring while it is busy is remembered until it next sleeps.
#[derive(Debug)]
pub(crate) struct Sleeper {
    queues: Vec<String>,
    bell: Notify,
}

impl Wakeups {
    pub(crate) fn register(&self, queues: Vec<String>) -> Arc<Sleeper> {
        let sleeper = Arc::new(Sleeper { queues, bell: Notify::new() });
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        sleepers.retain(|sleeper| sleeper.strong_count() > 0);
        sleepers.push(Arc::downgrade(&sleeper));
        sleeper
    }

    /// Rings for the workers of one queue, or for all.
    pub(crate) fn wake(&self, queue: Option<&str>) {
        let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        for sleeper in sleepers.iter().filter_map(Weak::upgrade) {
            if queue.is_none_or(|queue| sleeper.queues.iter().any(|own| own == queue)) {
                sleeper.bell.notify_one();
            }
        }
    }
}

impl Sleeper {
    pub(crate) async fn woken(&self) {
        self.bell.notified().await;
    }
}
