use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::token;
use crate::Error;

/// How a queue is kept in JetStream. All but `stream` is only for streams that [`Queue::migrate`](crate::Queue::migrate)
/// creates: those that are there stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConfig {
    /// The stream that holds the jobs; `{stream}-attempts` and `{stream}-dead` stand beside it. Default:
    /// greenwave-jobs.
    ///
    /// Also the first part of its subjects: a job of queue `mail` is published to `greenwave-jobs.mail`.
    pub stream: String,

    /// How many servers of a cluster hold each job. Default: 1.
    ///
    /// With 3, an acknowledged job survives the loss of one server and its disk.
    pub replicas: usize,

    /// How many jobs may wait or run in each queue; a push beyond is refused with [`Error::Full`]. Default: no bound
    /// but the server's disk.
    pub max_waiting: Option<u64>,

    /// For how long the server knows a message id again: a push that is repeated within it, or a job that is
    /// [forwarded](crate::Queue::forward_to) again, is stored once. Default: 2m.
    ///
    /// The server holds the ids of that time in memory, about a hundred bytes each.
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Duration,
}

impl Default for NatsConfig {
    fn default() -> Self {
        NatsConfig {
            stream: "greenwave-jobs".to_owned(),
            replicas: 1,
            max_waiting: None,
            duplicate_window: Duration::from_secs(120),
        }
    }
}

impl NatsConfig {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.stream.is_empty() || token(&self.stream) != self.stream {
            return Err(Error::Nats("`stream` may have letters, digits, `-` and `_` only".into()));
        }
        if self.replicas == 0 || self.replicas > 5 {
            return Err(Error::Nats("`replicas` must be 1 to 5".into()));
        }
        let year = Duration::from_secs(366 * 24 * 3600);
        if self.duplicate_window < Duration::from_millis(100) || self.duplicate_window > year {
            return Err(Error::Nats("`duplicate_window` must be 100ms to a year".into()));
        }
        if self.max_waiting.is_some_and(|max| max == 0 || i64::try_from(max).is_err()) {
            return Err(Error::Nats("`max_waiting` must be above zero".into()));
        }
        Ok(())
    }

    pub(super) fn subject(&self, queue: &str) -> String {
        format!("{}.{}", self.stream, token(queue))
    }

    pub(super) fn attempts_stream(&self) -> String {
        format!("{}-attempts", self.stream)
    }

    pub(super) fn attempts_subject(&self, sequence: u64) -> String {
        format!("{}-attempts.{sequence}", self.stream)
    }

    pub(super) fn dead_stream(&self) -> String {
        format!("{}-dead", self.stream)
    }

    pub(super) fn dead_subject(&self, job: crate::JobId) -> String {
        format!("{}-dead.{job}", self.stream)
    }

    /// Of no stream: a wake-up that nobody hears is gone.
    pub(super) fn wake_subject(&self) -> String {
        format!("{}-wake", self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused() {
        let ok = NatsConfig::default;
        assert!(ok().check().is_ok());
        for bad in [
            NatsConfig { stream: "a.b".to_owned(), ..ok() },
            NatsConfig { stream: String::new(), ..ok() },
            NatsConfig { replicas: 0, ..ok() },
            NatsConfig { duplicate_window: Duration::MAX, ..ok() },
            NatsConfig { max_waiting: Some(0), ..ok() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
