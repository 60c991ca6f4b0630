//! A statement of the workload, ready to be planned: with values in the place of its placeholders.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::dialect::PostgreSqlDialect;
use sqlx::Row;

use super::{
    catalog::Catalog,
    session::{Session, literal, quoted, words},
};
use crate::index_advisor::{
    WorkloadStatement,
    usage::{
        Key, Kind, Op, Parameter, Parsed, TableUse, functions,
        parameters::{replaced, typed_strings},
    },
};

/// A statement with placeholders is planned with this many sets of values, taken from rows of its tables.
const VARIANTS: usize = 3;
/// About as many rows are looked at for values.
const SAMPLED: f64 = 2000.0;
const SAMPLING_MS: f64 = 30_000.0;
const LIMIT: &str = "20";
const PREPARED: &str = "greenwave_advisor";

pub(super) struct Subject {
    pub(super) sql: String,
    pub(super) calls: f64,
    pub(super) parsed: Parsed,
    /// The statement with values, as often as it is planned.
    pub(super) variants: Vec<String>,
    /// Whether its values are such as it would really be called with.
    pub(super) realistic: bool,
}

impl Subject {
    /// Understands a statement, or says why not.
    pub(super) async fn new(
        session: &mut Session<'_>,
        catalog: &Catalog,
        statement: &WorkloadStatement,
        parsed: Parsed,
    ) -> Result<Self, String> {
        let sql = statement.sql.trim().trim_end_matches(';').to_owned();
        let (variants, realistic) = variants(session, catalog, &sql, &parsed).await?;
        Ok(Self { sql, calls: statement.calls, parsed, variants, realistic })
    }

    pub(super) fn tables(&self) -> BTreeSet<usize> {
        self.parsed.uses.iter().map(|table_use| table_use.table).collect()
    }

    /// Whether every row that it wants from the table meets the condition, whatever its parameters.
    pub(super) fn meets(&self, table: usize, condition: &BTreeSet<String>) -> bool {
        let met = |table_use: &TableUse, condition: &String| {
            table_use.predicates.iter().any(|predicate| predicate.constant.as_ref() == Some(condition))
        };
        let mut uses = self.parsed.uses.iter().filter(|table_use| table_use.table == table);
        uses.any(|table_use| condition.iter().all(|condition| met(table_use, condition)))
    }

    /// Whether it stores rows that it brings itself: then it has no plan to speak of.
    pub(super) fn inserts_values(&self) -> bool {
        matches!(self.parsed.kind, Kind::Insert { .. }) && self.parsed.uses.is_empty()
    }

    /// How many rows it stores a call, as far as its text tells.
    pub(super) fn inserted(&self) -> f64 {
        if let Kind::Insert { rows, .. } = self.parsed.kind { rows as f64 } else { 0.0 }
    }

    /// Whether it only reads.
    pub(super) fn reads(&self) -> bool {
        self.parsed.only_reads
    }
}

/// The statement with values, and whether they are realistic.
async fn variants(
    session: &mut Session<'_>,
    catalog: &Catalog,
    sql: &str,
    parsed: &Parsed,
) -> Result<(Vec<String>, bool), String> {
    let dialect = PostgreSqlDialect {};
    let sql = parsed.unlocked.as_deref().unwrap_or(sql);
    let sql = typed_strings(sql, &dialect);
    let mut names = BTreeSet::new();
    replaced(&sql, &dialect, |name| {
        names.insert(name.to_owned());
        String::new()
    });
    if names.is_empty() {
        return Ok((vec![sql], true));
    }
    if names.iter().any(|name| !name.starts_with('$')) {
        return Err("its placeholders are not PostgreSQL's `$1`".to_owned());
    }
    let mut samples = BTreeMap::new();
    for (number, table_use) in parsed.uses.iter().enumerate() {
        samples.insert(number, Sample::take(session, catalog, parsed, number, table_use).await);
    }
    let known = |name: &str, variant: usize| value(catalog, parsed, &samples, name, variant);
    let unknown = names.iter().any(|name| known(name, 0).is_none());
    let kinds = if unknown { kinds(session, &sql).await? } else { Vec::new() };
    let values = |variant: usize| {
        replaced(&sql, &dialect, |name| known(name, variant).unwrap_or_else(|| of_kind(&kinds, name)))
    };
    let mut variants: Vec<String> = (0..VARIANTS).map(values).collect();
    variants.dedup();
    Ok((variants, !unknown))
}

/// The types of a statement's parameters, as the server infers them.
async fn kinds(session: &mut Session<'_>, sql: &str) -> Result<Vec<String>, String> {
    let failed = |error: sqlx::Error| words(&error);
    session.attempt(format!("PREPARE {PREPARED} AS {sql}")).await.map_err(failed)?;
    let types =
        format!("SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = '{PREPARED}'");
    let rows = session.attempt(types).await;
    session.attempt(format!("DEALLOCATE {PREPARED}")).await.map_err(failed)?;
    let rows = rows.map_err(failed)?;
    Ok(rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default())
}

/// A value that the planner doesn't know either: it then plans for any.
fn of_kind(kinds: &[String], name: &str) -> String {
    let number = name.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    match number.and_then(|number| kinds.get(number)) {
        Some(kind) => format!("(SELECT NULL::{kind})"),
        None => "NULL".to_owned(),
    }
}

/// Values of the keys that a use compares with parameters.
#[derive(Default)]
struct Sample {
    keys: Vec<Key>,
    /// Some rows' values.
    rows: Vec<Vec<String>>,
    /// Of each key, its values at [`SHARES`] of its order.
    quantiles: Vec<Vec<String>>,
}

/// Of each variant: the middle, a little after it, the beginning, the end.
const SHARES: &str = "{0.3,0.32,0.02,0.95,0.5,0.52,0.05,0.97,0.7,0.72,0.08,0.99}";
const SHARES_A_VARIANT: usize = 4;

impl Sample {
    async fn take(
        session: &mut Session<'_>,
        catalog: &Catalog,
        parsed: &Parsed,
        number: usize,
        table_use: &TableUse,
    ) -> Self {
        let mut sample = Self::default();
        for parameter in parsed.parameters.values() {
            if let Parameter::Compared { table_use, key, .. } = parameter
                && *table_use == number
                && !sample.keys.contains(key)
            {
                sample.keys.push(key.clone());
            }
        }
        if sample.keys.is_empty() {
            return sample;
        }
        if !harmless(session, &sample.keys).await {
            return Self::default();
        }
        let table = &catalog.tables[table_use.table];
        let texts: Vec<String> = sample
            .keys
            .iter()
            .map(|key| match key {
                Key::Column(column) => quoted(&table.columns[*column].name),
                Key::Expression(text, _) => format!("({text})"),
            })
            .collect();
        let share = (SAMPLED / table.rows.max(1.0) * 100.0).clamp(0.001, 100.0);
        let from = |share: f64| format!("{} TABLESAMPLE SYSTEM ({share}) REPEATABLE (7)", table.full_name());
        let filled: Vec<String> = texts.iter().map(|text| format!("{text} IS NOT NULL")).collect();
        let columns: Vec<String> = texts.iter().map(|text| format!("{text}::text")).collect();
        for share in [share, (share * 50.0).min(100.0)] {
            // Different values, however rare: the frequent ones alone would tell nothing of the others.
            let sql = format!(
                "SELECT v FROM (SELECT DISTINCT ARRAY[{}] FROM {} WHERE {}) t(v) ORDER BY md5(v::text) LIMIT {VARIANTS}",
                columns.join(", "),
                from(share),
                filled.join(" AND ")
            );
            let rows = session.read(sql, SAMPLING_MS).await.unwrap_or_default();
            sample.rows = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
            if !sample.rows.is_empty() {
                break;
            }
        }
        for text in &texts {
            let sql = format!(
                "SELECT (percentile_disc('{SHARES}'::float8[]) WITHIN GROUP (ORDER BY {text}))::text[] FROM {}",
                from(share.max(SAMPLED / 10.0 / table.rows.max(1.0)))
            );
            let rows = session.read(sql, SAMPLING_MS).await.unwrap_or_default();
            sample.quantiles.push(rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default());
        }
        sample
    }
}

/// Whether nothing that could change anything is called when these are computed.
async fn harmless(session: &mut Session<'_>, keys: &[Key]) -> bool {
    let mut called = BTreeSet::new();
    for key in keys {
        if let Key::Expression(text, _) = key {
            match functions(text, &PostgreSqlDialect {}) {
                Some(functions) => called.extend(functions),
                None => return false,
            }
        }
    }
    called.is_empty() || session.functions(&called, true).await.is_ok_and(|harmless| harmless == called)
}

/// The text of a parameter's value; `None` where nothing is known of it.
fn value(
    catalog: &Catalog,
    parsed: &Parsed,
    samples: &BTreeMap<usize, Sample>,
    name: &str,
    variant: usize,
) -> Option<String> {
    let (number, key, op) = match parsed.parameters.get(name)? {
        Parameter::Limit => return Some(LIMIT.to_owned()),
        Parameter::Offset => return Some("0".to_owned()),
        Parameter::Compared { table_use, key, op } => (table_use, key, op),
    };
    let table_use = parsed.uses.get(*number)?;
    let sample = samples.get(number)?;
    let place = sample.keys.iter().position(|other| other == key)?;
    let row = sample.rows.get(variant % sample.rows.len().max(1))?.get(place)?;
    let column = key
        .columns()
        .into_iter()
        .next()
        .and_then(|column| catalog.tables[table_use.table].columns.get(column));
    let column = column.filter(|_| matches!(key, Key::Column(_)));
    let kind = column.map(|column| column.kind.as_str()).unwrap_or_default();
    Some(match op {
        Op::Lower | Op::Upper => {
            let quantiles = sample.quantiles.get(place)?;
            let has = |op: Op| table_use.predicates.iter().any(|other| other.key == *key && other.op == op);
            let share = match op {
                // Where only the first rows after a point are wanted, any point will do.
                _ if table_use.limited => 0,
                Op::Lower if has(Op::Upper) => 0,
                Op::Upper if has(Op::Lower) => 1,
                Op::Upper => 2,
                _ => 3,
            };
            typed(quantiles.get(variant * SHARES_A_VARIANT + share)?, kind)
        }
        Op::In => {
            let values: Vec<String> =
                sample.rows.iter().filter_map(|row| row.get(place)).map(|value| element(value)).collect();
            literal(&format!("{{{}}}", values.join(",")))
        }
        Op::Prefix => literal(&format!("{}%", row.chars().take(4).collect::<String>())),
        Op::Search => literal(&format!("%{}%", row.chars().skip(1).take(4).collect::<String>())),
        Op::Contains if kind == "tsvector" => literal(between(row, '\'')?),
        Op::HasKey => literal(between(row, '"')?),
        _ => typed(row, kind),
    })
}

/// A value with its type, where an operator might otherwise take it for another: `$1 - interval '1 day'`.
fn typed(value: &str, kind: &str) -> String {
    let ambiguous =
        ["date", "timestamp", "timestamptz", "time", "int2", "int4", "int8", "numeric", "float4", "float8"];
    let text = literal(value);
    if ambiguous.contains(&kind) { format!("{text}::{kind}") } else { text }
}

/// A value as an array's text has it.
fn element(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn between(text: &str, quote: char) -> Option<&str> {
    text.split(quote).nth(1)
}
