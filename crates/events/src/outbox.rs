use crate::{Error, Event, EventId};

/// An event as it is written to the outbox, in the publisher's transaction.
pub(crate) struct Outgoing {
    pub(crate) id: EventId,
    pub(crate) event: &'static str,
    pub(crate) version: i64,
    pub(crate) payload: String,
}

impl Outgoing {
    pub(crate) fn new<E: Event>(event: &E) -> Result<Outgoing, Error> {
        let payload =
            serde_json::to_string(event).map_err(|source| Error::Encode { event: E::NAME, source })?;
        Ok(Outgoing { id: EventId::new(), event: E::NAME, version: E::VERSION.into(), payload })
    }
}
