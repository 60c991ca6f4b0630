use std::path::PathBuf;

/// Why the monitor could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another recorder already receives this process's metrics.
    #[error("another metrics recorder is already installed in this process")]
    AlreadyInstalled,

    /// Another process answers on this socket.
    #[error("another process already serves its snapshot at {}", .path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },

    /// Something that is not a socket stands where the socket should be made; it is left alone.
    #[error("{} exists and is not a socket", .path.display())]
    NotASocket {
        /// What stands there.
        path: PathBuf,
    },

    /// The socket could not be made.
    #[error("could not serve the snapshot at {}", .path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },

    /// No snapshot came from the socket: nobody listens there, or the exchange broke off.
    #[error("could not fetch a snapshot from {}", .path.display())]
    Fetch {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The process behind the socket took too long.
    #[error("no snapshot came from {} in time", .path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
}
