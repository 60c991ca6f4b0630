use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::setup::Setup;
use crate::workload::Workload;
use crate::{BoxError, Error, Report, Runner, Settings};

type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// A question with a before and an after.
///
/// The set-up makes the data once and gives both arms; so they are over the same data by construction.
/// What it creates outside the process, it also promises to remove: [`Setup::on_end`].
///
/// ```
/// use greenwave_lab::{Arm, Arms, Experiment, Workload};
/// use std::{hint::black_box, sync::Arc};
///
/// let experiment = Experiment::new(
///     "sum",
///     "Summing a list",
///     "How much does keeping the sum save over adding it up each time?",
///     |_setup| async {
///         let numbers: Arc<Vec<u64>> = Arc::new((0..10_000).collect());
///         let sum: u64 = numbers.iter().sum();
///         Ok(Arms {
///             before: Arm::new("added up", Workload::over(numbers, |numbers, _| async move {
///                 black_box(numbers.iter().sum::<u64>());
///                 Ok(())
///             })),
///             after: Arm::new("kept", Workload::new(move |_| async move {
///                 black_box(sum);
///                 Ok(())
///             })),
///         })
///     },
/// )
/// .unit("sums");
/// assert_eq!(experiment.name(), "sum");
/// ```
pub struct Experiment {
    name: String,
    title: String,
    question: String,
    unit: String,
    set_up: Box<dyn Fn(Setup) -> BoxFuture<Arms> + Send + Sync>,
}

impl std::fmt::Debug for Experiment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Experiment")
            .field("name", &self.name)
            .field("title", &self.title)
            .finish_non_exhaustive()
    }
}

impl Experiment {
    /// An experiment: a name for the command line, a title and a question for the report, and the set-up.
    pub fn new<F, Fut>(
        name: impl Into<String>,
        title: impl Into<String>,
        question: impl Into<String>,
        set_up: F,
    ) -> Self
    where
        F: Fn(Setup) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arms, BoxError>> + Send + 'static,
    {
        Experiment {
            name: name.into(),
            title: title.into(),
            question: question.into(),
            unit: "operations".to_owned(),
            set_up: Box::new(move |setup| Box::pin(set_up(setup))),
        }
    }

    /// What is counted, in the plural: "requests", "order lists". Default "operations".
    #[must_use]
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        self.unit = unit.into();
        self
    }

    /// The name, as the command line takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The title.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The question that the experiment answers.
    #[must_use]
    pub fn question(&self) -> &str {
        &self.question
    }

    /// Runs the experiment and reports; [`Runner`] does the same with progress and a way to stop.
    ///
    /// # Errors
    ///
    /// When the settings cannot be run, or the experiment's own code fails outside its operations or panics.
    pub async fn run(&self, settings: Settings) -> Result<Report, Error> {
        Runner::new(settings).run(self).await
    }

    /// What is counted.
    pub(crate) fn counted(&self) -> &str {
        &self.unit
    }

    pub(crate) fn set_up(&self, setup: Setup) -> BoxFuture<Arms> {
        (self.set_up)(setup)
    }
}

/// The two sides of an experiment.
#[derive(Debug, Clone)]
pub struct Arms {
    /// Without the technique.
    pub before: Arm,
    /// With it.
    pub after: Arm,
}

/// One side of an experiment: a label for the report, a workload, and what comes before each round.
#[derive(Clone)]
pub struct Arm {
    label: String,
    workload: Workload,
    prepare: Option<Step>,
    settle: Option<Step>,
    others: Option<Others>,
}

type Step = Arc<dyn Fn() -> BoxFuture<()> + Send + Sync>;

impl std::fmt::Debug for Arm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arm").field("label", &self.label).finish_non_exhaustive()
    }
}

impl Arm {
    /// An arm that runs `workload`; the label says how it does: "with the index".
    pub fn new(label: impl Into<String>, workload: Workload) -> Self {
        Arm { label: label.into(), workload, prepare: None, settle: None, others: None }
    }

    /// Does this before each of the arm's rounds, outside the clock: empty a cache, switch a technique on.
    ///
    /// ```
    /// use greenwave_lab::{Arm, Workload};
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    ///
    /// let fast = Arc::new(AtomicBool::new(false));
    /// let arm = Arm::new("fast", Workload::new(|_| async { Ok(()) })).prepare(move || {
    ///     let fast = fast.clone();
    ///     async move {
    ///         fast.store(true, Ordering::Relaxed);
    ///         Ok(())
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn prepare<F, Fut>(mut self, prepare: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.prepare = Some(Arc::new(move || Box::pin(prepare())));
        self
    }

    /// Waits for this after each of the arm's rounds, and counts CPU time until then: for work that operations left to
    /// be done later.
    #[must_use]
    pub fn settle<F, Fut>(mut self, settle: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.settle = Some(Arc::new(move || Box::pin(settle())));
        self
    }

    /// Adds the CPU time of others to that of this process: the function returns what they have used so far.
    #[must_use]
    pub fn cpu_of(mut self, others: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.others = Some(Arc::new(others));
        self
    }

    /// The label.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn workload(&self) -> &Workload {
        &self.workload
    }

    pub(crate) fn others(&self) -> Option<&Others> {
        self.others.as_ref()
    }

    pub(crate) fn settles(&self) -> bool {
        self.settle.is_some()
    }

    pub(crate) async fn settled(&self) -> Result<(), Error> {
        let Some(settle) = &self.settle else { return Ok(()) };
        settle().await.map_err(|source| Error::Prepare { label: self.label.clone(), source })
    }

    pub(crate) async fn prepared(&self) -> Result<(), Error> {
        let Some(prepare) = &self.prepare else { return Ok(()) };
        prepare().await.map_err(|source| Error::Prepare { label: self.label.clone(), source })
    }
}
