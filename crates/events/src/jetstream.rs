//! Events between services, over NATS JetStream.
//!
//! **Out:** [`JetStream::forward`] is one more durable subscription: the events wait in the database until JetStream has
//! acknowledged them, however long it is away. Each is published to `{subject_prefix}.{event name}` as a CloudEvents 1.0
//! message in structured mode (JSON), with the event's id as `Nats-Msg-Id`, so that the server drops the second copy of
//! an event that was sent again because its acknowledgement got lost.
//!
//! **In:** [`JetStream::consume`] hands such messages, whoever published them, to typed handlers under a durable name:
//! at least once, with retries and dead letters of its own. `Bus::accept` makes their effects in a database once.

mod consume;
mod dead;
mod envelope;
mod inbox;
mod message;
mod publish;

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
        stream::{self, StorageType},
    },
};
use serde::{Deserialize, Serialize};

pub use self::{
    consume::{ConsumeConfig, Consumer},
    dead::RemoteDeadLetter,
    envelope::Received,
};
use crate::{
    BoxError, Error, SubscriptionConfig,
    config::{Fault, check_duration},
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
    /// How the subscription is served (default `concurrency = 256`, which is how many publishes are under way at once,
    /// `ordered = true`, `retry_min = "50ms"` and `retry_max = "5s"` between two tries of a publish, `timeout = "1d"`,
    /// for as long as one event may wait for JetStream, `max_attempts = 4294967295`; the rest as elsewhere).
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
                concurrency: 256,
                max_claimed: 1024,
                ordered: true,
                max_attempts: u32::MAX,
                retry_min: Duration::from_millis(50),
                retry_max: Duration::from_secs(5),
                timeout: Duration::from_secs(24 * 3600),
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

/// A connection to NATS that events come and go over.
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

    fn is_connected(&self) -> bool {
        self.context.client().connection_state() == State::Connected
    }

    /// Creates the stream, unless it was there when last looked for.
    async fn ensure_stream(&self) -> Result<(), BoxError> {
        if self.stream_exists.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.context.get_or_create_stream(self.stream_config()).await?;
        self.stream_exists.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn stream_config(&self) -> stream::Config {
        stream::Config {
            name: self.config.stream.clone(),
            subjects: vec![format!("{}.>", self.config.subject_prefix)],
            storage: StorageType::File,
            duplicate_window: self.config.duplicate_window,
            ..stream::Config::default()
        }
    }

    /// The subject of an event.
    fn subject(&self, event: &str) -> Result<String, Error> {
        let subject = format!("{}.{event}", self.config.subject_prefix);
        if is_subject(&subject) {
            return Ok(subject);
        }
        Err(Error::JetStream { problem: "not the name of a subject", value: subject })
    }
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
    use super::*;

    #[test]
    fn wildcards_and_empty_tokens_are_no_subject() {
        assert!(is_subject("events.order-created") && is_subject("a.b.c"));
        for bad in ["events.", "events.a b", "events.*", "events.>", "events..a"] {
            assert!(!is_subject(bad), "{bad}");
        }
    }
}
