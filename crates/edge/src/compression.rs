//! Answers made smaller on their way, where the client accepts it and the type gains.

use serde::{Deserialize, Serialize};

/// When answers are compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CompressionConfig {
    /// Whether answers are compressed at all; false by default.
    pub enabled: bool,
    /// Smallest answer that is compressed, in bytes; 1024 by default.
    pub min_size: u16,
}

impl Default for CompressionConfig {
    fn default() -> Self {
        Self { enabled: false, min_size: 1024 }
    }
}
