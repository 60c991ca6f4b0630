//! What tells other processes of what is new, where a backend has a way to.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::wakeups::Notice;

/// After each announcement; what comes meanwhile goes together.
const PAUSE: Duration = Duration::from_millis(20);

/// How long one may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// The way to the others: soon, and without a promise.
pub(crate) trait Channel: Debug + Send + Sync + 'static {
    fn send(&self, notices: BTreeSet<Notice>) -> impl Future<Output = ()> + Send;
}

/// Sends what was announced: the first at once, what comes within the pause after it together.
#[derive(Debug)]
pub(crate) struct Announcer<C> {
    channel: C,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    notices: BTreeSet<Notice>,
    sending: bool,
}

impl<C: Channel> Announcer<C> {
    pub(crate) fn new(channel: C) -> Self {
        Announcer { channel, state: Mutex::default() }
    }

    pub(crate) fn announce(self: &Arc<Self>, notice: Notice) {
        let mut state = self.lock();
        state.notices.insert(notice);
        if state.sending {
            return;
        }
        // Outside a runtime nobody can send; the other processes will poll.
        if let Ok(runtime) = Handle::try_current() {
            state.sending = true;
            // A runtime that is ending drops the task here and now, and that takes the lock.
            drop(state);
            // This task ends by itself, one pause after the last announcement.
            runtime.spawn(Sending { announcer: Arc::clone(self), ended: false }.run());
        }
    }
}

impl<C> Announcer<C> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one task that sends. When its runtime drops it half way, the next announcement starts another.
struct Sending<C> {
    announcer: Arc<Announcer<C>>,
    ended: bool,
}

impl<C> Drop for Sending<C> {
    fn drop(&mut self) {
        if !self.ended {
            self.announcer.lock().sending = false;
        }
    }
}

impl<C: Channel> Sending<C> {
    async fn run(mut self) {
        while let Some(notices) = self.take() {
            self.announcer.channel.send(notices).await;
            sleep(PAUSE).await;
        }
    }

    /// What is to be announced; when there is nothing, the task ends under the same lock, so that no announcement
    /// falls between the look and the end.
    fn take(&mut self) -> Option<BTreeSet<Notice>> {
        let mut state = self.announcer.lock();
        if state.notices.is_empty() {
            state.sending = false;
            self.ended = true;
            return None;
        }
        Some(mem::take(&mut state.notices))
    }
}
