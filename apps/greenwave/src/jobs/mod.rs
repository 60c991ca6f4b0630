//! `greenwave jobs`: looks into a queue's database, whatever its jobs are, and acts on what it finds.

mod queue;
mod show;

use std::io::{IsTerminal, Write, stderr, stdin};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use greenwave_jobs::{JobFilter, JobId, JobPage, JobState};
use serde::Serialize;

use crate::client::print;
pub(crate) use queue::{Action, Jobs};

/// Look into the queues of jobs: list, show, retry, cancel and discard jobs, pause and resume queues.
///
/// It works on the database, so no service needs to run, and jobs of any type will do. The exit status is 1 if something
/// failed, or a job that was named is not there.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct JobsArguments {
    /// The database: postgres://USER:PASSWORD@HOST/DATABASE, sqlite:PATH, or the path of a SQLite file
    /// [default: GREENWAVE_JOBS__DATABASE, `jobs.database` in the config, DATABASE_URL, the shop's].
    #[arg(long, global = true, value_name = "URL")]
    database: Option<String>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  greenwave jobs stats                              the queues: what waits, runs and is dead
  greenwave jobs list --state dead --queue mail     the dead jobs of a queue, the latest first
  greenwave jobs show 4711                          all that is known of a job, its payload and errors too
  greenwave jobs retry 4711 4712                    dead jobs, with all their attempts anew
  greenwave jobs retry --name send-email --yes      all dead ones of a type
  greenwave jobs cancel 4713                        also while it runs
  greenwave jobs pause mail                         in the whole fleet, until `resume`
  greenwave jobs list --json --limit 5000 | jq '.jobs[].key'";

#[derive(Subcommand)]
enum Command {
    /// List jobs, the latest pushed first: live ones, dead ones, and completed ones that are kept.
    List {
        #[command(flatten)]
        which: Which,
        /// Only in this state: ready, scheduled, running, blocked, completed or dead.
        #[arg(long)]
        state: Option<JobState>,
        /// Only those pushed before this job.
        #[arg(long, value_name = "ID")]
        after: Option<i64>,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = at_least_one)]
        limit: usize,
        /// As JSON, for a program; `next` is for --after, or null at the end.
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a job: payload, errors of its attempts, progress, result, lease.
    Show {
        id: i64,
        /// As JSON, for a program.
        #[arg(long)]
        json: bool,
    },
    /// Bring dead jobs back, with all their attempts before them.
    Retry(Many),
    /// Cancel live jobs: they are dead, also while they run.
    Cancel {
        #[command(flatten)]
        many: Many,
        /// Only in this state: ready, scheduled, running or blocked.
        #[arg(long, conflicts_with = "ids")]
        state: Option<JobState>,
    },
    /// Delete dead jobs for good.
    Discard(Many),
    /// Start no job of these queues any more, in the whole fleet; what runs goes on.
    Pause {
        #[arg(value_name = "QUEUE", required = true)]
        queues: Vec<String>,
    },
    /// Let paused queues go on.
    Resume {
        #[arg(value_name = "QUEUE", required = true)]
        queues: Vec<String>,
    },
    /// Count the jobs by queue and type, and say how long the oldest ready one has waited.
    Stats {
        /// As JSON, for a program.
        #[arg(long)]
        json: bool,
    },
    /// Make the queue's tables, or bring them up to date.
    Migrate,
}

#[derive(Args)]
struct Which {
    /// Only of this queue.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Only of the type of this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only of this key.
    #[arg(long)]
    key: Option<String>,
}

/// Jobs by their ids, or by what they are.
#[derive(Args)]
struct Many {
    /// The jobs, or say which by --queue, --name, --key or --all.
    #[arg(value_name = "ID", conflicts_with_all = ["queue", "name", "key", "all"])]
    ids: Vec<i64>,
    #[command(flatten)]
    which: Which,
    /// All.
    #[arg(long)]
    all: bool,
    /// Do not ask whether it is meant.
    #[arg(long)]
    yes: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "a number above zero".to_owned())
}

impl Which {
    fn is_any(&self) -> bool {
        self.queue.is_some() || self.name.is_some() || self.key.is_some()
    }

    fn filter(self, state: Option<JobState>) -> JobFilter {
        let Which { queue, name, key } = self;
        JobFilter { queue, name, key, state, ..JobFilter::default() }
    }
}

/// Runs one of these commands; `configured` is the database where no flag names one.
pub(crate) async fn run(arguments: JobsArguments, configured: Option<String>) -> Result<()> {
    let Some(database) = arguments.database.or(configured) else {
        bail!(
            "which database? Name it with --database, GREENWAVE_JOBS__DATABASE or `jobs.database` in the config"
        )
    };
    let jobs = Jobs::open(&database)?;
    if matches!(arguments.command, Command::Migrate) {
        jobs.migrate().await?;
        return print("the tables are up to date\n");
    }
    jobs.check().await?;
    match arguments.command {
        Command::List { which, state, after, limit, json } => {
            let filter = JobFilter { after: after.map(JobId::from), ..which.filter(state) };
            let page = list(&jobs, filter, limit).await?;
            if json { print_json(&page) } else { print(&show::list(&page)) }
        }
        Command::Show { id, json } => {
            let Some(job) = jobs.show(id.into()).await? else {
                bail!("there is no job {id}: it is completed and not kept, was discarded, or never was")
            };
            if json { print_json(&job) } else { print(&show::details(&job)?) }
        }
        Command::Retry(many) => act(&jobs, Action::Retry, many, None).await,
        Command::Cancel { many, state } => act(&jobs, Action::Cancel, many, state).await,
        Command::Discard(many) => act(&jobs, Action::Discard, many, None).await,
        Command::Pause { queues } => set_paused(&jobs, &queues, true).await,
        Command::Resume { queues } => set_paused(&jobs, &queues, false).await,
        Command::Stats { json } => {
            let stats = jobs.stats().await?;
            if json { print_json(&stats) } else { print(&show::stats(&stats)) }
        }
        Command::Migrate => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// As many pages as it takes.
async fn list(jobs: &Jobs, mut filter: JobFilter, limit: usize) -> Result<JobPage> {
    let mut all = JobPage::default();
    loop {
        filter.limit = (limit - all.jobs.len()).clamp(1, 1000);
        let page = jobs.list(&filter).await?;
        all.jobs.extend(page.jobs);
        all.next = page.next;
        filter.after = page.next;
        if page.next.is_none() || all.jobs.len() >= limit {
            return Ok(all);
        }
    }
}

async fn set_paused(jobs: &Jobs, queues: &[String], paused: bool) -> Result<()> {
    for queue in queues {
        jobs.set_paused(queue, paused).await?;
        let word = if paused { "paused" } else { "resumed" };
        print(&format!("{word} {}\n", show::plain(queue)))?;
    }
    Ok(())
}

/// Above this, a question names no number.
const MOST_COUNTED: usize = 10_000;

async fn act(jobs: &Jobs, action: Action, many: Many, state: Option<JobState>) -> Result<()> {
    let kind = if action == Action::Cancel { "live" } else { "dead" };
    if !many.ids.is_empty() {
        let mut missing = Vec::new();
        for id in many.ids {
            if jobs.act_on(action, id.into()).await? {
                print(&format!("{} {id}\n", past(action)))?;
            } else {
                missing.push(id.to_string());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        bail!("no {kind} job has the id {}", missing.join(", "));
    }
    if !many.which.is_any() && !many.all && state.is_none() {
        bail!("which jobs? Name their ids, or say --queue, --name, --key or --all");
    }
    let filter = many.which.filter(state);
    let count = jobs.count(action, &filter, MOST_COUNTED).await?;
    if count == 0 {
        return print(&format!("no {kind} job is meant by that\n"));
    }
    if !many.yes {
        confirm(action, kind, count)?;
    }
    let done = jobs.act(action, &filter).await?;
    print(&format!("{} {}\n", past(action), show::counted(done, "job", "jobs")))
}

fn past(action: Action) -> &'static str {
    match action {
        Action::Retry => "retried",
        Action::Cancel => "cancelled",
        Action::Discard => "discarded",
    }
}

fn confirm(action: Action, kind: &str, count: usize) -> Result<()> {
    let verb = match action {
        Action::Retry => "retry",
        Action::Cancel => "cancel",
        Action::Discard => "discard for good",
    };
    let more = if count == MOST_COUNTED { " or more" } else { "" };
    let jobs = if count == 1 { "job" } else { "jobs" };
    let question = format!("{verb} {count}{more} {kind} {jobs}");
    if !stdin().is_terminal() {
        bail!("this would {question}: add --yes if it is meant");
    }
    eprint!("{question}? [y/N] ");
    stderr().flush().ok();
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("cannot read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was changed");
    }
    Ok(())
}
