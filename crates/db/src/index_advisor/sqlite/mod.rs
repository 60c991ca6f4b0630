//! Advice for SQLite.
//!
//! SQLite has no hypothetical indexes, but its planner looks at nothing except the schema and its statistics. So the
//! schema is copied into an empty database in memory, the statistics with it, and there any index can be created at
//! once: what the planner then does with a statement is what it would do with that index in the real database.

mod access;
mod estimate;
mod findings;
mod new_index;
mod planner;
mod sample;
mod schema;
mod search;
mod statement;
mod verify;

use rusqlite::{Connection, Transaction};

use super::{Advice, AdvisorConfig, Error, Finding, Skipped, Workload};
use planner::Planner;
use sample::Sample;
use schema::Schema;
use search::Search;
use statement::Statement;

/// The indexes that would serve the workload, and what is wrong with those that exist.
///
/// Nothing is written, and nothing else opened: the database is read through `connection`, with at most 10,000 rows of
/// each table. What was never `ANALYZE`d gets statistics from those rows. Effects are in rows read, estimated along the
/// planner's choice; with [`verify`](AdvisorConfig::verify) the statements that only read are executed, before and
/// after, on a temporary copy of the tables that they read, and their effects are in milliseconds.
///
/// Others may write while the indexes are searched for and timed: only the reading, and with `verify` the copying, are a
/// transaction each. If `connection` is in a transaction already, that stays open.
///
/// It blocks, for seconds where there is much to read: in async code run it in `spawn_blocking`. An interrupt, by
/// [`Connection::get_interrupt_handle`], ends it with an error while it reads.
///
/// # Errors
/// [`Error::Database`] if the database cannot be read. A statement that SQLite does not take is no error: it stands in
/// [`Advice::skipped`].
///
/// ```
/// use greenwave_db::index_advisor::{AdvisorConfig, Workload, sqlite};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shop = rusqlite::Connection::open_in_memory()?;
/// shop.execute_batch(
///     "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, status TEXT);
///      WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
///      INSERT INTO orders SELECT i, i % 500, 'paid' FROM n;",
/// )?;
/// let workload = Workload::from_sql("SELECT id, status FROM orders WHERE customer_id = ?");
///
/// let advice = sqlite::advise(&shop, &workload, &AdvisorConfig::default())?;
/// assert_eq!(advice.indexes[0].create, "CREATE INDEX orders_customer_id_idx ON orders (customer_id)");
/// # Ok(()) }
/// ```
pub fn advise(connection: &Connection, workload: &Workload, config: &AdvisorConfig) -> Result<Advice, Error> {
    let transaction = same_state(connection).map_err(reading)?;
    let schema = Schema::read(connection).map_err(reading)?;
    let sample = Sample::read(connection, &schema).map_err(reading)?;
    let memory = Connection::open_in_memory().map_err(copying)?;
    let planner = Planner::new(memory, connection, &schema, &sample).map_err(copying)?;
    // The search takes a while, and needs the database no more.
    drop(transaction);

    let (mut statements, mut skipped) = (Vec::new(), Vec::new());
    for given in &workload.statements {
        let understood = Statement::new(given, &schema);
        match understood.and_then(|statement| match planner.plan(&statement.numbered) {
            Ok(_) => Ok(statement),
            Err(error) => Err(error.to_string()),
        }) {
            Ok(statement) => statements.push(statement),
            Err(why) => skipped.push(Skipped { sql: given.sql.clone(), why }),
        }
    }
    let chosen = Search::new(&schema, &sample, &planner, &statements, config).run().map_err(copying)?;
    let mut indexes = chosen.advice();
    if config.verify && !indexes.is_empty() {
        verify::verify(connection, &schema, &sample, &chosen, &mut indexes, config)?;
    }
    let mut findings = findings::findings(&schema, &sample);
    findings.retain(|finding| match finding {
        Finding::ForeignKeyWithoutIndex { create, .. } => indexes.iter().all(|index| index.create != *create),
        _ => true,
    });
    Ok(Advice { indexes, findings, skipped })
}

/// What is wrong with the indexes and tables that exist.
///
/// # Errors
/// [`Error::Database`] if the schema cannot be read.
pub fn findings(connection: &Connection) -> Result<Vec<Finding>, Error> {
    let schema = Schema::read(connection).map_err(reading)?;
    let sample = Sample::read(connection, &schema).map_err(reading)?;
    Ok(findings::findings(&schema, &sample))
}

/// A transaction, so that all is read from the same state, whatever others write meanwhile; none where there is one.
fn same_state(connection: &Connection) -> rusqlite::Result<Option<Transaction<'_>>> {
    connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()
}

fn reading(error: rusqlite::Error) -> Error {
    Error::Database { doing: "read the schema and a sample of the rows", source: error.into() }
}

fn copying(error: rusqlite::Error) -> Error {
    Error::Database { doing: "copy the schema into memory", source: error.into() }
}
