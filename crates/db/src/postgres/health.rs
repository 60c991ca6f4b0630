//! Which idle connections need a ping before they are used again.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// Idle for less than this, a connection is taken to be alive.
const PING_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Health {
    start: Instant,
    /// When a statement last found its connection broken, in milliseconds since `start`; 0 is never.
    broken_at: AtomicU64,
    ping_deadline: Duration,
}

impl Health {
    pub(super) fn new(connection_timeout: Duration) -> Self {
        let ping_deadline = (connection_timeout / 2).min(Duration::from_secs(1));
        Self { start: Instant::now(), broken_at: AtomicU64::new(0), ping_deadline }
    }

    /// A server that restarts breaks every connection: after the first one is found broken, those that were idle
    /// then are pinged before use, however short their rest.
    pub(super) fn note(&self, error: &sqlx::Error) {
        let broken = match error {
            sqlx::Error::Io(io) => io.get_ref().is_none_or(|inner| !inner.is::<crate::Error>()),
            // Class 57P: the server shuts down, crashed, or starts.
            sqlx::Error::Database(database) => database.code().is_some_and(|code| code.starts_with("57P")),
            sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => true,
            _ => false,
        };
        if broken {
            self.broken_at.fetch_max(self.now().max(1), Ordering::Relaxed);
        }
    }

    fn needs_ping(&self, idle_for: Duration) -> bool {
        if idle_for >= PING_AFTER {
            return true;
        }
        let broken_at = self.broken_at.load(Ordering::Relaxed);
        broken_at != 0 && self.now().saturating_sub(millis(idle_for)) <= broken_at
    }

    /// sqlx's hook before an idle connection is handed out: `false` closes it, and sqlx opens another.
    pub(super) fn check<'c>(
        health: &Arc<Self>,
        connection: &'c mut PgConnection,
        idle_for: Duration,
    ) -> BoxFuture<'c, Result<bool, sqlx::Error>> {
        if !health.needs_ping(idle_for) {
            return Box::pin(ready(Ok(true)));
        }
        let deadline = health.ping_deadline;
        Box::pin(async move {
            // The deadline finds half-open connections, whose peer has gone without a word.
            let alive = matches!(timeout(deadline, connection.ping()).await, Ok(Ok(())));
            if !alive {
                tracing::debug!(?idle_for, "an idle connection had broken; another takes its place");
            }
            Ok(alive)
        })
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
        let health = Health::new(Duration::from_secs(2));
        assert!(!health.needs_ping(Duration::from_millis(10)));
        assert!(health.needs_ping(Duration::from_secs(1)));
    }

    #[test]
    fn after_a_broken_connection_those_idle_since_before_are_pinged() {
        let health = Health::new(Duration::from_secs(2));
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        health.note(&sqlx::Error::RowNotFound);
        assert!(!health.needs_ping(Duration::from_millis(10)));
        health.note(&sqlx::Error::Io(broken));
        assert!(health.needs_ping(Duration::from_millis(10)));
    }
}
