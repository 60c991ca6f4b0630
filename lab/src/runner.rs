use std::fmt;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::experiment::{Arms, Experiment};
use crate::report::{Report, Tape};
use crate::round::{self, Ended, Round};
use crate::setup::Setup;
use crate::{Error, Settings};

pub(crate) type Observer = Arc<dyn Fn(Step<'_>) + Send + Sync>;

/// One of the two arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Without the technique.
    Before,
    /// With it.
    After,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Before => "before",
            Side::After => "after",
        })
    }
}

/// What a run is doing, for a progress bar or a log.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Step<'a> {
    /// The set-up says something.
    Note(&'a str),
    /// A long part of the set-up is so far.
    SettingUp {
        /// Of the total.
        done: u64,
        /// What is to be done.
        total: u64,
    },
    /// A round starts.
    RoundStarted {
        /// Whose round.
        side: Side,
        /// The label of that arm.
        label: &'a str,
        /// Which of this arm's rounds, from 1.
        round: u32,
    },
    /// A round ended.
    RoundEnded {
        /// Whose round.
        side: Side,
        /// What it measured.
        round: &'a Round,
    },
    /// The rounds are over; what the set-up created is being removed.
    CleaningUp,
    /// Something could not be removed; the text says what to do by hand.
    Warning(&'a str),
}

/// Runs experiments: alternating rounds, and clean-ups at the end.
///
/// ```
/// use greenwave_lab::{Arm, Arms, Experiment, Runner, Settings, Step, Workload};
/// use std::time::Duration;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), greenwave_lab::Error> {
/// let naps = |ms| Workload::new(move |_| async move {
///     tokio::time::sleep(Duration::from_millis(ms)).await;
///     Ok(())
/// });
/// let experiment = Experiment::new("naps", "Naps", "Do shorter naps leave time for more?", move |_| async move {
///     Ok(Arms { before: Arm::new("20 ms", naps(20)), after: Arm::new("5 ms", naps(5)) })
/// });
/// let short = Duration::from_millis(100);
/// let report = Runner::new(Settings { rounds: 1, warm_up: short, duration: short, ..Settings::default() })
///     .observe(|step| if let Step::RoundStarted { label, .. } = step { eprintln!("{label} …") })
///     .run(&experiment)
///     .await?;
/// println!("{}", report.verdict);
/// # Ok(())
/// # }
/// ```
pub struct Runner {
    settings: Settings,
    observer: Observer,
    stop: CancellationToken,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Runner {
    /// A runner that says nothing but warnings, on stderr.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let observer = Arc::new(|step: Step<'_>| {
            if let Step::Warning(text) = step {
                eprintln!("warning: {text}");
            }
        });
        Runner { settings, observer, stop: CancellationToken::new() }
    }

    /// Tells `observer` each step.
    #[must_use]
    pub fn observe(mut self, observer: impl Fn(Step<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Arc::new(observer);
        self
    }

    /// Ends the run early when `stop` is cancelled. The report is then of the pairs of rounds measured so far.
    #[must_use]
    pub fn stop_on(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets the experiment up, drives its arms in turn, cleans up, and reports.
    ///
    /// Operations that fail do not fail the run: they are counted, and too many end it early with a report
    /// whose verdict is refused.
    ///
    /// Cancel safety: stop it by its token. Dropped half-way, it removes temporary folders, but does not
    /// keep the promises made with [`Setup::on_end`].
    ///
    /// # Errors
    ///
    /// When the settings cannot be run, when the experiment's own code fails outside its operations or
    /// panics, and when the run is stopped before the first pair of rounds is complete.
    pub async fn run(&self, experiment: &Experiment) -> Result<Report, Error> {
        self.settings.check()?;
        // 32 bits are enough to differ, short to type, and exact in every reader of JSON.
        let seed = self.settings.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        let settings = Settings { seed: Some(seed), ..self.settings.clone() };
        let setup = Setup::new(&settings, seed, self.observer.clone());
        let tape = self.measure(experiment, &settings, &setup).await;
        (self.observer)(Step::CleaningUp);
        setup.end().await;
        let tape = tape?;
        Ok(Report::new(experiment, settings, tape, setup.facts(), setup.warnings()))
    }

    async fn measure(
        &self,
        experiment: &Experiment,
        settings: &Settings,
        setup: &Setup,
    ) -> Result<Tape, Error> {
        let arms = self.set_up(experiment, setup).await?;
        let mut tape = Tape::new(arms.before.label(), arms.after.label());
        for number in 1..=settings.rounds {
            for (side, arm) in [(Side::Before, &arms.before), (Side::After, &arms.after)] {
                (self.observer)(Step::RoundStarted { side, label: arm.label(), round: number });
                let seed = setup.seed().wrapping_add(u64::from(number) << 32);
                let ended = tokio::select! {
                    ended = round::run(arm, settings, seed) => ended?,
                    // Dropping a round ends its tasks.
                    () = self.stop.cancelled() => Ended::Stopped,
                };
                match ended {
                    Ended::Complete(round, first_error) => {
                        (self.observer)(Step::RoundEnded { side, round: &round });
                        let failing = tape.push(side, round, first_error, settings.max_error_share);
                        if failing {
                            return Ok(tape);
                        }
                    }
                    Ended::Stopped if tape.pairs() > 0 => {
                        tape.stop();
                        return Ok(tape);
                    }
                    Ended::Stopped => return Err(Error::Stopped),
                }
            }
        }
        Ok(tape)
    }

    /// Runs the set-up in a task of its own, so that a panic in it leaves the clean-ups to be done.
    async fn set_up(&self, experiment: &Experiment, setup: &Setup) -> Result<Arms, Error> {
        let mut task = JoinSet::new();
        task.spawn(experiment.set_up(setup.clone()));
        let done = tokio::select! {
            done = task.join_next() => done,
            () = self.stop.cancelled() => {
                task.shutdown().await;
                return Err(Error::Stopped);
            }
        };
        match done {
            Some(Ok(arms)) => arms.map_err(Error::SetUp),
            _ => Err(Error::Panicked("the set-up".to_owned())),
        }
    }
}
