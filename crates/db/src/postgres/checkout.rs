//! The way to a connection, and what is said when there is none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::{sync::TryAcquireError, time::timeout};

use super::{
    Pool,
    connector::{after, left},
    holds::Site,
    inner::{Inner, Live},
    lease::Lease,
};
use crate::{Error, telemetry};

/// One who waits, for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) async fn checkout(&self, site: Site) -> Result<Lease, sqlx::Error> {
        self.lease(site).await.map_err(Error::into_sqlx)
    }

    pub(super) async fn lease(&self, site: Site) -> Result<Lease, Error> {
        let asked = Instant::now();
        let deadline = after(asked, self.inner.config.connection_timeout);
        let mut lease = self.claim(site, deadline, true).await?;
        if lease.live.is_none() {
            // Boxed, so that the common way stays small.
            lease.live = Some(Box::pin(self.find_connection(deadline)).await?);
        }
        lease.wait = asked.elapsed();
        telemetry::waited(lease.wait);
        Ok(lease)
    }

    /// Waits in the queue.
    pub(super) async fn claim(
        &self,
        site: Site,
        deadline: Instant,
        with_connection: bool,
    ) -> Result<Lease, Error> {
        let permits = &self.inner.permits;
        match permits.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::Closed) => return Err(Error::Closed),
            Err(TryAcquireError::NoPermits) => {
                let _waiting = Waiting::new(&self.inner.waiting);
                match timeout(left(deadline), permits.acquire()).await {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_closed)) => return Err(Error::Closed),
                    Err(_) => {
                        telemetry::timed_out();
                        return Err(Box::pin(self.no_connection(None)).await);
                    }
                }
            }
        }
        Ok(Lease::new(Arc::clone(&self.inner), site, with_connection))
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
                Err(self.no_connection(why).await)
            }
        }
    }

    /// Opens connections until `min_idle` are.
    pub(super) async fn fill(&self) {
        while self.inner.wants_another()
            && let Ok(permit) = self.inner.permits.try_acquire()
        {
            permit.forget();
            let mut lease = Lease::new(Arc::clone(&self.inner), Site::Pool, false);
            let deadline = after(Instant::now(), self.inner.config.connection_timeout);
            match self.inner.connector.connect(deadline, None).await {
                Ok(live) => lease.live = Some(live),
                Err(_) => return,
            }
        }
    }

    /// What to say when no connection was had, for the reason `why` if one is known. A wait that timed out may mean
    /// that all connections are in use, or that they hang because the server is away: find out which.
    pub(super) async fn no_connection(&self, why: Option<Arc<sqlx::Error>>) -> Error {
        let Inner { config, server, connector, diagnosis, .. } = &*self.inner;
        let in_use = u32::try_from(self.inner.in_use()).unwrap_or(u32::MAX);
        let exhausted = Error::Exhausted {
            waited: config.connection_timeout,
            in_use,
            max_connections: config.max_connections,
            waiting: self.inner.waiting(),
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
