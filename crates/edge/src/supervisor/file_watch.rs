//! Tells when files change, for reloads while somebody writes code.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc as blocking};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::telemetry::SUPERVISOR_TARGET;

const EVENTS: usize = 4096;
// So many files are named after a change; who changes more knows what was done.
const NAMED: usize = 64;
// Changes that never pause are told of after so many debounces.
const PATIENCE: u32 = 20;

/// Which files are watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct WatchConfig {
    /// Files and folders, with all that is in them; the present folder by default.
    pub paths: Vec<PathBuf>,
    /// What is left out: names, such as `target` or `*.log`, at whatever depth, and paths, which hold a `/`;
    /// `target`, `node_modules`, `.git`, `__pycache__`, `*.log`, `*.swp`, `*~` by default.
    pub ignore: Vec<String>,
    /// How long it must be quiet after a change before it is told of; 300 ms by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub debounce: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        let ignore = ["target", "node_modules", ".git", "__pycache__", "*.log", "*.swp", "*~"];
        Self {
            paths: vec![".".into()],
            ignore: ignore.map(String::from).to_vec(),
            debounce: Duration::from_millis(300),
        }
    }
}

/// Watches files.
///
/// Ignored folders are not even looked into, so that they cost none of the system's watches.
///
/// ```no_run
/// use greenwave_edge::{FileWatch, Supervisor, WatchConfig};
///
/// # async fn run(supervisor: Supervisor) -> Result<(), Box<dyn std::error::Error>> {
/// let mut watch = FileWatch::start(&WatchConfig::default())?;
/// while let Some(files) = watch.changed().await {
///     println!("{} changed", files[0].display());
///     if let Err(error) = supervisor.reload().await {
///         println!("{error}"); // the old instances still run
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileWatch {
    changes: mpsc::Receiver<PathBuf>,
    pending: BTreeSet<PathBuf>,
    debounce: Duration,
    // Held for its drop, which ends the watch.
    _watcher: Arc<Mutex<RecommendedWatcher>>,
}

impl FileWatch {
    /// Looks through all folders once, which may take a while where there are many, and watches from then on.
    ///
    /// # Errors
    /// A path is not there, or the system allows no more watches (`fs.inotify.max_user_watches`).
    pub fn start(config: &WatchConfig) -> io::Result<Self> {
        let scope = Scope::new(config)?;
        let (sender, events) = blocking::sync_channel(EVENTS);
        let overflowed = Arc::new(AtomicBool::new(false));
        let overflow = Arc::clone(&overflowed);
        let handler = move |event: notify::Result<Event>| {
            let event = event.unwrap_or_else(|_| Event::default().set_flag(notify::event::Flag::Rescan));
            if sender.try_send(event).is_err() {
                overflow.store(true, Ordering::Relaxed);
            }
        };
        let watcher = notify::recommended_watcher(handler).map_err(io::Error::other)?;
        let watcher = Arc::new(Mutex::new(watcher));
        scope.roots.iter().try_for_each(|root| scope.watch(&watcher, root))?;
        let (tell, changes) = mpsc::channel(NAMED);
        let weak = Arc::downgrade(&watcher);
        // Not in the handler: a watch that is added there would wait for itself.
        std::thread::Builder::new()
            .name("greenwave-watch".into())
            .spawn(move || scope.follow(&weak, &events, &overflowed, &tell))?;
        Ok(Self { changes, pending: BTreeSet::new(), debounce: config.debounce, _watcher: watcher })
    }

    /// Waits until something has changed and is quiet again; gives some of what changed, at least one path. `None`
    /// when nothing can be watched any more.
    ///
    /// Changes between two calls are told by the second.
    ///
    /// Cancel safe: what a dropped future has seen is told by the next call.
    pub async fn changed(&mut self) -> Option<Vec<PathBuf>> {
        if self.pending.is_empty() {
            let first = self.changes.recv().await?;
            self.pending.insert(first);
        }
        let latest = Instant::now() + self.debounce * PATIENCE;
        loop {
            let quiet = (Instant::now() + self.debounce).min(latest);
            match timeout_at(quiet, self.changes.recv()).await {
                Ok(Some(path)) if self.pending.len() < NAMED => _ = self.pending.insert(path),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        Some(std::mem::take(&mut self.pending).into_iter().collect())
    }
}

/// What is watched and what is not.
struct Scope {
    roots: Vec<PathBuf>,
    ignored_names: Vec<String>,
    ignored_paths: Vec<PathBuf>,
}

impl Scope {
    fn new(config: &WatchConfig) -> io::Result<Self> {
        let roots = config.paths.iter().map(fs::canonicalize).collect::<Result<_, _>>()?;
        let (paths, names): (Vec<_>, Vec<_>) = config.ignore.iter().partition(|text| text.contains('/'));
        // One that is not there yet may come.
        let whole = |path: &String| fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        let ignored_paths = paths.into_iter().map(whole).collect::<Result<_, _>>()?;
        Ok(Self { roots, ignored_names: names.into_iter().cloned().collect(), ignored_paths })
    }

    /// Whether a path lies in one of the roots, and in nothing that is ignored.
    fn covers(&self, path: &Path) -> bool {
        let ignored = |below: &Path| {
            below.components().any(|component| {
                let Component::Normal(name) = component else { return false };
                let name = name.to_string_lossy();
                self.ignored_names.iter().any(|pattern| matches(pattern, &name))
            })
        };
        self.roots.iter().any(|root| path.strip_prefix(root).is_ok_and(|below| !ignored(below)))
            && !self.ignored_paths.iter().any(|ignored| path.starts_with(ignored))
    }

    /// Watches a folder and those in it; for a file, its folder: editors replace files rather than write them.
    fn watch(&self, watcher: &Mutex<RecommendedWatcher>, path: &Path) -> io::Result<()> {
        let mut folders = if path.is_dir() {
            vec![path.to_owned()]
        } else {
            return add(watcher, path.parent().unwrap_or(path));
        };
        while let Some(folder) = folders.pop() {
            add(watcher, &folder)?;
            // One that is gone again, or that we may not read, holds nothing for us.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // Links are not followed: they may lead in a circle.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && self.covers(&path) {
                    folders.push(path);
                }
            }
        }
        Ok(())
    }

    /// Passes on changes, and watches folders that are new, until either side is gone.
    fn follow(
        &self,
        watcher: &Weak<Mutex<RecommendedWatcher>>,
        events: &blocking::Receiver<Event>,
        overflowed: &AtomicBool,
        tell: &mpsc::Sender<PathBuf>,
    ) {
        while let Ok(event) = events.recv() {
            let mut paths = event.paths.clone();
            paths.retain(|path| self.covers(path));
            let mut new = Vec::new();
            if event.need_rescan() || overflowed.swap(false, Ordering::Relaxed) {
                // Something was missed: anything may have changed, and any folder may be new.
                paths.clone_from(&self.roots);
                new.clone_from(&self.roots);
            } else if !is_change(&event.kind) {
                continue;
            } else if !matches!(event.kind, EventKind::Remove(_)) {
                new.extend(paths.iter().filter(|path| path.is_dir()).cloned());
            }
            for folder in new {
                let Some(watcher) = watcher.upgrade() else { return };
                if let Err(error) = self.watch(&watcher, &folder) {
                    tracing::warn!(target: SUPERVISOR_TARGET, path = %folder.display(), %error, "folder cannot be watched");
                }
            }
            for path in paths {
                // When there is no room, enough is known to have changed.
                if let Err(mpsc::error::TrySendError::Closed(_)) = tell.try_send(path) {
                    return;
                }
            }
        }
    }
}

fn add(watcher: &Mutex<RecommendedWatcher>, folder: &Path) -> io::Result<()> {
    let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
    match watcher.watch(folder, RecursiveMode::NonRecursive) {
        // It was there a moment ago.
        Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => Ok(()),
        other => other.map_err(io::Error::other),
    }
}

/// Reading a file, or looking at it, is none.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Modify(kind) => !matches!(kind, ModifyKind::Metadata(_)),
        EventKind::Any | EventKind::Access(_) | EventKind::Other => false,
    }
}

/// Whether a name is as the pattern says, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| matches(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, expected) in [
            ("target", "target", true),
            ("target", "targets", false),
            ("*.log", "a.log", true),
            ("*.log", "a.log.1", false),
            ("*~", "a~", true),
            ("a*c*", "abcd", true),
            ("a*c", "ab", false),
            ("*", "ä", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[tokio::test]
    async fn changes_are_told_together_and_ignored_folders_are_not_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("target/debug")).unwrap();
        fs::create_dir_all(root.join("data")).unwrap();
        fs::create_dir_all(root.join("src")).unwrap();
        let mut config = WatchConfig { paths: vec![root.clone()], ..Default::default() };
        config.debounce = Duration::from_millis(100);
        config.ignore.push(root.join("data").to_string_lossy().into_owned());
        let mut watch = FileWatch::start(&config).unwrap();
        for ignored in ["target/debug/app", "data/db", "src/x.log"] {
            fs::write(root.join(ignored), "new").unwrap();
        }
        fs::write(root.join("src/main.rs"), "new").unwrap();
        fs::write(root.join("src/lib.rs"), "new").unwrap();
        let limit = Duration::from_secs(30);
        let changed = tokio::time::timeout(limit, watch.changed()).await.unwrap().unwrap();
        assert_eq!(changed, [root.join("src/lib.rs"), root.join("src/main.rs")]);
        // A folder that is new is watched too.
        fs::create_dir_all(root.join("src/deep/er")).unwrap();
        tokio::time::timeout(limit, watch.changed()).await.unwrap().unwrap();
        fs::write(root.join("src/deep/er/mod.rs"), "new").unwrap();
        let changed = tokio::time::timeout(limit, watch.changed()).await.unwrap().unwrap();
        assert_eq!(changed, [root.join("src/deep/er/mod.rs")]);
    }

    #[test]
    fn what_is_not_there_cannot_be_watched() {
        let config = WatchConfig { paths: vec!["/no/such/folder".into()], ..Default::default() };
        assert_eq!(FileWatch::start(&config).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
