//! Runs cargo-deny.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, installed};

const VERSION: &str = "0.20.2";

pub(crate) fn check() -> Result<()> {
    if !installed("deny") {
        // A debug build is ready sooner, and runs once.
        cargo("install", &["--debug", "--locked", &format!("cargo-deny@{VERSION}")], &[])?;
    }
    // The advisory database is fetched from the network. Where it cannot be had, the rest must still be checked.
    if Command::new("cargo").args(["deny", "fetch", "db"]).output().is_ok_and(|fetch| fetch.status.success())
    {
        cargo("deny", &["--all-features", "check"], &[])
    } else {
        eprintln!("warning: advisories are not checked: the advisory database cannot be fetched");
        cargo("deny", &["--all-features", "check", "bans", "licenses", "sources"], &[])
    }
}
