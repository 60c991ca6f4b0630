//! The way to a connection, and what is said when there is none.

use std::{sync::Arc, time::Instant};

use tokio::time::timeout;

use super::{
    Pool,
    connector::{after, left},
    holds::Site,
    inner::{Inner, Live},
    lease::Lease,
};
use crate::{Error, telemetry};

impl Pool {
    pub(super) async fn checkout(&self, site: Site) -> Result<Lease, sqlx::Error> {
        self.lease(site).await.map_err(Error::into_sqlx)
    }

    pub(super) async fn lease(&self, site: Site) -> Result<Lease, Error> {
        let asked = Instant::now();
        let deadline = after(asked, self.inner.config.connection_timeout);
        let mut lease = self.claim(site, asked, true).await?;
        if lease.live.is_none() {
            // Boxed, so that the common way stays small.
            lease.live = Some(Box::pin(self.find_connection(deadline)).await?);
            lease.since = Instant::now();
        }
        lease.wait = lease.since.duration_since(asked);
        telemetry::waited(lease.wait);
        Ok(lease)
    }

    /// Waits in the queue.
    pub(super) async fn claim(
        &self,
        site: Site,
        asked: Instant,
        with_connection: bool,
    ) -> Result<Lease, Error> {
        let deadline = after(asked, self.inner.config.connection_timeout);
        let turn = match Arc::clone(&self.inner).begin_hold(site, with_connection, asked, deadline)? {
            Ok(lease) => return Ok(lease),
            Err(turn) => turn,
        };
        match turn.await {
            Ok(Ok(mut lease)) => {
                lease.since = Instant::now();
                Ok(lease)
            }
            Ok(Err(waiting)) => {
                telemetry::timed_out();
                Err(Box::pin(self.no_connection(None, waiting)).await)
            }
            Err(_closed) => Err(Error::Closed),
        }
    }

    /// An idle connection that was checked, or a new one.
    async fn find_connection(&self, deadline: Instant) -> Result<Live, Error> {
        let inner = &self.inner;
        if let Ok(Some(live)) = timeout(left(deadline), inner.revive()).await {
            return Ok(live);
        }
        inner.make_room();
        match inner.connector.connect(deadline, Some(inner)).await {
            Ok(live) => Ok(live),
            Err(why) => {
                if left(deadline).is_zero() {
                    telemetry::timed_out();
                }
                Err(self.no_connection(why, self.inner.waiting()).await)
            }
        }
    }

    /// Opens connections until `min_idle` are.
    pub(super) async fn fill(&self) {
        while let Some(mut lease) = self.inner.begin_another() {
            let deadline = after(Instant::now(), self.inner.config.connection_timeout);
            match self.inner.connector.connect(deadline, None).await {
                Ok(live) => lease.live = Some(live),
                Err(_) => return,
            }
        }
    }

    /// What to say when no connection was had, for the reason `why` if one is known. A wait that timed out may mean
    /// that all connections are in use, or that they hang because the server is away: find out which.
    pub(super) async fn no_connection(&self, why: Option<Arc<sqlx::Error>>, waiting: usize) -> Error {
        let Inner { config, server, connector, diagnosis, .. } = &*self.inner;
        let in_use = u32::try_from(self.inner.in_use()).unwrap_or(u32::MAX);
        let exhausted = Error::Exhausted {
            waited: config.connection_timeout,
            in_use,
            max_connections: config.max_connections,
            waiting,
            longest_held: self.inner.longest_held(),
        };
        let source = match why.or_else(|| connector.last_error()) {
            Some(source) => source,
            None => match diagnosis.probe().await {
                Some(source) => source,
                None => return exhausted,
            },
        };
        let server = Arc::clone(server);
        match *source {
            sqlx::Error::Database(_) => Error::Refused { server, source },
            _ => Error::Unreachable { server, source },
        }
    }
}
