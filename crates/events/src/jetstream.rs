//! Events that leave the database for NATS JetStream, so that other services can hear of them.
//!
//! A [`JetStream`] is one more durable subscription: the events wait in the database until JetStream has acknowledged
//! them, however long it is away. Each is published to `{subject_prefix}.{event name}` as a CloudEvents 1.0 message in
//! structured mode (JSON), with the event's id as `Nats-Msg-Id`, so that the server drops the second copy of an event
//! that was sent again because its acknowledgement got lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    ConnectOptions,
    connection::State,
    jetstream::{
        Context,
        context::PublishErrorKind,
        message::PublishMessage,
        stream::{self, StorageType},
    },
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    Backend, Bus, Error, SubscriptionConfig,
    config::{Fault, check_duration},
    subscription::{Delivery, Failure, Handler, Subscription},
};

/// How events are named and kept in JetStream.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct JetStreamConfig {
    /// The stream that keeps the events. Created when it is absent, left as it is when it is there (default
    /// `greenwave-events`).
    pub stream: String,
    /// What subjects start with: an event goes to `{subject_prefix}.{event name}` (default `events`).
    pub subject_prefix: String,
    /// The `source` of each message, a URI reference that names your service (default `/greenwave`).
    pub source: String,
    /// For how long a created stream recognises what it already has (default `2m`).
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Duration,
    /// How long to wait for an acknowledgement before the event is sent again (default `5s`).
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    /// How the subscription is served. Attempts never end by default, since JetStream down is no fault of the event
    /// (default `max_attempts = 4294967295`, `retry_min = "200ms"`, `retry_max = "30s"`, the rest as elsewhere).
    pub subscription: SubscriptionConfig,
}

impl Default for JetStreamConfig {
    fn default() -> JetStreamConfig {
        JetStreamConfig {
            stream: "greenwave-events".to_owned(),
            subject_prefix: "events".to_owned(),
            source: "/greenwave".to_owned(),
            duplicate_window: Duration::from_secs(120),
            ack_timeout: Duration::from_secs(5),
            subscription: SubscriptionConfig {
                max_attempts: u32::MAX,
                retry_min: Duration::from_millis(200),
                retry_max: Duration::from_secs(30),
                ..SubscriptionConfig::default()
            },
        }
    }
}

impl JetStreamConfig {
    fn find_fault(&self) -> Result<(), Fault> {
        if self.ack_timeout.is_zero() {
            return Err(("ack_timeout", "must be more than zero"));
        }
        check_duration("ack_timeout", self.ack_timeout)?;
        check_duration("duplicate_window", self.duplicate_window)
    }
}

/// A connection to NATS that events are forwarded over.
#[derive(Clone)]
pub struct JetStream {
    context: Context,
    config: Arc<JetStreamConfig>,
    /// The stream was there when last looked for.
    stream_exists: Arc<AtomicBool>,
}

impl JetStream {
    /// Connects to the NATS server at `url`, in the background: the server need not be up, and when it goes away the
    /// connection comes back by itself. Fails when the URL cannot be read, or a setting cannot work.
    pub async fn connect(url: &str, config: JetStreamConfig) -> Result<JetStream, Error> {
        config.find_fault().map_err(|fault| Error::config(None, fault))?;
        let client =
            ConnectOptions::new().retry_on_initial_connect().connect(url).await.map_err(|error| {
                let value = format!("{}: {error}", without_credentials(url));
                Error::JetStream { problem: "cannot connect to NATS", value }
            })?;
        let mut context = async_nats::jetstream::new(client);
        context.set_timeout(config.ack_timeout);
        Ok(JetStream { context, config: Arc::new(config), stream_exists: Arc::default() })
    }

    /// Forwards every event of the given names, under the durable subscription `name`.
    ///
    /// At least once, in no set order. An event that is larger than the server allows becomes a dead letter; any other
    /// failure is tried again. Fails when an event's name cannot be part of a subject.
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
            let subject = format!("{}.{event}", self.config.subject_prefix);
            if !is_subject(&subject) {
                return Err(Error::JetStream { problem: "not the name of a subject", value: subject });
            }
            let (jetstream, subject) = (self.clone(), Arc::<str>::from(subject));
            let handler = Handler::AtLeastOnce(Arc::new(move |delivery| {
                let (jetstream, subject) = (jetstream.clone(), subject.clone());
                Box::pin(async move { jetstream.publish(&subject, &delivery).await })
            }));
            let config = self.config.subscription.clone();
            bus.add(Subscription { name: name.clone(), event, config, handler });
        }
        Ok(())
    }

    async fn publish(&self, subject: &str, delivery: &Delivery) -> Result<(), Failure> {
        let body = cloud_event(&self.config.source, delivery)?;
        // The client would keep the message until it is connected, and we send it again anyway.
        if self.context.client().connection_state() != State::Connected {
            return Err(Failure::Temporary("NATS is not connected".into()));
        }
        // Twice the time, since there are two requests when the stream has to be looked for.
        let published = timeout(self.config.ack_timeout * 2, self.publish_to_stream(subject, delivery, body));
        let published = published.await.unwrap_or_else(|elapsed| Err(Failure::Temporary(elapsed.into())));
        if published.is_err() {
            self.stream_exists.store(false, Ordering::Relaxed);
        }
        published
    }

    async fn publish_to_stream(
        &self,
        subject: &str,
        delivery: &Delivery,
        body: String,
    ) -> Result<(), Failure> {
        if !self.stream_exists.load(Ordering::Relaxed) {
            let stream = stream::Config {
                name: self.config.stream.clone(),
                subjects: vec![format!("{}.>", self.config.subject_prefix)],
                storage: StorageType::File,
                duplicate_window: self.config.duplicate_window,
                ..stream::Config::default()
            };
            let created = self.context.get_or_create_stream(stream).await;
            created.map_err(|error| Failure::Temporary(error.into()))?;
            self.stream_exists.store(true, Ordering::Relaxed);
        }
        let message = PublishMessage::build()
            .payload(body.into())
            .message_id(delivery.event_id.to_string())
            .header("Content-Type", "application/cloudevents+json; charset=UTF-8");
        let failed = |error: async_nats::jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Failure::Permanent(error.to_string()),
            _ => Failure::Temporary(error.into()),
        };
        let ack = self.context.send_publish(subject.to_owned(), message).await.map_err(failed)?;
        ack.await.map_err(failed)?;
        Ok(())
    }
}

/// Everything of a CloudEvents message but its data.
#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    r#type: &'a str,
    time: String,
    datacontenttype: &'static str,
    /// An extension attribute: the event's version.
    eventversion: u32,
}

fn cloud_event(source: &str, delivery: &Delivery) -> Result<String, Failure> {
    let payload = &delivery.payload;
    serde_json::from_str::<serde::de::IgnoredAny>(payload)
        .map_err(|error| Failure::Permanent(format!("the payload is not JSON: {error}")))?;
    let envelope = serde_json::to_string(&Envelope {
        specversion: "1.0",
        id: delivery.event_id.to_string(),
        source,
        r#type: &delivery.event,
        time: humantime::format_rfc3339_millis(delivery.published_at()).to_string(),
        datacontenttype: "application/json",
        eventversion: delivery.version,
    })
    .map_err(|error| Failure::Permanent(format!("the envelope does not encode: {error}")))?;
    // The payload is JSON already, and stays as its publisher wrote it.
    Ok(format!("{},\"data\":{payload}}}", envelope.trim_end_matches('}')))
}

/// What of a URL may be shown. It need not be a valid one, so a password is whatever may stand before the last `@`.
fn without_credentials(url: &str) -> &str {
    url.rsplit('@').next().unwrap_or_default()
}

fn is_subject(subject: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && !token.contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>')
    };
    subject.split('.').all(is_token)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_event_travels_as_a_cloud_event() {
        let delivery = Delivery {
            held: crate::subscription::Held::Range(1),
            position: Some(1),
            key: None,
            subscription: "to-nats".into(),
            event: "order-created".into(),
            event_id: uuid::Uuid::nil().into(),
            version: 2,
            payload: r#"{"order_id":7}"#.to_owned(),
            published_ms: 1_700_000_000_123,
            attempt: 1,
        };
        let message = cloud_event("/shop", &delivery).ok();
        expect![[r#"{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000000","source":"/shop","type":"order-created","time":"2023-11-14T22:13:20.123Z","datacontenttype":"application/json","eventversion":2,"data":{"order_id":7}}"#]]
        .assert_eq(&message.unwrap_or_default());
    }

    #[test]
    fn wildcards_and_empty_tokens_are_no_subject() {
        assert!(is_subject("events.order-created") && is_subject("a.b.c"));
        for bad in ["events.", "events.a b", "events.*", "events.>", "events..a"] {
            assert!(!is_subject(bad), "{bad}");
        }
    }
}
