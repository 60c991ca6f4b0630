use crate::{Error, Event, EventId};

/// An event on its way to the outbox: what `publish_all` takes, so that events of several types go in one statement.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(crate) id: EventId,
    pub(crate) event: &'static str,
    pub(crate) version: i64,
    pub(crate) key: Option<String>,
    pub(crate) payload: String,
}

impl Outgoing {
    /// Encodes the event and gives it its id. Fails when it does not serialise to JSON.
    pub fn new<E: Event>(event: &E) -> Result<Outgoing, Error> {
        let payload =
            serde_json::to_string(event).map_err(|source| Error::Encode { event: E::NAME, source })?;
        let (id, version) = (EventId::new(), E::VERSION.into());
        Ok(Outgoing { id, event: E::NAME, version, key: event.key(), payload })
    }

    /// The id under which it will be published.
    pub fn id(&self) -> EventId {
        self.id
    }
}
