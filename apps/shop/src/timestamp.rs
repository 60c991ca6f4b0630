use std::{fmt, str};

use chrono::{DateTime, Datelike, NaiveDate, Timelike, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const LENGTH: usize = "2024-01-31T12:00:00.000Z".len();

/// A moment in UTC, to the millisecond; its text is `2024-01-31T12:00:00.000Z`, which sorts as the moments do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// The present.
    pub fn now() -> Timestamp {
        Timestamp::from_millis(Utc::now().timestamp_millis())
    }

    /// So many milliseconds after 1970 began. What no calendar year of four digits holds becomes the nearest moment
    /// that one does.
    pub fn from_millis(millis: i64) -> Timestamp {
        // 0000-01-01T00:00:00.000Z and 9999-12-31T23:59:59.999Z: the text has four digits for the year.
        let millis = millis.clamp(-62_167_219_200_000, 253_402_300_799_999);
        Timestamp(DateTime::from_timestamp_millis(millis).unwrap_or_default())
    }

    /// Milliseconds since 1970 began.
    pub fn millis(self) -> i64 {
        self.0.timestamp_millis()
    }

    /// The moment that a text of exactly this form names.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let bytes: &[u8; LENGTH] = text.as_bytes().try_into().ok()?;
        let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
        if marks.iter().any(|&(at, mark)| bytes[at] != mark) {
            return None;
        }
        let number = |from: usize, to: usize| {
            bytes[from..to]
                .iter()
                .try_fold(0u32, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0')))
        };
        let date = NaiveDate::from_ymd_opt(number(0, 4)? as i32, number(5, 7)?, number(8, 10)?)?;
        let time =
            date.and_hms_milli_opt(number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 23)?)?;
        Some(Timestamp(time.and_utc()))
    }

    // By hand: a request's answer holds up to twenty of these, and format strings are an order of magnitude slower.
    fn write(self, buffer: &mut [u8; LENGTH]) -> &str {
        let mut put = |at: usize, width: usize, mut value: u32| {
            for byte in buffer[at..at + width].iter_mut().rev() {
                *byte = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0, 4, self.0.year().unsigned_abs());
        put(5, 2, self.0.month());
        put(8, 2, self.0.day());
        put(11, 2, self.0.hour());
        put(14, 2, self.0.minute());
        put(17, 2, self.0.second());
        put(20, 3, self.0.timestamp_subsec_millis() % 1000);
        for (at, mark) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')] {
            buffer[at] = mark;
        }
        str::from_utf8(buffer).unwrap_or_default()
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(moment: DateTime<Utc>) -> Timestamp {
        Timestamp::from_millis(moment.timestamp_millis())
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(moment: Timestamp) -> DateTime<Utc> {
        moment.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.write(&mut [0; LENGTH]))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.write(&mut [0; LENGTH]))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a UTC timestamp like 2024-01-31T12:00:00.000Z")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                Timestamp::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_timestamp_names_the_same_moment() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_706_702_400_000, "2024-01-31T12:00:00.000Z"),
            (1_704_067_260_456, "2024-01-01T00:01:00.456Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (1_709_164_800_007, "2024-02-29T00:00:00.007Z"),
        ] {
            let moment = Timestamp::from_millis(millis);
            assert_eq!(moment.to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(moment));
            assert_eq!(moment.millis(), millis);
        }
    }

    #[test]
    fn what_is_no_timestamp_is_refused() {
        for text in [
            "",
            "2024-01-31",
            "2024-01-31 12:00:00.000Z",
            "2024-01-31T12:00:00.000z",
            "2024-02-30T12:00:00.000Z",
            "2024-01-31T24:00:00.000Z",
            "+024-01-31T12:00:00.000Z",
            "2024-01-31T12:00:00.0000",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn moments_beyond_four_digit_years_stop_at_the_edge() {
        assert_eq!(Timestamp::from_millis(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(Timestamp::from_millis(i64::MIN).to_string(), "0000-01-01T00:00:00.000Z");
    }
}
