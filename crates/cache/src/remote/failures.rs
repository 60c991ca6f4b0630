use metrics::counter;

use super::Failure;
use crate::telemetry::{REMOTE_FAILURES, REMOTE_SKIPPED, REMOTE_TARGET, Tally};

/// What failed of one kind of operation: counted, and told at debug level. Nothing fails for it.
pub(super) struct Failures {
    cache: &'static str,
    operation: &'static str,
    failed: Tally,
    skipped: Tally,
}

impl Failures {
    pub(super) fn new(cache: &'static str, operation: &'static str) -> Failures {
        let failed = Tally::new(counter!(REMOTE_FAILURES, "cache" => cache, "operation" => operation));
        let skipped = Tally::new(counter!(REMOTE_SKIPPED, "cache" => cache, "operation" => operation));
        Failures { cache, operation, failed, skipped }
    }

    pub(super) fn count(&self) {
        self.failed.increment(1);
    }

    pub(super) fn note(&self, failure: &Failure) {
        if let Failure::Skipped = failure {
            return self.skipped.increment(1);
        }
        self.count();
        tracing::debug!(
            target: REMOTE_TARGET, cache = self.cache, operation = self.operation, error = %failure,
            "the remote gave no answer",
        );
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.get()
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped.get()
    }
}
