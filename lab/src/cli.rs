//! The command line: `greenwave lab`, and the same for experiments of your own.
//!
//! ```no_run
//! use clap::Parser;
//! use greenwave_lab::{Lab, cli};
//!
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     run: cli::RunArgs,
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! let lab = Lab::new(); // .with(your_experiment())
//! cli::run_in(&lab, Args::parse().run).await
//! # }
//! ```

mod progress;

use std::convert::Infallible;
use std::io::Write;
use std::iter::once;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::experiments::{self, Source, instances};
use crate::{Finding, Lab, Report, Runner, Settings};

/// What `greenwave lab --help` says first.
const ABOUT: &str = "Measure a technique before and after, on this machine";

/// The arguments of `greenwave lab`.
#[derive(Debug, Clone, Args)]
#[command(about = ABOUT)]
pub struct LabArgs {
    /// How to run it.
    #[command(flatten)]
    pub run: RunArgs,

    /// A PostgreSQL server to experiment on: databases of the lab's own are made there and dropped again.
    /// Without it: SQLite, in a temporary folder. `pool` needs one; `group-commit` is about SQLite alone
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,

    /// A Redis for the experiments on the cache: keys of the lab's own are used there and removed again.
    /// `cache-levels` needs one; without it `cache-aside` and `stampede` cache in memory alone
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,

    /// Orders in the data set
    #[arg(long, value_name = "N", default_value_t = Source::default().orders, value_parser = clap::value_parser!(u64).range(100..))]
    pub orders: u64,
}

/// The arguments that every experiment shares.
#[derive(Debug, Clone, Args)]
#[command(about = ABOUT)]
pub struct RunArgs {
    /// The experiment; without it, or with `list`: all that there are
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// Rounds of each arm; before and after alternate
    #[arg(long, value_name = "N", default_value_t = Settings::default().rounds)]
    pub rounds: u32,

    /// The measured part of a round
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    pub duration: Duration,

    /// The part of a round before the clock runs
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub warm_up: Duration,

    /// Tasks that each run one operation after another
    #[arg(long, value_name = "N", default_value_t = Settings::default().concurrency)]
    pub concurrency: usize,

    /// Where the random choices start; without it a fresh seed, which the report states
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Also write NAME.md, NAME.json and NAME.svg into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// The form of the report on standard output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// A form of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
#[non_exhaustive]
pub enum Format {
    /// For a terminal.
    #[default]
    Table,
    /// For a page.
    Markdown,
    /// For a program.
    Json,
}

impl RunArgs {
    /// The settings that these arguments ask for.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            rounds: self.rounds,
            warm_up: self.warm_up,
            duration: self.duration,
            concurrency: self.concurrency,
            seed: self.seed,
            ..Settings::default()
        }
    }
}

/// Runs `greenwave lab`: one of [this crate's experiments](experiments), or their list.
///
/// # Errors
///
/// When there is no such experiment, when it cannot be run, and when its verdict is refused.
pub async fn run(args: LabArgs) -> anyhow::Result<()> {
    if instances::serve_if_asked().await? {
        return Ok(());
    }
    let source =
        Source { database: args.database, redis: args.redis, orders: args.orders, instance: again() };
    run_in(&experiments::all(&source), args.run).await
}

/// This program once more, with its own arguments.
fn again() -> Vec<String> {
    let Ok(program) = std::env::current_exe() else { return Vec::new() };
    let arguments = std::env::args_os().skip(1);
    once(program.into_os_string()).chain(arguments).map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Runs an experiment of `lab`, with progress on standard error and the report on standard output.
/// Ctrl-C and SIGTERM end it with what was measured so far, cleaned up; a second one ends the process at once, with
/// code 130 and whatever is left.
///
/// # Errors
///
/// When there is no such experiment, when it cannot be run, and when its verdict is refused.
pub async fn run_in(lab: &Lab, args: RunArgs) -> anyhow::Result<()> {
    let name = match args.name.as_deref() {
        None | Some("list") => {
            return say(&list(lab));
        }
        Some(name) => name,
    };
    let experiment = lab.get(name)?;
    if cfg!(debug_assertions) {
        eprintln!("note: this is a debug build; measure with --release");
    }
    let stop = CancellationToken::new();
    let runner = Runner::new(args.settings())
        .observe(progress::observer(experiment.title(), args.rounds))
        .stop_on(stop.clone());
    let run = runner.run(experiment);
    let report = tokio::select! {
        biased;
        report = run => report?,
        failed = obey_signals(stop) => match failed? {},
    };
    show(&report, args.format)?;
    if let Some(folder) = &args.out {
        report.write_to(folder).await?;
        eprintln!("wrote {name}.md, {name}.json and {name}.svg into {}", folder.display());
    }
    // The report shows why; the exit code says that.
    anyhow::ensure!(report.verdict.finding != Finding::Refused, "{}", report.verdict);
    Ok(())
}

fn show(report: &Report, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => say(&report.to_table()),
        Format::Markdown => say(&report.to_markdown(None)),
        Format::Json => say(&(report.to_json()? + "\n")),
    }
}

/// Prints, and takes it well when the reader has gone: `greenwave lab list | head -1`.
fn say(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("could not write to standard output")
        }
        _ => Ok(()),
    }
}

/// The experiments of a lab, one a line.
#[must_use]
pub fn list(lab: &Lab) -> String {
    let width = lab.experiments().map(|experiment| experiment.name().chars().count()).max().unwrap_or(0);
    let line = |experiment: &crate::Experiment| {
        format!("{:width$}  {}. {}\n", experiment.name(), experiment.title(), experiment.question())
    };
    lab.experiments().map(line).collect()
}

/// At the first Ctrl-C or SIGTERM stops the run, which then cleans up; at the second ends the process.
async fn obey_signals(stop: CancellationToken) -> anyhow::Result<Infallible> {
    let listen = |kind| signal(kind).context("could not listen for Ctrl-C");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut next = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    next().await;
    eprintln!("stopping, and removing what was created; once more to stop at once");
    stop.cancel();
    next().await;
    eprintln!(
        "stopped: a folder greenwave-lab-…, databases or keys greenwave_lab_… may be left to remove by hand"
    );
    std::process::exit(130)
}
