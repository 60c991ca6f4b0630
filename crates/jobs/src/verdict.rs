//! What a handler may answer beside success and failure: errors that say what shall become of the job.

use std::fmt;
use std::time::Duration;

use humantime_serde::re::humantime::format_duration;

use crate::BoxError;

/// An error of a handler that is none: run the job later, and do not count this as an attempt.
///
/// For what is not ready yet: a document still being written, a partner that asks to be called back. A job can snooze
/// for ever; count its rounds in your own data if that must end.
///
/// ```
/// use std::time::Duration;
/// use greenwave_jobs::{BoxError, JobContext, Snooze};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Fetch;
///
/// async fn fetch(_: Fetch, _: JobContext) -> Result<(), BoxError> {
///     Err(Snooze(Duration::from_secs(60)).into())
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snooze(pub Duration);

/// An error of a handler that sets its own wait: the attempt failed, and the next comes after this time, if the job has
/// one left.
///
/// For a server that says when to come back (`Retry-After`).
#[derive(Debug)]
pub struct RetryIn(pub Duration, pub BoxError);

/// An error of a handler that trying again will not cure: the job is dead at once, with [`DeadReason::Discarded`].
///
/// [`DeadReason::Discarded`]: crate::DeadReason::Discarded
#[derive(Debug)]
pub struct Discard(pub BoxError);

impl fmt::Display for Snooze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to be run again in {}", format_duration(self.0))
    }
}

impl fmt::Display for RetryIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.fmt(f)
    }
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Snooze {}

// The message is the inner error's, so its source is the next one: a chain names each cause once.
impl std::error::Error for RetryIn {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.source()
    }
}

impl std::error::Error for Discard {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// What a failed attempt asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Snooze(Duration),
    RetryIn(Duration),
    Discard,
    /// The next attempt by the usual rule.
    Retry,
}

/// Looks for a verdict among an error and its causes, so that one wrapped in context counts too.
pub(crate) fn verdict(error: &(dyn std::error::Error + 'static)) -> Verdict {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(Snooze(delay)) = error.downcast_ref() {
            return Verdict::Snooze(*delay);
        }
        if let Some(RetryIn(delay, _)) = error.downcast_ref() {
            return Verdict::RetryIn(*delay);
        }
        if error.is::<Discard>() {
            return Verdict::Discard;
        }
        cause = error.source();
    }
    Verdict::Retry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("while sending")]
    struct While(#[source] BoxError);

    #[test]
    fn a_verdict_is_found_under_its_context_and_names_each_cause_once() {
        let second = Duration::from_secs(1);
        let wrapped = While(Box::new(RetryIn(second, While("no luck".into()).into())));
        assert_eq!(verdict(&wrapped), Verdict::RetryIn(second));
        assert_eq!(chain(&wrapped), "while sending: while sending: no luck");
        assert_eq!(verdict(&While(Box::new(Snooze(second)))), Verdict::Snooze(second));
        assert_eq!(verdict(&Discard("no".into())), Verdict::Discard);
        assert_eq!(verdict(&While("no luck".into())), Verdict::Retry);
    }
}
