//! `ps` as a table.

use crate::control::Status;

const HEAD: [&str; 7] = ["NAME", "PID", "STATE", "RESTARTS", "UPTIME", "MEMORY", "ADDRESS"];

pub(super) fn table(status: &Status) -> String {
    let mut rows = vec![HEAD.map(String::from)];
    let edge = &status.edge;
    let state = match edge.draining {
        0 => edge.state.clone(),
        draining => format!("{} (+{draining} draining)", edge.state),
    };
    let none = || "-".to_owned();
    let listen = edge.listen.clone().unwrap_or_else(none);
    let pid = edge.pid.map_or_else(none, |pid| pid.to_string());
    rows.push(["edge".into(), pid, state, edge.restarts.to_string(), none(), none(), listen]);
    for instance in status.apps.iter().flat_map(|app| &app.instances) {
        let state = if instance.crash_looping { "crash loop".into() } else { instance.state.to_string() };
        rows.push([
            instance.name.clone(),
            instance.pid.map_or_else(none, |pid| pid.to_string()),
            state,
            instance.restarts.to_string(),
            instance.uptime_seconds.map_or_else(none, uptime),
            instance.memory_bytes.map_or_else(none, |bytes| format!("{:.1} MiB", bytes as f64 / 1_048_576.0)),
            instance.address.map_or_else(none, |address| address.to_string()),
        ]);
    }
    columns(&rows)
}

/// Rows, the head among them, in columns as wide as they need to be.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The two largest units, as in `3h 20m`.
pub(crate) fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_has_two_units() {
        let times = [59, 61, 3_700, 90_000].map(uptime);
        assert_eq!(times, ["59s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
