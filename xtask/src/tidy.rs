//! Size limits, as ratchets, and words that have no place here.

use std::fs;

use anyhow::{Result, bail};

use crate::files;

const MAX_LINES: usize = 500;
/// What must not stand in a source file: unfinished work, and paths of one machine. Split, so as not to find itself.
const FORBIDDEN: [&str; 5] = [
    concat!("todo", "!("),
    concat!("FIX", "ME"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("#[ign", "ore"),
];

pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for file in files(".rs")?.into_iter().chain(files(".md")?).chain(files(".toml")?) {
        let text = fs::read_to_string(&file)?;
        let lines = text.lines().count();
        if lines > MAX_LINES && file.extension().is_some_and(|ending| ending == "rs") {
            wrong.push(format!("{}: {lines} lines; past {MAX_LINES} look for two subjects", file.display()));
        }
        for word in FORBIDDEN.iter().filter(|word| text.contains(**word)) {
            wrong.push(format!("{}: has `{word}`", file.display()));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}
