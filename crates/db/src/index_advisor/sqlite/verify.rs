//! Advice tried out on a copy of the rows.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, Result, types::Value};

use super::{
    planner::Planner,
    same_state,
    sample::{Sample, copy_all},
    schema::{Schema, quoted},
    search::{Chosen, gain},
    statement::Statement,
};
use crate::index_advisor::{
    AdvisorConfig, Effect, Error, IndexAdvice, Unit,
    usage::{Key, Kind, Op, Parameter},
};

/// Larger databases are not copied.
const MAX_COPY: u64 = 4 << 30;
/// How often a statement is executed with each set of values; the shortest time counts.
const RUNS: usize = 3;
/// The rows of the sample from which values for parameters are taken, as parts of it.
const PLACES: [f64; 3] = [0.2, 0.5, 0.8];

/// Executes the statements that only read, without and with the indexes, and puts what was measured in the place of
/// what was estimated. Advice that then helps no statement enough is dropped.
pub(super) fn verify(
    source: &Connection,
    schema: &Schema,
    sample: &Sample,
    chosen: &Chosen<'_>,
    advice: &mut Vec<IndexAdvice>,
    config: &AdvisorConfig,
) -> Result<(), Error> {
    let failed = |error: rusqlite::Error| Error::Database {
        doing: "try the advice out on a temporary copy of the tables",
        source: error.into(),
    };
    let go_on = || match source.is_interrupted() {
        true => Err(interrupted()),
        false => Ok(()),
    };
    go_on().map_err(failed)?;
    let bytes = size(source).map_err(failed)?;
    if bytes > MAX_COPY {
        return Err(Error::TooLarge { bytes, max_bytes: MAX_COPY });
    }
    let tried: Vec<&Statement> = chosen
        .served
        .iter()
        .filter(|(statement, .., used)| statement.parsed.kind == Kind::Read && !used.is_empty())
        .map(|(statement, ..)| *statement)
        .collect();
    let transaction = same_state(source).map_err(failed)?;
    let copy = copy(source, schema, sample, &tried).map_err(failed)?;
    drop(transaction);
    let trial = Trial { copy: copy.connection(), schema, sample, limit: config.max_statement };
    let one = |statement: &&Statement| {
        go_on()?;
        unless_a_row_forbids(trial.milliseconds(statement))
    };
    let measure = || tried.iter().map(one).collect::<Result<Vec<Option<f64>>>>();
    let before = measure().map_err(failed)?;
    for index in &chosen.indexes {
        go_on().map_err(failed)?;
        if unless_a_row_forbids(copy.create(index)).map_err(failed)?.is_none() {
            advice.retain(|advised| advised.name != index.name);
        }
    }
    let after = measure().map_err(failed)?;
    for index in advice.iter_mut() {
        index.bytes = trial.bytes(&index.name).unwrap_or(index.bytes);
        for effect in &mut index.effects {
            let Some(place) = tried.iter().position(|statement| statement.sql == effect.sql) else {
                continue;
            };
            // What could not be executed stays as it was estimated.
            if let (Some(before), Some(after)) = (before[place], after[place]) {
                *effect = Effect { before, after, unit: Unit::Milliseconds, ..effect.clone() };
            }
        }
        index.effects.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    }
    let helps = |effect: &Effect| effect.after <= effect.before * (1.0 - config.min_gain);
    advice.retain(|index| index.effects.iter().any(helps));
    Ok(())
}

/// None where the rows are the reason for a failure, such as text that is not the JSON that an expression takes it for.
fn unless_a_row_forbids<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::Unknown | ErrorCode::TooBig | ErrorCode::TypeMismatch) => Ok(None),
            _ => Err(error),
        },
    }
}

fn interrupted() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_INTERRUPT), None)
}

fn size(source: &Connection) -> Result<u64> {
    let pragma = |name| source.query_row(&format!("PRAGMA {name}"), (), |row| row.get::<_, i64>(0));
    let bytes = pragma("page_count")?.saturating_mul(pragma("page_size")?);
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// A database with the rows of the tables that the statements read. Its name is empty: so SQLite keeps what outgrows
/// its memory in a file that is gone when the connection is, however the program ends.
fn copy(source: &Connection, schema: &Schema, sample: &Sample, statements: &[&Statement]) -> Result<Planner> {
    let copy = Planner::new(Connection::open("")?, source, schema, sample)?;
    let tables: BTreeSet<usize> = statements.iter().flat_map(|statement| statement.tables()).collect();
    copy.connection().execute_batch("PRAGMA ignore_check_constraints = ON; BEGIN")?;
    for table in tables.into_iter().filter_map(|table| schema.tables.get(table)) {
        copy_all(source, copy.connection(), table)?;
    }
    copy.connection().execute_batch("COMMIT")?;
    Ok(copy)
}

struct Trial<'t> {
    copy: &'t Connection,
    schema: &'t Schema,
    sample: &'t Sample,
    limit: Duration,
}

impl Trial<'_> {
    /// How long the statement takes, on average over the values that its parameters are given. One that is not done in
    /// time counts as having taken that long.
    fn milliseconds(&self, statement: &Statement) -> Result<f64> {
        let places = if statement.parsed.parameters.is_empty() { &PLACES[..1] } else { &PLACES };
        let mut total = 0.0;
        for place in places {
            let mut shortest = self.run(statement, *place)?;
            for _ in 1..RUNS {
                if shortest < self.limit {
                    shortest = shortest.min(self.run(statement, *place)?);
                }
            }
            total += shortest.as_secs_f64() * 1000.0;
        }
        Ok(total / places.len() as f64)
    }

    fn run(&self, statement: &Statement, place: f64) -> Result<Duration> {
        let mut prepared = self.copy.prepare_cached(&statement.numbered)?;
        for (name, parameter) in &statement.parsed.parameters {
            if let Some(number) = prepared.parameter_index(name)? {
                prepared.raw_bind_parameter(number, self.value(statement, parameter, place))?;
            }
        }
        let started = Instant::now();
        let limit = self.limit;
        self.copy.progress_handler(1000, Some(move || started.elapsed() > limit))?;
        let mut rows = prepared.raw_query();
        let ended = loop {
            match rows.next() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(started.elapsed()),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
                    break Ok(limit);
                }
                Err(error) => break Err(error),
            }
        };
        self.copy.progress_handler(0, None::<fn() -> bool>)?;
        ended
    }

    /// A value for a parameter, such as stands in what it is compared with.
    fn value(&self, statement: &Statement, parameter: &Parameter, place: f64) -> Value {
        let Parameter::Compared { table_use, key, op } = parameter else {
            return Value::Integer(if *parameter == Parameter::Limit { 20 } else { 0 });
        };
        let table = statement.parsed.uses.get(*table_use).and_then(|of| self.schema.tables.get(of.table));
        let key = match (key, table) {
            (Key::Column(column), Some(table)) => {
                table.columns.get(*column).map(|column| quoted(&column.name))
            }
            (Key::Expression(text, _), _) => Some(text.clone()),
            _ => None,
        };
        let value = key.zip(table).and_then(|(key, table)| self.sample.value(&table.name, &key, place));
        match (value, op) {
            (Some(Value::Text(text)), Op::Prefix) => Value::Text(text.chars().take(3).chain(['%']).collect()),
            (value, _) => value.unwrap_or(Value::Null),
        }
    }

    fn bytes(&self, index: &str) -> Option<u64> {
        let sql = "SELECT sum(pgsize) FROM dbstat WHERE name = ?1";
        self.copy
            .query_row(sql, [index], |row| row.get::<_, i64>(0))
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
    }
}
