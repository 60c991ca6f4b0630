//! What is kept, and how much.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The response cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Bytes of answers that are kept in memory, 0 for no cache; 67108864 by default. Answers on their way may take as
    /// much again; beyond that they pass at the pace of their clients, and are not kept.
    pub max_bytes: u64,
    /// Largest answer that is kept, in bytes; 8388608 by default.
    pub max_object_bytes: u64,
    /// Query parameters that make no difference; none by default. A `*` at the end stands for any rest: `utm_*`.
    pub ignore_query: Vec<String>,
    /// Whether the order of query parameters makes no difference; false by default.
    pub sort_query: bool,
    /// Header that names an answer's tags for purging, besides `Surrogate-Key` and `Cache-Tag`; none by default.
    pub tag_header: String,
    /// Time for which an expired answer may be served while a new one is fetched, where the answer itself says
    /// nothing; 0 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub stale_while_revalidate: Duration,
    /// Time for which an expired answer may be served when no new one is to be had, where the answer itself says
    /// nothing; 0 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub stale_if_error: Duration,
    /// Longest wait for another request's fetch of the same answer; 10 s by default. Then a request fetches by itself.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub fill_wait: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_bytes: 64 * 1024 * 1024,
            max_object_bytes: 8 * 1024 * 1024,
            ignore_query: Vec::new(),
            sort_query: false,
            tag_header: String::new(),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            fill_wait: Duration::from_secs(10),
        }
    }
}
