//! The knobs of query statistics, and their defaults.

use serde::{Deserialize, Serialize};

/// What is counted of statements, and what is said of them.
///
/// ```
/// use greenwave_db::{PoolConfig, query_stats::QueryStatsConfig};
///
/// let stats = QueryStatsConfig { n_plus_one_threshold: 10, ..Default::default() };
/// let config = PoolConfig { query_stats: stats, ..Default::default() };
/// assert!(config.query_stats.enabled);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryStatsConfig {
    /// Whether statements are counted, and N+1 is looked for. Default: true.
    pub enabled: bool,
    /// The most combinations of statement, route and call site that are told apart; what comes later is counted
    /// together, under the fingerprint `other`, after one warning. The logs name it all the same; its plan is not
    /// taken. Default: 1000.
    pub max_series: usize,
    /// A statement that runs so many times in one scope, from one call site, is an N+1; zero looks for none.
    /// Default: 5.
    pub n_plus_one_threshold: u32,
    /// Statements that may repeat: their texts, or their fingerprints. Default: none.
    pub n_plus_one_allow: Vec<String>,
    /// Whether the call site of a statement run on a bare `&Pool` is found by a backtrace, taken when the statement is
    /// first seen on a route, and again for each N+1. PostgreSQL only: on SQLite the call site is known. Default: true.
    pub backtraces: bool,
    /// Whether the plan of a slow statement is logged as well, once a minute for each statement, if it only reads.
    /// Default: false.
    pub explain_slow: bool,
    /// Whether literals in the text of a statement are logged as they are. What is bound to a statement is never
    /// logged. Default: false.
    pub log_values: bool,
}

impl Default for QueryStatsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_series: 1000,
            n_plus_one_threshold: 5,
            n_plus_one_allow: Vec::new(),
            backtraces: true,
            explain_slow: false,
            log_values: false,
        }
    }
}
