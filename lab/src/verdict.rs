use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ratio::Ratio;
use crate::report::{Measured, figures};

/// The answer of an experiment, in a word and in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verdict {
    /// In a word.
    pub finding: Finding,
    /// In a sentence.
    pub text: String,
}

/// The answer of an experiment in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// After does more operations a second.
    More,
    /// After does fewer.
    Fewer,
    /// No difference beyond the noise: see [`Ratio::is_noise`].
    Same,
    /// Too few pairs of rounds to tell: see [`Ratio::is_of_too_few`].
    TooFew,
    /// The rounds do not support an answer; the sentence says why.
    Refused,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Verdict {
    pub(crate) fn of(
        unit: &str,
        before: &Measured,
        after: &Measured,
        ratio: Option<Ratio>,
        max_error_share: f64,
    ) -> Self {
        if let Some(reason) = refusal(before, after, max_error_share) {
            return Verdict { finding: Finding::Refused, text: format!("no verdict: {reason}") };
        }
        let Some(ratio) = ratio else {
            let text =
                "no verdict: a round ended before any operation did; give the rounds a longer duration";
            return Verdict { finding: Finding::Refused, text: text.to_owned() };
        };
        let times = figures::figure(ratio.median);
        let spread = match ratio.pairs {
            1 => "one pair of rounds, so the spread is not known".to_owned(),
            _ => format!("{} to {}", figures::figure(ratio.low), figures::figure(ratio.high)),
        };
        let (finding, text) = if ratio.is_of_too_few() {
            let text = format!(
                "too few pairs of rounds to tell, it takes six: so far, after completes {times} times as many {unit} as \
                 before ({spread})"
            );
            (Finding::TooFew, text)
        } else if ratio.is_noise() {
            let text = format!(
                "no difference beyond the noise: after completes {times} times as many {unit} as before ({spread})"
            );
            (Finding::Same, text)
        } else if ratio.median > 1.0 {
            (Finding::More, format!("after completes {times} times as many {unit} as before ({spread})"))
        } else {
            let text = format!("after completes fewer {unit}: {times} times as many as before ({spread})");
            (Finding::Fewer, text)
        };
        Verdict { finding, text }
    }
}

fn refusal(before: &Measured, after: &Measured, max_error_share: f64) -> Option<String> {
    let (side, arm) = [("before", before), ("after", after)]
        .into_iter()
        .find(|(_, arm)| arm.error_share() > max_error_share)?;
    let first = arm.first_error.as_deref().unwrap_or("unknown");
    Some(format!(
        "{} % of the operations of {side} failed, and at most {} % may; the first error: {first}",
        figures::figure(arm.error_share() * 100.0),
        figures::figure(max_error_share * 100.0),
    ))
}
