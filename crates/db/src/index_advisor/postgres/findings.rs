//! What is wrong with the indexes and tables that exist.

use sqlx::{Row, postgres::PgRow};

use super::session::{Session, database, quoted};
use crate::index_advisor::{Error, Finding};

const READING: &str = "read the catalog";

/// A name as a reader and as SQL needs it: with its schema where that is not searched.
const TABLE: &str = "CASE WHEN pg_table_is_visible(t.oid) THEN quote_ident(t.relname)
                          ELSE quote_ident(n.nspname) || '.' || quote_ident(t.relname) END";

/// The indexes, each part of a key with its operator class, collation and order. What a B-tree's entries need is
/// estimated from their number and their columns' widths, for those of 10 MB and more.
const INDEXES: &str = "
    SELECT quote_ident(c.relname), {table}, i.indisunique, i.indisvalid,
           i.indisprimary OR i.indisexclusion OR i.indisreplident
               OR EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid)
               OR EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid),
           m.amname::text, COALESCE(pg_get_expr(i.indpred, i.indrelid), ''),
           ARRAY(SELECT concat_ws(' ', pg_get_indexdef(c.oid, k, false), i.indclass[k - 1], i.indcollation[k - 1],
                                  i.indoption[k - 1]) FROM generate_series(1, i.indnkeyatts) k ORDER BY k),
           ARRAY(SELECT pg_get_indexdef(c.oid, k, false) FROM generate_series(1, i.indnatts) k ORDER BY k),
           pg_relation_size(c.oid)::int8,
           CASE WHEN m.amname = 'btree' AND pg_relation_size(c.oid) >= 10 << 20 AND c.reltuples >= 0 THEN
               16384 + c.reltuples::float8 / 0.9 * (12 + 8 * ceil((
                   SELECT sum(CASE WHEN a.attlen > 0 THEN a.attlen ELSE COALESCE((
                       SELECT w.avg_width FROM pg_stats w WHERE w.schemaname = n.nspname
                       AND w.tablename = CASE i.indkey[a.attnum - 1] WHEN 0 THEN c.relname ELSE t.relname END
                       AND w.attname = COALESCE((SELECT b.attname FROM pg_attribute b WHERE b.attrelid = t.oid
                                                 AND b.attnum = i.indkey[a.attnum - 1]), a.attname) LIMIT 1), 16) END)
                   FROM pg_attribute a
                   WHERE a.attrelid = c.oid) / 8.0)) END::int8,
           -- Creating an index reads the table once.
           COALESCE(x.idx_scan, 0) = 0 AND COALESCE(y.seq_scan, 0) + COALESCE(y.idx_scan, 0)
               > (SELECT count(*) FROM pg_index j WHERE j.indrelid = t.oid),
           EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.conrelid = t.oid
                   AND k.conkey[1] = i.indkey[0]),
           EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid),
           (SELECT to_char(d.stats_reset, 'YYYY-MM-DD') FROM pg_stat_database d WHERE d.datname = current_database())
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am m ON m.oid = c.relam
    LEFT JOIN pg_stat_all_indexes x ON x.indexrelid = c.oid LEFT JOIN pg_stat_all_tables y ON y.relid = t.oid
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND t.relkind IN ('r', 'm')
      AND t.relpersistence <> 't'
    ORDER BY n.nspname, t.relname, c.relname";

/// Foreign keys whose columns no index begins with, in any order.
const FOREIGN_KEYS: &str = "
    SELECT quote_ident(k.conname), {table},
           ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(number, place)
                 JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = u.number ORDER BY u.place)
    FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE k.contype = 'f' AND t.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%'
      AND NOT EXISTS (
          SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
          WHERE i.indrelid = t.oid AND i.indisvalid AND m.amname = 'btree' AND i.indnkeyatts >= cardinality(k.conkey)
            AND (i.indpred IS NULL OR pg_get_expr(i.indpred, t.oid) ~ '^\\([^ ]+ IS NOT NULL\\)$')
            AND (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
    ORDER BY n.nspname, t.relname, k.conname";

/// Large tables that are read from end to end, and not only once in a while.
const SCANS: &str = "
    SELECT {table}, y.seq_scan::int8, t.reltuples::int8
    FROM pg_stat_user_tables y JOIN pg_class t ON t.oid = y.relid JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE t.reltuples >= 10000 AND y.seq_scan >= 20 AND y.seq_tup_read::float8 / y.seq_scan >= t.reltuples / 2
      AND y.seq_scan::float8 >= 0.01 * (y.seq_scan + COALESCE(y.idx_scan, 0))
    ORDER BY y.seq_tup_read DESC";

/// From this many times what its entries need, an index counts as bloated.
const BLOAT: f64 = 2.5;

/// An index that exists.
struct Index {
    name: String,
    table: String,
    unique: bool,
    valid: bool,
    /// Whether something else relies on it.
    needed: bool,
    method: String,
    condition: String,
    /// The parts of its key, with all that tells them apart.
    key: Vec<String>,
    /// All that it holds.
    columns: Vec<String>,
    bytes: i64,
    needed_bytes: Option<i64>,
    unused: bool,
    serves_foreign_key: bool,
    being_built: bool,
    since: Option<String>,
}

impl Index {
    fn new(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get(0)?,
            table: row.try_get(1)?,
            unique: row.try_get(2)?,
            valid: row.try_get(3)?,
            needed: row.try_get(4)?,
            method: row.try_get(5)?,
            condition: row.try_get(6)?,
            key: row.try_get(7)?,
            columns: row.try_get(8)?,
            bytes: row.try_get(9)?,
            needed_bytes: row.try_get(10)?,
            unused: row.try_get(11)?,
            serves_foreign_key: row.try_get(12)?,
            being_built: row.try_get(13)?,
            since: row.try_get(14)?,
        })
    }

    /// Whether this index does all that the other does.
    fn replaces(&self, other: &Self) -> bool {
        let same =
            self.table == other.table && self.method == other.method && self.condition == other.condition;
        let key =
            if self.method == "btree" { self.key.starts_with(&other.key) } else { self.key == other.key };
        // Only a unique index on just these columns promises what a unique index does.
        let unique = !other.unique || (self.unique && self.key == other.key);
        let holds = other.columns.iter().all(|column| self.columns.contains(column));
        self.valid && same && key && unique && holds && !other.needed
    }

    fn bytes(&self) -> u64 {
        self.bytes.unsigned_abs()
    }
}

pub(super) async fn all(session: &mut Session<'_>) -> Result<Vec<Finding>, Error> {
    let failed = |error: sqlx::Error| database(READING, error);
    let rows = session.attempt(INDEXES.replace("{table}", TABLE)).await.map_err(failed)?;
    let indexes = rows.iter().map(Index::new).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut findings: Vec<Finding> = Vec::new();
    for (number, index) in indexes.iter().enumerate() {
        findings.extend(about(index, number, &indexes));
    }
    for row in session.attempt(FOREIGN_KEYS.replace("{table}", TABLE)).await.map_err(failed)? {
        let (constraint, table): (String, String) =
            (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let columns: Vec<String> = row.try_get(2).map_err(failed)?;
        let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
        let create = format!("CREATE INDEX CONCURRENTLY ON {table} ({})", columns.join(", "));
        findings.push(Finding::ForeignKeyWithoutIndex { constraint, table, create });
    }
    for row in session.attempt(SCANS.replace("{table}", TABLE)).await.map_err(failed)? {
        let count = |place: usize| row.try_get::<i64, _>(place).map(i64::unsigned_abs).map_err(failed);
        let (table, scans, rows) = (row.try_get(0).map_err(failed)?, count(1)?, count(2)?);
        findings.push(Finding::SequentialScans { table, scans, rows });
    }
    Ok(findings)
}

/// The worst that can be said of an index: what goes for one reason needs no second.
fn about(index: &Index, number: usize, all: &[Index]) -> Option<Finding> {
    let (name, table, bytes) = (index.name.clone(), index.table.clone(), index.bytes());
    if !index.valid {
        return (!index.being_built).then_some(Finding::InvalidIndex { index: name, table });
    }
    let by = all.iter().enumerate().find(|(other, candidate)| {
        // Of two alike, the first stays.
        *other != number && candidate.replaces(index) && (!index.replaces(candidate) || *other < number)
    });
    if let Some((_, by)) = by {
        return Some(Finding::DuplicateIndex { index: name, table, covered_by: by.name.clone(), bytes });
    }
    if index.unused && !index.unique && !index.needed && !index.serves_foreign_key {
        return Some(Finding::UnusedIndex { index: name, table, bytes, since: index.since.clone() });
    }
    let needed_bytes = index.needed_bytes?.unsigned_abs();
    let bloated = bytes as f64 > needed_bytes as f64 * BLOAT;
    bloated.then_some(Finding::BloatedIndex { index: name, table, bytes, needed_bytes })
}
