use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction, pool::PoolConnection};

/// A connection of the caller's pool that cannot go back there inside a transaction.
///
/// When a future of sqlx's `begin` is dropped between `BEGIN` and its answer, sqlx does not know of the transaction that
/// the server is opening, and so does not roll it back: whatever the pool's next user does with that connection is never
/// committed. We do drop such futures, at a timeout or a stop, so such a connection is closed instead.
pub(super) struct Borrowed {
    connection: PoolConnection<Postgres>,
    beginning: bool,
}

impl Borrowed {
    pub(super) async fn acquire(pool: &PgPool) -> Result<Borrowed, sqlx::Error> {
        Ok(Borrowed { connection: pool.acquire().await?, beginning: false })
    }

    /// The connection, outside a transaction.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    pub(super) async fn begin(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        self.beginning = true;
        let tx = Connection::begin(&mut *self.connection).await?;
        self.beginning = false;
        Ok(tx)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.beginning {
            self.connection.close_on_drop();
        }
    }
}
