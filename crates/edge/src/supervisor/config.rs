//! What is supervised, and how patiently.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{CheckConfig, Error, Health};

/// What to run and how to look after it.
///
/// ```
/// use greenwave_edge::{Health, SupervisorConfig};
///
/// let config = SupervisorConfig {
///     command: vec!["node".into(), "server.js".into()],
///     instances: 2,
///     health: Health::Http { path: "/health".into() },
///     ..Default::default()
/// };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SupervisorConfig {
    /// Name of the whole; instances are called `{name}-0`, `{name}-1` and so on; `app` by default.
    pub name: String,
    /// The program and its arguments, run without a shell; must be given.
    pub command: Vec<String>,
    /// How many instances run; 1 by default.
    pub instances: usize,
    /// Folder in which the command runs; by default that of this process.
    pub working_dir: PathBuf,
    /// Environment variables of the instances, over those of this process and of `env_files`; none by default.
    #[cfg_attr(feature = "schemars", schemars(with = "BTreeMap<String, String>"))]
    pub env: Environment,
    /// Files of `NAME=value` lines, a later one over an earlier; read at the start and at each reload, from the folder of
    /// this process. None by default.
    pub env_files: Vec<PathBuf>,
    /// How an instance learns where to listen: `env` or `socket`; `env` by default.
    pub port: Port,
    /// How an instance shows that it is ready: `tcp`, `none`, or a path such as `/health`; `tcp` by default.
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub health: Health,
    /// When instances are checked.
    pub check: CheckConfig,
    /// Whether an instance says itself that it is ready, by `READY=1` to `NOTIFY_SOCKET` as under systemd, before it
    /// is checked at all; false by default.
    pub notify: bool,
    /// Longest silence of an instance that is to send `WATCHDOG=1`, as `WATCHDOG_USEC` tells it, before it is started
    /// anew; needs `notify`; 0 for none, by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub watchdog: Duration,
    /// Time in which a started instance must become ready, or it is started anew; 1 min by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub start_timeout: Duration,
    /// How many new instances a reload starts at once, each beside the old one that it replaces; 1 by default, and at
    /// least.
    pub max_surge: usize,
    /// Longest wait for the requests of an instance that is replaced, before it is told to end; 30 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub drain_timeout: Duration,
    /// The signal that asks an instance to end; `TERM` by default.
    pub stop_signal: StopSignal,
    /// Time between that signal and SIGKILL; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub grace: Duration,
    /// Wait before the first restart, doubled by each further one; 100 ms by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub min_backoff: Duration,
    /// Longest wait before a restart; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub max_backoff: Duration,
    /// Time after it became ready at which an instance's earlier exits are forgotten; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub stable_after: Duration,
    /// Exits without a stable run between them that make a crash loop; 5 by default.
    pub crash_loop_after: u32,
    /// Resident memory of an instance's process group at which it is replaced, in bytes; 0 for no limit, by default.
    pub max_memory: u64,
    /// Time between two looks at the memory of an instance that has a limit; 5 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub memory_interval: Duration,
    /// Longest piece of a log line that is passed on at once, in bytes; 16384 by default.
    pub max_log_line: usize,
    /// How much of its last lines is kept for each instance, in bytes; 262144 by default.
    pub max_kept_log: usize,
}

/// How an instance learns where to listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Port {
    /// It finds a free loopback port in `PORT`, another one at each start, and listens there itself.
    #[default]
    Env,
    /// It inherits a listening socket as under systemd (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`), which
    /// outlives its crashes: connections wait in the backlog while it starts again.
    ///
    /// Such a socket accepts before the command does, so that `health = "tcp"` would show nothing: this needs a path,
    /// or [`notify`](SupervisorConfig::notify).
    Socket,
}

/// A signal that asks an instance to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
#[allow(missing_docs)] // Each says all there is to say.
pub enum StopSignal {
    #[default]
    #[serde(alias = "SIGTERM")]
    Term,
    #[serde(alias = "SIGINT")]
    Int,
    #[serde(alias = "SIGQUIT")]
    Quit,
    #[serde(alias = "SIGHUP")]
    Hup,
    #[serde(alias = "SIGUSR1")]
    Usr1,
    #[serde(alias = "SIGUSR2")]
    Usr2,
}

impl From<StopSignal> for Signal {
    fn from(signal: StopSignal) -> Self {
        match signal {
            StopSignal::Term => Self::TERM,
            StopSignal::Int => Self::INT,
            StopSignal::Quit => Self::QUIT,
            StopSignal::Hup => Self::HUP,
            StopSignal::Usr1 => Self::USR1,
            StopSignal::Usr2 => Self::USR2,
        }
    }
}

/// Environment variables. `Debug` shows their names only: values are often secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(pub BTreeMap<String, String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self {
            name: "app".to_owned(),
            command: Vec::new(),
            instances: 1,
            working_dir: PathBuf::new(),
            env: Environment::default(),
            env_files: Vec::new(),
            port: Port::Env,
            health: Health::Tcp,
            check: CheckConfig::default(),
            notify: false,
            watchdog: Duration::ZERO,
            start_timeout: Duration::from_secs(60),
            max_surge: 1,
            drain_timeout: Duration::from_secs(30),
            stop_signal: StopSignal::Term,
            grace: Duration::from_secs(10),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            stable_after: Duration::from_secs(10),
            crash_loop_after: 5,
            max_memory: 0,
            memory_interval: Duration::from_secs(5),
            max_log_line: 16 * 1024,
            max_kept_log: 256 * 1024,
        }
    }
}

impl SupervisorConfig {
    /// What no instance could be started with.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.command.is_empty() {
            return Err(Error::NoCommand);
        }
        if self.instances == 0 {
            return Err(Error::NoInstances);
        }
        if self.port == Port::Socket && self.health == Health::Tcp && !self.notify {
            return Err(Error::SocketHealth);
        }
        Ok(())
    }

    /// The wait before an instance that has crashed `crashes` times in a row is started again.
    ///
    /// Between half of it and the whole is taken at random, so that instances that fell together
    /// do not all rise together.
    pub(super) fn backoff(&self, crashes: u32) -> Duration {
        let doublings = crashes.saturating_sub(1).min(31);
        let whole = self.min_backoff.saturating_mul(1 << doublings).min(self.max_backoff);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_environment_are_not_shown() {
        let env = [("TOKEN", "s3cret")].into_iter().collect();
        let shown = format!("{:?}", SupervisorConfig { env, ..Default::default() });
        assert!(shown.contains("TOKEN") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_stop_signal_is_known_by_both_of_its_names() {
        for text in [r#""INT""#, r#""SIGINT""#] {
            assert_eq!(serde_json::from_str::<StopSignal>(text).unwrap(), StopSignal::Int);
        }
    }

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_varies() {
        let config = SupervisorConfig::default();
        for (crashes, whole) in [(1, 100), (2, 200), (4, 800), (8, 10_000), (u32::MAX, 10_000)] {
            let (low, high) = (Duration::from_millis(whole / 2), Duration::from_millis(whole));
            let waits: Vec<Duration> = (0..50).map(|_| config.backoff(crashes)).collect();
            assert!(waits.iter().all(|wait| (low..=high).contains(wait)), "{crashes}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{crashes}: no jitter");
        }
    }
}
