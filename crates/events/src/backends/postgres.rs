mod borrowed;
mod store;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::{PgConnection, PgPool};

use super::Backend;
use crate::{
    BoxError, Bus, Error, Event, EventContext, EventId, SubscriptionConfig,
    outbox::Outgoing,
    subscription::{Delivery, Failure, Handler, Subscription},
};

/// A bus in PostgreSQL: `Bus<Postgres>`.
#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
}

type InTx =
    dyn for<'c> Fn(&'c mut PgConnection, Delivery) -> BoxFuture<'c, Result<(), Failure>> + Send + Sync;

impl Backend for Postgres {}

impl Bus<Postgres> {
    /// A bus in the database of `pool`. Nothing is sent yet.
    ///
    /// [`run`](Bus::run) uses two connections of the pool now and then, and one for each `subscribe_in_tx` handler that
    /// runs.
    pub fn postgres(pool: PgPool) -> Bus<Postgres> {
        Bus::new(Postgres { pool })
    }

    /// Publishes `event` in the transaction of `conn`: when that commits, the event will be delivered, and when it does
    /// not, nobody ever hears of it. Call [`wake`](Bus::wake) after the commit.
    ///
    /// On a connection without a transaction, the event is committed by itself. As with any statement, an error leaves
    /// the transaction aborted.
    pub async fn publish<E: Event>(&self, conn: &mut PgConnection, event: &E) -> Result<EventId, Error> {
        let Outgoing { id, event, version, payload } = Outgoing::new(event)?;
        sqlx::query(
            "INSERT INTO greenwave_event_outbox (id, event, version, payload) VALUES ($1, $2, $3, $4::json)",
        )
        .bind(id.as_uuid())
        .bind(event)
        .bind(version)
        .bind(payload)
        .execute(conn)
        .await
        .map_err(Error::store("publish an event"))?;
        Ok(id)
    }

    /// Handles each `E` in a transaction that also completes the delivery: its effects in this database happen exactly
    /// once, however often the event is delivered.
    ///
    /// The delivery is completed last, fenced by its lease: a handler that was overtaken, because its process hung until
    /// the lease ran out, is rolled back. Effects elsewhere (a mail, a call) still happen at least once. Durability,
    /// retries and dead letters are as with [`subscribe`](Bus::subscribe).
    ///
    /// ```
    /// # use greenwave_events::{Bus, Event, Postgres};
    /// # use sqlx::PgConnection;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderCreated { order_id: i64 }
    /// # impl Event for OrderCreated { const NAME: &'static str = "order-created"; }
    /// # fn example(events: &Bus<Postgres>) {
    /// events.subscribe_in_tx("notification", |tx: &mut PgConnection, order: OrderCreated| {
    ///     Box::pin(async move {
    ///         sqlx::query("INSERT INTO notification (order_id) VALUES ($1)")
    ///             .bind(order.order_id)
    ///             .execute(tx)
    ///             .await?;
    ///         Ok(())
    ///     })
    /// });
    /// # }
    /// ```
    pub fn subscribe_in_tx<E, F>(&self, name: impl Into<String>, handler: F)
    where
        E: Event,
        F: for<'c> Fn(&'c mut PgConnection, E) -> BoxFuture<'c, Result<(), BoxError>> + Send + Sync + 'static,
    {
        let config = self.config().subscription.clone();
        self.subscribe_in_tx_with(name, config, move |conn: &mut PgConnection, event, _: EventContext| {
            handler(conn, event)
        });
    }

    /// As [`subscribe_in_tx`](Bus::subscribe_in_tx), with settings of its own and the event's context.
    pub fn subscribe_in_tx_with<E, F>(&self, name: impl Into<String>, config: SubscriptionConfig, handler: F)
    where
        E: Event,
        F: for<'c> Fn(&'c mut PgConnection, E, EventContext) -> BoxFuture<'c, Result<(), BoxError>>
            + Send
            + Sync
            + 'static,
    {
        let handler = erase(move |conn, delivery| match delivery.decode::<E>() {
            Ok(event) => {
                let handled = handler(conn, event, delivery.context());
                Box::pin(async move { handled.await.map_err(Failure::Temporary) })
            }
            Err(failure) => Box::pin(async move { Err(failure) }),
        });
        self.add(Subscription {
            name: name.into(),
            event: E::NAME.to_owned(),
            config,
            handler: Handler::InTx(handler),
        });
    }
}

/// Tells the compiler that the closure works for connections of any lifetime.
fn erase<F>(handler: F) -> Arc<InTx>
where
    F: for<'c> Fn(&'c mut PgConnection, Delivery) -> BoxFuture<'c, Result<(), Failure>>
        + Send
        + Sync
        + 'static,
{
    Arc::new(handler)
}
