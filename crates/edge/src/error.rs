//! What can go wrong, told apart by what a caller would do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why instances could not be started, did not become ready, or a proxy did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration names no program.
    #[error("no command to supervise; give the program and its arguments")]
    NoCommand,

    /// The configuration asks for no instance.
    #[error("no instances to start; `instances` must be at least 1")]
    NoInstances,

    /// An instance that inherits its socket has no check that could show that it is ready.
    #[error(
        "port = \"socket\" needs a health path or notify = true; the socket accepts connections before the command does"
    )]
    SocketHealth,

    /// No instance has that name.
    #[error("no instance is called {instance}")]
    NoSuchInstance {
        /// The name as it was given.
        instance: String,
    },

    /// An environment file could not be read.
    #[error("could not read the environment file {}", path.display())]
    EnvFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// An environment file holds a line that is no assignment.
    #[error("{}:{line}: {problem}", path.display())]
    EnvFileLine {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it. No value is ever part of it.
        problem: &'static str,
    },

    /// The working directory is none.
    #[error("{} is no folder to run in", path.display())]
    WorkingDir {
        /// The path as it was given.
        path: PathBuf,
    },

    /// No socket could be made for an instance.
    #[error("could not open a socket for an instance")]
    Socket(#[source] io::Error),

    /// A new instance did not become ready, so a reload stopped. It was ended, and the old ones were kept.
    #[error(
        "{instance} did not become ready; the reload stopped after {replaced} of {instances} instances and kept the others{}",
        history(.last_exit.as_deref(), .last_lines)
    )]
    Reload {
        /// The instance's name.
        instance: String,
        /// How many instances had been replaced before.
        replaced: usize,
        /// How many were to be replaced.
        instances: usize,
        /// How the new one ended.
        last_exit: Option<String>,
        /// The last lines that the new one wrote.
        last_lines: Vec<String>,
    },

    /// The text names no health check.
    #[error("no health check is called {text:?}; use tcp, none, or a path such as /health")]
    InvalidHealth {
        /// The text as it was given.
        text: String,
    },

    /// The text is no list of status codes.
    #[error("no statuses: {text:?}; use codes and ranges, such as 200-399, 404")]
    InvalidStatuses {
        /// The text as it was given.
        text: String,
    },

    /// The text names no server.
    #[error(
        "no server is called {text:?}; use HOST:PORT, and its weight if that is not 1: HOST:PORT weight=2"
    )]
    InvalidTarget {
        /// The text as it was given.
        text: String,
    },

    /// The text names nothing by which clients could be told apart.
    #[error("clients cannot be told apart by {text:?}; use header:NAME, cookie:NAME or nothing")]
    InvalidSticky {
        /// The text as it was given.
        text: String,
    },

    /// A route that no request could have, or that says something else than it seems to.
    #[error("the route with host {host:?} and path {path:?} is invalid: {reason}")]
    InvalidRoute {
        /// Its host.
        host: String,
        /// Its path.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },

    /// Two groups claim the same requests.
    #[error("two groups, {} and {}, have the same route: host {host:?}, path {path:?}", groups[0], groups[1])]
    DuplicateRoute {
        /// The route's host.
        host: String,
        /// The route's path.
        path: String,
        /// The groups.
        groups: [String; 2],
    },

    /// Two groups have the same name.
    #[error("two groups are called {group}; give each its own name")]
    DuplicateGroup {
        /// The name.
        group: String,
    },

    /// The program does not exist. Starting it again would not help, so nothing is retried.
    #[error("command not found: {command}; check the spelling or give its full path")]
    CommandNotFound {
        /// The program as it was given.
        command: String,
    },

    /// The program exists, but the system would not start it.
    #[error("could not start {command}")]
    Start {
        /// The program as it was given.
        command: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// No loopback port was free for an instance.
    #[error("could not find a free port on 127.0.0.1")]
    Port(#[source] io::Error),

    /// An instance did not become ready in time.
    #[error("{instance} was not ready within {within:?}{}", history(.last_exit.as_deref(), .last_lines))]
    NotReady {
        /// The instance's name.
        instance: String,
        /// How long it had.
        within: Duration,
        /// How it last ended, if it did.
        last_exit: Option<String>,
        /// The last lines that it wrote.
        last_lines: Vec<String>,
    },

    /// An instance ends again and again soon after it is started.
    #[error("{instance} keeps exiting{}", history(.last_exit.as_deref(), .last_lines))]
    CrashLoop {
        /// The instance's name.
        instance: String,
        /// How it last ended.
        last_exit: Option<String>,
        /// The last lines that it wrote.
        last_lines: Vec<String>,
    },

    /// The supervisor was shut down while somebody waited for its instances.
    #[error("{instance} was stopped before it was ready")]
    Stopped {
        /// The instance's name.
        instance: String,
    },

    /// A key of the configuration has a value that cannot be meant.
    #[error("`{key}` {problem}")]
    InvalidConfig {
        /// The key, with those that it stands under: `tls.key`.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },

    /// A thread of a proxy could not begin to serve.
    #[error("could not serve")]
    Serve(#[source] io::Error),

    /// Requests still ran when the drain timeout of a proxy had passed, and were cut.
    #[error("{connections} connections were cut: their requests did not finish within {within:?}")]
    Drain {
        /// How many connections were cut.
        connections: usize,
        /// The drain timeout.
        within: Duration,
    },
}

impl Error {
    pub(crate) fn invalid_config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidConfig { key: key.into(), problem: problem.into() }
    }
}

fn history(last_exit: Option<&str>, last_lines: &[String]) -> String {
    let mut text = String::new();
    if let Some(exit) = last_exit {
        text.push_str(" (");
        text.push_str(exit);
        text.push(')');
    }
    if last_lines.is_empty() {
        text.push_str("; it wrote nothing");
    } else {
        text.push_str("; its last lines:");
        for line in last_lines {
            text.push_str("\n    ");
            text.push_str(line);
        }
    }
    text
}
