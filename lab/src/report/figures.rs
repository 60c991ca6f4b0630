//! Numbers as a reader wants them: three digits, and thousands apart.

use crate::ratio::Ratio;

/// Three significant digits; whole numbers from 1,000 on.
pub(crate) fn figure(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        size if size >= 0.09995 => 3,
        size if size >= 0.009995 => 4,
        _ => 5,
    };
    thousands(&format!("{value:.digits$}"))
}

/// A figure on a scale: 0.05, not 0.0500.
pub(crate) fn tick(value: f64) -> String {
    let text = figure(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A number with its thousands apart: 12,345.
pub(crate) fn count(value: u64) -> String {
    thousands(&value.to_string())
}

/// A value that may be missing.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), figure)
}

/// "7.31 (6.9 to 7.8)".
pub(crate) fn ratio(ratio: Option<Ratio>) -> String {
    match ratio {
        None => "–".to_owned(),
        Some(ratio) if ratio.pairs == 1 => figure(ratio.median),
        Some(ratio) => {
            format!("{} ({} to {})", figure(ratio.median), figure(ratio.low), figure(ratio.high))
        }
    }
}

fn thousands(number: &str) -> String {
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_thousands_apart() {
        let shown = [0.0, 0.01234, 0.4216, 0.99961, 1.0, 7.312, 12.345, 99.96, 123.4, 1_234.5, 9_876_543.0]
            .map(figure);
        assert_eq!(
            shown,
            ["0", "0.0123", "0.422", "1.00", "1.00", "7.31", "12.3", "100", "123", "1,234", "9,876,543"]
        );
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!([0.05, 2.0, 100.0, 2_000.0].map(tick), ["0.05", "2", "100", "2,000"]);
    }
}
