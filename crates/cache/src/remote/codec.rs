use std::error::Error;

use serde::{Serialize, de::DeserializeOwned};

/// How deep values may nest. rmp-serde's own limit of 1024 overflows the stack of an unoptimised build's thread.
const MAX_DEPTH: usize = 128;

/// How values of type `V` are written into the remote.
///
/// [`MessagePack`] is what [`CacheBuilder::remote`](crate::CacheBuilder::remote) takes. Another one is a few lines:
///
/// ```
/// use greenwave_cache::{Cache, Codec, Remote};
/// use std::error::Error;
///
/// struct Json;
///
/// impl<V: serde::Serialize + serde::de::DeserializeOwned> Codec<V> for Json {
///     fn encode(&self, value: &V) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
///         Ok(serde_json::to_vec(value)?)
///     }
///     fn decode(&self, bytes: &[u8]) -> Result<V, Box<dyn Error + Send + Sync>> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn Error>> {
/// let remote = Remote::connect("redis://127.0.0.1:6379")?;
/// let names = Cache::<u64, String>::builder("name").remote_with(remote, u64::to_string, Json).build();
/// # Ok(())
/// # }
/// ```
pub trait Codec<V>: Send + Sync + 'static {
    /// What besides the key must be the same for a value to be read; by default 0.
    ///
    /// A value that was written under another number is a miss, and the next fill replaces it. Give it a new one when
    /// a change to `V` would let old values decode to something wrong.
    fn version(&self) -> u64 {
        0
    }

    /// The bytes of a value. Should it fail, the value is not kept in the remote; the failure is counted.
    fn encode(&self, value: &V) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;

    /// The value of these bytes, which may be anything. An error, and a panic too, makes them a miss, which is counted.
    fn decode(&self, bytes: &[u8]) -> Result<V, Box<dyn Error + Send + Sync>>;
}

/// MessagePack with the names of fields: a struct may gain, lose and reorder fields while old values are about.
///
/// A field that is gained needs `#[serde(default)]` or to be an `Option`; values may nest 128 deep.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessagePack;

impl<V: Serialize + DeserializeOwned> Codec<V> for MessagePack {
    fn encode(&self, value: &V) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        Ok(rmp_serde::to_vec_named(value)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, Box<dyn Error + Send + Sync>> {
        // What stands around a value tells garbage from it, so that the whole is one value.
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
        deserializer.set_max_depth(MAX_DEPTH);
        Ok(V::deserialize(&mut deserializer)?)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Nested(Vec<Nested>);

    fn decode<V: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<V, Box<dyn Error + Send + Sync>> {
        Codec::<V>::decode(&MessagePack, bytes)
    }

    #[test]
    fn truncated_endless_and_foreign_bytes_are_errors() {
        let bytes = Codec::encode(&MessagePack, &vec![("Ada".to_owned(), 7_u64)]).unwrap();
        for end in 0..bytes.len() {
            decode::<Vec<(String, u64)>>(&bytes[..end]).unwrap_err();
        }
        decode::<Vec<(String,)>>(&bytes).unwrap_err();
        decode::<Vec<(String, u64, u64)>>(&bytes).unwrap_err();
        // A list that claims four billion entries, and nesting without end.
        decode::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
        decode::<Nested>(&[0x91; 1 << 20]).unwrap_err();
    }
}
