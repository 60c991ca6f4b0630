//! What the database knows about its tables.

use std::collections::{BTreeSet, HashMap};

use sqlx::{Row, postgres::PgRow};

use super::session::{Session, database, quoted};
use crate::index_advisor::{
    Error,
    usage::{
        Key, Schema,
        candidate::{Candidate, Flavour},
    },
};

const READING: &str = "read the catalog";

const TABLES: &str = "
    SELECT c.oid::int8, n.nspname::text, c.relname::text, pg_table_is_visible(c.oid),
           CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 100 END::float8,
           (pg_relation_size(c.oid) / 8192)::float8
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname NOT LIKE 'pg\\_%'
      AND n.nspname <> 'information_schema'
    ORDER BY c.oid";

const COLUMNS: &str = "
    SELECT a.attrelid::int8, a.attname::text, t.typname::text, t.typcategory::text, a.attlen::int4,
           CASE t.typalign WHEN 'd' THEN 8 WHEN 'i' THEN 4 WHEN 's' THEN 2 ELSE 1 END,
           COALESCE(CASE WHEN l.collname = 'default' THEN d.datcollate ELSE l.collcollate END IN ('C', 'POSIX'), false)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation
    JOIN pg_database d ON d.datname = current_database()
    WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum";

const STATISTICS: &str = "
    SELECT c.oid::int8, s.attname::text, s.null_frac::float8, s.avg_width::float8, s.n_distinct::float8,
           COALESCE(s.correlation, 0)::float8, s.most_common_vals::text::text[], s.most_common_freqs::float8[]
    FROM pg_stats s JOIN pg_namespace n ON n.nspname = s.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.tablename
    WHERE c.oid = ANY($1::oid[]) AND NOT s.inherited";

const VIEWS: &str = "
    SELECT n.nspname::text, c.relname::text, pg_table_is_visible(c.oid), pg_get_viewdef(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'v' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'";

const INDEXES: &str = "
    SELECT i.indrelid::int8, i.indisvalid,
           ARRAY(SELECT COALESCE(a.attname::text, '') FROM unnest(i.indkey) WITH ORDINALITY k(number, place)
                 LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place),
           ARRAY(SELECT unnest(i.indoption)), i.indpred IS NOT NULL, m.amname::text, pg_get_indexdef(i.indexrelid),
           i.indisunique
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am m ON m.oid = c.relam
    WHERE i.indrelid = ANY($1::oid[])";

/// A table that may be indexed.
pub(super) struct Table {
    oid: i64,
    pub(super) schema: String,
    pub(super) name: String,
    visible: bool,
    pub(super) rows: f64,
    pub(super) pages: f64,
    pub(super) columns: Vec<Column>,
    pub(super) indexes: Vec<Index>,
}

impl Table {
    /// Its name as SQL needs it, with its schema.
    pub(super) fn full_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// Its name as a reader needs it.
    pub(super) fn short_name(&self) -> String {
        if self.visible { quoted(&self.name) } else { self.full_name() }
    }
}

#[derive(Default)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: String,
    /// PostgreSQL's own letter: A an array, B a boolean, S a string, R a range.
    pub(super) category: String,
    pub(super) width: f64,
    pub(super) align: f64,
    /// Whether it sorts by bytes.
    pub(super) bytewise: bool,
    pub(super) nulls: f64,
    /// How many values it has; 0 where that is not known.
    pub(super) distinct: f64,
    pub(super) correlation: f64,
    pub(super) common: Vec<(String, f64)>,
}

/// An index that exists.
pub(super) struct Index {
    pub(super) valid: bool,
    /// Its columns; empty names are expressions.
    pub(super) columns: Vec<String>,
    /// Of each part of the key: 1 where it descends, 2 where nulls come first.
    pub(super) options: Vec<i16>,
    pub(super) partial: bool,
    pub(super) method: String,
    pub(super) definition: String,
    unique: bool,
}

impl Index {
    /// The columns of its key.
    pub(super) fn keys(&self) -> &[String] {
        &self.columns[..self.options.len().min(self.columns.len())]
    }
}

#[derive(Default)]
pub(super) struct Catalog {
    pub(super) tables: Vec<Table>,
    names: HashMap<(Option<String>, String), usize>,
    views: HashMap<(Option<String>, String), String>,
    /// Names that an index may not have.
    pub(super) taken: BTreeSet<String>,
    /// Whether `gin_trgm_ops` exists.
    pub(super) trigrams: bool,
}

impl Catalog {
    /// The tables, without their statistics.
    pub(super) async fn load(session: &mut Session<'_>) -> Result<Self, Error> {
        let mut catalog = Self::default();
        for row in session.about(READING, TABLES, &[]).await? {
            catalog.table_of(&row).map_err(|error| database(READING, error))?;
        }
        let by_oid = catalog.by_oid();
        let oids: Vec<i64> = catalog.tables.iter().map(|table| table.oid).collect();
        for row in session.about(READING, COLUMNS, &oids).await? {
            let (table, column) = column_of(&row).map_err(|error| database(READING, error))?;
            if let Some(table) = by_oid.get(&table) {
                catalog.tables[*table].columns.push(column);
            }
        }
        for row in session.about(READING, VIEWS, &[]).await? {
            catalog.view_of(&row).map_err(|error| database(READING, error))?;
        }
        for row in session.about(READING, "SELECT relname::text FROM pg_class", &[]).await? {
            catalog.taken.insert(row.try_get(0).map_err(|error| database(READING, error))?);
        }
        let trigrams =
            "SELECT 1 FROM pg_opclass WHERE opcname = 'gin_trgm_ops' AND pg_opclass_is_visible(oid)";
        catalog.trigrams = !session.about(READING, trigrams, &[]).await?.is_empty();
        Ok(catalog)
    }

    /// Adds what is known about the values of these tables, and their indexes.
    pub(super) async fn load_statistics(
        &mut self,
        session: &mut Session<'_>,
        tables: &BTreeSet<usize>,
    ) -> Result<(), Error> {
        let by_oid = self.by_oid();
        let oids: Vec<i64> = tables.iter().map(|table| self.tables[*table].oid).collect();
        for row in session.about(READING, STATISTICS, &oids).await? {
            self.statistics_of(&row, &by_oid).map_err(|error| database(READING, error))?;
        }
        for row in session.about(READING, INDEXES, &oids).await? {
            self.index_of(&row, &by_oid).map_err(|error| database(READING, error))?;
        }
        Ok(())
    }

    fn by_oid(&self) -> HashMap<i64, usize> {
        self.tables.iter().enumerate().map(|(number, table)| (table.oid, number)).collect()
    }

    fn table_of(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        let table = Table {
            oid: row.try_get(0)?,
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
            visible: row.try_get(3)?,
            rows: row.try_get(4)?,
            pages: row.try_get(5)?,
            columns: Vec::new(),
            indexes: Vec::new(),
        };
        let number = self.tables.len();
        self.names.insert((Some(table.schema.clone()), table.name.clone()), number);
        if table.visible {
            self.names.insert((None, table.name.clone()), number);
        }
        self.tables.push(table);
        Ok(())
    }

    fn view_of(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        let (schema, name, visible, definition): (String, String, bool, Option<String>) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let definition = definition.unwrap_or_default();
        if visible {
            self.views.insert((None, name.clone()), definition.clone());
        }
        self.views.insert((Some(schema), name), definition);
        Ok(())
    }

    fn statistics_of(&mut self, row: &PgRow, by_oid: &HashMap<i64, usize>) -> Result<(), sqlx::Error> {
        let (oid, name): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        let Some(table) = by_oid.get(&oid).map(|table| &mut self.tables[*table]) else { return Ok(()) };
        let rows = table.rows;
        let Some(column) = table.columns.iter_mut().find(|column| column.name == name) else { return Ok(()) };
        column.nulls = row.try_get(2)?;
        column.width = row.try_get(3)?;
        let distinct: f64 = row.try_get(4)?;
        column.distinct = if distinct < 0.0 { -distinct * rows } else { distinct };
        column.correlation = row.try_get(5)?;
        let values: Option<Vec<String>> = row.try_get(6)?;
        let frequencies: Option<Vec<f64>> = row.try_get(7)?;
        column.common = values.unwrap_or_default().into_iter().zip(frequencies.unwrap_or_default()).collect();
        Ok(())
    }

    fn index_of(&mut self, row: &PgRow, by_oid: &HashMap<i64, usize>) -> Result<(), sqlx::Error> {
        let table: i64 = row.try_get(0)?;
        let Some(table) = by_oid.get(&table) else { return Ok(()) };
        self.tables[*table].indexes.push(Index {
            valid: row.try_get(1)?,
            columns: row.try_get(2)?,
            options: row.try_get(3)?,
            partial: row.try_get(4)?,
            method: row.try_get(5)?,
            definition: row.try_get(6)?,
            unique: row.try_get(7)?,
        });
        Ok(())
    }

    /// Whether an index that exists does all that the candidate would.
    pub(super) fn exists(&self, candidate: &Candidate) -> bool {
        let table = &self.tables[candidate.table];
        if !candidate.condition.is_empty() {
            // An index with all rows does not find the few as well.
            return false;
        }
        let name = |column: &usize| table.columns.get(*column).map(|column| &column.name);
        let mut parts = Vec::new();
        for part in &candidate.parts {
            match (&part.key, part.flavour) {
                (Key::Column(column), Flavour::Plain) => parts.push((name(column), part)),
                _ => return false,
            }
        }
        let same = |index: &Index, flipped: bool| {
            index.keys().len() >= parts.len()
                && parts.iter().zip(index.keys()).zip(&index.options).all(|(((name, part), key), option)| {
                    let (descends, nulls_first) = (option & 1 == 1, option & 2 == 2);
                    let wanted = part.nulls_first.unwrap_or(part.descending);
                    *name == Some(key)
                        && (descends != flipped) == part.descending
                        && (nulls_first != flipped) == wanted
                })
        };
        table.indexes.iter().any(|index| {
            index.valid
                && !index.partial
                && index.method == "btree"
                && (same(index, false) || same(index, true))
                && candidate
                    .include
                    .iter()
                    .all(|column| name(column).is_some_and(|name| index.columns.contains(name)))
        })
    }

    /// Whether the candidate's key goes on after columns that are unique already: there is nothing left to tell apart.
    pub(super) fn goes_on_after_unique(&self, candidate: &Candidate) -> bool {
        let table = &self.tables[candidate.table];
        let leads = |index: &Index| {
            let names = candidate.parts.iter().map(|part| match &part.key {
                Key::Column(column) => table.columns.get(*column).map(|column| column.name.as_str()),
                Key::Expression(..) => None,
            });
            let lead: Vec<Option<&str>> = names.take(index.keys().len()).collect();
            index.keys().len() < candidate.parts.len()
                && index.keys().iter().all(|key| lead.contains(&Some(key)))
        };
        table.indexes.iter().any(|index| index.unique && index.valid && !index.partial && leads(index))
    }

    /// How many values a key has, about.
    pub(super) fn distinct(&self, table: usize, key: &Key) -> f64 {
        let table = &self.tables[table];
        let known = |column: usize| {
            let distinct = table.columns.get(column).map_or(0.0, |column| column.distinct);
            if distinct > 0.0 { distinct } else { (table.rows / 10.0).clamp(1.0, 200.0) }
        };
        let product: f64 = key.columns().into_iter().map(known).product();
        product.clamp(1.0, table.rows.max(1.0))
    }
}

fn column_of(row: &PgRow) -> Result<(i64, Column), sqlx::Error> {
    let length: i32 = row.try_get(4)?;
    let column = Column {
        name: row.try_get(1)?,
        kind: row.try_get(2)?,
        category: row.try_get(3)?,
        width: if length > 0 { f64::from(length) } else { 16.0 },
        align: f64::from(row.try_get::<i32, _>(5)?),
        bytewise: row.try_get(6)?,
        ..Column::default()
    };
    Ok((row.try_get(0)?, column))
}

impl Schema for Catalog {
    fn table(&self, schema: Option<&str>, name: &str) -> Option<usize> {
        self.names.get(&(schema.map(str::to_owned), name.to_owned())).copied()
    }

    fn column(&self, table: usize, name: &str) -> Option<usize> {
        self.tables.get(table)?.columns.iter().position(|column| column.name == name)
    }

    fn columns(&self, table: usize) -> Vec<String> {
        self.tables[table].columns.iter().map(|column| column.name.clone()).collect()
    }

    fn view(&self, schema: Option<&str>, name: &str) -> Option<String> {
        self.views.get(&(schema.map(str::to_owned), name.to_owned())).cloned()
    }
}
