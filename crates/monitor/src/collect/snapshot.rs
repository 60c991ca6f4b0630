use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Histogram, Metrics};
use crate::{Error, socket};

/// What one or several processes had measured at one moment.
///
/// Processes stay apart inside, so that one which died or started anew does not make the sum of the others
/// look as if it had fallen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Each process's numbers, by an id that no other process (and no later life of it) has.
    pub processes: BTreeMap<String, Process>,
    /// What is known about metrics, by name.
    #[serde(default)]
    pub descriptions: BTreeMap<String, Description>,
}

/// What one process had measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// When its monitor began, in milliseconds since 1970.
    pub started_ms: u64,
    /// Its numbers since then.
    pub metrics: Metrics,
}

/// What a metric means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The unit, as the `metrics` crate names it: `seconds`, `bytes`, `count`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// One sentence.
    #[serde(default)]
    pub help: String,
}

impl Snapshot {
    /// Takes the other's processes in.
    ///
    /// A process that both have is taken from `other`, so the same process never counts twice.
    pub fn merge(&mut self, other: Snapshot) {
        self.processes.extend(other.processes);
        for (name, description) in other.descriptions {
            self.descriptions.entry(name).or_insert(description);
        }
    }

    /// What happened after `earlier` was taken: counters and histograms less what they were, gauges as they are.
    ///
    /// A process that `earlier` does not know (because it started since) counts with all that it has; one that is
    /// gone counts with nothing.
    #[must_use]
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let processes = self.processes.iter().map(|(id, process)| {
            let metrics = match earlier.processes.get(id) {
                Some(before) => process.metrics.since(&before.metrics),
                None => process.metrics.clone(),
            };
            (id.clone(), Process { started_ms: process.started_ms, metrics })
        });
        Snapshot { processes: processes.collect(), descriptions: self.descriptions.clone() }
    }

    /// All processes added up.
    pub fn total(&self) -> Metrics {
        let mut total = Metrics::default();
        for process in self.processes.values() {
            total.add(&process.metrics);
        }
        total
    }

    /// The sum of the counters of this name that have (at least) these labels.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let counts = self.processes.values().map(|process| process.metrics.counter(name, labels));
        counts.fold(0, u64::saturating_add)
    }

    /// The sum of the gauges of this name that have (at least) these labels.
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.processes.values().map(|process| process.metrics.gauge(name, labels)).sum()
    }

    /// The histograms of this name that have (at least) these labels, put together.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let mut sum = Histogram::default();
        for process in self.processes.values() {
            sum.add(&process.metrics.histogram(name, labels));
        }
        sum
    }

    /// Fetches the snapshot of the process that serves it at `path` with
    /// [`Monitor::serve_unix`](crate::Monitor::serve_unix).
    ///
    /// Gives up after one second, and refuses an answer of more than 16 MiB.
    ///
    /// *Cancel safety:* dropping the future closes the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] after one second, [`Error::Fetch`] for whatever else goes wrong.
    pub async fn fetch_unix(path: impl AsRef<Path>) -> Result<Snapshot, Error> {
        socket::fetch(path.as_ref()).await
    }
}
