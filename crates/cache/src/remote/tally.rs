use super::Failure;
use crate::telemetry::{REMOTE_TARGET, RemoteMetrics};

/// What failed of one kind of operation: counted, and told at debug level. Nothing fails for it.
pub(super) struct Tally {
    cache: &'static str,
    operation: &'static str,
    metrics: RemoteMetrics,
}

impl Tally {
    pub(super) fn new(cache: &'static str, operation: &'static str) -> Tally {
        Tally { cache, operation, metrics: RemoteMetrics::new(cache, operation) }
    }

    pub(super) fn failed(&self) {
        self.metrics.failures.increment(1);
    }

    pub(super) fn note(&self, failure: &Failure) {
        match failure {
            Failure::Skipped => self.metrics.skipped.increment(1),
            _ => {
                self.metrics.failures.increment(1);
                tracing::debug!(
                    target: REMOTE_TARGET, cache = self.cache, operation = self.operation, error = %failure,
                    "the remote gave no answer",
                );
            }
        }
    }
}
