//! Sizes as people write them.

use std::str::FromStr;

/// A number of bytes. A kB has 1024 of them, as PostgreSQL counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size(pub(super) u64);

const UNITS: [(&str, u32); 4] = [("b", 0), ("kb", 10), ("mb", 20), ("gb", 30)];

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Size, &'static str> {
        let text = text.trim().to_lowercase();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let unit = text[digits.len()..].trim();
        let shift = UNITS.iter().find(|(name, _)| *name == unit || unit.is_empty()).map(|(_, shift)| *shift);
        let bytes =
            digits.parse::<f64>().ok().zip(shift).map(|(number, shift)| number * f64::from(1_u32 << shift));
        match bytes {
            Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(Size(bytes as u64)),
            _ => Err("write a size, as in 40MB, 1.5GB or 800kB"),
        }
    }
}

/// The size in the largest unit of which there is one.
pub(super) fn shown(bytes: u64) -> String {
    let (mut number, mut unit) = (bytes as f64, "B");
    for larger in ["kB", "MB", "GB", "TB"] {
        if number < 1024.0 {
            break;
        }
        (number, unit) = (number / 1024.0, larger);
    }
    if number < 10.0 && unit != "B" { format!("{number:.1} {unit}") } else { format!("{number:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_and_shown() {
        for (text, bytes) in [("40MB", 40 << 20), ("1.5 gb", 3 << 29), ("800kB", 800 << 10), ("7", 7)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MB", "-1MB", "4 apples", "1e999", "nan"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!([0, 900, 1536, 40 << 20].map(shown), ["0 B", "900 B", "1.5 kB", "40 MB"]);
    }
}
