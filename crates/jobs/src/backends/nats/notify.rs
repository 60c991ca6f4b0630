//! Wake-ups between processes: plain messages of NATS, which no stream keeps.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::Inner;
use crate::backoff::Weather;
use crate::error::chain;
use crate::wakeups::{Notice, Wakeups};

/// After each announcement; what comes meanwhile goes together.
const PAUSE: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(5);

/// Sends what was announced: the first at once, what comes within the pause after it together.
#[derive(Debug)]
pub(super) struct Announcer {
    client: Client,
    subject: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    notices: BTreeSet<Notice>,
    sending: bool,
}

impl Announcer {
    pub(super) fn new(client: Client, subject: String) -> Self {
        Announcer { client, subject, state: Mutex::default() }
    }

    pub(super) fn announce(self: &Arc<Self>, notice: Notice) {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one task that sends. When its runtime drops it half way, the next announcement starts another.
struct Sending {
    announcer: Arc<Announcer>,
    ended: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.ended {
            self.announcer.lock().sending = false;
        }
    }
}

impl Sending {
    async fn run(mut self) {
        while let Some(notices) = self.take() {
            let Announcer { client, subject, .. } = &*self.announcer;
            for notice in notices {
                let payload = notice.payload().into_owned().into_bytes();
                timeout(DEADLINE, client.publish(subject.clone(), payload.into())).await.ok();
            }
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

/// Rings when another process announces. The client subscribes again by itself after an outage.
pub(super) async fn listen(inner: Arc<Inner>, wakeups: Arc<Wakeups>) {
    let mut weather = Weather::default();
    loop {
        match inner.client.subscribe(inner.config.wake_subject()).await {
            Ok(mut notices) => {
                weather.clear();
                while let Some(message) = notices.next().await {
                    let payload = std::str::from_utf8(&message.payload).unwrap_or_default();
                    Notice::parse(payload).iter().for_each(|notice| wakeups.tell(notice));
                }
            }
            Err(error) => tracing::debug!(error = chain(&error), "cannot listen for new jobs; polling"),
        }
        sleep(weather.next()).await;
    }
}
