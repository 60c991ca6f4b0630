use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::backends::SqlBackend;
use crate::backends::flows::Edge;
use crate::deadline::{in_time, within};
use crate::error::chain;
use crate::job::{NewJob, Start};
use crate::{Error, Job, JobId, PushOptions, Pushed, Queue, telemetry};

/// Jobs of which some wait for others, to be pushed together.
///
/// A job can only come after jobs that were added before it, so there are no cycles. It becomes ready when all that it
/// waits for are completed. If one of them dies it is dead too, [abandoned](crate::DeadReason::Abandoned), and so on
/// down the line, unless it is to [run anyway](Workflow::run_anyway).
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use greenwave_jobs::{Job, Workflow};
/// # #[derive(Serialize, Deserialize)] struct Resize { width: u32 }
/// # impl Job for Resize { const NAME: &'static str = "resize"; }
/// # #[derive(Serialize, Deserialize)] struct Publish;
/// # impl Job for Publish { const NAME: &'static str = "publish"; }
/// let mut flow = Workflow::new();
/// let small = flow.add(&Resize { width: 200 });
/// let large = flow.add(&Resize { width: 2000 });
/// flow.add_after(&Publish, [small, large]);
/// assert_eq!(flow.len(), 3);
/// ```
#[derive(Debug)]
pub struct Workflow {
    /// Told apart from others, so that a step of one is not taken for a step of another.
    id: u64,
    jobs: Vec<NewJob>,
    edges: Vec<Edge>,
    /// What was wrong first; said when the workflow is pushed.
    error: Option<String>,
}

/// A job of a workflow that is being put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    workflow: u64,
    place: usize,
}

impl Default for Workflow {
    fn default() -> Self {
        Self::new()
    }
}

impl Workflow {
    /// A workflow without jobs.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Workflow { id, jobs: Vec::new(), edges: Vec::new(), error: None }
    }

    /// Adds a job that waits for none.
    pub fn add<J: Job>(&mut self, job: &J) -> Step {
        self.add_with(job, PushOptions::default())
    }

    /// As [`add`](Self::add), with options.
    pub fn add_with<J: Job>(&mut self, job: &J, options: PushOptions) -> Step {
        self.add_after_with(job, [], options)
    }

    /// Adds a job that waits for others. After none it waits for none.
    pub fn add_after<J: Job>(&mut self, job: &J, after: impl IntoIterator<Item = Step>) -> Step {
        self.add_after_with(job, after, PushOptions::default())
    }

    /// Adds a job that waits for all that were added so far: what is to be done when a batch is done.
    pub fn add_after_all<J: Job>(&mut self, job: &J) -> Step {
        let workflow = self.id;
        self.add_after(job, (0..self.jobs.len()).map(|place| Step { workflow, place }))
    }

    /// As [`add_after`](Self::add_after), with options. A job that waits for others has no `delay` and no `at`.
    pub fn add_after_with<J: Job>(
        &mut self,
        job: &J,
        after: impl IntoIterator<Item = Step>,
        options: PushOptions,
    ) -> Step {
        let step = Step { workflow: self.id, place: self.jobs.len() };
        if let Err(error) = self.try_add(job, after, options) {
            self.error.get_or_insert(error);
        }
        step
    }

    fn try_add<J: Job>(
        &mut self,
        job: &J,
        after: impl IntoIterator<Item = Step>,
        options: PushOptions,
    ) -> Result<(), String> {
        let refused = |why: &str| Err(format!("job `{}` {why}", J::NAME));
        let timed = options.delay.is_some() || options.at.is_some();
        let mut job = NewJob::encode(job, &options).map_err(|error| chain(&error))?;
        if job.unique.is_some() {
            return refused("is unique, but a workflow's jobs must be its own");
        }
        let mut before = Vec::new();
        for step in after {
            if step.workflow != self.id || step.place >= self.jobs.len() {
                return refused("waits for a step of another workflow");
            }
            before.push(step.place);
        }
        before.sort_unstable();
        before.dedup();
        if !before.is_empty() {
            if timed {
                return refused("waits for others, so it cannot have a time of its own");
            }
            job.start = Start::After(i32::try_from(before.len()).unwrap_or(i32::MAX));
            job.awaited = true;
        }
        let after = self.jobs.len();
        self.jobs.push(job);
        for before in before {
            self.jobs[before].awaited = true;
            self.edges.push(Edge { before, after, anyway: false });
        }
        Ok(())
    }

    /// Lets a job run as soon as all that it waits for have ended, dead ones too: to clean up, or to tell somebody.
    pub fn run_anyway(&mut self, step: Step) {
        if step.workflow != self.id {
            let why = "a step of another workflow was to run anyway";
            self.error.get_or_insert_with(|| why.to_owned());
            return;
        }
        self.edges.iter_mut().filter(|edge| edge.after == step.place).for_each(|edge| edge.anyway = true);
    }

    /// How many jobs it has.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// True if it has no jobs.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many jobs of each queue wait for none.
    pub(crate) fn first(&self) -> BTreeMap<&'static str, usize> {
        let mut first = BTreeMap::new();
        for job in self.jobs.iter().filter(|job| !matches!(job.start, Start::After(_))) {
            *first.entry(job.queue).or_insert(0) += 1;
        }
        first
    }

    /// What is to be stored, with the trace of whoever pushes it.
    pub(crate) fn parts(&self, trace: Option<&str>) -> Result<(Vec<NewJob>, Vec<Edge>), Error> {
        if let Some(error) = &self.error {
            return Err(Error::Workflow(error.clone()));
        }
        let job = |job: &NewJob| NewJob { trace: trace.map(str::to_owned), ..job.clone() };
        Ok((self.jobs.iter().map(job).collect(), self.edges.clone()))
    }
}

/// The ids of a workflow's jobs, once it is pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedWorkflow {
    workflow: u64,
    ids: Vec<JobId>,
}

impl PushedWorkflow {
    pub(crate) fn new(workflow: &Workflow, pushed: Vec<Pushed>) -> Self {
        for job in &workflow.jobs {
            telemetry::pushed(job.queue, job.name, 1);
        }
        PushedWorkflow { workflow: workflow.id, ids: pushed.into_iter().map(|pushed| pushed.id).collect() }
    }

    /// The job of a step; none if the step is of another workflow.
    pub fn id(&self, step: Step) -> Option<JobId> {
        (step.workflow == self.workflow).then(|| self.ids.get(step.place).copied()).flatten()
    }

    /// All jobs, in the order in which they were added.
    pub fn ids(&self) -> &[JobId] {
        &self.ids
    }
}

/// How long a push may take: a workflow may have a million jobs, and is stored as a whole.
const PUSH: Duration = Duration::from_secs(5 * 60);

impl<B: SqlBackend> Queue<B> {
    /// Stores all jobs of a workflow, or none.
    ///
    /// The same workflow may be pushed again, as other jobs.
    ///
    /// # Errors
    /// [`Error::Workflow`] if it was put together wrongly: the message says which job. [`Error::Full`] if a queue has no
    /// room for those of its jobs that wait for none; the others find room when their turn comes.
    ///
    /// # Cancel safety
    /// As for [`push`](Self::push).
    pub async fn push_workflow(&self, workflow: &Workflow) -> Result<PushedWorkflow, Error> {
        let (jobs, edges) = workflow.parts(self.traceparent.current().as_deref())?;
        if jobs.is_empty() {
            return Ok(PushedWorkflow::new(workflow, Vec::new()));
        }
        for (queue, jobs) in workflow.first() {
            in_time(self.store.admit(queue, jobs)).await?;
        }
        let pushed = within(PUSH, self.store.push_workflow(jobs, edges)).await?;
        self.wake();
        Ok(PushedWorkflow::new(workflow, pushed))
    }
}
