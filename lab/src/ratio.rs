use serde::{Deserialize, Serialize};

/// After ÷ before, with its spread.
///
/// Each pair of neighbouring rounds gives one ratio; this is their median, and the range between two of
/// them that holds the true median with the stated confidence. The range rests on ranks alone: each ratio
/// is above the true median with a chance of one half, so the true median lies outside the lowest and the
/// highest of n with a chance of 2 ÷ 2ⁿ. It assumes nothing about the shape of the noise, only that pairs
/// do not depend on one another. The narrowest symmetrical range of at least 95 % is taken; below six
/// pairs there is none, and it is the lowest and the highest, with the confidence that they have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ratio {
    /// The median of the pairs' ratios.
    pub median: f64,
    /// The lower end of the range.
    pub low: f64,
    /// The upper end of the range.
    pub high: f64,
    /// The chance that the range holds the true median, from 0 to 1.
    pub confidence: f64,
    /// How many pairs of rounds there were.
    pub pairs: usize,
}

impl Ratio {
    /// The ratio of paired values; `None` when there is no pair or a value is missing, zero or not a number.
    ///
    /// ```
    /// let ratio = greenwave_lab::Ratio::of(&[Some(10.0), Some(20.0), Some(10.0)], &[Some(30.0), Some(50.0), Some(40.0)]);
    /// let ratio = ratio.unwrap();
    /// assert_eq!((ratio.low, ratio.median, ratio.high), (2.5, 3.0, 4.0));
    /// assert_eq!(ratio.confidence, 0.75);
    /// ```
    #[must_use]
    pub fn of(before: &[Option<f64>], after: &[Option<f64>]) -> Option<Ratio> {
        let positive = |value: Option<f64>| value.filter(|value| value.is_finite() && *value > 0.0);
        let ratios: Option<Vec<f64>> = before
            .iter()
            .zip(after)
            .map(|(before, after)| Some(positive(*after)? / positive(*before)?))
            .collect();
        let mut ratios = ratios?;
        let middle = median(&mut ratios)?; // sorts
        let pairs = ratios.len();
        let (rank, confidence) = rank(pairs);
        Some(Ratio { median: middle, low: ratios[rank], high: ratios[pairs - 1 - rank], confidence, pairs })
    }

    /// Whether there are too few pairs for a range of 95 % confidence: six are enough.
    #[must_use]
    pub fn is_of_too_few(&self) -> bool {
        self.confidence < CONFIDENCE
    }

    /// Whether the range holds 1, or the median is within 1 % of it: too little to call a difference.
    #[must_use]
    pub fn is_noise(&self) -> bool {
        (self.low <= 1.0 && 1.0 <= self.high) || (self.median - 1.0).abs() < 0.01
    }
}

/// The confidence that a verdict needs.
const CONFIDENCE: f64 = 0.95;

/// Sorts the values and gives their median.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// How many values to leave out at each end so that the rest still has 95 % confidence, and its confidence.
fn rank(pairs: usize) -> (usize, f64) {
    // The chance that at most `left_out` of the ratios fall below the true median: a sum of binomials.
    let mut term = 0.5_f64.powi(i32::try_from(pairs).unwrap_or(i32::MAX));
    let mut tail = term;
    let mut best = (0, (1.0 - 2.0 * tail).max(0.0));
    for left_out in 1..pairs / 2 {
        term *= (pairs - left_out + 1) as f64 / left_out as f64;
        tail += term;
        if 1.0 - 2.0 * tail < CONFIDENCE {
            break;
        }
        best = (left_out, 1.0 - 2.0 * tail);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_the_narrowest_with_95_percent_from_six_pairs_on() {
        // From a table of confidence intervals for a median by ranks.
        let table = [
            (1, 0, 0.0),
            (2, 0, 0.5),
            (5, 0, 0.9375),
            (6, 0, 0.96875),
            (8, 0, 0.9922),
            (9, 1, 0.9609),
            (20, 5, 0.9586),
        ];
        for (pairs, left_out, confidence) in table {
            let (rank, found) = rank(pairs);
            assert_eq!(rank, left_out, "{pairs} pairs");
            assert!((found - confidence).abs() < 0.0001, "{pairs} pairs: {found}");
        }
    }

    #[test]
    fn a_missing_or_zero_value_gives_no_ratio() {
        assert_eq!(Ratio::of(&[], &[]), None);
        assert_eq!(Ratio::of(&[Some(1.0), None], &[Some(1.0), Some(1.0)]), None);
        assert_eq!(Ratio::of(&[Some(0.0)], &[Some(1.0)]), None);
    }

    #[test]
    fn six_pairs_are_enough_and_five_are_not() {
        let of = |pairs| Ratio::of(&vec![Some(1.0); pairs], &vec![Some(2.0); pairs]).unwrap();
        assert!([1, 2, 5].map(of).iter().all(Ratio::is_of_too_few));
        assert!(![6, 7, 100].map(of).iter().any(Ratio::is_of_too_few));
    }

    #[test]
    fn one_within_the_range_is_noise() {
        let ratio = |values: &[f64]| {
            let after: Vec<_> = values.iter().map(|value| Some(*value)).collect();
            Ratio::of(&vec![Some(1.0); values.len()], &after).unwrap()
        };
        assert!(ratio(&[0.9, 1.1, 1.2]).is_noise());
        assert!(ratio(&[1.002, 1.003, 1.004]).is_noise());
        assert!(!ratio(&[1.05, 1.1, 1.2]).is_noise());
        assert!(!ratio(&[0.8, 0.7, 0.9]).is_noise());
    }
}
