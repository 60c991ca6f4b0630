use std::{fmt, time::Duration};

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why the remote gave no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was not asked: it does not answer at present.
    Skipped,
    TimedOut(Duration),
    /// The connection is of no more use.
    Broken(RedisError),
    /// It answered, with an error.
    Refused(RedisError),
}

impl Failure {
    pub(crate) fn of(error: RedisError) -> Failure {
        match is_broken(&error) {
            true => Failure::Broken(error),
            false => Failure::Refused(error),
        }
    }

    /// Whether the same command will be refused for as long as nobody changes the server's settings.
    pub(crate) fn is_lasting(&self) -> bool {
        let Failure::Refused(error) = self else { return false };
        let Some(code) = error.code() else { return false };
        // The codes of a server that is busy, full or cut off from its disk or its replicas pass.
        matches!(code, "NOPERM" | "ERR" | "WRONGTYPE")
    }
}

/// Whether nothing more is to be expected of the server that this came from.
fn is_broken(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly};
    error.is_unrecoverable_error()
        // An error of the connection, of whatever kind.
        || error.is_io_error()
        // After a failover the connection is still to the old primary, which takes no writes; a new one finds the other.
        || matches!(error.kind(), ErrorKind::Server(ReadOnly | BusyLoading | MasterDown | ClusterDown))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Skipped => f.write_str("it does not answer at present"),
            Failure::TimedOut(after) => write!(f, "no answer within {after:?}"),
            Failure::Broken(error) | Failure::Refused(error) => error.fmt(f),
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Failure {
        Failure::of(error)
    }
}
