//! A message that this process holds.

use std::time::Duration;

use async_nats::{
    Request,
    jetstream::{AckKind, Message},
};

use super::JetStream;
use crate::BoxError;

/// A delivery of JetStream's.
pub(super) struct Held {
    pub(super) message: Message,
    pub(super) sequence: u64,
    /// The number of this delivery; the first is 1.
    pub(super) attempt: u32,
}

impl Held {
    /// None for what is no message of a stream.
    pub(super) fn of(message: Message) -> Option<Held> {
        let info = message.info().ok()?;
        let (sequence, attempt) = (info.stream_sequence, u32::try_from(info.delivered).unwrap_or(1));
        Some(Held { message, sequence, attempt })
    }

    /// Acknowledges, and waits until the server has taken that.
    pub(super) async fn acknowledge(&self, jetstream: &JetStream, kind: AckKind) -> Result<(), BoxError> {
        let Some(reply) = self.message.reply.clone() else { return Ok(()) };
        let request = Request::new().payload(kind.into()).timeout(Some(jetstream.config.ack_timeout));
        jetstream.context.client().send_request(reply, request).await?;
        Ok(())
    }

    /// Gives it back, for after a while.
    pub(super) async fn give_back(&self, jetstream: &JetStream, wait: Duration) -> Result<(), BoxError> {
        let wait = (wait.as_millis() > 0).then_some(wait);
        self.acknowledge(jetstream, AckKind::Nak(wait)).await
    }
}
