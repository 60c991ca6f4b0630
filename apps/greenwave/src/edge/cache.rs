//! The response cache, as the supervisor asks about it.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use greenwave_edge::HttpCache;
use tracing::{info, warn};

use crate::control::{Purge, Question};

/// Does what is asked; how many answers it was about. It may block.
pub(super) fn answer(cache: &HttpCache, question: Question) -> Result<u64> {
    let no_url = |url: &str| format!("{url} is no absolute URL, such as https://example.com/products/1");
    match question {
        Question::Export(file) => export(cache, &file),
        Question::Purge(Purge::Url(url)) => cache.purge_url(&url).with_context(|| no_url(&url)),
        Question::Purge(Purge::Prefix(url)) => cache.purge_prefix(&url).with_context(|| no_url(&url)),
        Question::Purge(Purge::Tag(tag)) => Ok(cache.purge_tag(&tag)),
        Question::Purge(Purge::All) => Ok(cache.purge_all()),
    }
}

/// For nobody else's eyes: answers are what clients were given.
fn export(cache: &HttpCache, path: &Path) -> Result<u64> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    Ok(cache.export(file.with_context(|| format!("cannot make {}", path.display()))?)?)
}

/// Takes over what a predecessor kept; without it the cache begins empty. It may block.
pub(super) fn import(cache: &HttpCache, path: PathBuf) {
    match File::open(&path) {
        Ok(file) => info!("{} kept answers were taken over", cache.import(file)),
        Err(error) => warn!("the response cache is not taken over: {}: {error}", path.display()),
    }
}
