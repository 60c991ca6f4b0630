//! The project's own commands: `cargo xtask --help`.

mod cache_tests;
mod deny;
mod docs;
mod fuzz;
mod packages;
mod tidy;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use greenwave_test_servers::{Server, environment};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Run every test, on private PostgreSQL, Redis and NATS servers.
    ///
    /// Installs what is missing with apt where it may, else says the line to run. Arguments go to `cargo test`:
    /// `cargo xtask test -p greenwave-jobs a_failing_job`.
    Test {
        /// Arguments of `cargo test`; without any, the whole workspace is tested.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run what CI runs: formatting, tidiness, clippy, docs, dependencies, tests.
    Ci,
    /// Run mnot's tests of HTTP caches against the edge (Node.js 20 and the npm registry needed; half a minute).
    CacheTests,
    /// Check that ARCHITECTURE.md and the links between documents are true.
    Docs,
    /// Check file sizes, and words that have no place in the repository.
    Tidy,
    /// Feed the edge with bytes at random, beginning with its corpus (cargo-fuzz, installed if missing).
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Check licences, advisories and who imports whom (cargo-deny, installed if missing).
    Deny,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    env::set_current_dir(root())?;
    match task {
        Task::Test { arguments } => test(&arguments),
        Task::Ci => ci(),
        Task::CacheTests => cache_tests::run(),
        Task::Docs => docs::check(),
        Task::Tidy => tidy::check(),
        Task::Fuzz { seconds } => fuzz::run(seconds),
        Task::Deny => deny::check(),
    }
}

fn ci() -> Result<()> {
    cargo("fmt", &["--all", "--check"], &[])?;
    tidy::check()?;
    docs::check()?;
    let everything = ["--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    cargo("clippy", &everything, &[])?;
    for features in ["postgres", "sqlite"] {
        let alone =
            ["-p", "greenwave-db", "-p", "greenwave-events", "-p", "greenwave-jobs", "--no-default-features"];
        cargo("check", &[&alone[..], &["--features", features]].concat(), &[])?;
    }
    for features in ["", "tower", "redis"] {
        let alone = ["-p", "greenwave-cache", "--no-default-features", "--features", features];
        cargo("check", &alone, &[])?;
    }
    cargo("doc", &["--workspace", "--all-features", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings".into())])?;
    deny::check()?;
    test(&[])
}

fn test(arguments: &[String]) -> Result<()> {
    packages::install()?;
    let (postgres, redis, nats) = (Server::postgres(), Server::redis(), Server::nats());
    let mut all = vec!["--all-features", "--no-fail-fast"];
    if arguments.is_empty() {
        all.push("--workspace");
    }
    all.extend(arguments.iter().map(String::as_str));
    cargo("test", &all, &environment(&postgres, &redis, &nats))
}

/// Runs a cargo command, printed first, and fails when it does.
fn cargo(command: &str, arguments: &[&str], variables: &[(&str, String)]) -> Result<()> {
    eprintln!("$ cargo {command} {}", arguments.join(" "));
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .arg(command)
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("`cargo {command}` failed");
    }
    Ok(())
}

/// Whether cargo has such a command.
fn installed(command: &str) -> bool {
    Command::new("cargo").args([command, "--version"]).output().is_ok_and(|output| output.status.success())
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The files under version control or about to be: what git lists, ignored ones left out.
fn files(ending: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("git does not start; install it: apt-get install -y git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout)?;
    Ok(names
        .lines()
        .filter(|name| name.ends_with(ending))
        .map(PathBuf::from)
        .filter(|path| path.exists())
        .collect())
}
