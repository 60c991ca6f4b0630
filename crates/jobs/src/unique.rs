use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::job::{NewJob, millis};

use serde::{Deserialize, Serialize};

/// What makes two jobs the same, and for how long.
///
/// A push of a job whose `key` is taken stores nothing, and answers with the job that has it. Keys of different
/// [names](crate::Job::NAME) never meet.
///
/// ```
/// use std::time::Duration;
/// use greenwave_jobs::Unique;
///
/// // One export of a customer at a time.
/// let while_it_lives = Unique::by("customer 7");
/// // And at most one an hour, whether or not the last is done.
/// let hourly = Unique::by("customer 7").within(Duration::from_secs(3600)).also_completed();
/// # let _ = (while_it_lives, hourly);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unique {
    /// The key.
    pub key: String,
    /// How long after its push a job keeps the key. Default (`None`): as long as it is in one of the states that hold it.
    pub window: Option<Duration>,
    /// In which states a job holds its key.
    pub states: UniqueStates,
}

/// In which states a job holds its unique key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UniqueStates {
    /// Ready, scheduled or blocked. Default: true.
    pub waiting: bool,
    /// Running. Default: true; with false, a job that runs lets one follow it.
    pub running: bool,
    /// Completed. Default: false. It needs a window: without one the key would be taken for ever.
    pub completed: bool,
    /// Dead. Default: false.
    pub dead: bool,
}

impl Default for UniqueStates {
    fn default() -> Self {
        UniqueStates { waiting: true, running: true, completed: false, dead: false }
    }
}

impl Unique {
    /// Unique by this key while a job that has it waits or runs.
    pub fn by(key: impl Into<String>) -> Self {
        Unique { key: key.into(), window: None, states: UniqueStates::default() }
    }

    /// For at most so long after the push.
    #[must_use]
    pub fn within(mut self, window: Duration) -> Self {
        self.window = Some(window);
        self
    }

    /// Only while the job waits: when it runs, another may be pushed.
    #[must_use]
    pub fn only_waiting(mut self) -> Self {
        self.states.running = false;
        self
    }

    /// Also once it is completed; give a [window](Unique::within) too.
    #[must_use]
    pub fn also_completed(mut self) -> Self {
        self.states.completed = true;
        self
    }

    /// Also once it is dead.
    #[must_use]
    pub fn also_dead(mut self) -> Self {
        self.states.dead = true;
        self
    }
}

/// Longer keys would not fit their index in every encoding.
const MAX_KEY_BYTES: usize = 1024;

/// Refuses a key that no index takes.
pub(crate) fn check_key(job: &str, what: &str, key: &str) -> Result<(), Error> {
    if key.len() > MAX_KEY_BYTES {
        return Err(Error::Invalid(format!(
            "the {what} of job `{job}` is longer than {MAX_KEY_BYTES} bytes"
        )));
    }
    if key.contains('\0') {
        return Err(Error::Invalid(format!("the {what} of job `{job}` contains a NUL")));
    }
    Ok(())
}

impl Unique {
    pub(crate) fn check(&self, job: &str) -> Result<(), Error> {
        check_key(job, "unique key", &self.key)?;
        if self.states.completed && self.window.is_none() {
            return Err(Error::Invalid(format!(
                "job `{job}` would hold its unique key for ever once it is completed: give it a window"
            )));
        }
        Ok(())
    }
}

impl UniqueStates {
    /// As the databases keep them.
    pub(crate) fn bits(self) -> i16 {
        let UniqueStates { waiting, running, completed, dead } = self;
        i16::from(waiting) | i16::from(running) << 1 | i16::from(completed) << 2 | i16::from(dead) << 3
    }
}

/// A key that a pushed job wants.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    /// Which job of the batch.
    pub(crate) at: usize,
    pub(crate) name: &'a str,
    pub(crate) key: &'a str,
    pub(crate) window_ms: Option<i64>,
    pub(crate) states: i16,
}

/// What a batch claims, each key once, and the jobs that come after another with their key: `(at, first)`.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
pub(crate) fn claims(jobs: &[NewJob]) -> (Vec<Claim<'_>>, Vec<(usize, usize)>) {
    let (mut claims, mut repeats, mut first) = (Vec::new(), Vec::new(), HashMap::new());
    for (at, job) in jobs.iter().enumerate() {
        let Some(unique) = &job.unique else { continue };
        match first.entry((job.name, unique.key.as_str())) {
            Entry::Occupied(first) => repeats.push((at, *first.get())),
            Entry::Vacant(free) => {
                free.insert(at);
                claims.push(Claim {
                    at,
                    name: job.name,
                    key: &unique.key,
                    window_ms: unique.window.map(millis),
                    states: unique.states.bits(),
                });
            }
        }
    }
    (claims, repeats)
}

/// The way of this process through the table of keys, in which it deletes those that nobody holds any more.
#[derive(Debug, Default)]
pub(crate) struct Sweep(Mutex<Swept>);

#[derive(Debug, Default)]
struct Swept {
    next: Option<Instant>,
    after: (String, String),
    batches: usize,
}

/// How long it rests at the end of the table, and between two batches that had little to delete.
const REST: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);

/// How many batches one upkeep sweeps at most.
const MAX_BATCHES: usize = 10;

impl Sweep {
    /// How many keys one statement looks at.
    pub(crate) const BATCH: usize = 2000;

    /// The name and key after which to sweep now; none if it is time to rest.
    pub(crate) fn begin(&self) -> Option<(String, String)> {
        let mut swept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if swept.batches >= MAX_BATCHES || swept.next.is_some_and(|next| next > now) {
            swept.batches = 0;
            return None;
        }
        swept.batches += 1;
        // Others that ask meanwhile, or ask after an error, rest.
        swept.next = Some(now + PAUSE);
        Some(swept.after.clone())
    }

    /// Takes in how many keys a batch had, how many of them are gone, and the last of them.
    pub(crate) fn ended(&self, seen: usize, gone: usize, last: Option<(String, String)>) {
        let mut swept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen < Self::BATCH {
            swept.after = Default::default();
            swept.next = Some(Instant::now() + REST);
        } else {
            swept.after = last.unwrap_or_default();
            if gone > seen / 2 {
                swept.next = None;
            }
        }
    }
}
