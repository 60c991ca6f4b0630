//! Holds ARCHITECTURE.md and the links between documents to the tree.

use std::{fs, path::Path};

use anyhow::{Result, bail};

use crate::files;

pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let map = fs::read_to_string("ARCHITECTURE.md")?;
    for parent in ["crates", "apps"] {
        for entry in fs::read_dir(parent)?.flatten() {
            let folder = format!("{parent}/{}", entry.file_name().display());
            if entry.path().join("Cargo.toml").exists() && !map.contains(&folder) {
                wrong.push(format!("ARCHITECTURE.md does not mention {folder}"));
            }
        }
    }
    for folder in map.split('`').skip(1).step_by(2).filter(|quoted| is_path(quoted)) {
        if !Path::new(folder).exists() {
            wrong.push(format!("ARCHITECTURE.md names `{folder}`, which does not exist"));
        }
    }
    for file in files(".md")? {
        let text = fs::read_to_string(&file)?;
        for target in links(&text) {
            let folder = file.parent().unwrap_or(Path::new(""));
            if !folder.join(&target).exists() {
                wrong.push(format!("{} links to {target}, which does not exist", file.display()));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn is_path(text: &str) -> bool {
    ["crates/", "apps/", "lab/", "docs/", "xtask/"].iter().any(|start| text.starts_with(start))
        && !text.contains(['*', '<', ' ', '{'])
}

/// The targets of relative Markdown links, without their fragments.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
        .filter(|target| {
            !target.contains("://") && !target.starts_with('#') && !target.contains(['`', ' ', '\n'])
        })
        .map(|target| target.split('#').next().unwrap_or(target).to_owned())
        .filter(|target| !target.is_empty() && (target.contains('/') || target.contains('.')))
        .collect()
}
