//! A job as it travels: a JSON document of its own, so that any language can push and read one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::nats;
use crate::Error;
use crate::dead::StoredError;
use crate::job::{DEFAULT_PRIORITY, NewJob, Start};

/// The body of a message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) name: String,
    #[serde(default = "one")]
    pub(crate) version: u32,
    pub(crate) payload: Box<RawValue>,
    #[serde(default = "default_attempts")]
    pub(crate) max_attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<String>,
    /// Of a job that a schedule pushed: its tick, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scheduled_for_ms: Option<i64>,
    /// Of a job that came back from the dead: its id then. Others have the sequence of their message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<i64>,
    /// Of a job that came from elsewhere or from the dead: what its attempts failed with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<StoredError>,
    /// How often it has failed before it came here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) failures: u32,
}

fn one() -> u32 {
    1
}

fn default_attempts() -> u32 {
    20
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands a reference
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Envelope {
    /// The job as a message, unless it asks for what JetStream cannot do.
    pub(super) fn of(job: NewJob) -> Result<Self, Error> {
        if let Some(what) = unsupported(&job) {
            return Err(Error::Unsupported(what));
        }
        Ok(Envelope {
            name: job.name.to_owned(),
            version: job.version.unsigned_abs(),
            payload: raw(job.payload)?,
            max_attempts: job.max_attempts.unsigned_abs(),
            timeout_ms: job.timeout_ms.map(i64::unsigned_abs),
            trace: job.trace,
            scheduled_for_ms: None,
            id: None,
            errors: Vec::new(),
            failures: 0,
        })
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(nats)
    }
}

/// The text as JSON, or as a JSON string if it is none.
pub(crate) fn raw(payload: String) -> Result<Box<RawValue>, Error> {
    RawValue::from_string(payload).map_err(nats)
}

/// Of all jobs of a type.
pub(super) fn unsupported_kind(priority: u8, keep: Duration) -> Option<&'static str> {
    if priority != DEFAULT_PRIORITY {
        return Some("a priority: push to PostgreSQL or SQLite, or to a queue of its own");
    }
    (!keep.is_zero()).then_some("keeping completed jobs: push to PostgreSQL or SQLite")
}

fn unsupported(job: &NewJob) -> Option<&'static str> {
    if job.start != Start::In(0) {
        return Some("a delay: push to PostgreSQL or SQLite, and forward the queue to NATS");
    }
    if job.key.is_some() {
        return Some("a key: push to PostgreSQL or SQLite");
    }
    if job.unique.is_some() {
        return Some("unique jobs: push to PostgreSQL or SQLite");
    }
    if job.awaited {
        return Some("jobs that others wait for: push to PostgreSQL or SQLite");
    }
    let keep = Duration::from_millis(job.keep_ms.unsigned_abs());
    unsupported_kind(u8::try_from(job.priority).unwrap_or(DEFAULT_PRIORITY), keep)
}
