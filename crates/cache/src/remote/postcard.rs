use std::{error::Error, marker::PhantomData};

use serde::{Serialize, de::DeserializeOwned};
use serde_reflection::{Tracer, TracerConfig};

use super::{Codec, envelope::Fingerprint};

/// postcard: small and fast, and it writes neither names nor types.
///
/// A struct whose fields were swapped would decode to something wrong, and nobody would know. So this codec's
/// [`version`](Codec::version) is a hash of the shape of `V`: names, order and types of all fields and variants. A value
/// of another shape is a miss. While two versions of a service run side by side they replace each other's values.
///
/// Writing checks that a value decodes to what encodes the same, for what the shape does not show: a field that is
/// skipped when writing (`#[serde(skip_serializing_if)]`) does not go with postcard, and such a value is not kept.
#[derive(Debug)]
pub struct Postcard<V> {
    shape: u64,
    _value: PhantomData<fn(V)>,
}

impl<V: Serialize + DeserializeOwned> Postcard<V> {
    /// Takes the shape of `V` by giving its `Deserialize` made-up values.
    ///
    /// # Errors
    ///
    /// When that takes no made-up values (a text that must be an e-mail address), or asks what comes next
    /// (`#[serde(untagged)]`, `#[serde(flatten)]`, a `serde_json::Value`). postcard can't do the latter at all; for
    /// the former there is [`Postcard::of_shape`].
    pub fn new() -> Result<Postcard<V>, crate::Error> {
        let failed = |error: serde_reflection::Error| crate::Error::Shape(error.to_string().into());
        let mut tracer = Tracer::new(TracerConfig::default().is_human_readable(false));
        let (mut format, _) = tracer.trace_simple_type::<V>().map_err(failed)?;
        serde_reflection::FormatHolder::normalize(&mut format).map_err(failed)?;
        let containers = tracer.registry().map_err(failed)?;
        // What `Debug` shows may change with a new version of serde-reflection; that costs a load of each value.
        let mut shape = Fingerprint::default();
        shape.add(format!("{format:?}{containers:?}").as_bytes());
        Ok(Postcard::of_shape(shape.get()))
    }

    /// Takes your word for the shape: change the number whenever `V`, or a type in it, changes in any way.
    pub fn of_shape(shape: u64) -> Postcard<V> {
        Postcard { shape, _value: PhantomData }
    }
}

impl<V: Serialize + DeserializeOwned + 'static> Codec<V> for Postcard<V> {
    fn version(&self) -> u64 {
        self.shape
    }

    fn encode(&self, value: &V) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let bytes = postcard::to_allocvec(value)?;
        match postcard::to_allocvec(&self.decode(&bytes)?)? == bytes {
            true => Ok(bytes),
            false => Err("what is written does not read as the same".into()),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, Box<dyn Error + Send + Sync>> {
        let (value, rest) = postcard::take_from_bytes(bytes)?;
        match rest.is_empty() {
            true => Ok(value),
            false => Err("bytes follow the value".into()),
        }
    }
}
