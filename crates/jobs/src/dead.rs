use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::JobId;

/// A job that will not run again unless [`Queue::retry_dead`](crate::Queue::retry_dead) brings it back.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadJob {
    /// The job's id, the same as when it lived.
    pub id: JobId,
    /// The queue it waited in.
    pub queue: String,
    /// [`Job::NAME`](crate::Job::NAME) it was pushed under.
    pub name: String,
    /// Its payload, JSON as it was pushed.
    pub payload: String,
    /// How many attempts failed.
    pub attempts: u32,
    /// Why it died.
    pub reason: DeadReason,
    /// What its last attempts said, oldest first; ten at most are kept.
    pub errors: Vec<AttemptError>,
    /// When it died, by the database's clock.
    pub died_at: SystemTime,
}

/// Why a job died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadReason {
    /// Its last allowed attempt failed.
    Exhausted,
    /// A worker of its queue has no handler of its name.
    UnknownJob,
    /// Its payload does not decode into its type.
    Undecodable,
    /// Too often in a row its worker vanished while it held the job; the job may be what kills them.
    Crashed,
    /// Somebody cancelled it.
    Cancelled,
    /// Its handler said that trying again is no use.
    Discarded,
    /// A job that it waited for is dead.
    Abandoned,
}

/// What one attempt failed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttemptError {
    /// The number of the attempt; the first is 1.
    pub attempt: u32,
    /// When it failed, by the database's clock.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// The error and its causes.
    pub error: String,
}

/// Longer messages are cut, in bytes: errors are kept for people to read, ten a job.
const MAX_ERROR_BYTES: usize = 4096;

impl DeadReason {
    pub(crate) fn code(self) -> &'static str {
        match self {
            DeadReason::Exhausted => "exhausted",
            DeadReason::UnknownJob => "unknown_job",
            DeadReason::Undecodable => "undecodable",
            DeadReason::Crashed => "crashed",
            DeadReason::Cancelled => "cancelled",
            DeadReason::Discarded => "discarded",
            DeadReason::Abandoned => "abandoned",
        }
    }

    pub(crate) fn from_code(code: &str) -> Self {
        match code {
            "unknown_job" => DeadReason::UnknownJob,
            "undecodable" => DeadReason::Undecodable,
            "crashed" => DeadReason::Crashed,
            "cancelled" => DeadReason::Cancelled,
            "discarded" => DeadReason::Discarded,
            "abandoned" => DeadReason::Abandoned,
            _ => DeadReason::Exhausted,
        }
    }
}

/// A message that both databases can store: no NUL, which PostgreSQL refuses, and not endless.
pub(crate) fn storable(mut error: String) -> String {
    if error.len() > MAX_ERROR_BYTES {
        let cut = (0..=MAX_ERROR_BYTES).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
        error.truncate(cut);
        error.push('…');
    }
    if error.contains('\0') { error.replace('\0', "\u{fffd}") } else { error }
}

/// The errors column. What cannot be read is left out: a dead job must stay visible.
pub(crate) fn read_errors(json: &str) -> Vec<AttemptError> {
    let stored: Vec<StoredError> = serde_json::from_str(json).unwrap_or_default();
    stored.into_iter().map(StoredError::read).collect()
}

/// An [`AttemptError`] as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredError {
    pub(crate) attempt: u32,
    pub(crate) at_ms: i64,
    pub(crate) error: String,
}

impl StoredError {
    pub(crate) fn read(self) -> AttemptError {
        AttemptError { attempt: self.attempt, at: time(self.at_ms), error: self.error }
    }
}

pub(crate) fn time(unix_ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters_and_loses_its_nul() {
        let message = storable(format!("\0{}", "ä".repeat(MAX_ERROR_BYTES)));
        assert!(message.starts_with('\u{fffd}') && message.ends_with("ä…"));
        assert!(message.len() < MAX_ERROR_BYTES + 8);
    }

    #[test]
    fn every_reason_survives_its_code() {
        use DeadReason::*;
        for reason in [Exhausted, UnknownJob, Undecodable, Crashed, Cancelled, Discarded, Abandoned] {
            assert_eq!(DeadReason::from_code(reason.code()), reason);
        }
    }
}
