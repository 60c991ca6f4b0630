//! What each statement costs, kept in a file for whoever asks later: `greenwave advise --workload` reads it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use greenwave_db::query_stats::QueryStats;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the file is written.
const EVERY: Duration = Duration::from_secs(10);

/// Writes the file of this process, `DIR/PID.json`, every ten seconds and at the end. What cannot be written is said
/// once, and disturbs nothing. Files of earlier processes stay until someone removes them.
pub(crate) async fn keep(stats: QueryStats, folder: PathBuf, end: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let last = tokio::select! {
            () = end.cancelled() => true,
            _ = ticks.tick() => false,
        };
        let (stats, folder) = (stats.clone(), folder.clone());
        // A snapshot may read debug information, and so take its time.
        let written = tokio::task::spawn_blocking(move || write(&stats, &folder)).await;
        let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        if let Err(error) = &written
            && !failing
        {
            tracing::warn!(%error, "the statistics of statements cannot be written: check --query-stats");
        }
        failing = written.is_err();
        if last {
            return;
        }
    }
}

/// Replaces the file as a whole, so that a reader sees the old one or the new one.
fn write(stats: &QueryStats, folder: &Path) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&stats.snapshot())?;
    fs::create_dir_all(folder)?;
    let pid = std::process::id();
    let new = folder.join(format!(".{pid}.json.new"));
    fs::write(&new, text)?;
    fs::rename(new, folder.join(format!("{pid}.json")))
}
