use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::BoxError;
use crate::round::Course;

type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// An operation that some number of tasks repeat, each as fast as it can, until the round ends.
///
/// The operation should take a microsecond or more: below that, what is measured is the clock. Where one
/// step is faster, do a hundred of them in one operation.
///
/// Its latency runs from its start to its end. An operation that fails counts as an error, and neither as
/// done nor in the latencies.
///
/// Cancel safety: an operation is dropped half-way when the run is stopped, or when it outlives its round
/// by 30 seconds.
#[derive(Clone)]
pub struct Workload(Arc<dyn Operation>);

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workload")
    }
}

impl Workload {
    /// A workload that repeats `operation`.
    ///
    /// ```
    /// use greenwave_lab::Workload;
    ///
    /// let workload = Workload::new(|_call| async {
    ///     tokio::task::yield_now().await;
    ///     Ok(())
    /// });
    /// ```
    pub fn new<F, Fut>(operation: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Workload(Arc::new(operation))
    }

    /// A workload over something shared: `operation` gets a clone of it each time.
    ///
    /// ```
    /// use greenwave_lab::Workload;
    /// use std::sync::Arc;
    ///
    /// let words = Arc::new(vec!["red", "green"]);
    /// let workload = Workload::over(words, |words, mut call| async move {
    ///     std::hint::black_box(words[call.pick(0..words.len())]);
    ///     Ok(())
    /// });
    /// ```
    pub fn over<S, F, Fut>(shared: S, operation: F) -> Self
    where
        S: Clone + Send + Sync + 'static,
        F: Fn(S, Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Workload::new(move |call| operation(shared.clone(), call))
    }

    /// What task number `task` of a round does.
    pub(crate) fn drive(&self, course: Arc<Course>, task: u64) -> BoxFuture {
        self.0.clone().drive(course, task)
    }
}

/// Boxed once a task and not once a call, so that the frame costs an operation next to nothing.
trait Operation: Send + Sync {
    fn drive(self: Arc<Self>, course: Arc<Course>, task: u64) -> BoxFuture;
}

impl<F, Fut> Operation for F
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    fn drive(self: Arc<Self>, course: Arc<Course>, task: u64) -> BoxFuture {
        Box::pin(async move {
            let mut number = task;
            loop {
                let begun = Instant::now();
                if begun >= course.stop {
                    return;
                }
                let result = self(Call::new(course.seed, number)).await;
                let ended = Instant::now();
                let took = ended - begun;
                course.record(task, ended, took, result);
                number += course.tasks;
                // An operation that never waits would keep its thread, and the other tasks would hardly run.
                if took > Duration::from_micros(100) {
                    tokio::task::yield_now().await;
                } else {
                    tokio::task::coop::consume_budget().await;
                }
            }
        })
    }
}

/// One run of an operation: its number, and its random choices.
///
/// The choices depend on the seed, the pair of rounds and the number alone, so both arms of a pair go
/// through the same sequence: the same customers, in the same order.
#[derive(Debug)]
pub struct Call {
    number: u64,
    random: Xoshiro256PlusPlus,
}

impl Call {
    /// The call with this number in the sequence that `seed` starts.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        // Numbers are next to each other and seeds may be: multiplying by an odd constant spreads them,
        // and `seed_from_u64` mixes the rest.
        let state = seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Call { number, random: Xoshiro256PlusPlus::seed_from_u64(state) }
    }

    /// The number of this call in its round, from 0, warm-up included; no other call of the round has it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next random choice from `range`: `call.pick(1..=100)`.
    ///
    /// # Panics
    ///
    /// When the range is empty.
    pub fn pick<T: SampleUniform, R: SampleRange<T>>(&mut self, range: R) -> T {
        self.random.random_range(range)
    }
}
