//! CloudEvents 1.0 in structured mode, both ways.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    BoxError, Event,
    subscription::{Delivery, Failure},
};

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
    /// The extension "partitioning": the event's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    partitionkey: Option<&'a str>,
}

pub(super) fn cloud_event(source: &str, delivery: &Delivery) -> Result<String, Failure> {
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
        partitionkey: delivery.key.as_deref(),
    })
    .map_err(|error| Failure::Permanent(format!("the envelope does not encode: {error}")))?;
    // The payload is JSON already, and stays as its publisher wrote it. One brace: a key may end in another.
    let open = envelope.strip_suffix('}').unwrap_or(&envelope);
    Ok(format!("{open},\"data\":{payload}}}"))
}

/// A message as anybody may have published it.
#[derive(Deserialize)]
pub(super) struct CloudEvent {
    specversion: String,
    pub(super) id: String,
    pub(super) source: String,
    pub(super) r#type: String,
    time: Option<String>,
    eventversion: Option<u32>,
    partitionkey: Option<String>,
    #[serde(default)]
    pub(super) data: serde_json::Value,
}

/// What a handler may want to know of an event from elsewhere.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Received {
    /// Who published it, a URI reference. Together with `id` it names the event.
    pub source: String,
    /// The event's id among those of its source, the same at each attempt and in each copy.
    pub id: String,
    /// The event's name, [`Event::NAME`] of whoever published it with this library.
    pub event: String,
    /// The version with which it was published; 1 if it does not say.
    pub version: u32,
    /// What the event is about, if it says: its [`Event::key`].
    pub key: Option<String>,
    /// When it happened, by the publisher's clock, if it says.
    pub time: Option<SystemTime>,
    /// The consumer's name.
    pub subscription: Arc<str>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// For how long the inbox remembers it.
    pub(super) remembered: Duration,
}

impl CloudEvent {
    pub(super) fn parse(body: &[u8]) -> Result<CloudEvent, String> {
        let event: CloudEvent =
            serde_json::from_slice(body).map_err(|error| format!("the message is no CloudEvent: {error}"))?;
        if !event.specversion.starts_with("1.") {
            return Err(format!("the message is a CloudEvent of version {}", event.specversion));
        }
        if event.id.is_empty() || event.source.is_empty() {
            return Err("the CloudEvent has no id or no source".to_owned());
        }
        Ok(event)
    }

    pub(super) fn received(&self, subscription: &Arc<str>, attempt: u32, remembered: Duration) -> Received {
        Received {
            source: self.source.clone(),
            id: self.id.clone(),
            event: self.r#type.clone(),
            version: self.eventversion.unwrap_or(1),
            key: self.partitionkey.clone(),
            time: self.time.as_deref().and_then(|time| humantime::parse_rfc3339_weak(time).ok()),
            subscription: Arc::clone(subscription),
            attempt,
            remembered,
        }
    }
}

pub(super) fn decode<E: Event>(version: u32, data: serde_json::Value) -> Result<E, Failure> {
    let decoded = if version == E::VERSION {
        serde_json::from_value(data).map_err(BoxError::from)
    } else {
        E::upcast(version, data)
    };
    decoded.map_err(|error| {
        Failure::Permanent(format!(
            "the data of version {version} does not decode as `{}` of version {}: {error}",
            E::NAME,
            E::VERSION
        ))
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn delivery() -> Delivery {
        Delivery {
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
        }
    }

    #[test]
    fn an_event_travels_as_a_cloud_event() {
        let message = cloud_event("/shop", &delivery()).ok();
        expect![[r#"{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000000","source":"/shop","type":"order-created","time":"2023-11-14T22:13:20.123Z","datacontenttype":"application/json","eventversion":2,"data":{"order_id":7}}"#]]
        .assert_eq(&message.unwrap_or_default());
    }

    #[test]
    fn an_event_comes_back_as_it_went() {
        let keyed = Delivery { key: Some("customer {7}}".into()), ..delivery() };
        let message = cloud_event("/shop", &keyed).ok().unwrap_or_default();
        let event = CloudEvent::parse(message.as_bytes()).ok();
        let received = event.as_ref().map(|event| event.received(&"mail".into(), 3, Duration::ZERO));
        let received = received.map(|r| (r.source, r.id, r.event, r.version, r.key, r.time, r.attempt));
        let expected = (
            "/shop".to_owned(),
            keyed.event_id.to_string(),
            "order-created".to_owned(),
            2,
            Some("customer {7}}".to_owned()),
            Some(keyed.published_at()),
            3,
        );
        assert_eq!(received, Some(expected));
        assert_eq!(event.map(|event| event.data), Some(serde_json::json!({"order_id": 7})));
    }

    #[test]
    fn what_is_no_cloud_event_says_why() {
        let fault = |body: &str| CloudEvent::parse(body.as_bytes()).err().unwrap_or_default();
        assert!(fault("Dear diary").starts_with("the message is no CloudEvent"));
        assert!(fault(r#"{"specversion":"0.3","id":"1","source":"/a","type":"b"}"#).ends_with("version 0.3"));
        assert!(fault(r#"{"specversion":"1.0","id":"","source":"/a","type":"b"}"#).contains("no id"));
    }
}
