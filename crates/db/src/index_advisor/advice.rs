//! What the advisor says.

use serde::Serialize;

/// The indexes to create, and what else was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Advice {
    /// The indexes to create, the most useful first.
    pub indexes: Vec<IndexAdvice>,
    /// What is wrong with the indexes and tables that exist.
    pub findings: Vec<Finding>,
    /// Statements of the workload that could not be judged.
    pub skipped: Vec<Skipped>,
}

/// An index to create.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndexAdvice {
    /// Its name.
    pub name: String,
    /// The table, with its schema where that is not the default one.
    pub table: String,
    /// The statement that creates it: `CREATE INDEX CONCURRENTLY …` on PostgreSQL.
    pub create: String,
    /// Its size in bytes: measured where the advice was verified, else estimated.
    pub bytes: u64,
    /// How many times as long an insert into the table takes with it, estimated: 1.2 is a fifth longer.
    pub write_factor: f64,
    /// The statements that it serves, the one that gains most first.
    pub effects: Vec<Effect>,
}

/// What the advised indexes together do for one statement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effect {
    /// The statement.
    pub sql: String,
    /// How often it was called.
    pub calls: f64,
    /// Without the advised indexes.
    pub before: f64,
    /// With them.
    pub after: f64,
    /// What `before` and `after` count.
    pub unit: Unit,
}

/// What an effect is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The planner's cost.
    Cost,
    /// Milliseconds, measured.
    Milliseconds,
    /// Rows read, estimated: where the planner gives no cost.
    Rows,
}

/// Something wrong with an index or a table that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// No statement has used it since the statistics were last reset.
    UnusedIndex {
        /// The index.
        index: String,
        /// Its table.
        table: String,
        /// Its size in bytes.
        bytes: u64,
        /// The day of that reset; `None` if there was none.
        since: Option<String>,
    },
    /// Another index serves all that this one does.
    DuplicateIndex {
        /// The index that could go.
        index: String,
        /// Its table.
        table: String,
        /// The one that stays.
        covered_by: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Deleting or renumbering a row of the referenced table reads this whole table.
    ForeignKeyWithoutIndex {
        /// The constraint.
        constraint: String,
        /// Its table.
        table: String,
        /// The statement that cures it.
        create: String,
    },
    /// A large table is often read from end to end.
    SequentialScans {
        /// The table.
        table: String,
        /// How often.
        scans: u64,
        /// Rows in the table.
        rows: u64,
    },
    /// The index takes far more room than its entries need.
    BloatedIndex {
        /// The index.
        index: String,
        /// Its table.
        table: String,
        /// Its size in bytes.
        bytes: u64,
        /// What its entries need.
        needed_bytes: u64,
    },
    /// Its creation failed: it costs writes and serves nobody.
    InvalidIndex {
        /// The index.
        index: String,
        /// Its table.
        table: String,
    },
}

/// A statement that could not be judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The statement.
    pub sql: String,
    /// Why.
    pub why: String,
}
