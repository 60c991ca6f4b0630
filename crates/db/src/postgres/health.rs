//! Which idle connections need a ping before they are used again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use crate::PoolConfig;

/// The longest a ping may take.
const PING_DEADLINE: Duration = Duration::from_secs(1);

/// What a ping found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ping {
    Alive,
    Broken,
    /// No answer in time: the peer has gone without a word.
    Silent,
}

pub(super) struct Health {
    start: Instant,
    /// When a statement last found its connection broken, in milliseconds since `start`; 0 is never.
    broken_at: AtomicU64,
    /// Idle for less than this, a connection is taken to be alive.
    ping_after: Duration,
    ping_deadline: Duration,
}

impl Health {
    pub(super) fn new(config: &PoolConfig) -> Self {
        let ping_deadline = (config.connection_timeout / 2).min(PING_DEADLINE);
        Self {
            start: Instant::now(),
            broken_at: AtomicU64::new(0),
            ping_after: config.ping_after,
            ping_deadline,
        }
    }

    /// A server that restarts breaks every connection: after the first one is found broken, those that were idle
    /// then are pinged before use, however short their rest. `true` if the error is of that kind.
    pub(super) fn note(&self, error: &sqlx::Error) -> bool {
        let broken = match error {
            sqlx::Error::Io(io) => io.get_ref().is_none_or(|inner| !inner.is::<crate::Error>()),
            // Class 57P: the server shuts down, crashed, or starts.
            sqlx::Error::Database(database) => database.code().is_some_and(|code| code.starts_with("57P")),
            sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => true,
            _ => false,
        };
        if broken {
            self.note_breakage();
        }
        broken
    }

    fn note_breakage(&self) {
        self.broken_at.fetch_max(self.now().max(1), Ordering::Relaxed);
    }

    pub(super) fn needs_ping(&self, idle_for: Duration) -> bool {
        if idle_for >= self.ping_after {
            return true;
        }
        let broken_at = self.broken_at.load(Ordering::Relaxed);
        broken_at != 0 && self.now().saturating_sub(millis(idle_for)) <= broken_at
    }

    pub(super) async fn ping(&self, connection: &mut PgConnection) -> Ping {
        let found = match timeout(self.ping_deadline, connection.ping()).await {
            Ok(Ok(())) => return Ping::Alive,
            Ok(Err(_)) => Ping::Broken,
            Err(_) => Ping::Silent,
        };
        self.note_breakage();
        tracing::debug!("an idle connection had broken; another takes its place");
        found
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_has_just_been_used_is_not_pinged() {
        let health = Health::new(&PoolConfig::default());
        assert!(!health.needs_ping(Duration::from_millis(10)));
        assert!(health.needs_ping(Duration::from_secs(1)));
    }

    #[test]
    fn after_a_broken_connection_those_idle_since_before_are_pinged() {
        let health = Health::new(&PoolConfig::default());
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        health.note(&sqlx::Error::RowNotFound);
        assert!(!health.needs_ping(Duration::from_millis(10)));
        health.note(&sqlx::Error::Io(broken));
        assert!(health.needs_ping(Duration::from_millis(10)));
    }
}
