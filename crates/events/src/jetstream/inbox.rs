//! Effects once: the event's name stands in the same transaction as its effects.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use super::Received;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::{Bus, Error};

/// Once in so many events the inbox forgets the consumer's oldest that are over their time, at most `FORGET` of them: more than
/// come in meanwhile, so that it stays as large as its time says.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
const FORGET_ONCE_IN: u32 = 100;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
const FORGET: i64 = 400;

#[cfg(feature = "postgres")]
impl Bus<crate::Postgres> {
    /// Notes, in your transaction, that this event is handled, and answers whether it was not yet: make its effects
    /// only then. A second copy, or an attempt after a crash, finds it noted; a transaction that rolls back has noted
    /// nothing. Of two that run at once, one waits for the other's end.
    ///
    /// The note stands in `greenwave_event_inbox` (made by [`migrate`](Bus::migrate)) by the event's source and id and
    /// the consumer's name, for [`ConsumeConfig::remembered`](super::ConsumeConfig::remembered).
    ///
    /// ```no_run
    /// # use greenwave_events::{BoxError, Bus, Event, Postgres, jetstream::{JetStream, Received}};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderCreated { order_id: i64 }
    /// # impl Event for OrderCreated { const NAME: &'static str = "order-created"; }
    /// # async fn f(jetstream: JetStream, pool: sqlx::PgPool, bus: Bus<Postgres>) -> Result<(), greenwave_events::Error> {
    /// let consumer = jetstream.consume("invoices").handle(move |order: OrderCreated, received: Received| {
    ///     let (pool, bus) = (pool.clone(), bus.clone());
    ///     async move {
    ///         let mut tx = pool.begin().await?;
    ///         if bus.accept(&mut tx, &received).await? {
    ///             sqlx::query("INSERT INTO invoice (order_id) VALUES ($1)")
    ///                 .bind(order.order_id)
    ///                 .execute(&mut *tx)
    ///                 .await?;
    ///         }
    ///         tx.commit().await?;
    ///         Ok::<(), BoxError>(())
    ///     }
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub async fn accept(&self, conn: &mut sqlx::PgConnection, received: &Received) -> Result<bool, Error> {
        const NOTE: &str = "
            INSERT INTO greenwave_event_inbox (source, id, subscription) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING";
        const FORGET_OLD: &str = "
            DELETE FROM greenwave_event_inbox WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM greenwave_event_inbox
                WHERE subscription = $3 AND received_at < now() - $1 * interval '1 millisecond'
                ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED))";
        let failed = |error: sqlx::Error| Error::store("accept an event")(error);
        if rand::random_ratio(1, FORGET_ONCE_IN) {
            sqlx::query(FORGET_OLD)
                .bind(crate::backends::millis(received.remembered))
                .bind(FORGET)
                .bind(&*received.subscription)
                .execute(&mut *conn)
                .await
                .map_err(failed)?;
        }
        let noted = sqlx::query(NOTE)
            .bind(&received.source)
            .bind(&received.id)
            .bind(&*received.subscription)
            .execute(conn)
            .await
            .map_err(failed)?;
        Ok(noted.rows_affected() == 1)
    }
}

#[cfg(feature = "sqlite")]
impl Bus<crate::Sqlite> {
    /// Notes, in your transaction, that this event is handled, and answers whether it was not yet: make its effects
    /// only then. A second copy, or an attempt after a crash, finds it noted; a transaction that rolls back has noted
    /// nothing.
    ///
    /// The note stands in `greenwave_event_inbox` (made by [`migrate`](Bus::migrate)) by the event's source and id and
    /// the consumer's name, for [`ConsumeConfig::remembered`](super::ConsumeConfig::remembered).
    ///
    /// ```no_run
    /// # use greenwave_events::{BoxError, Bus, Sqlite, jetstream::Received};
    /// # fn handle(bus: &Bus<Sqlite>, conn: &mut rusqlite::Connection, received: &Received) -> Result<(), BoxError> {
    /// let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    /// if bus.accept(&tx, received)? {
    ///     tx.execute("INSERT INTO invoice (event) VALUES (?1)", [&received.id])?;
    /// }
    /// tx.commit()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept(&self, conn: &rusqlite::Connection, received: &Received) -> Result<bool, Error> {
        const NOTE: &str = "
            INSERT INTO greenwave_event_inbox (source, id, subscription) VALUES (?1, ?2, ?3)
            ON CONFLICT DO NOTHING";
        const FORGET_OLD: &str = "
            DELETE FROM greenwave_event_inbox WHERE (source, id, subscription) IN (
                SELECT source, id, subscription FROM greenwave_event_inbox
                WHERE subscription = ?3 AND received_at < CAST(unixepoch('subsec') * 1000 AS INTEGER) - ?1
                ORDER BY received_at LIMIT ?2)";
        let failed = |error: rusqlite::Error| Error::store("accept an event")(error);
        if rand::random_ratio(1, FORGET_ONCE_IN) {
            let mut forget = conn.prepare_cached(FORGET_OLD).map_err(failed)?;
            let remembered = crate::backends::millis(received.remembered);
            forget.execute((remembered, FORGET, &*received.subscription)).map_err(failed)?;
        }
        let mut note = conn.prepare_cached(NOTE).map_err(failed)?;
        let noted =
            note.execute((&received.source, &received.id, &*received.subscription)).map_err(failed)?;
        Ok(noted == 1)
    }
}
