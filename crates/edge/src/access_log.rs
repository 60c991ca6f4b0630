//! One line for each request.

use serde::{Deserialize, Serialize};

/// The access log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AccessLogConfig {
    /// `off`, `common` or `json`; `off` by default.
    pub format: AccessLogFormat,
    /// The file that lines are appended to; standard output by default.
    pub file: String,
}

/// How a request is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AccessLogFormat {
    /// Not at all.
    #[default]
    Off,
    /// The Common Log Format of the first web servers, with the time taken.
    Common,
    /// One JSON object a line.
    Json,
}
