//! When servers are checked, and what of.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;

const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// When servers are checked, and how many results make a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CheckConfig {
    /// Time between two checks of a server, at least 10 ms; 1 s by default. One that is starting is checked more often.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub interval: Duration,
    /// Time after which a check without an answer has failed; 1 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub timeout: Duration,
    /// Checks that a sick server must pass in a row to be healthy; 1 by default.
    pub healthy_after: u32,
    /// Checks that a healthy server must fail in a row to be sick; 3 by default.
    pub unhealthy_after: u32,
    /// Statuses with which an HTTP check is passed, such as `200-399, 404`; `200-299` by default.
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub expect: Statuses,
    /// `Host` of an HTTP check; empty, the default, for the server's name or address.
    pub host: String,
    /// Time between two look-ups of a server that is given by its name; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub resolve_interval: Duration,
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 3,
            expect: Statuses::default(),
            host: String::new(),
            resolve_interval: Duration::from_secs(10),
        }
    }
}

impl CheckConfig {
    /// The time until the next check: an interval of 0 would do nothing but check.
    pub(crate) fn pause(&self) -> Duration {
        self.interval.max(LEAST_INTERVAL)
    }
}

/// Status codes of HTTP, as ranges.
///
/// ```
/// use greenwave_edge::Statuses;
///
/// let expected: Statuses = "200-399, 404".parse()?;
/// assert!(expected.contains(302) && expected.contains(404) && !expected.contains(503));
/// # Ok::<(), greenwave_edge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether it is among them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for Statuses {
    fn default() -> Self {
        Self(vec![200..=299])
    }
}

impl FromStr for Statuses {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = code(first)?..=code(last)?;
            (!range.is_empty()).then_some(range)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| Error::InvalidStatuses { text: text.to_owned() })
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, range) in self.0.iter().enumerate() {
            let (comma, first, last) = (if number == 0 { "" } else { ", " }, range.start(), range.end());
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Statuses {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Statuses> for String {
    fn from(statuses: Statuses) -> Self {
        statuses.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_codes_and_ranges() {
        assert_eq!("200-399,404 , 500-500".parse::<Statuses>().unwrap().to_string(), "200-399, 404, 500");
        for text in ["", "200-", "2xx", "399-200", "200,,204", "99", "600", "-200", "200-300-400"] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
    }
}
