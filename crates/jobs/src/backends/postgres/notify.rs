//! Wake-ups between processes, by NOTIFY. They are never inside the transaction that pushes, where they would make
//! inserts wait for one another, but follow it, at most fifty a second.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{sleep, timeout};

use crate::announcer::{Channel, DEADLINE};
use crate::backoff::Weather;
use crate::error::chain;
use crate::wakeups::{Notice, Wakeups};

const CHANNEL: &str = "greenwave_jobs";

/// NOTIFY through the caller's pool.
#[derive(Debug)]
pub(super) struct Notify(pub(super) PgPool);

impl Channel for Notify {
    async fn send(&self, notices: BTreeSet<Notice>) {
        let payloads: Vec<_> = notices.iter().map(Notice::payload).collect();
        let notify = sqlx::query("SELECT pg_notify($1, notice) FROM unnest($2::text[]) AS notice")
            .bind(CHANNEL)
            .bind(payloads)
            .execute(&self.0);
        if let Ok(Err(error)) = timeout(DEADLINE, notify).await {
            tracing::debug!(error = chain(&error), "could not announce new jobs; workers will poll");
        }
    }
}

/// Rings when another process announces. On a connection outside the caller's pool: it is held for good.
pub(super) async fn listen(pool: PgPool, wakeups: Arc<Wakeups>) {
    let mut weather = Weather::default();
    loop {
        let options = pool.connect_options().as_ref().clone();
        let own = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let error = match PgListener::connect_with(&own.connect_lazy_with(options)).await {
            Ok(listener) => pass_on(listener, &wakeups, &mut weather).await,
            Err(error) => error,
        };
        tracing::debug!(error = chain(&error), "cannot listen for new jobs; polling until it works again");
        sleep(weather.next()).await;
    }
}

async fn pass_on(mut listener: PgListener, wakeups: &Wakeups, weather: &mut Weather) -> sqlx::Error {
    if let Err(error) = listener.listen(CHANNEL).await {
        return error;
    }
    weather.clear();
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                Notice::parse(notification.payload()).iter().for_each(|notice| wakeups.tell(notice));
            }
            // The connection was lost and made again: what was announced in between is unknown.
            Ok(None) => wakeups.wake(None),
            Err(error) => return error,
        }
    }
}
