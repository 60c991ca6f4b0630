//! Runs mnot's http-cache-tests against the edge's response cache.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;

const FOLDER: &str = "crates/edge/tests/cache-tests";

/// Installs the tests from the npm registry, in the versions of the lock file, and runs them.
pub(crate) fn run() -> Result<()> {
    npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", FOLDER])?;
    cargo("build", &["-p", "greenwave-edge", "--example", "cache"], &[])?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let status = Command::new("node")
        .arg(format!("{FOLDER}/run.mjs"))
        .args([&format!("{target}/debug/examples/cache"), "{}", "--stale-if-error", "1m"])
        .status()
        .context("node does not start; install Node.js 20 or newer")?;
    if !status.success() {
        bail!("the required tests that fail are not those of {FOLDER}/known-failures.json");
    }
    Ok(())
}

fn npm(arguments: &[&str]) -> Result<()> {
    let status = Command::new("npm")
        .args(arguments)
        .status()
        .context("npm does not start; install Node.js 20 or newer with npm")?;
    if !status.success() {
        bail!("`npm {}` failed", arguments.join(" "));
    }
    Ok(())
}
