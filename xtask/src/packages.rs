//! Installs the programs that the tests run.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result, bail};
use greenwave_test_servers::Program;

/// Installs what is missing with apt, where that needs no password; else says the line to run.
pub(crate) fn install() -> Result<()> {
    // An extension's package is named after the PostgreSQL that is installed, so it comes second.
    install_missing(&[Program::Hypopg])?;
    install_missing(&[])
}

fn install_missing(but: &[Program]) -> Result<()> {
    let missing: BTreeSet<_> = Program::ALL
        .iter()
        .filter(|program| !but.contains(program) && program.find().is_none())
        .map(|program| program.package())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.into_iter().collect::<Vec<_>>();
    let line = format!("apt-get install -y {}", packages.join(" "));
    let root = String::from_utf8(Command::new("id").arg("-u").output()?.stdout)?.trim() == "0";
    let sudo = !root && succeeds(Command::new("sudo").args(["-n", "true"]));
    if !(root || sudo) || !succeeds(Command::new("apt-get").arg("--version")) {
        bail!("the tests want programs that are not installed: sudo {line}");
    }
    apt(sudo, &["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(packages.iter().map(String::as_str));
    apt(sudo, &install)
}

fn apt(sudo: bool, arguments: &[&str]) -> Result<()> {
    eprintln!("$ apt-get {}", arguments.join(" "));
    let mut command = if sudo { Command::new("sudo") } else { Command::new("env") };
    if sudo {
        command.arg("-n");
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments);
    let status = command.status().context("apt-get does not start")?;
    if !status.success() {
        bail!("apt-get failed: run `apt-get {}` yourself", arguments.join(" "));
    }
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
