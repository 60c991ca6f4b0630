//! The statements that indexes are to serve, and how often each is called.

use serde::{Deserialize, Serialize};

/// Statements with their frequencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// The statements.
    pub statements: Vec<WorkloadStatement>,
}

/// A statement and how often it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadStatement {
    /// The text; its values may be literals, or the placeholders `$1` or `?`.
    pub sql: String,
    /// How often it was called: its weight.
    pub calls: f64,
    /// How long a call took on average, where that is known.
    pub mean_ms: Option<f64>,
}

impl Workload {
    /// The statements of a file, separated by semicolons; each counts as called once, and one that stands there
    /// several times as called that often.
    pub fn from_sql(text: &str) -> Self {
        let mut workload = Self::default();
        for sql in text.split(';').map(str::trim).filter(|sql| !sql.is_empty()) {
            workload.statements.push(WorkloadStatement { sql: sql.to_owned(), calls: 1.0, mean_ms: None });
        }
        workload
    }
}
