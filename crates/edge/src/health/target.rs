//! A server as a configuration names it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A server, or all servers behind a name: `10.0.0.1:3000`, `[::1]:3000` or `api.internal:3000`, and its weight beside
/// others if that is not 1: `10.0.0.1:3000 weight=3`.
///
/// ```
/// use greenwave_edge::Target;
///
/// let target: Target = "api.internal:3000 weight=3".parse()?;
/// assert_eq!(target.to_string(), "api.internal:3000 weight=3");
/// # Ok::<(), greenwave_edge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    pub(super) place: Place,
    pub(super) weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Address(SocketAddr),
    /// A name and a port, to be looked up.
    Name(String, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { place: Place::Address(address), weight: 1 }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::InvalidTarget { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Target> {
    let mut words = text.split_ascii_whitespace();
    let place = words.next()?;
    let weight = match words.next() {
        Some(word) => word.strip_prefix("weight=")?.parse().ok()?,
        None => 1,
    };
    let place = match place.parse() {
        Ok(address) => Place::Address(address),
        Err(_) => {
            let (name, port) = place.rsplit_once(':')?;
            Place::Name(name.to_owned(), port.parse().ok()?)
        }
    };
    let is_name = |name: &str| {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        // What ends in a number is an address, and this one is none.
        let numeric = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit());
        !name.is_empty() && name.bytes().all(sound) && !name.rsplit('.').next().is_some_and(numeric)
    };
    let sound = match &place {
        Place::Address(address) => address.port() != 0,
        Place::Name(name, port) => *port != 0 && is_name(name),
    };
    (sound && words.next().is_none()).then_some(Target { place, weight })
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight {
            1 => write!(f, "{}", self.place),
            weight => write!(f, "{} weight={weight}", self.place),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_or_a_name_with_a_port() {
        for text in
            ["10.0.0.1:80", "[::1]:80", "localhost:3000", "a-b.c_d.internal.:1 weight=3", "x:1 weight=0"]
        {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.256:80",
            "::1:80",
            "host",
            "host:",
            "host:0",
            "host:70000",
            ":80",
            "http://host:80",
            "host:80 3",
            "host:80 weight=",
            "host:80 weight=-1",
            "host:80 weight=1 weight=2",
            "ho st:80",
            "a/b:80",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
