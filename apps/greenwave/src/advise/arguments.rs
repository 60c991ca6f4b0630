use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use greenwave_db::index_advisor::AdvisorConfig;

use super::size::Size;

/// Say which indexes a database's statements want, and which of its own it could do without.
///
/// Nothing is changed: the indexes come as statements, or as a migration file.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AdviseArguments {
    /// The database: postgres://USER:PASSWORD@HOST/DATABASE, sqlite:PATH, or the path of a SQLite file.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(super) database: String,
    /// The statements: a file of SQL, or of the statistics that `shop serve --query-stats` and greenwave-db write;
    /// several are summed, `-` is standard input [default: what pg_stat_statements has counted].
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) workload: Vec<PathBuf>,
    /// Judge only the N statements that take most time or, where that is not known, are called most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) top: u32,
    /// All advised indexes together take at most this much, as in 40MB.
    #[arg(long, value_name = "SIZE")]
    budget: Option<Size>,
    /// The most indexes to advise.
    #[arg(long, value_name = "N", default_value_t = 10)]
    max_indexes: usize,
    /// Create the indexes and time the statements that only read, without and with them: on PostgreSQL in a transaction
    /// that is rolled back, and locks the tables until then; on SQLite in a temporary copy, for which the tables are read.
    #[arg(long)]
    pub(super) verify: bool,
    /// The longest that a statement may run with --verify.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The form of the advice on standard output.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Also write the advised indexes into a migration file.
    #[arg(long, value_name = "FILE")]
    pub(super) migration: Option<PathBuf>,
    /// Overwrite the migration file.
    #[arg(long, requires = "migration")]
    pub(super) force: bool,
    /// Exit with 1 if an index is advised, and with 2 if no statement could be judged, for CI; without it neither is a
    /// failure.
    #[arg(long)]
    pub(super) check: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(super) enum Format {
    /// For a terminal.
    #[default]
    Text,
    /// For a program.
    Json,
    /// For a page.
    Markdown,
}

impl AdviseArguments {
    pub(super) fn config(&self) -> AdvisorConfig {
        AdvisorConfig {
            max_bytes: self.budget.map(|size| size.0),
            max_indexes: self.max_indexes,
            verify: self.verify,
            max_statement: self.timeout,
            ..AdvisorConfig::default()
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  greenwave advise --database postgres://localhost/shop    what pg_stat_statements has counted
  greenwave advise --database shop.db --workload q.sql     SQLite, and a file of statements
  greenwave advise --workload stats/*.json --budget 40MB   DATABASE_URL, and what a service counted
  greenwave advise --verify --migration 0007_indexes.sql   timed, and as a migration
  greenwave advise --workload q.sql --check                in CI: fails if an index is advised";
