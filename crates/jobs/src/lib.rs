#![doc = include_str!("../README.md")]
// On NATS alone, what only a database can do has no caller.
#![cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]

#[cfg(any(feature = "postgres", feature = "nats"))]
mod announcer;
mod backends;
mod backoff;
mod config;
mod dead;
mod deadline;
mod error;
#[cfg(feature = "nats")]
mod forward;
mod inspect;
mod job;
mod limits;
mod objectives;
mod push;
mod queue;
mod results;
mod schedule;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod unique;
mod verdict;
mod wakeups;
mod worker;
mod workflow;

#[cfg(feature = "nats")]
pub use backends::nats::{Nats, NatsConfig};
#[cfg(feature = "postgres")]
pub use backends::postgres::Postgres;
#[cfg(feature = "sqlite")]
pub use backends::sqlite::Sqlite;
pub use backends::{Backend, SqlBackend};
pub use config::WorkerConfig;
pub use dead::{AttemptError, DeadJob, DeadReason};
pub use error::Error;
#[cfg(feature = "nats")]
pub use forward::ForwardConfig;
pub use inspect::{JobDetails, JobFilter, JobPage, JobState, JobSummary, QueueOverview, StateCounts};
pub use job::{Job, JobId, PushOptions, Pushed};
pub use limits::{QueueLimits, Rate};
pub use objectives::ObjectiveConfig;
pub use queue::{Queue, QueueStats};
pub use results::{EndedJob, Outcome, Results};
pub use schedule::{Missed, Schedule, ScheduleStatus};
pub use unique::{Unique, UniqueStates};
pub use verdict::{Discard, RetryIn, Snooze};
pub use worker::{JobContext, Worker};
pub use workflow::{PushedWorkflow, Step, Workflow};

/// What a handler may fail with: any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
