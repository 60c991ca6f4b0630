//! From a candidate to its statement, its name and its size.

use std::collections::BTreeSet;

use super::{
    catalog::{Catalog, Column, Table},
    session::quoted,
};
use crate::index_advisor::usage::{
    Key,
    candidate::{Candidate, Flavour},
};

/// PostgreSQL cuts longer names.
const MAX_NAME: usize = 63;
const PAGE: f64 = 8192.0;

/// What PostgreSQL would be told.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    /// `USING method (keys) INCLUDE (columns) WHERE condition`.
    pub(super) body: String,
    pub(super) method: &'static str,
    pub(super) bytes: f64,
    /// How many rows it has an entry for.
    pub(super) entries: f64,
}

impl Definition {
    /// `None` where PostgreSQL has no such index.
    pub(super) fn new(catalog: &Catalog, candidate: &Candidate, share: f64) -> Option<Self> {
        let table = &catalog.tables[candidate.table];
        let method = method(catalog, table, candidate)?;
        let parts: Option<Vec<String>> = candidate
            .parts
            .iter()
            .map(|part| {
                let mut text = match &part.key {
                    Key::Column(column) => quoted(&table.columns.get(*column)?.name),
                    Key::Expression(text, _) => format!("({text})"),
                };
                match (part.flavour, first_column(table, &part.key)?) {
                    (Flavour::Pattern, column) if !column.bytewise => {
                        text.push_str(pattern_class(&column.kind)?)
                    }
                    (Flavour::Search, _) => text.push_str(" gin_trgm_ops"),
                    (Flavour::Contains, column) if column.kind == "jsonb" => text.push_str(" jsonb_path_ops"),
                    _ => {}
                }
                if part.descending {
                    text.push_str(" DESC");
                }
                if let Some(first) = part.nulls_first {
                    text.push_str(if first { " NULLS FIRST" } else { " NULLS LAST" });
                }
                Some(text)
            })
            .collect();
        let mut body = format!("({})", parts?.join(", "));
        if method != "btree" {
            body.insert_str(0, &format!("USING {method} "));
        }
        if !candidate.include.is_empty() {
            let names: Vec<String> =
                candidate.include.iter().map(|column| quoted(&table.columns[*column].name)).collect();
            body.push_str(&format!(" INCLUDE ({})", names.join(", ")));
        }
        if !candidate.condition.is_empty() {
            let conditions: Vec<&str> = candidate.condition.iter().map(String::as_str).collect();
            body.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
        }
        let entries = (table.rows * share).max(1.0);
        Some(Self { body, method, bytes: bytes(catalog, candidate, method, entries), entries })
    }

    pub(super) fn create(&self, table: &str) -> String {
        format!("CREATE INDEX ON {table} {}", self.body)
    }
}

/// The index type that answers it; `None` if none does.
fn method(catalog: &Catalog, table: &Table, candidate: &Candidate) -> Option<&'static str> {
    let kind = |key: &Key| first_column(table, key);
    let sortable = |column: &Column| {
        !["json", "xml", "point", "box", "circle", "polygon", "path", "line", "lseg"]
            .contains(&column.kind.as_str())
    };
    match candidate.flavour() {
        Flavour::Plain | Flavour::Pattern => {
            let plain = |key: &Key| matches!(key, Key::Expression(..)) || kind(key).is_some_and(sortable);
            candidate.parts.iter().all(|part| plain(&part.key)).then_some("btree")
        }
        Flavour::Summary => Some("brin"),
        Flavour::Search => catalog.trigrams.then_some("gin"),
        Flavour::Contains | Flavour::HasKey => {
            let column = kind(&candidate.parts.first()?.key)?;
            match (column.kind.as_str(), column.category.as_str()) {
                ("jsonb" | "tsvector", _) | (_, "A") => Some("gin"),
                (_, "R") => Some("gist"),
                _ if matches!(candidate.parts.first()?.key, Key::Expression(..)) => Some("gin"),
                _ => None,
            }
        }
    }
}

fn first_column<'t>(table: &'t Table, key: &Key) -> Option<&'t Column> {
    table.columns.get(key.columns().into_iter().next()?)
}

fn pattern_class(kind: &str) -> Option<&'static str> {
    match kind {
        "text" | "citext" => Some(" text_pattern_ops"),
        "varchar" => Some(" varchar_pattern_ops"),
        "bpchar" => Some(" bpchar_pattern_ops"),
        _ => None,
    }
}

/// What the index takes, estimated from its entries. A B-tree stores the rows of equal keys together since
/// PostgreSQL 13, with 6 bytes for each row, unless the type has equal values that look different.
fn bytes(catalog: &Catalog, candidate: &Candidate, method: &str, entries: f64) -> f64 {
    let table = &catalog.tables[candidate.table];
    let mut key = 0.0;
    let mut nulls = 0.0_f64;
    let mut add = |column: &Column| {
        key = (key / column.align).ceil() * column.align + column.width * (1.0 - column.nulls);
        nulls = nulls.max(column.nulls);
    };
    let mut exact = candidate.include.is_empty();
    let mut distinct = 1.0;
    for part in &candidate.parts {
        if let Some(column) = first_column(table, &part.key) {
            add(column);
            exact &= !["numeric", "float4", "float8", "jsonb"].contains(&column.kind.as_str());
        }
        distinct *= catalog.distinct(candidate.table, &part.key);
    }
    candidate.include.iter().for_each(|column| add(&table.columns[*column]));
    let tuple = 8.0 + (key / 8.0).ceil() * 8.0 + 4.0;
    let (leaf, fill) = match method {
        "brin" => (table.pages / 128.0 * (tuple + 8.0) + 2.0 * PAGE, 1.0),
        // Each row has several entries; posting lists are compressed.
        "gin" => (entries * (key / 2.0).max(8.0), 0.8),
        "gist" => (entries * (tuple + 8.0), 0.7),
        _ if exact && distinct < entries / 2.0 => (entries * 6.0 + distinct * tuple, 0.9),
        _ => (entries * tuple, 0.9),
    };
    2.0 * PAGE + leaf / fill
}

/// A name that tells the table and the keys, and is nobody's yet.
pub(super) fn name(catalog: &Catalog, candidate: &Candidate, chosen: &BTreeSet<String>) -> String {
    let table = &catalog.tables[candidate.table];
    let mut words = vec![table.name.clone()];
    for part in &candidate.parts {
        match &part.key {
            Key::Column(column) => words.push(table.columns[*column].name.clone()),
            Key::Expression(text, _) => words.push(text.clone()),
        }
    }
    let mut base: String =
        words.join("_").to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    while base.contains("__") {
        base = base.replace("__", "_");
    }
    let base = base.trim_matches('_');
    let mut number = 1_usize;
    loop {
        let end = if number == 1 { "_idx".to_owned() } else { format!("_idx{number}") };
        let mut name = base.to_owned();
        while name.len() + end.len() > MAX_NAME {
            name.pop();
        }
        name.push_str(&end);
        if !catalog.taken.contains(&name) && !chosen.contains(&name) {
            return name;
        }
        number += 1;
    }
}
