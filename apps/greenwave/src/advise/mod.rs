//! `greenwave advise`: the indexes that a database's statements want.

mod arguments;
mod database;
mod progress;
mod report;
mod size;
mod workload;

use std::{fs, io, io::Write, path::Path};

use anyhow::{Context, Result, bail, ensure};
use greenwave_db::index_advisor::Advice;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use arguments::AdviseArguments;
use arguments::Format;
use database::{CLOSING, Database};
use progress::Progress;

/// How it exits where nothing could be judged.
const NOT_JUDGED: i32 = 2;

/// Asks the database, and prints what it says. Ctrl-C, SIGTERM and SIGHUP end it with nothing left behind.
pub(crate) async fn run(arguments: AdviseArguments) -> Result<()> {
    let database = Database::parse(&arguments.database)?;
    if let Some(file) = &arguments.migration {
        ensure!(
            arguments.force || !file.exists(),
            "{} exists: choose another file, or add --force",
            file.display()
        );
    }
    let given = workload::read(&arguments.workload)?;
    let progress = Progress::start(arguments.verify);
    let mut asking = Box::pin(database.advise(given, &arguments));
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let asked = tokio::select! {
        asked = &mut asking => Some(asked),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hangup.recv() => None,
    };
    progress.end();
    if asked.is_none() && database.interrupt() {
        let _ = tokio::time::timeout(CLOSING, &mut asking).await;
    }
    drop(asking);
    database.close().await;
    let Some(asked) = asked else {
        eprintln!("stopped; nothing was changed");
        std::process::exit(130)
    };
    let (advice, statements) = asked?;
    say(&match arguments.format {
        Format::Text => report::text(&advice, &database, statements, report::Style::of_stdout()),
        Format::Markdown => report::markdown(&advice, &database, statements),
        Format::Json => serde_json::to_string_pretty(&advice)? + "\n",
    })?;
    if let Some(file) = &arguments.migration {
        write_migration(file, &advice, arguments.force)?;
    }
    let count = advice.indexes.len();
    if arguments.check && advice.skipped.len() >= statements {
        eprintln!("greenwave: no statement could be judged");
        std::process::exit(NOT_JUDGED)
    }
    ensure!(!arguments.check || count == 0, "{} advised", report::counted(count, "index is", "indexes are"));
    Ok(())
}

fn write_migration(file: &Path, advice: &Advice, force: bool) -> Result<()> {
    if advice.indexes.is_empty() {
        eprintln!("no index is advised, so {} was not written", file.display());
        return Ok(());
    }
    let opened = fs::File::options().write(true).create(true).create_new(!force).truncate(force).open(file);
    let written = opened.and_then(|mut file| file.write_all(advice.migration().as_bytes()));
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} exists: choose another file, or add --force", file.display())
        }
        written => written.with_context(|| format!("cannot write {}", file.display()))?,
    }
    eprintln!("wrote {}", file.display());
    Ok(())
}

/// Prints, and takes it well when the reader has gone: `greenwave advise … | head`.
fn say(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("could not write to standard output")
        }
        _ => Ok(()),
    }
}
