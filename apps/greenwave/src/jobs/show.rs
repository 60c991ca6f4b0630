//! Jobs as text.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use greenwave_jobs::{JobDetails, JobPage, JobState, JobSummary, QueueOverview, StateCounts};

use crate::client::table::{columns, uptime};

/// What a row says of an error, in characters.
const MAX_ERROR: usize = 60;

pub(super) fn list(page: &JobPage) -> String {
    if page.jobs.is_empty() {
        return "no job\n".into();
    }
    let head = ["ID", "QUEUE", "JOB", "STATE", "SINCE", "FAILED", "KEY", "ERROR"].map(String::from);
    let rows = page.jobs.iter().map(row);
    let mut text = columns(&[head].into_iter().chain(rows).collect::<Vec<_>>());
    if let Some(next) = page.next {
        writeln!(text, "there may be more: --after {next}").ok();
    }
    text
}

fn row(job: &JobSummary) -> [String; 8] {
    let failed = match job.max_attempts {
        Some(max) => format!("{}/{max}", job.failures),
        None => job.failures.to_string(),
    };
    let error: String = plain(job.error.as_deref().unwrap_or_default()).chars().take(MAX_ERROR).collect();
    [
        job.id.to_string(),
        plain(&job.queue),
        plain(&job.name),
        state(job),
        when(job.at),
        failed,
        plain(job.key.as_deref().unwrap_or("-")),
        error,
    ]
}

fn state(job: &JobSummary) -> String {
    match job.reason {
        Some(reason) => format!("{} ({})", job.state, word(&reason)),
        None => job.state.to_string(),
    }
}

/// The name that it has in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| Some(value.as_str()?.replace('_', " ")))
        .unwrap_or_default()
}

pub(super) fn details(job: &JobDetails) -> Result<String> {
    let summary = &job.summary;
    let mut facts = vec![
        ("id", summary.id.to_string()),
        ("job", format!("{} (version {})", plain(&summary.name), job.version)),
        ("queue", plain(&summary.queue)),
        ("state", state(summary)),
        ("pushed", stamp(summary.pushed_at)),
        (moment(summary.state), stamp(summary.at)),
    ];
    let max = summary.max_attempts.map_or(String::new(), |max| format!(" of {max}"));
    facts.push(("failed", format!("{}{max}", summary.failures)));
    let optional = [
        ("priority", summary.priority.map(|priority| priority.to_string())),
        ("key", summary.key.as_deref().map(plain)),
        ("crashes", (job.crashes > 0).then(|| job.crashes.to_string())),
        ("lease", job.lease.map(|lease| lease.to_string())),
        ("waits for", (job.pending > 0).then(|| counted(job.pending.into(), "job", "jobs"))),
        ("awaited", job.awaited.then(|| "other jobs wait for it".to_owned())),
        ("timeout", job.timeout.map(|timeout| humantime::format_duration(timeout).to_string())),
        ("kept for", (!job.keep.is_zero()).then(|| humantime::format_duration(job.keep).to_string())),
        ("trace", job.trace.as_deref().map(plain)),
    ];
    facts.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let mut text = String::new();
    for (name, value) in facts {
        writeln!(text, "{name:<10} {value}")?;
    }
    writeln!(text, "\npayload\n{}", serde_json::to_string_pretty(&job.payload)?)?;
    for (name, value) in [("progress", &job.progress), ("result", &job.result)] {
        if let Some(value) = value {
            writeln!(text, "\n{name}\n{}", serde_json::to_string_pretty(value)?)?;
        }
    }
    if !job.errors.is_empty() {
        text.push_str("\nerrors\n");
    }
    for error in &job.errors {
        writeln!(text, "attempt {}, {}: {}", error.attempt, stamp(error.at), plain(&error.error))?;
    }
    Ok(text)
}

/// What a job's time means.
fn moment(state: JobState) -> &'static str {
    match state {
        JobState::Ready | JobState::Blocked => "since",
        JobState::Scheduled => "due",
        JobState::Running => "lease ends",
        JobState::Completed => "completed",
        _ => "died",
    }
}

pub(super) fn stats(queues: &[QueueOverview]) -> String {
    if queues.is_empty() {
        return "no job\n".into();
    }
    let head =
        ["QUEUE", "JOB", "READY", "SCHEDULED", "RUNNING", "BLOCKED", "DEAD", "OLDEST"].map(String::from);
    let mut rows = vec![head];
    for queue in queues {
        let name =
            if queue.paused { format!("{} (paused)", plain(&queue.queue)) } else { plain(&queue.queue) };
        let oldest = queue.oldest_ready.map_or("-".into(), |age| uptime(age as u64));
        rows.push(counts(name, "-".into(), &queue.counts, oldest));
        // One type says the same again.
        let several = queue.jobs.iter().filter(|_| queue.jobs.len() > 1);
        rows.extend(several.map(|(job, of)| counts(String::new(), plain(job), of, String::new())));
        if let (1, Some((job, _)), Some(row)) =
            (queue.jobs.len(), queue.jobs.first_key_value(), rows.last_mut())
        {
            row[1] = plain(job);
        }
    }
    columns(&rows)
}

fn counts(queue: String, job: String, counts: &StateCounts, oldest: String) -> [String; 8] {
    let StateCounts { ready, scheduled, running, blocked, dead, .. } = counts;
    let [ready, scheduled, running, blocked, dead] =
        [ready, scheduled, running, blocked, dead].map(ToString::to_string);
    [queue, job, ready, scheduled, running, blocked, dead, oldest]
}

/// As in `3m 5s ago`; a lease ends, and a scheduled job is due, in the future.
fn when(at: SystemTime) -> String {
    let now = SystemTime::now();
    let length = |length: Duration| uptime(length.as_secs());
    match now.duration_since(at) {
        Ok(ago) => format!("{} ago", length(ago)),
        Err(ahead) => format!("in {}", length(ahead.duration())),
    }
}

fn stamp(at: SystemTime) -> String {
    format!("{} ({})", humantime::format_rfc3339_seconds(at), when(at))
}

pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Names and errors come from anywhere, and must not speak to the terminal or break a line.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}
