//! How deep the queues are, how old, and whether that is as it should be. One worker observes a queue for all.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::backends::Store;
use crate::backends::inspect::Observed;
use crate::deadline::in_time;
use crate::error::chain;
use crate::telemetry;

/// How long the jobs of a queue may wait until they start.
///
/// When the oldest ready job has waited longer, the worker that observes the queue says so by an ERROR of target
/// [`telemetry::OBJECTIVE_TARGET`] and sets the gauge [`telemetry::OBJECTIVE_MISSED`] to 1; when the objective is met
/// again, by an INFO, and 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// The queue; one that the worker serves.
    pub queue: String,
    /// The longest wait of a ready job.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
}

/// How often a queue is measured, unless an objective asks for more.
const INTERVAL: Duration = Duration::from_secs(5);

/// An objective is looked at so many times within its longest wait, but not more often than this.
const LOOKS: u32 = 4;
const SHORTEST: Duration = Duration::from_millis(250);

/// After a measurement that took long, so many times as long is waited: at most a twentieth of a connection's time.
const PAUSE: u32 = 20;

/// Observes the queues for as long as it is polled.
pub(crate) async fn watch<S: Store>(store: S, queues: Vec<&'static str>, objectives: Vec<ObjectiveConfig>) {
    let holder = rand::random::<i64>();
    let shortest = objectives.iter().map(|objective| objective.max_wait / LOOKS).min();
    let interval = shortest.unwrap_or(INTERVAL).clamp(SHORTEST, INTERVAL);
    let mut watch = Watch { objectives, missed: HashSet::new(), held: HashSet::new() };
    let mut pause = interval;
    loop {
        let began = Instant::now();
        // Long enough that a slow round does not lose the role to another.
        let observed = in_time(store.observe(holder, &queues, pause * 3 + INTERVAL)).await;
        pause = interval.max(began.elapsed() * PAUSE);
        match observed {
            Ok(observed) => watch.record(&observed),
            Err(error) => tracing::warn!(error = chain(&error), "could not measure the queues"),
        }
        sleep(pause).await;
    }
}

struct Watch {
    objectives: Vec<ObjectiveConfig>,
    /// The queues whose objective is missed.
    missed: HashSet<String>,
    /// The queues that this worker reports.
    held: HashSet<String>,
}

impl Watch {
    fn record(&mut self, observed: &[Observed]) {
        // What another reports now is nothing here, so that the sum over all workers stays right.
        self.held.retain(|queue| {
            let holds = observed.iter().any(|observed| observed.queue == *queue);
            if !holds {
                telemetry::observed(&Observed { queue: queue.clone(), ready: 0, dead: 0, oldest: None });
                if self.missed.remove(queue) {
                    telemetry::objective(queue, false);
                }
            }
            holds
        });
        for observed in observed {
            telemetry::observed(observed);
            self.held.insert(observed.queue.clone());
            let objective = self.objectives.iter().find(|objective| objective.queue == observed.queue);
            if let Some(objective) = objective {
                let max_wait = objective.max_wait;
                self.judge(observed, max_wait);
            }
        }
    }

    fn judge(&mut self, observed: &Observed, max_wait: Duration) {
        let queue = observed.queue.as_str();
        let oldest = observed.oldest.unwrap_or_default();
        let misses = oldest > max_wait;
        telemetry::objective(queue, misses);
        let ready = observed.ready;
        if misses && self.missed.insert(queue.to_owned()) {
            tracing::error!(
                target: telemetry::OBJECTIVE_TARGET, queue, ?oldest, ?max_wait, ready,
                "the queue misses its objective: its oldest ready job has waited too long"
            );
        } else if !misses && self.missed.remove(queue) {
            tracing::info!(
                target: telemetry::OBJECTIVE_TARGET, queue, ?oldest, ?max_wait, ready,
                "the queue meets its objective again"
            );
        }
    }
}
