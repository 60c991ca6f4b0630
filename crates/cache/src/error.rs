use std::{error, fmt, sync::Arc, time::Duration};

/// Why a cache could not be set up.
#[cfg(feature = "redis")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The remote's URL is not one that Redis clients understand.
    #[error("the cache's remote needs a URL like redis://host:6379/0")]
    RemoteUrl(#[source] redis::RedisError),
    /// The remote's certificates and keys do not make up what TLS needs.
    #[error("the cache's remote can't use its TLS settings")]
    RemoteTls(#[source] redis::RedisError),
    /// The shape of a type can't be found out.
    #[cfg(feature = "postcard")]
    #[error("the shape of the cache's values can't be found out; give it a number with Postcard::of_shape")]
    Shape(#[source] Box<dyn error::Error + Send + Sync>),
    /// A file with a certificate or a key cannot be read.
    #[error("the cache's remote needs the file {}", path.display())]
    RemoteCertificate {
        /// The file that the configuration names.
        path: std::path::PathBuf,
        /// What reading it said.
        source: std::io::Error,
    },
}

/// Why [`get_or_load`](crate::Cache::get_or_load) has no answer.
///
/// All callers that waited for the same load get the same error, so what the source said is shared.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The load returned an error.
    Source(Arc<E>),
    /// The load panicked; holds its message.
    Panicked(Arc<str>),
    /// The load did not end within the configured `load_timeout`.
    TimedOut(Duration),
    /// The load's task was cut off before it had an answer, as when its runtime shuts down.
    Aborted,
}

// Derived, these two would ask more of E than they need: the Arc is cloned, and an E that is no Error (anyhow's, a
// String) may still be shown.
impl<E> Clone for LoadError<E> {
    fn clone(&self) -> LoadError<E> {
        match self {
            LoadError::Source(error) => LoadError::Source(Arc::clone(error)),
            LoadError::Panicked(message) => LoadError::Panicked(Arc::clone(message)),
            LoadError::TimedOut(after) => LoadError::TimedOut(*after),
            LoadError::Aborted => LoadError::Aborted,
        }
    }
}

impl<E> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Source(_) => f.write_str("the load failed"),
            LoadError::Panicked(message) => write!(f, "the load panicked: {message}"),
            LoadError::TimedOut(after) => write!(f, "the load did not end within {after:?}"),
            LoadError::Aborted => f.write_str("the load was cut off"),
        }
    }
}

impl<E: error::Error + 'static> error::Error for LoadError<E> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            LoadError::Source(error) => Some(&**error),
            _ => None,
        }
    }
}
