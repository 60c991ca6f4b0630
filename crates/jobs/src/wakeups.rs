use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use crate::JobId;
use crate::results::Waiters;

/// What one process tells the others that share a queue. It is told soon and without a promise: whoever hears it acts
/// sooner, and whoever does not finds out by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// A queue, or any if none is named, has something new.
    Ready(Option<Cow<'static, str>>),
    /// A job was taken from whoever runs it.
    Cancelled(JobId),
    /// Queues were paused or resumed, or their limits changed.
    Controls,
}

/// No queue's name begins with it.
#[cfg_attr(not(any(feature = "postgres", feature = "nats")), allow(dead_code))]
const MARK: char = '\u{1}';

#[cfg_attr(not(any(feature = "postgres", feature = "nats")), allow(dead_code))]
impl Notice {
    /// As it travels in a NOTIFY: the queue's name, as it always did, or a mark and a word.
    pub(crate) fn payload(&self) -> Cow<'_, str> {
        match self {
            Notice::Ready(queue) => queue.as_deref().unwrap_or_default().into(),
            Notice::Cancelled(job) => format!("{MARK}cancelled {job}").into(),
            Notice::Controls => format!("{MARK}controls").into(),
        }
    }

    /// None for what a newer release may say.
    pub(crate) fn parse(payload: &str) -> Option<Self> {
        match payload.strip_prefix(MARK) {
            None => Some(Notice::Ready((!payload.is_empty()).then(|| payload.to_owned().into()))),
            Some("controls") => Some(Notice::Controls),
            Some(rest) => {
                let job: i64 = rest.strip_prefix("cancelled ")?.parse().ok()?;
                Some(Notice::Cancelled(job.into()))
            }
        }
    }
}

/// Wakes the workers of this process when there is something for them to do.
#[derive(Debug, Default)]
pub struct Wakeups {
    pub(crate) waiters: Waiters,
    sleepers: Mutex<Vec<Weak<Sleeper>>>,
}

/// One worker's bell. A ring while it is busy is remembered until it next sleeps.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// The queues, each with whether it has something new.
    queues: Vec<(&'static str, AtomicBool)>,
    /// Something changed that concerns all queues: what is due may have, too.
    all: AtomicBool,
    cancelled: Mutex<Vec<JobId>>,
    bell: Notify,
}

impl Wakeups {
    pub(crate) fn register(&self, queues: &[&'static str]) -> Arc<Sleeper> {
        let queues = queues.iter().map(|queue| (*queue, AtomicBool::new(false))).collect();
        let sleeper = Arc::new(Sleeper {
            queues,
            all: AtomicBool::new(false),
            cancelled: Mutex::default(),
            bell: Notify::new(),
        });
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        sleepers.retain(|sleeper| sleeper.strong_count() > 0);
        sleepers.push(Arc::downgrade(&sleeper));
        sleeper
    }

    /// Rings for the workers of one queue, or for all.
    pub(crate) fn wake(&self, queue: Option<&str>) {
        self.each(|sleeper| {
            let mut any = false;
            for (own, new) in &sleeper.queues {
                if queue.is_none_or(|queue| queue == *own) {
                    new.store(true, Ordering::Release);
                    any = true;
                }
            }
            sleeper.all.fetch_or(queue.is_none(), Ordering::AcqRel);
            if any {
                sleeper.bell.notify_one();
            }
        });
    }

    /// Passes a notice on to the workers of this process.
    pub(crate) fn tell(&self, notice: &Notice) {
        match notice {
            Notice::Ready(queue) => self.wake(queue.as_deref()),
            // A queue that was paused or full of running jobs may have something now.
            Notice::Controls => self.wake(None),
            Notice::Cancelled(job) => self.each(|sleeper| {
                sleeper.cancelled.lock().unwrap_or_else(PoisonError::into_inner).push(*job);
                sleeper.bell.notify_one();
            }),
        }
    }

    fn each(&self, ring: impl Fn(&Sleeper)) {
        let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        sleepers.iter().filter_map(Weak::upgrade).for_each(|sleeper| ring(&sleeper));
    }
}

impl Sleeper {
    pub(crate) async fn woken(&self) {
        self.bell.notified().await;
    }

    /// Whether the queue at this place of those it was registered with has something new; asking clears it.
    pub(crate) fn take_new(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|(_, new)| new.swap(false, Ordering::AcqRel))
    }

    /// Whether all queues were woken; asking clears it.
    pub(crate) fn take_all(&self) -> bool {
        self.all.swap(false, Ordering::AcqRel)
    }

    /// The jobs that were cancelled since the last call.
    pub(crate) fn take_cancelled(&self) -> Vec<JobId> {
        std::mem::take(&mut *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_survives_its_payload() {
        for notice in [
            Notice::Ready(None),
            Notice::Ready(Some("mail".into())),
            Notice::Cancelled(17.into()),
            Notice::Controls,
        ] {
            assert_eq!(Notice::parse(&notice.payload()), Some(notice));
        }
        assert_eq!(Notice::parse("\u{1}what a newer release says"), None);
    }

    #[test]
    fn a_wake_marks_the_queue_it_names_and_no_other() {
        let wakeups = Wakeups::default();
        let sleeper = wakeups.register(&["a", "b"]);
        wakeups.wake(Some("b"));
        assert!(!sleeper.take_new(0) && sleeper.take_new(1) && !sleeper.take_new(1));
        wakeups.tell(&Notice::Cancelled(7.into()));
        assert_eq!(sleeper.take_cancelled(), [7.into()]);
    }
}
