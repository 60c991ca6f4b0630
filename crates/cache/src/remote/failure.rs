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

const PASSING: [&str; 6] = ["OOM", "READONLY", "MISCONF", "LOADING", "BUSY", "NOREPLICAS"];

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
        // The codes of a server that is busy, full or cut off from its disk or its replicas pass. Of a command in a
        // script, Redis 6 tells them in the text of an `ERR`.
        let names = |code: &&str| error.detail().is_some_and(|detail| detail.contains(*code));
        match code {
            "ERR" => !PASSING.iter().any(names),
            code => matches!(code, "NOPERM" | "WRONGTYPE"),
        }
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

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    #[test]
    fn what_passes_is_not_lasting_even_if_a_script_says_it() {
        let is_lasting = |answer: &str| {
            let answer = parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            Failure::of(answer.extract_error().unwrap_err()).is_lasting()
        };
        let wrapped = "ERR Error running script (call to f_6b1bf486): @user_script:1: ";
        for passing in ["OOM command not allowed", "MISCONF Redis is configured", "NOREPLICAS Not enough"] {
            assert!(!is_lasting(passing), "{passing}");
            assert!(!is_lasting(&format!("{wrapped}-{passing}")), "{passing}");
        }
        assert!(is_lasting(&format!("{wrapped}@user_script: 1: Wrong number of args")));
        assert!(is_lasting("ERR unknown command") && is_lasting("NOPERM this user has no permissions"));
    }
}
