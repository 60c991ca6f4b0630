//! Failures to connect that say nothing about the server: they come from this side.

use std::error::Error;
use std::io;

use rustix::io::Errno;

/// No descriptors, no ports, no memory for another connection.
const OURS: [Errno; 6] =
    [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM];

/// Whether the system refused a connection on this side, so that the server was not even asked.
pub(crate) fn is_local(error: &(dyn Error + 'static)) -> bool {
    // An `io::Error` that wraps another gives the other's source as its own.
    let inner = |error: &io::Error| {
        Errno::from_io_error(error).or_else(|| error.get_ref()?.downcast_ref().and_then(Errno::from_io_error))
    };
    std::iter::successors(Some(error), |cause| (*cause).source())
        .filter_map(|cause| cause.downcast_ref().and_then(inner))
        .any(|errno| OURS.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_side_lacks_is_local() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in OURS {
            assert!(is_local(&error(errno)), "{errno}");
            assert!(is_local(&io::Error::other(error(errno))), "{errno}, wrapped");
        }
        for errno in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::TIMEDOUT, Errno::HOSTUNREACH] {
            assert!(!is_local(&error(errno)), "{errno}");
        }
        assert!(!is_local(&io::Error::other("no error of the system")));
    }
}
