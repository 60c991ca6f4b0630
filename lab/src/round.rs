use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use histogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::cpu::CpuWindow;
use crate::experiment::Arm;
use crate::{BoxError, Error, Settings};

/// How long operations that were under way when the round ended may still take.
const PATIENCE: Duration = Duration::from_secs(30);

/// More tallies than cores, so that tasks seldom meet at one.
const TALLIES: u64 = 32;

/// What one arm did in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Round {
    /// Operations that ended well within the measured time.
    pub operations: u64,
    /// Operations that failed within it.
    pub errors: u64,
    /// Operations a second.
    pub per_second: f64,
    /// Half of the operations took at most this many milliseconds.
    pub p50_ms: Option<f64>,
    /// 99 of 100 operations took at most this many milliseconds.
    pub p99_ms: Option<f64>,
    /// CPU time of this process, in microseconds per operation; a database server's is in it only where the arm says so
    /// ([`Arm::cpu_of`](crate::Arm::cpu_of)).
    pub cpu_us: Option<f64>,
}

/// One round's plan and its counts, shared by its tasks.
pub(crate) struct Course {
    pub(crate) seed: u64,
    pub(crate) tasks: u64,
    pub(crate) stop: Instant,
    measure_from: Instant,
    tallies: Vec<Mutex<Tally>>,
}

#[derive(Default)]
struct Tally {
    operations: u64,
    errors: u64,
    first_error: Option<String>,
    latencies: Option<Histogram>,
}

impl Course {
    /// Counts one operation, when it ended within the measured time.
    pub(crate) fn record(&self, task: u64, ended: Instant, took: Duration, result: Result<(), BoxError>) {
        if ended < self.measure_from || ended > self.stop {
            return;
        }
        let tally = &self.tallies[(task % TALLIES) as usize];
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                tally.operations += 1;
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).min(1 << 40);
                if let Some(latencies) = tally.latencies.as_mut() {
                    let _ = latencies.increment(nanos);
                }
            }
            Err(error) => {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| chain(&*error));
            }
        }
    }
}

/// How a round ended.
pub(crate) enum Ended {
    /// It ran to its end; with the text of its first error.
    Complete(Round, Option<String>),
    /// It was stopped.
    Stopped,
}

/// Prepares `arm` and drives it for one round; `seed` starts its random sequence.
pub(crate) async fn run(arm: &Arm, settings: &Settings, seed: u64) -> Result<Ended, Error> {
    arm.prepared().await?;
    let course = Arc::new(course(settings, seed));
    let cpu = CpuWindow::start(settings.warm_up, settings.duration, arm.settles(), arm.others().cloned());
    let mut tasks = JoinSet::new();
    for task in 0..course.tasks {
        tasks.spawn(arm.workload().drive(course.clone(), task));
    }
    let all_ended = timeout_at(course.stop + PATIENCE, async {
        while let Some(ended) = tasks.join_next().await {
            if ended.is_err_and(|error| error.is_panic()) {
                return Err(Error::Panicked(format!("an operation of `{}`", arm.label())));
            }
        }
        Ok(())
    });
    let late = match all_ended.await {
        Ok(ended) => {
            ended?;
            0
        }
        Err(_elapsed) => tasks.len() as u64,
    };
    arm.settled().await?;
    let cpu = cpu.close();
    let (mut round, mut first_error) = count(&course, settings.duration);
    if late > 0 {
        round.errors += late;
        first_error.get_or_insert_with(|| format!("no end within {PATIENCE:?} after the round's end"));
    }
    if round.operations > 0 {
        round.cpu_us = cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / round.operations as f64);
    }
    Ok(Ended::Complete(round, first_error))
}

fn course(settings: &Settings, seed: u64) -> Course {
    let tasks = settings.concurrency as u64;
    let measure_from = Instant::now() + settings.warm_up;
    // 2^7 steps to each power of two: a latency is known to better than 1 %.
    let tally = || Tally { latencies: Histogram::new(7, 41).ok(), ..Tally::default() };
    let tallies = (0..tasks.min(TALLIES)).map(|_| Mutex::new(tally())).collect();
    Course { seed, tasks, measure_from, stop: measure_from + settings.duration, tallies }
}

fn count(course: &Course, duration: Duration) -> (Round, Option<String>) {
    let mut all = Tally::default();
    for tally in &course.tallies {
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        all.operations += tally.operations;
        all.errors += tally.errors;
        all.first_error = all.first_error.or(tally.first_error.take());
        all.latencies = match (all.latencies, tally.latencies.take()) {
            (Some(sum), Some(more)) => sum.checked_add(&more).ok(),
            (None, first) => first,
            (sum, None) => sum,
        };
    }
    let quantile = |q| {
        let bucket = all.latencies.as_ref()?.quantile_bucket(q).ok()??;
        Some((bucket.start() as f64 + bucket.end() as f64) / 2.0 / 1e6)
    };
    let round = Round {
        operations: all.operations,
        errors: all.errors,
        per_second: all.operations as f64 / duration.as_secs_f64(),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        cpu_us: None,
    };
    (round, all.first_error)
}

/// The error and its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
