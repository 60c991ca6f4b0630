/// Now, as values keep it.
macro_rules! now_ms {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    };
}

/// The errors of the delivery `d` and that of `r`: the first one and the last 19.
macro_rules! added_error {
    () => {
        concat!(
            "CASE WHEN jsonb_array_length(d.errors) < 20 THEN d.errors ELSE d.errors - 1 END
             || jsonb_build_array(jsonb_build_object('attempt', r.attempts, 'at', ",
            now_ms!(),
            ", 'error', r.error))"
        )
    };
}

mod borrowed;
mod log;
mod rows;
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
    dyn for<'c> Fn(&'c mut PgConnection, Vec<Delivery>) -> BoxFuture<'c, Result<(), Failure>> + Send + Sync;

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
    /// not, nobody ever hears of it. Call [`wake`](Bus::wake) or [`committed`](Bus::committed) after the commit.
    ///
    /// It is one statement, a row in the outbox. On a connection without a transaction, the event is committed by
    /// itself. As with any statement, an error leaves the transaction aborted.
    pub async fn publish<E: Event>(&self, conn: &mut PgConnection, event: &E) -> Result<EventId, Error> {
        let Outgoing { id, event, version, key, payload } = Outgoing::new(event)?;
        sqlx::query(
            "INSERT INTO greenwave_event_outbox (id, event, version, key, payload)
             VALUES ($1, $2, $3, $4, $5::json)",
        )
        .bind(id.as_uuid())
        .bind(event)
        .bind(version)
        .bind(key)
        .bind(payload)
        .execute(conn)
        .await
        .map_err(Error::store("publish an event"))?;
        Ok(id)
    }

    /// Publishes many events in one statement, in their order; else as [`publish`](Bus::publish). For events of several
    /// types see [`Outgoing`].
    pub async fn publish_many<'e, E: Event>(
        &self,
        conn: &mut PgConnection,
        events: impl IntoIterator<Item = &'e E>,
    ) -> Result<Vec<EventId>, Error> {
        let events: Result<Vec<Outgoing>, Error> = events.into_iter().map(Outgoing::new).collect();
        self.publish_all(conn, events?).await
    }

    /// Publishes events of any types in one statement, in their order; else as [`publish`](Bus::publish).
    ///
    /// ```
    /// # use greenwave_events::{Bus, Error, Event, Outgoing, Postgres};
    /// # use sqlx::PgConnection;
    /// # async fn example<A: Event, B: Event>(events: &Bus<Postgres>, tx: &mut PgConnection, created: A, paid: B)
    /// # -> Result<(), Error> {
    /// events.publish_all(tx, [Outgoing::new(&created)?, Outgoing::new(&paid)?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn publish_all(
        &self,
        conn: &mut PgConnection,
        events: impl IntoIterator<Item = Outgoing>,
    ) -> Result<Vec<EventId>, Error> {
        let events: Vec<Outgoing> = events.into_iter().collect();
        if events.is_empty() {
            return Ok(Vec::new());
        }
        sqlx::query(
            "INSERT INTO greenwave_event_outbox (id, event, version, key, payload)
             SELECT id, event, version, key, payload::json
             FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[])
                 WITH ORDINALITY AS e (id, event, version, key, payload, place) ORDER BY place",
        )
        .bind(events.iter().map(|event| *event.id.as_uuid()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.version).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.key.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>())
        .execute(conn)
        .await
        .map_err(Error::store("publish events"))?;
        Ok(events.into_iter().map(|event| event.id).collect())
    }

    /// Handles each `E` in a transaction that also completes it: its effects in this database happen exactly once,
    /// however often the event is delivered.
    ///
    /// Events that wait together are handled in one transaction, one call after another, so what an event costs is the
    /// handler's own statements. When one of them fails, all are rolled back and each is handled in a transaction of
    /// its own; what failed then is tried again as with [`subscribe`](Bus::subscribe). Where one statement can do for
    /// many events, [`subscribe_batch_in_tx`](Bus::subscribe_batch_in_tx) is cheaper still.
    ///
    /// Completion comes last, fenced by the lease: a handler that was overtaken, because its process hung until the
    /// lease ran out, is rolled back. Effects elsewhere (a mail, a call) still happen at least once.
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
        let handler = Arc::new(handler);
        let handler = erase(move |conn, deliveries| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                for delivery in deliveries {
                    let event = delivery.decode::<E>()?;
                    handler(&mut *conn, event, delivery.context()).await.map_err(Failure::Temporary)?;
                }
                Ok(())
            })
        });
        self.add_in_tx::<E>(name.into(), config, handler);
    }

    /// Handles the events that wait together, up to [`SubscriptionConfig::max_claimed`], in one call and one
    /// transaction that also completes them: one statement may do for all, and its effects happen exactly once.
    ///
    /// When the handler fails, the events come again one by one, each alone in its slice and its transaction, so that
    /// one that cannot be handled holds up no other.
    ///
    /// ```
    /// # use greenwave_events::{Bus, Event, Postgres};
    /// # use sqlx::PgConnection;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderCreated { order_id: i64 }
    /// # impl Event for OrderCreated { const NAME: &'static str = "order-created"; }
    /// # fn example(events: &Bus<Postgres>) {
    /// events.subscribe_batch_in_tx("notification", |tx: &mut PgConnection, orders: Vec<OrderCreated>| {
    ///     Box::pin(async move {
    ///         let ids: Vec<i64> = orders.iter().map(|order| order.order_id).collect();
    ///         sqlx::query("INSERT INTO notification (order_id) SELECT unnest($1::bigint[])")
    ///             .bind(ids)
    ///             .execute(tx)
    ///             .await?;
    ///         Ok(())
    ///     })
    /// });
    /// # }
    /// ```
    pub fn subscribe_batch_in_tx<E, F>(&self, name: impl Into<String>, handler: F)
    where
        E: Event,
        F: for<'c> Fn(&'c mut PgConnection, Vec<E>) -> BoxFuture<'c, Result<(), BoxError>>
            + Send
            + Sync
            + 'static,
    {
        let config = self.config().subscription.clone();
        self.subscribe_batch_in_tx_with(name, config, handler);
    }

    /// As [`subscribe_batch_in_tx`](Bus::subscribe_batch_in_tx), with settings of its own.
    pub fn subscribe_batch_in_tx_with<E, F>(
        &self,
        name: impl Into<String>,
        config: SubscriptionConfig,
        handler: F,
    ) where
        E: Event,
        F: for<'c> Fn(&'c mut PgConnection, Vec<E>) -> BoxFuture<'c, Result<(), BoxError>>
            + Send
            + Sync
            + 'static,
    {
        let handler = erase(move |conn, deliveries| {
            let events: Result<Vec<E>, Failure> = deliveries.iter().map(Delivery::decode).collect();
            match events {
                Ok(events) => {
                    let handled = handler(conn, events);
                    Box::pin(async move { handled.await.map_err(Failure::Temporary) })
                }
                Err(failure) => Box::pin(async move { Err(failure) }),
            }
        });
        self.add_in_tx::<E>(name.into(), config, handler);
    }

    fn add_in_tx<E: Event>(&self, name: String, config: SubscriptionConfig, handler: Arc<InTx>) {
        let event = E::NAME.to_owned();
        self.add(Subscription { name, event, config, handler: Handler::InTx(handler) });
    }
}

/// Tells the compiler that the closure works for connections of any lifetime.
fn erase<F>(handler: F) -> Arc<InTx>
where
    F: for<'c> Fn(&'c mut PgConnection, Vec<Delivery>) -> BoxFuture<'c, Result<(), Failure>>
        + Send
        + Sync
        + 'static,
{
    Arc::new(handler)
}
