//! What was counted, as values to print, send or keep.

use serde::{Deserialize, Serialize};

use super::table::{ByKey, Counts, Series};
use std::{collections::HashMap, sync::Arc};

/// What a [`QueryStats`](super::QueryStats) has counted so far, the statements that took most time first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The statements.
    pub statements: Vec<StatementStats>,
}

/// Statements alike but for values and list lengths, of one route and one call site.
///
/// Times are of the execution; the wait for a connection is counted apart. Quantiles are at most a sixteenth off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatementStats {
    /// 16 hexadecimal digits: see [`Shape`](super::Shape). `other` where it stands for all statements that came when
    /// there were already as many series as are kept.
    pub fingerprint: String,
    /// The statement, with placeholders for values.
    pub text: String,
    /// `postgresql` or `sqlite`.
    pub system: String,
    /// The route of its scope.
    pub route: Option<String>,
    /// The call site: a place in the source, a function, a batch loader, or `unknown`.
    pub site: String,
    /// How often it ran.
    pub calls: u64,
    /// How often it failed. On SQLite, only what a closure returns as this crate's error.
    pub errors: u64,
    /// Rows returned or, on PostgreSQL, changed.
    pub rows: u64,
    /// All executions, in milliseconds.
    pub total_ms: f64,
    /// All waits for a connection or for the turn to write, in milliseconds.
    pub wait_ms: f64,
    /// Half of the executions took at most so long.
    pub p50_ms: f64,
    /// 99 of 100 executions took at most so long.
    pub p99_ms: f64,
    /// The longest execution.
    pub max_ms: f64,
}

impl Snapshot {
    pub(super) fn of(all: ByKey<(Arc<Series>, Counts)>) -> Self {
        // One place in the source may be several `Location`s, and several backtraces may lead to one.
        let mut merged = HashMap::<_, (Arc<Series>, Counts)>::new();
        for (series, counts) in all.into_values() {
            let site = series.site_name();
            let key = (series.shape.fingerprint.clone(), series.dialect, series.route.clone(), site);
            merged.entry(key).or_insert_with(|| (series, Counts::default())).1.merge(&counts);
        }
        let statements =
            merged.into_iter().map(|((.., site), (series, counts))| stats(&series, &site, &counts));
        let mut statements: Vec<StatementStats> = statements.collect();
        statements.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
        Self { statements }
    }
}

fn stats(series: &Series, site: &str, counts: &Counts) -> StatementStats {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let quantile = |part| ms(counts.times.quantile(part).min(counts.max));
    StatementStats {
        fingerprint: series.shape.fingerprint.clone(),
        text: series.shape.text.clone(),
        system: series.dialect.system().to_owned(),
        route: series.route.as_deref().map(str::to_owned),
        site: site.to_owned(),
        calls: counts.calls,
        errors: counts.errors,
        rows: counts.rows,
        total_ms: ms(counts.total),
        wait_ms: ms(counts.wait),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        max_ms: ms(counts.max),
    }
}
