//! What a run found, as values and in four forms.

pub(crate) mod figures;
mod markdown;
mod plot;
mod table;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::experiment::Experiment;
use crate::ratio::{Ratio, median};
use crate::round::Round;
use crate::runner::Side;
use crate::{Environment, Error, Settings, Verdict};

/// What a run found: each round of each arm, their ratio, and the verdict in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The experiment's name.
    pub name: String,
    /// The experiment's title.
    pub title: String,
    /// The question it answers.
    pub question: String,
    /// What is counted, in the plural.
    pub unit: String,
    /// The answer.
    pub verdict: Verdict,
    /// After ÷ before.
    pub ratios: Ratios,
    /// The arm without the technique.
    pub before: Measured,
    /// The arm with it.
    pub after: Measured,
    /// How it was driven, with the seed that was used.
    pub settings: Settings,
    /// Whether the run was ended before its last round.
    pub stopped_early: bool,
    /// What the set-up says about the data and the programs.
    pub facts: Vec<Fact>,
    /// The machine.
    pub environment: Environment,
    /// What the set-up created and could not remove.
    pub warnings: Vec<String>,
}

/// After ÷ before, of each quantity; `None` where a round lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ratios {
    /// Operations a second: above 1, after is better.
    pub per_second: Option<Ratio>,
    /// The median latency: below 1, after is better.
    pub p50: Option<Ratio>,
    /// The latency that 99 of 100 operations keep: below 1, after is better.
    pub p99: Option<Ratio>,
    /// CPU time per operation: below 1, after is better.
    pub cpu: Option<Ratio>,
}

/// What one arm did: its rounds, and their medians.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Measured {
    /// The arm's label.
    pub label: String,
    /// Operations a second, median of the rounds.
    pub per_second: Option<f64>,
    /// The median latency in milliseconds, median of the rounds.
    pub p50_ms: Option<f64>,
    /// The 99th percentile of latency in milliseconds, median of the rounds.
    pub p99_ms: Option<f64>,
    /// CPU time in microseconds per operation, median of the rounds.
    pub cpu_us: Option<f64>,
    /// Operations that ended well, of all rounds.
    pub operations: u64,
    /// Operations that failed, of all rounds.
    pub errors: u64,
    /// The first error, with its causes.
    pub first_error: Option<String>,
    /// The rounds, in order.
    pub rounds: Vec<Round>,
}

/// One thing that the set-up says about the data or the programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// "orders".
    pub name: String,
    /// "500,000".
    pub value: String,
}

/// The rounds as they come in.
pub(crate) struct Tape {
    before: Measured,
    after: Measured,
    stopped: bool,
}

impl Tape {
    pub(crate) fn new(before: &str, after: &str) -> Self {
        Tape { before: Measured::new(before), after: Measured::new(after), stopped: false }
    }

    /// Adds a round, and says whether so much of it failed that the run should end.
    pub(crate) fn push(
        &mut self,
        side: Side,
        round: Round,
        first_error: Option<String>,
        max_error_share: f64,
    ) -> bool {
        let arm = match side {
            Side::Before => &mut self.before,
            Side::After => &mut self.after,
        };
        arm.operations += round.operations;
        arm.errors += round.errors;
        arm.first_error = arm.first_error.take().or(first_error);
        arm.rounds.push(round);
        self.stopped = arm.error_share() > max_error_share;
        self.stopped
    }

    /// How many pairs of rounds are complete.
    pub(crate) fn pairs(&self) -> usize {
        self.before.rounds.len().min(self.after.rounds.len())
    }

    /// Notes that the run ends here; half a pair is left out.
    pub(crate) fn stop(&mut self) {
        let pairs = self.pairs();
        self.before.rounds.truncate(pairs);
        self.after.rounds.truncate(pairs);
        self.stopped = true;
    }
}

impl Measured {
    fn new(label: &str) -> Self {
        Measured {
            label: label.to_owned(),
            per_second: None,
            p50_ms: None,
            p99_ms: None,
            cpu_us: None,
            operations: 0,
            errors: 0,
            first_error: None,
            rounds: Vec::new(),
        }
    }

    /// The share of operations that failed, from 0 to 1.
    #[must_use]
    pub fn error_share(&self) -> f64 {
        if self.errors == 0 { 0.0 } else { self.errors as f64 / (self.errors + self.operations) as f64 }
    }

    /// Totals and medians of the rounds that count: half a pair may have been left out since they were pushed.
    fn sum_up(&mut self) {
        self.operations = self.rounds.iter().map(|round| round.operations).sum();
        self.errors = self.rounds.iter().map(|round| round.errors).sum();
        if self.errors == 0 {
            self.first_error = None;
        }
        let median_of = |value: fn(&Round) -> Option<f64>| {
            let values: Option<Vec<f64>> = self.rounds.iter().map(value).collect();
            median(&mut values?)
        };
        self.per_second = median_of(|round| Some(round.per_second));
        self.p50_ms = median_of(|round| round.p50_ms);
        self.p99_ms = median_of(|round| round.p99_ms);
        self.cpu_us = median_of(|round| round.cpu_us);
    }
}

impl Report {
    pub(crate) fn new(
        experiment: &Experiment,
        settings: Settings,
        tape: Tape,
        facts: Vec<Fact>,
        warnings: Vec<String>,
    ) -> Self {
        let Tape { mut before, mut after, stopped } = tape;
        before.sum_up();
        after.sum_up();
        let ratio = |value: fn(&Round) -> Option<f64>| {
            let values = |arm: &Measured| arm.rounds.iter().map(value).collect::<Vec<_>>();
            Ratio::of(&values(&before), &values(&after))
        };
        let ratios = Ratios {
            per_second: ratio(|round| Some(round.per_second)),
            p50: ratio(|round| round.p50_ms),
            p99: ratio(|round| round.p99_ms),
            cpu: ratio(|round| round.cpu_us),
        };
        let unit = experiment.counted().to_owned();
        let verdict = Verdict::of(&unit, &before, &after, ratios.per_second, settings.max_error_share);
        Report {
            name: experiment.name().to_owned(),
            title: experiment.title().to_owned(),
            question: experiment.question().to_owned(),
            unit,
            verdict,
            ratios,
            before,
            after,
            settings,
            stopped_early: stopped,
            facts,
            environment: Environment::here(),
            warnings,
        }
    }

    /// A table for a terminal, with the verdict under it.
    #[must_use]
    pub fn to_table(&self) -> String {
        table::render(self)
    }

    /// A Markdown page; with `plot`, it shows the picture of that name.
    #[must_use]
    pub fn to_markdown(&self, plot: Option<&str>) -> String {
        markdown::render(self, plot)
    }

    /// Everything, as JSON.
    ///
    /// # Errors
    ///
    /// When a value has no JSON form, which none of a report's has.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string_pretty(self).map_err(Error::Json)
    }

    /// A plot of the rounds as an SVG document: rounds are points, medians are lines.
    ///
    /// # Errors
    ///
    /// When the plot cannot be laid out.
    pub fn to_svg(&self) -> Result<String, Error> {
        plot::render(self).map_err(Error::Plot)
    }

    /// Writes `NAME.md`, `NAME.json` and `NAME.svg` into `folder`, which is made when it is missing.
    ///
    /// # Errors
    ///
    /// When the folder or a file cannot be written.
    pub async fn write_to(&self, folder: &Path) -> Result<(), Error> {
        let write = |path: PathBuf| move |source| Error::Write { path, source };
        tokio::fs::create_dir_all(folder).await.map_err(write(folder.to_owned()))?;
        // A name is the user's choice, and must not lead out of the folder.
        let name: String =
            self.name.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
        let picture = format!("{name}.svg");
        let files = [
            (format!("{name}.md"), self.to_markdown(Some(&picture))),
            (format!("{name}.json"), self.to_json()? + "\n"),
            (picture, self.to_svg()?),
        ];
        for (file, text) in files {
            let path = folder.join(file);
            tokio::fs::write(&path, text).await.map_err(write(path))?;
        }
        Ok(())
    }
}
