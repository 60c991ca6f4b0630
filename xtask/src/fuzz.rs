//! Runs the fuzz targets (cargo-fuzz, which needs no nightly compiler as long as no sanitizer is asked for).

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{cargo, installed};

const VERSION: &str = "0.13.2";
const FOLDER: &str = "crates/edge/fuzz";

/// Runs each target for so many seconds, beginning with the corpus in the repository; what is found on the way goes to a
/// folder that git ignores.
pub(crate) fn run(seconds: u32) -> Result<()> {
    if !installed("fuzz") {
        cargo("install", &["--debug", "--locked", &format!("cargo-fuzz@{VERSION}")], &[])?;
    }
    let targets = Path::new(FOLDER).join("fuzz_targets");
    for target in fs::read_dir(&targets).with_context(|| targets.display().to_string())? {
        let target = target?.path();
        let name = target.file_stem().unwrap_or_default().to_string_lossy();
        let (found, seeds) = (format!("{FOLDER}/found/{name}"), format!("{FOLDER}/corpus/{name}"));
        fs::create_dir_all(&found)?;
        let limit = format!("-max_total_time={seconds}");
        let run =
            ["run", "--fuzz-dir", FOLDER, "-s", "none", &name, &found, &seeds, "--", &limit, "-timeout=30"];
        cargo("fuzz", &run, &[])?;
    }
    Ok(())
}
