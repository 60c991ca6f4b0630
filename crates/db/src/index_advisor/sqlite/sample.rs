//! A sample of each table, from which is estimated what no statistics tell.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use rusqlite::{
    Connection, OptionalExtension, Result, Statement,
    types::{ToSqlOutput, Value, ValueRef},
};

use super::schema::{Key, Schema, Table, quoted};

/// The most rows of a table that are read.
const MAX_ROWS: u32 = 10_000;
/// The most bytes of a table that are kept.
const MAX_BYTES: usize = 16 << 20;
/// Up to here rows are counted, beyond that estimated.
const MAX_COUNTED: i64 = 1_000_000;
/// Places at which the density of a large table's row numbers is measured, and row numbers at each.
const PROBES: (i64, i64) = (100, 100);
/// The golden ratio, less one.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// Rows of the tables, in memory.
pub(super) struct Sample {
    /// Whether LIKE tells 'a' from 'A'.
    pub(super) like_is_exact: bool,
    db: Connection,
    sizes: HashMap<String, Size>,
    known: RefCell<HashMap<String, Option<(f64, f64)>>>,
}

#[derive(Clone, Copy)]
struct Size {
    rows: f64,
    sampled: f64,
}

impl Sample {
    /// Reads the sample. A table that cannot be read, for it needs a function or a collation that is not there, is
    /// left out.
    pub(super) fn read(source: &Connection, schema: &Schema) -> Result<Self> {
        let db = Connection::open_in_memory()?;
        // A setting that can only be seen by its effect.
        let like_is_exact = source.query_row("SELECT NOT ('a' LIKE 'A')", (), |row| row.get(0))?;
        db.execute_batch(&format!(
            "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; PRAGMA case_sensitive_like = {like_is_exact}"
        ))?;
        let mut sizes = HashMap::new();
        for table in &schema.tables {
            let rows = count(source, table)?;
            if db.execute_batch(&table.sql).is_ok() {
                let sampled = f64::from(copy_some(source, &db, table, rows)?);
                sizes.insert(table.name.to_lowercase(), Size { rows: rows.max(sampled), sampled });
            } else {
                sizes.insert(table.name.to_lowercase(), Size { rows, sampled: 0.0 });
            }
        }
        Ok(Self { like_is_exact, db, sizes, known: RefCell::default() })
    }

    fn size(&self, table: &str) -> Size {
        self.sizes.get(&table.to_lowercase()).copied().unwrap_or(Size { rows: 0.0, sampled: 0.0 })
    }

    /// The rows of the table.
    pub(super) fn rows(&self, table: &str) -> f64 {
        self.size(table).rows
    }

    /// The part of the table's rows that meet the condition; none where that cannot be told.
    pub(super) fn fraction(&self, table: &str, condition: &str) -> Option<f64> {
        let sampled = self.size(table).sampled;
        if sampled < 1.0 {
            return None;
        }
        let sql = format!("SELECT count(*), 0 FROM {} WHERE {condition}", quoted(table));
        let (found, _) = self.ask(sql)?;
        // None in the sample may be a few in the table.
        Some(if found < 1.0 { 0.5 / sampled } else { found / sampled })
    }

    /// How many different values the keys together have in the rows that meet the condition, estimated as PostgreSQL
    /// does: Haas and Stokes, "Estimating the Number of Classes in a Finite Population", estimator Duj1.
    pub(super) fn distinct(&self, table: &str, keys: &[String], condition: Option<&str>) -> Option<f64> {
        let Size { rows, sampled } = self.size(table);
        let part = condition.map_or(Some(1.0), |condition| self.fraction(table, condition))?;
        let (rows, sampled) = (rows * part, sampled * part);
        if sampled < 1.0 || keys.is_empty() {
            return None;
        }
        let filter = condition.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        let mut keys = keys.to_vec();
        keys.sort();
        let groups =
            format!("SELECT count(*) AS n FROM {}{filter} GROUP BY {}", quoted(table), keys.join(", "));
        let (distinct, once) = self.ask(format!("SELECT count(*), total(n = 1) FROM ({groups})"))?;
        let estimate = sampled * distinct / (sampled - once + once * sampled / rows);
        Some(estimate.clamp(distinct.max(1.0), rows.max(1.0)))
    }

    /// What `sqlite_stat1` would say about an index: its entries, then for each prefix of its key how many of them have
    /// the same value. Beyond the first `told_apart` parts of the key that number is taken to stay.
    pub(super) fn stat(
        &self,
        table: &str,
        keys: &[Key],
        told_apart: usize,
        condition: Option<&str>,
    ) -> Option<String> {
        let part = condition.map_or(Some(1.0), |condition| self.fraction(table, condition))?;
        let entries = (self.rows(table) * part).ceil();
        let mut stat = format!("{entries}");
        let mut alike = entries;
        for length in 1..=keys.len() {
            if length <= told_apart {
                let prefix: Vec<String> = keys[..length].iter().map(collated).collect();
                alike =
                    (entries / self.distinct(table, &prefix, condition)?).round().clamp(1.0, alike.max(1.0));
            }
            stat.push_str(&format!(" {alike}"));
        }
        Some(stat)
    }

    /// The size of an index in bytes.
    pub(super) fn bytes(&self, table: &Table, keys: &[Key], condition: Option<&str>) -> u64 {
        let part = condition.and_then(|condition| self.fraction(&table.name, condition)).unwrap_or(1.0);
        let mut columns: Vec<String> = keys.iter().map(Key::sql).collect();
        if table.without_rowid {
            let own = |name: &&str| !keys.iter().any(|key| key.expression.eq_ignore_ascii_case(name));
            columns.extend(table.primary_key().into_iter().filter(own).map(quoted));
        }
        // As SQLite's records are: integers as short as they are, and a byte or two to say what each value is.
        let width = |column: &String| {
            format!(
                "CASE typeof({column}) WHEN 'null' THEN 1 WHEN 'real' THEN 9 WHEN 'integer' THEN \
                 CASE WHEN {column} IN (0, 1) THEN 1 WHEN {column} BETWEEN -128 AND 127 THEN 2 \
                 WHEN {column} BETWEEN -32768 AND 32767 THEN 3 WHEN {column} BETWEEN -8388608 AND 8388607 THEN 4 \
                 WHEN {column} BETWEEN -2147483648 AND 2147483647 THEN 5 WHEN {column} BETWEEN -140737488355328 AND \
                 140737488355327 THEN 7 ELSE 9 END ELSE length(CAST({column} AS BLOB)) + 1 + (length({column}) > 57) END"
            )
        };
        let widths: Vec<String> = columns.iter().map(width).collect();
        let filter = condition.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        let sql = format!("SELECT avg({}), 0 FROM {}{filter}", widths.join(" + "), quoted(&table.name));
        let payload = self.ask(sql).map_or(16.0 * columns.len() as f64, |(width, _)| width);
        let rows = self.rows(&table.name);
        let rowid = if table.without_rowid { 0.0 } else { 1.0 + bytes_of_integer(rows) };
        // A header of a byte, a length of a byte, a pointer of two; pages are full when an index is made.
        let entry = payload + rowid + 4.0;
        let pages = (rows * part * entry / 4080.0).ceil().max(1.0);
        pages as u64 * 4096
    }

    /// A value that the expression has: of the row at that part of the sample, from 0 to 1.
    pub(super) fn value(&self, table: &str, expression: &str, at: f64) -> Option<Value> {
        let offset = (self.size(table).sampled * at) as i64;
        let sql = format!("SELECT {expression} FROM {} LIMIT 1 OFFSET {offset}", quoted(table));
        self.db.query_row(&sql, (), |row| row.get(0)).optional().ok().flatten()
    }

    /// The two numbers that a statement about the sample returns; asked once.
    fn ask(&self, sql: String) -> Option<(f64, f64)> {
        if let Some(known) = self.known.borrow().get(&sql) {
            return *known;
        }
        let numbers =
            self.db.query_row(&sql, (), |row| Ok((row.get::<_, f64>(0)?, row.get::<_, f64>(1)?))).ok();
        self.known.borrow_mut().insert(sql, numbers);
        numbers
    }
}

/// A key as values of it are told apart.
fn collated(key: &Key) -> String {
    match key.collation.as_str() {
        "" | "BINARY" => key.sql(),
        collation => format!("{} COLLATE {}", key.sql(), quoted(collation)),
    }
}

fn bytes_of_integer(value: f64) -> f64 {
    (value.max(2.0).log2() / 8.0).ceil()
}

/// The rows of a table: counted, or estimated where they are many.
fn count(source: &Connection, table: &Table) -> Result<f64> {
    let name = quoted(&table.name);
    let rowids = table.rowid().map(|rowid| Rowids::read(source, &name, rowid)).transpose()?;
    let limit = if rowids.is_none() { i64::MAX } else { MAX_COUNTED };
    let counted = format!("SELECT count(*) FROM (SELECT 1 FROM {name} LIMIT {limit})");
    let counted: i64 = source.query_row(&counted, (), |row| row.get(0))?;
    let Some(Rowids { rowid, first, span }) = rowids.filter(|_| counted == limit) else {
        return Ok(counted as f64);
    };
    let mut probe = source.prepare(&format!(
        "SELECT count(*) FROM (SELECT 1 FROM {name} WHERE {rowid} >= ?1 AND {rowid} - ?1 < ?2 LIMIT ?2)"
    ))?;
    let (places, width) = PROBES;
    let mut found = 0;
    for place in 0..places {
        let at = first.saturating_add((span / places as f64 * place as f64) as i64);
        found += probe.query_row([at, width], |row| row.get::<_, i64>(0))?;
    }
    let density = found as f64 / (places * width) as f64;
    Ok((span * density).max(counted as f64))
}

/// The numbers of a table's rows.
struct Rowids {
    /// Their name as SQL.
    rowid: String,
    first: i64,
    /// How many there could be.
    span: f64,
}

impl Rowids {
    fn read(source: &Connection, name: &str, rowid: &str) -> Result<Self> {
        let rowid = quoted(rowid);
        // Two subqueries, for each is then a look at one end of the table.
        let sql = format!("SELECT (SELECT min({rowid}) FROM {name}), (SELECT max({rowid}) FROM {name})");
        let ends =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?));
        let (first, last) = source.query_row(&sql, (), ends)?;
        let (first, last) = (first.unwrap_or(0), last.unwrap_or(0));
        Ok(Self { rowid, first, span: last as f64 - first as f64 + 1.0 })
    }
}

/// Copies every row of the table.
pub(super) fn copy_all(source: &Connection, copy: &Connection, table: &Table) -> Result<()> {
    let list = stored(table);
    let mut insert = Copy::new(copy, table, &list)?;
    let mut all = source.prepare(&format!("SELECT {list} FROM {}", quoted(&table.name)))?;
    let columns = all.column_count();
    let mut rows = all.query(())?;
    while let Some(row) = rows.next()? {
        insert.row(row, columns, 0)?;
    }
    Ok(())
}

/// The columns that a row is stored with, for a statement.
fn stored(table: &Table) -> String {
    let stored = table.columns.iter().filter(|column| !column.generated);
    stored.map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

/// Copies rows from all over the table; how many.
fn copy_some(source: &Connection, sample: &Connection, table: &Table, rows: f64) -> Result<u32> {
    let transaction = sample.unchecked_transaction()?;
    let mut copy = Copy::new(sample, table, &stored(table))?;
    let scattered = table.rowid().filter(|_| rows > f64::from(MAX_ROWS));
    if let Some(rowid) = scattered {
        copy_scattered(source, table, rowid, &mut copy)?;
        if copy.copied < MAX_ROWS / 100 && copy.bytes < MAX_BYTES {
            // Nearly all rows are close together, and some far away.
            sample.execute_batch(&format!("DELETE FROM {}", quoted(&table.name)))?;
            copy = Copy::new(sample, table, &stored(table))?;
            copy_strided(source, table, rows, &mut copy)?;
        }
    } else {
        copy_strided(source, table, rows, &mut copy)?;
    }
    let copied = copy.copied;
    drop(copy);
    transaction.commit()?;
    Ok(copied)
}

/// Copies the rows that are found at places spread over the row numbers.
fn copy_scattered(source: &Connection, table: &Table, rowid: &str, copy: &mut Copy<'_>) -> Result<()> {
    let (name, list) = (quoted(&table.name), stored(table));
    let Rowids { rowid, first, span } = Rowids::read(source, &name, rowid)?;
    let next = format!("SELECT {rowid}, {list} FROM {name} WHERE {rowid} >= ?1 ORDER BY {rowid} LIMIT 1");
    let mut next = source.prepare(&next)?;
    let columns = next.column_count() - 1;
    let mut seen = HashSet::new();
    for number in 0..MAX_ROWS {
        // Multiples of the golden ratio spread evenly however many of them there are, so a sample that ends early is
        // from all over the table too.
        let place = (f64::from(number) * GOLDEN).fract();
        let mut found = next.query([first.saturating_add((span * place) as i64)])?;
        let Some(row) = found.next()? else { continue };
        let rowid: i64 = row.get(0)?;
        if seen.insert(rowid) && !copy.row(row, columns, 1)? {
            break;
        }
    }
    Ok(())
}

/// Copies every so many rows, from one end to the other.
fn copy_strided(source: &Connection, table: &Table, rows: f64, copy: &mut Copy<'_>) -> Result<()> {
    let stride = (rows / f64::from(MAX_ROWS)).ceil().max(1.0) as usize;
    let mut all = source.prepare(&format!("SELECT {} FROM {}", stored(table), quoted(&table.name)))?;
    let columns = all.column_count();
    let mut all = all.query(())?;
    let mut number = 0;
    while let Some(row) = all.next()? {
        number += 1;
        if number % stride == 0 && !copy.row(row, columns, 0)? {
            break;
        }
    }
    Ok(())
}

struct Copy<'c> {
    insert: Statement<'c>,
    copied: u32,
    bytes: usize,
}

impl<'c> Copy<'c> {
    fn new(into: &'c Connection, table: &Table, list: &str) -> Result<Self> {
        let marks = vec!["?"; table.columns.iter().filter(|column| !column.generated).count()].join(", ");
        let insert = into
            .prepare(&format!("INSERT OR IGNORE INTO {} ({list}) VALUES ({marks})", quoted(&table.name)))?;
        Ok(Self { insert, copied: 0, bytes: 0 })
    }

    /// Copies the row's columns from that one on; whether there is room for more.
    fn row(&mut self, row: &rusqlite::Row<'_>, columns: usize, from: usize) -> Result<bool> {
        for column in 0..columns {
            // As it is: text need not be UTF-8.
            let value = row.get_ref(from + column)?;
            self.bytes += size_of_value(value);
            self.insert.raw_bind_parameter(column + 1, ToSqlOutput::Borrowed(value))?;
        }
        self.copied += u32::try_from(self.insert.raw_execute()?).unwrap_or(0);
        Ok(self.bytes < MAX_BYTES)
    }
}

fn size_of_value(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
        _ => 8,
    }
}
