use std::time::Duration;

use crate::config::Fault;

/// Any error of a handler.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What may go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database refused or was not there. The source is sqlx's or rusqlite's error.
    #[error("could not {doing}")]
    Store {
        /// What was tried.
        doing: &'static str,
        /// The driver's error.
        #[source]
        source: BoxError,
    },

    /// The database did not answer in time.
    #[error("could not {doing} within {limit:?}")]
    Timeout {
        /// What was tried.
        doing: &'static str,
        /// How long.
        limit: Duration,
    },

    /// The event does not serialise to JSON.
    #[error("could not encode the event `{event}`")]
    Encode {
        /// The event's name.
        event: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },

    /// Two handlers of one bus for the same subscription and event: each delivery could go to only one of them.
    #[error("the subscription `{subscription}` has two handlers for `{event}`")]
    DuplicateHandler {
        /// The subscription's name.
        subscription: String,
        /// The event's name.
        event: String,
    },

    /// A setting that cannot work.
    #[error("`{key}`{} {problem}", of(.subscription.as_deref()))]
    Config {
        /// The setting.
        key: &'static str,
        /// The subscription it belongs to, where it is one's own.
        subscription: Option<String>,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// No subscription has this name.
    #[error("there is no subscription `{0}`")]
    NoSubscription(String),

    /// No dead letter has this id.
    #[error("there is no dead letter {0}")]
    NoDeadLetter(i64),

    /// The address of the NATS server, or the name of a subject, cannot be used.
    #[cfg(feature = "nats")]
    #[error("{problem}: `{value}`")]
    JetStream {
        /// What is wrong.
        problem: &'static str,
        /// With what.
        value: String,
    },
}

impl Error {
    /// For `map_err`: wraps a driver's error with what was tried.
    pub(crate) fn store<E: Into<BoxError>>(doing: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Store { doing, source: source.into() }
    }

    pub(crate) fn config(subscription: Option<&str>, (key, problem): Fault) -> Error {
        Error::Config { key, subscription: subscription.map(str::to_owned), problem }
    }
}

fn of(subscription: Option<&str>) -> String {
    subscription.map(|name| format!(" of the subscription `{name}`")).unwrap_or_default()
}

/// The longest error text that is stored.
const MAX_CHARS: usize = 2_000;

/// An error and its causes in one line, fit to be stored in a text column.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    storable(&text)
}

/// Cut to a bounded length, and without the NUL that PostgreSQL's text refuses.
pub(crate) fn storable(text: &str) -> String {
    text.chars().take(MAX_CHARS).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_described_with_its_causes_once_each() {
        let error = Error::store("take deliveries")(std::io::Error::other("no\0 route"));
        assert_eq!(describe(&error), "could not take deliveries: no\u{fffd} route");
    }

    #[test]
    fn a_stored_error_is_bounded() {
        assert_eq!(storable(&"ä".repeat(5_000)).chars().count(), MAX_CHARS);
    }
}
