//! Statements from files.

use std::{
    collections::HashMap,
    fs,
    io::{Read, stdin},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use greenwave_db::index_advisor::{Workload, WorkloadStatement};
use serde::Deserialize;

/// What a service has counted, as far as it matters here.
#[derive(Deserialize)]
struct Snapshot {
    statements: Vec<Counted>,
}

#[derive(Deserialize)]
struct Counted {
    text: String,
    calls: f64,
    #[serde(default)]
    total_ms: Option<f64>,
}

/// The statements of all files, alike ones summed; none where no file is given.
pub(super) fn read(files: &[PathBuf]) -> Result<Option<Workload>> {
    if files.is_empty() {
        return Ok(None);
    }
    let mut all = Workload::default();
    for file in files {
        all.statements.extend(parse(&text(file)?, file)?.statements);
    }
    let names = || files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    ensure!(!all.statements.is_empty(), "no statement in {}", names());
    Ok(Some(summed(all)))
}

fn text(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        stdin().read_to_string(&mut text).context("cannot read the statements from standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file)
        .with_context(|| format!("cannot read {}; check the path given by --workload", file.display()))
}

fn parse(text: &str, file: &Path) -> Result<Workload> {
    if !text.trim_start().starts_with('{') {
        return Ok(Workload::from_sql(text));
    }
    let snapshot: Snapshot = serde_json::from_str(text).with_context(|| {
        format!(
            r#"{} is not what a service counts: {{"statements": [{{"text": …, "calls": …}}]}}"#,
            file.display()
        )
    })?;
    let statement = |counted: Counted| WorkloadStatement {
        sql: counted.text,
        calls: counted.calls,
        mean_ms: counted.total_ms.filter(|_| counted.calls > 0.0).map(|total| total / counted.calls),
    };
    let usable =
        snapshot.statements.into_iter().filter(|counted| counted.calls.is_finite() && counted.calls > 0.0);
    Ok(Workload { statements: usable.map(statement).collect() })
}

/// Statements that differ in space alone are one.
fn summed(workload: Workload) -> Workload {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut sum: Vec<WorkloadStatement> = Vec::new();
    for statement in workload.statements {
        let key = statement.sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let place = *places.entry(key).or_insert(sum.len());
        let Some(alike) = sum.get_mut(place) else {
            sum.push(statement);
            continue;
        };
        let total = |statement: &WorkloadStatement| statement.mean_ms.map(|mean| mean * statement.calls);
        let (before, more) = (total(alike), total(&statement));
        alike.calls += statement.calls;
        alike.mean_ms =
            before.zip(more).map(|(before, more)| (before + more) / alike.calls).or(alike.mean_ms);
    }
    Workload { statements: sum }
}

/// The statements that take most time, or are called most.
pub(super) fn top(mut workload: Workload, most: u32) -> Workload {
    let weight = |statement: &WorkloadStatement| statement.calls * statement.mean_ms.unwrap_or(1.0);
    workload.statements.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    workload.statements.truncate(most as usize);
    workload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_alike_are_summed_and_the_heaviest_come_first() {
        let text = r#"{"statements": [
            {"text": "SELECT 1", "calls": 10, "total_ms": 10, "route": "/a", "site": "x.rs:1"},
            {"text": "SELECT  1", "calls": 30, "total_ms": 70, "route": null, "site": "y.rs:2"},
            {"text": "SELECT 2", "calls": 1, "total_ms": 500, "p99_ms": 500},
            {"text": "SELECT 3", "calls": 0, "total_ms": 0}
        ]}"#;
        let all = top(summed(parse(text, Path::new("x")).unwrap()), 2);
        let texts: Vec<(&str, f64, Option<f64>)> =
            all.statements.iter().map(|one| (one.sql.as_str(), one.calls, one.mean_ms)).collect();
        assert_eq!(texts, [("SELECT 2", 1.0, Some(500.0)), ("SELECT 1", 40.0, Some(2.0))]);
    }
}
