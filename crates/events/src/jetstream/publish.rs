//! The way out: a durable subscription whose handlers publish.

use std::sync::{Arc, atomic::Ordering};

use async_nats::jetstream::{
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{JetStream, envelope::cloud_event};
use crate::{
    Backend, BoxError, Bus, Error,
    error::describe,
    retry::delay,
    subscription::{Delivery, Failure, Handler, Subscription},
};

impl JetStream {
    /// Forwards every event of the given names, under the durable subscription `name`.
    ///
    /// At least once. Up to `concurrency` publishes are under way at once, and events of one [key](crate::Event::key)
    /// go one after another, in the order of their publication: none before JetStream has acknowledged the one before
    /// it, whatever fails and for however long. Events without a key keep no order among themselves;
    /// with `concurrency = 1` all do, at one round trip each.
    ///
    /// While JetStream is away, what is under way waits and the rest stays in the log. An event that is larger than the
    /// server allows becomes a dead letter; any other failure is tried again. Fails when an event's name cannot be part
    /// of a subject.
    ///
    /// ```no_run
    /// # use greenwave_events::{Bus, Sqlite, jetstream::{JetStream, JetStreamConfig}};
    /// # async fn example(events: &Bus<Sqlite>) -> Result<(), greenwave_events::Error> {
    /// let jetstream = JetStream::connect("nats://127.0.0.1:4222", JetStreamConfig::default()).await?;
    /// jetstream.forward(events, "to-nats", ["order-created", "order-cancelled"])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn forward<B: Backend>(
        &self,
        bus: &Bus<B>,
        name: impl Into<String>,
        events: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<(), Error> {
        let name = name.into();
        for event in events {
            let event = event.into();
            let (jetstream, subject) = (self.clone(), Arc::<str>::from(self.subject(&event)?));
            let handler = Handler::AtLeastOnce(Arc::new(move |delivery| {
                let (jetstream, subject) = (jetstream.clone(), subject.clone());
                Box::pin(async move { jetstream.publish(&subject, &delivery).await })
            }));
            let config = self.config.subscription.clone();
            bus.add(Subscription { name: name.clone(), event, config, handler });
        }
        Ok(())
    }

    /// Publishes until it is acknowledged. It does not give up while the server is away: a failed attempt would make
    /// room for the next event, and an outage would move the whole log, event by event, to deliveries that wait.
    async fn publish(&self, subject: &str, delivery: &Delivery) -> Result<(), Failure> {
        let body = cloud_event(&self.config.source, delivery)?;
        let of = &self.config.subscription;
        let mut tries = 0_u32;
        loop {
            match self.publish_once(subject, delivery, &body).await {
                Ok(()) => return Ok(()),
                Err(failure @ Failure::Permanent(_)) => return Err(failure),
                Err(Failure::Temporary(error)) => {
                    tries = tries.saturating_add(1);
                    let pause = delay(tries, of.retry_min, of.retry_max);
                    // Of many that wait for the same server one in a while is enough.
                    if tries == 10 {
                        warn!(error = describe(error.as_ref()), subject, "an event waits for JetStream");
                    }
                    sleep(pause).await;
                }
            }
        }
    }

    async fn publish_once(&self, subject: &str, delivery: &Delivery, body: &str) -> Result<(), Failure> {
        // The client would keep the message until it is connected, and we send it again anyway.
        if !self.is_connected() {
            return Err(Failure::Temporary("NATS is not connected".into()));
        }
        // Twice the time, since there are two requests when the stream has to be looked for.
        let published = timeout(self.config.ack_timeout * 2, async {
            self.ensure_stream().await.map_err(Failure::Temporary)?;
            let message = PublishMessage::build()
                .payload(body.to_owned().into())
                .message_id(delivery.event_id.to_string())
                .header("Content-Type", "application/cloudevents+json; charset=UTF-8");
            let ack = self.context.send_publish(subject.to_owned(), message).await.map_err(failure)?;
            ack.await.map(drop).map_err(failure)
        });
        let published = published.await.unwrap_or_else(|elapsed| Err(Failure::Temporary(elapsed.into())));
        if published.is_err() {
            self.stream_exists.store(false, Ordering::Relaxed);
        }
        published
    }
}

fn failure(error: PublishError) -> Failure {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Failure::Permanent(error.to_string()),
        _ => Failure::Temporary(BoxError::from(error)),
    }
}
