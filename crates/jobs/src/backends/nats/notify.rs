//! Wake-ups between processes: plain messages of NATS, which no stream keeps.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_nats::Client;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::Inner;
use crate::announcer::{Channel, DEADLINE};
use crate::backoff::Weather;
use crate::error::chain;
use crate::wakeups::{Notice, Wakeups};

/// Messages on one subject.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) client: Client,
    pub(super) subject: String,
}

impl Channel for Publish {
    async fn send(&self, notices: BTreeSet<Notice>) {
        for notice in notices {
            let payload = notice.payload().into_owned().into_bytes();
            timeout(DEADLINE, self.client.publish(self.subject.clone(), payload.into())).await.ok();
        }
    }
}

/// Rings when another process announces. The client subscribes again by itself after an outage.
pub(super) async fn listen(inner: Arc<Inner>, wakeups: Arc<Wakeups>) {
    let mut weather = Weather::default();
    loop {
        match inner.client.subscribe(inner.config.wake_subject()).await {
            Ok(mut notices) => {
                weather.clear();
                while let Some(message) = notices.next().await {
                    let payload = std::str::from_utf8(&message.payload).unwrap_or_default();
                    Notice::parse(payload).iter().for_each(|notice| wakeups.tell(notice));
                }
            }
            Err(error) => tracing::debug!(error = chain(&error), "cannot listen for new jobs; polling"),
        }
        sleep(weather.next()).await;
    }
}
