//! The jobs of a database of either kind.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use greenwave_jobs::{
    JobDetails, JobFilter, JobId, JobPage, JobState, Postgres, Queue, QueueOverview, Sqlite,
};
use greenwave_shop::DatabaseUrl;
use serde::Deserialize;
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Said where there is nothing to look at.
const NO_TABLES: &str = "there are no jobs: the tables are missing, or older than this program. A service makes them when \
                         it starts; `greenwave jobs migrate` does too";

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The jobs of a database.
#[derive(Clone)]
pub(crate) enum Jobs {
    Postgres(Queue<Postgres>),
    Sqlite(Queue<Sqlite>),
}

/// Calls the same function of either queue.
macro_rules! either {
    ($jobs:expr, $queue:ident => $call:expr) => {
        match $jobs {
            Jobs::Postgres($queue) => $call,
            Jobs::Sqlite($queue) => $call,
        }
    };
}

/// What is done to jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Retry,
    Cancel,
    Discard,
}

impl Action {
    /// Whether it is for jobs in this state.
    pub(crate) fn is_for(self, state: JobState) -> bool {
        match self {
            Action::Retry | Action::Discard => state == JobState::Dead,
            Action::Cancel => !matches!(state, JobState::Dead | JobState::Completed),
        }
    }
}

impl Jobs {
    /// A URL, or the path of a SQLite file, as `greenwave advise` takes it. No error shows a password.
    pub(crate) fn open(url: &str) -> Result<Jobs> {
        let is_url = url.contains("://") || url.starts_with("sqlite:");
        let url = if is_url || url.is_empty() { url.to_owned() } else { format!("sqlite:{url}") };
        let database: DatabaseUrl = url.parse().map_err(|_| {
            anyhow!("--database: write postgres://USER:PASSWORD@HOST/DATABASE, sqlite:PATH, or the path of a SQLite file")
        })?;
        match &database {
            DatabaseUrl::Sqlite(path) => {
                // SQLite would make it.
                ensure!(path.is_file(), "{} is no file: check the path of the database", path.display());
                Ok(Jobs::Sqlite(Queue::sqlite(path)?))
            }
            DatabaseUrl::Postgres(_) => {
                // What sqlx says of a URL may hold a part of it.
                let options: PgConnectOptions =
                    url.parse().map_err(|_| anyhow!("--database: {database} cannot be read"))?;
                let pool = PgPoolOptions::new()
                    .max_connections(4)
                    .acquire_timeout(CONNECT)
                    .idle_timeout(Duration::from_secs(30))
                    .connect_lazy_with(
                        options.application_name("greenwave jobs").disable_statement_logging(),
                    );
                Ok(Jobs::Postgres(Queue::postgres(pool)))
            }
        }
    }

    /// Says what to do where the tables are missing.
    pub(crate) async fn check(&self) -> Result<()> {
        let migrated =
            either!(self, queue => queue.is_migrated().await).context("cannot look into the database: check that it runs, and that address, user and password are right")?;
        ensure!(migrated, NO_TABLES);
        Ok(())
    }

    pub(crate) async fn migrate(&self) -> Result<()> {
        Ok(either!(self, queue => queue.migrate().await)?)
    }

    pub(crate) async fn list(&self, filter: &JobFilter) -> Result<JobPage> {
        Ok(either!(self, queue => queue.list(filter).await)?)
    }

    pub(crate) async fn show(&self, id: JobId) -> Result<Option<JobDetails>> {
        Ok(either!(self, queue => queue.show(id).await)?)
    }

    pub(crate) async fn stats(&self) -> Result<Vec<QueueOverview>> {
        Ok(either!(self, queue => queue.stats_by_queue().await)?)
    }

    pub(crate) async fn set_paused(&self, name: &str, paused: bool) -> Result<()> {
        match paused {
            true => either!(self, queue => queue.pause(name).await)?,
            false => either!(self, queue => queue.resume(name).await)?,
        }
        Ok(())
    }

    /// Does it to one job; false if there is none that it could be done to.
    pub(crate) async fn act_on(&self, action: Action, id: JobId) -> Result<bool> {
        let only = JobFilter { from: Some(id), to: Some(id), ..JobFilter::default() };
        Ok(self.act(action, &only).await? > 0)
    }

    /// Does it to all that the filter means; says to how many.
    pub(crate) async fn act(&self, action: Action, filter: &JobFilter) -> Result<u64> {
        Ok(match action {
            Action::Retry => either!(self, queue => queue.retry_where(filter).await)?,
            Action::Cancel => either!(self, queue => queue.cancel_where(filter).await)?,
            Action::Discard => either!(self, queue => queue.discard_where(filter).await)?,
        })
    }

    /// How many jobs an action would touch, counted up to `most`.
    pub(crate) async fn count(&self, action: Action, filter: &JobFilter, most: usize) -> Result<usize> {
        let state = match action {
            Action::Retry | Action::Discard => Some(JobState::Dead),
            Action::Cancel => filter.state,
        };
        if state.is_some_and(|state| !action.is_for(state)) {
            bail!("only live jobs can be cancelled: ready, scheduled, running or blocked ones");
        }
        let mut filter = JobFilter { state, limit: 1000, ..filter.clone() };
        let mut count = 0;
        loop {
            let page = self.list(&filter).await?;
            count += page.jobs.iter().filter(|job| action.is_for(job.state)).count();
            match page.next {
                Some(next) if count < most => filter.after = Some(next),
                _ => return Ok(count.min(most)),
            }
        }
    }
}
