use super::Failure;
use crate::telemetry::{REMOTE_TARGET, RemoteMetrics};

/// What failed of one kind of operation: counted, and told at debug level. Nothing fails for it.
pub(super) struct Failures {
    cache: &'static str,
    operation: &'static str,
    metrics: RemoteMetrics,
}

impl Failures {
    pub(super) fn new(cache: &'static str, operation: &'static str) -> Failures {
        Failures { cache, operation, metrics: RemoteMetrics::new(cache, operation) }
    }

    pub(super) fn count(&self) {
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
