//! A copy of the schema without its rows, in which SQLite's own planner is asked.

use std::collections::HashMap;

use rusqlite::{Connection, Result, params};

use super::{
    new_index::NewIndex,
    sample::Sample,
    schema::{Index, Schema, quoted},
};

/// Statistics are believed while the table has between a tenth and ten times as many rows as they say.
const STALE: f64 = 10.0;

/// The copy.
pub(super) struct Planner {
    db: Connection,
}

/// A line of `EXPLAIN QUERY PLAN`, with those that stand below it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) detail: String,
    pub(super) children: Vec<Node>,
}

impl Planner {
    /// Copies the schema and its statistics into an empty database; what has no statistics gets them from the sample.
    pub(super) fn new(db: Connection, source: &Connection, schema: &Schema, sample: &Sample) -> Result<Self> {
        let exact = sample.like_is_exact;
        db.execute_batch(&format!("PRAGMA foreign_keys = OFF; PRAGMA case_sensitive_like = {exact}"))?;
        let own = |index: &&Index| index.sql.is_some();
        let statements =
            schema.tables.iter().map(|table| &table.sql).chain(schema.views.iter().map(|(_, sql)| sql));
        for sql in statements.chain(schema.indexes.iter().filter(own).filter_map(|index| index.sql.as_ref()))
        {
            // What needs a function, a collation or a module that is not there is left out; the statements that need
            // it are then skipped.
            let _ = db.execute_batch(sql);
        }
        // Makes the tables of statistics, which nobody may create.
        db.execute_batch("ANALYZE")?;
        for statistics in ["sqlite_stat1", "sqlite_stat4"] {
            if has_table(&db, statistics)? {
                db.execute_batch(&format!("DELETE FROM {statistics}"))?;
            }
        }
        copy_statistics(source, &db, schema, sample)?;
        let planner = Self { db };
        planner.reload()?;
        Ok(planner)
    }

    /// Creates an index, with what is known of it.
    pub(super) fn create(&self, index: &NewIndex) -> Result<()> {
        self.db.execute_batch(&index.create())?;
        if let Some(stat) = &index.stat {
            let insert = "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?1, ?2, ?3)";
            self.db.execute(insert, params![index.table, index.name, stat])?;
        }
        self.reload()
    }

    /// Drops an index that was created here.
    pub(super) fn drop(&self, index: &NewIndex) -> Result<()> {
        self.db.execute_batch(&format!("DROP INDEX {}", quoted(&index.name)))?;
        self.reload()
    }

    /// How the statement would be executed, with nothing bound to its parameters.
    pub(super) fn plan(&self, sql: &str) -> Result<Vec<Node>> {
        let mut statement = self.db.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
        let mut rows = statement.raw_query();
        let mut lines: Vec<(i64, i64, String)> = Vec::new();
        while let Some(row) = rows.next()? {
            lines.push((row.get(0)?, row.get(1)?, row.get(3)?));
        }
        let mut below: HashMap<i64, Vec<Node>> = HashMap::new();
        // A line stands after the one that it is below.
        for (id, parent, detail) in lines.into_iter().rev() {
            let mut children = below.remove(&id).unwrap_or_default();
            children.reverse();
            below.entry(parent).or_default().push(Node { detail, children });
        }
        let mut top = below.remove(&0).unwrap_or_default();
        top.reverse();
        Ok(top)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.db
    }

    fn reload(&self) -> Result<()> {
        self.db.execute_batch("ANALYZE sqlite_schema")
    }
}

fn copy_statistics(source: &Connection, copy: &Connection, schema: &Schema, sample: &Sample) -> Result<()> {
    let given = statistics(source)?;
    let mut insert = copy.prepare("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?1, ?2, ?3)")?;
    for table in &schema.tables {
        let rows = sample.rows(&table.name);
        let lines: Vec<&Line> =
            given.iter().filter(|line| line.0.eq_ignore_ascii_case(&table.name)).collect();
        // Partial indexes have fewer entries than the table has rows.
        let said = lines.iter().filter_map(|line| entries(&line.2)).fold(0.0, f64::max);
        let believed = said > 0.0 && rows <= said * STALE && said <= rows * STALE;
        if believed {
            for (table, index, stat) in &lines {
                insert.execute(params![table, index, stat])?;
            }
            copy_samples(source, copy, &table.name)?;
        }
        let mut any = believed;
        for index in schema.indexes_of(&table.name) {
            let has = |(_, name, _): &&Line| name.as_deref().is_some_and(|name| name == index.name);
            if believed && lines.iter().any(has) {
                continue;
            }
            let stat = sample.stat(&table.name, &index.keys, index.keys.len(), index.condition.as_deref());
            if let Some(stat) = stat {
                insert.execute(params![table.name, index.name, stat])?;
                any |= index.condition.is_none();
            }
        }
        if !any && rows > 0.0 {
            insert.execute(params![table.name, None::<String>, format!("{rows}")])?;
        }
    }
    Ok(())
}

/// A table, an index of it, and what is known of that.
type Line = (String, Option<String>, String);

fn statistics(source: &Connection) -> Result<Vec<Line>> {
    if !has_table(source, "sqlite_stat1")? {
        return Ok(Vec::new());
    }
    let mut lines =
        source.prepare("SELECT tbl, idx, stat FROM sqlite_stat1 WHERE tbl NOT NULL AND stat NOT NULL")?;
    lines.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// The first number of a line.
fn entries(stat: &str) -> Option<f64> {
    stat.split_whitespace().next()?.parse().ok()
}

/// Copies the samples of keys that `ANALYZE` took, where this SQLite takes them.
fn copy_samples(source: &Connection, copy: &Connection, table: &str) -> Result<()> {
    if !has_table(source, "sqlite_stat4")? || !has_table(copy, "sqlite_stat4")? {
        return Ok(());
    }
    let mut samples = source
        .prepare("SELECT tbl, idx, neq, nlt, ndlt, sample FROM sqlite_stat4 WHERE tbl = ?1 COLLATE NOCASE")?;
    let mut insert = copy.prepare("INSERT INTO sqlite_stat4 VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut rows = samples.query([table])?;
    while let Some(row) = rows.next()? {
        let values: Vec<rusqlite::types::Value> =
            (0..6).map(|column| row.get(column)).collect::<Result<_>>()?;
        insert.execute(rusqlite::params_from_iter(values))?;
    }
    Ok(())
}

fn has_table(connection: &Connection, name: &str) -> Result<bool> {
    connection.query_row("SELECT count(*) > 0 FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0))
}
