use std::time::Duration;

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
