use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::report::Fact;
use crate::round::chain;
use crate::runner::{Observer, Step};
use crate::{BoxError, Settings};

/// How long one promised clean-up may take.
const PATIENCE: Duration = Duration::from_secs(30);

type Ending = (String, Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>);

/// What an experiment's set-up is given: the run's seed, a temporary folder, and the promise that what it
/// creates is removed again, however the run ends.
#[derive(Clone)]
pub struct Setup(Arc<Inner>);

struct Inner {
    seed: u64,
    concurrency: usize,
    observer: Observer,
    facts: Mutex<Vec<Fact>>,
    warnings: Mutex<Vec<String>>,
    endings: Mutex<Vec<Ending>>,
    shielded: TaskTracker,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("seed", &self.0.seed).finish_non_exhaustive()
    }
}

impl Setup {
    pub(crate) fn new(settings: &Settings, seed: u64, observer: Observer) -> Self {
        Setup(Arc::new(Inner {
            seed,
            concurrency: settings.concurrency,
            observer,
            facts: Mutex::default(),
            warnings: Mutex::default(),
            endings: Mutex::default(),
            shielded: TaskTracker::new(),
        }))
    }

    /// The seed of this run, for data that is made at random.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// How many tasks will run the operations, for pools of that size.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.0.concurrency
    }

    /// Puts a line into the report: the version of the database, the size of the data.
    ///
    /// Reports are published: no host names and no paths.
    pub fn fact(&self, name: impl Into<String>, value: impl Into<String>) {
        lock(&self.0.facts).push(Fact { name: name.into(), value: value.into() });
    }

    /// Tells the user what is being done or was created.
    pub fn note(&self, text: &str) {
        (self.0.observer)(Step::Note(text));
    }

    /// Tells the user how far a long part of the set-up is.
    pub fn progress(&self, done: u64, total: u64) {
        (self.0.observer)(Step::SettingUp { done, total });
    }

    /// Does this to its end, also when the run is stopped meanwhile; the clean-ups wait for it.
    ///
    /// A server goes on creating a database when nobody waits for its answer any more. Dropped half-way, it
    /// would be there after the clean-up that was to drop it.
    ///
    /// # Errors
    ///
    /// Those of `work`, and when it panics.
    pub async fn shield<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, BoxError>> + Send + 'static,
    ) -> Result<T, BoxError> {
        self.0.shielded.spawn(work).await?
    }

    /// Does this when the run ends: well, with an error, by a panic or by Ctrl-C. The last promise is kept
    /// first. One that fails or takes more than 30 seconds becomes a warning, which the report repeats;
    /// `what` says what the user must then do by hand: "drop the database lab_1".
    pub fn on_end(
        &self,
        what: impl Into<String>,
        ending: impl Future<Output = Result<(), BoxError>> + Send + 'static,
    ) {
        lock(&self.0.endings).push((what.into(), Box::pin(ending)));
    }

    /// A temporary folder, removed when the run ends.
    ///
    /// # Errors
    ///
    /// When the system's temporary folder is full or may not be written to.
    pub fn temp_dir(&self) -> Result<PathBuf, BoxError> {
        let folder = tempfile::Builder::new().prefix("greenwave-lab-").tempdir()?;
        let path = folder.path().to_owned();
        let what = format!("remove the folder {}", path.display());
        self.on_end(what, async { Ok(tokio::task::spawn_blocking(|| folder.close()).await??) });
        Ok(path)
    }

    /// Keeps every promise. What fails is told and kept for the report.
    pub(crate) async fn end(&self) {
        self.0.shielded.close();
        if tokio::time::timeout(PATIENCE, self.0.shielded.wait()).await.is_err() {
            self.warn(format!("the set-up is still busy after {PATIENCE:?}: see what it leaves behind"));
        }
        loop {
            let Some((what, ending)) = lock(&self.0.endings).pop() else { return };
            let trouble = match tokio::time::timeout(PATIENCE, ending).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => chain(&*error),
                Err(_elapsed) => format!("no answer within {PATIENCE:?}"),
            };
            self.warn(format!("could not {what}: {trouble}"));
        }
    }

    fn warn(&self, warning: String) {
        (self.0.observer)(Step::Warning(&warning));
        lock(&self.0.warnings).push(warning);
    }

    pub(crate) fn facts(&self) -> Vec<Fact> {
        lock(&self.0.facts).clone()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        lock(&self.0.warnings).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
