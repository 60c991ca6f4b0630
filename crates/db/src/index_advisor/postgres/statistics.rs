//! How many rows a statement reads, by the tables' statistics: what ranks indexes where hypopg is not to be had.

use std::collections::BTreeSet;

use super::{
    catalog::{Catalog, Column},
    plans::{Cost, Item},
    subject::Subject,
};
use crate::index_advisor::{
    Unit,
    usage::{Key, Kind, Op, Operand, Predicate, Schema, TableUse, candidate::Flavour},
};

/// How often a table is asked for the partners of another's rows.
const PROBES: f64 = 100.0;
/// How many rows a limit lets through.
const LIMITED: f64 = 20.0;

/// A part of an index's key, as far as this model sees it.
struct Access {
    keys: Vec<(Key, Flavour)>,
    /// The share of the table's rows that it has.
    share: f64,
    item: Option<usize>,
}

pub(super) fn rows_read(catalog: &Catalog, subject: &Subject, items: &[Item], set: &BTreeSet<usize>) -> Cost {
    let mut cost = Cost { unit: Unit::Rows, ..Cost::default() };
    for table_use in &subject.parsed.uses {
        let table = &catalog.tables[table_use.table];
        let existing =
            table.indexes.iter().filter(|index| index.valid && !index.partial && index.method == "btree");
        let mut accesses: Vec<Access> = existing
            .map(|index| {
                let keys = index.keys().iter().map_while(|name| catalog.column(table_use.table, name));
                Access {
                    keys: keys.map(|column| (Key::Column(column), Flavour::Plain)).collect(),
                    share: 1.0,
                    item: None,
                }
            })
            .collect();
        for item in set.iter().filter(|item| items[**item].candidate.table == table_use.table) {
            let Item { candidate, definition } = &items[*item];
            let keys = candidate.parts.iter().map(|part| (part.key.clone(), part.flavour)).collect();
            accesses.push(Access {
                keys,
                share: definition.entries / table.rows.max(1.0),
                item: Some(*item),
            });
        }
        let mut best = (table.rows, None);
        for access in &accesses {
            if let Some(rows) = read_by(catalog, table_use, access)
                && rows < best.0
            {
                best = (rows, access.item);
            }
        }
        cost.value += best.0;
        cost.used.extend(best.1);
    }
    cost.written = match &subject.parsed.kind {
        Kind::Insert { rows, .. } => *rows as f64,
        Kind::Read => 0.0,
        Kind::Update { .. } | Kind::Delete { .. } => 1.0,
    };
    cost
}

/// The rows that are read by way of an index; `None` if it does not help.
fn read_by(catalog: &Catalog, table_use: &TableUse, access: &Access) -> Option<f64> {
    let rows = catalog.tables[table_use.table].rows;
    let mut share = access.share;
    let mut helps = share < 1.0;
    let mut probes = 1.0_f64;
    let mut keys = access.keys.iter().peekable();
    while let Some((key, flavour)) = keys.peek() {
        let on_key = table_use.predicates.iter().chain(table_use.arms.iter().flatten());
        let equal: Vec<&Predicate> = on_key
            .filter(|predicate| predicate.key == *key && answers(*flavour, predicate.op) == Some(true))
            .collect();
        let Some(predicate) = equal.first() else { break };
        if predicate.operand == Operand::Join {
            probes = PROBES.min(catalog.distinct(table_use.table, key));
        }
        share *= selectivity(catalog, table_use.table, predicate);
        helps = true;
        keys.next();
    }
    let rest: Vec<&(Key, Flavour)> = keys.collect();
    if let Some((key, flavour)) = rest.first() {
        for predicate in &table_use.predicates {
            if predicate.key == *key && answers(*flavour, predicate.op) == Some(false) {
                share *= selectivity(catalog, table_use.table, predicate);
                helps = true;
            }
        }
    }
    let mut order = table_use.order.iter();
    let ordered = !table_use.order.is_empty()
        && order.all(|part| access.keys.iter().any(|(key, _)| *key == part.key))
        && rest.first().is_some_and(|(key, _)| *key == table_use.order[0].key);
    let read = rows * share * probes;
    match (ordered && table_use.limited, helps) {
        (true, _) => Some(read.min(LIMITED / residual(catalog, table_use, access))),
        (false, true) => Some(read),
        (false, false) => None,
    }
}

/// The share of the rows that meet what the index does not look up.
fn residual(catalog: &Catalog, table_use: &TableUse, access: &Access) -> f64 {
    let looked_up = |key: &Key| access.keys.iter().any(|(other, _)| other == key);
    let others = table_use.predicates.iter().filter(|predicate| !looked_up(&predicate.key));
    others.map(|predicate| selectivity(catalog, table_use.table, predicate)).product::<f64>().max(1e-9)
}

/// Whether a key answers the comparison: by equality, by a range, or not at all.
fn answers(flavour: Flavour, op: Op) -> Option<bool> {
    match (flavour, op) {
        (Flavour::Plain, Op::Equal | Op::In | Op::IsNull) => Some(true),
        (Flavour::Plain | Flavour::Summary, Op::Lower | Op::Upper) => Some(false),
        (Flavour::Pattern, Op::Prefix) | (Flavour::Search, Op::Search) => Some(false),
        (Flavour::Contains, Op::Contains) | (Flavour::HasKey, Op::HasKey) => Some(false),
        _ => None,
    }
}

/// The share of the rows that meet a condition.
pub(super) fn selectivity(catalog: &Catalog, table: usize, predicate: &Predicate) -> f64 {
    let column = match &predicate.key {
        Key::Column(column) => catalog.tables[table].columns.get(*column),
        Key::Expression(..) => None,
    };
    let one = 1.0 / catalog.distinct(table, &predicate.key);
    let share = match (predicate.op, &predicate.operand) {
        (Op::Equal, Operand::Literal(text)) => column.map_or(one, |column| frequency(column, text, one)),
        (Op::Equal, _) => one,
        (Op::In, Operand::Literal(list)) => {
            list.split(", ").map(|text| column.map_or(one, |column| frequency(column, text, one))).sum()
        }
        (Op::In, _) => 3.0 * one,
        (Op::IsNull, _) => column.map_or(0.01, |column| column.nulls),
        (Op::Lower | Op::Upper, _) => 0.3,
        (Op::Prefix | Op::Search | Op::HasKey, _) => 0.02,
        (Op::Contains, _) => 0.01,
        (Op::Other, _) => not_null(predicate, column),
    };
    share.clamp(1e-9, 1.0)
}

fn not_null(predicate: &Predicate, column: Option<&Column>) -> f64 {
    let text = predicate.constant.as_deref().unwrap_or_default().to_uppercase();
    match column {
        Some(column) if text.ends_with("IS NOT NULL") => 1.0 - column.nulls,
        Some(column) if text.contains("<>") || text.contains("NOT IN") => {
            let excluded = column.common.iter().filter(|(value, _)| text.contains(&value.to_uppercase()));
            1.0 - column.nulls - excluded.map(|(_, share)| share).sum::<f64>()
        }
        _ => 1.0,
    }
}

/// How frequent a literal is among a column's values.
fn frequency(column: &Column, text: &str, otherwise: f64) -> f64 {
    let bare = text.split("::").next().unwrap_or(text).trim().trim_matches('\'');
    let bare = match (column.category.as_str(), bare) {
        ("B", "true") => "t",
        ("B", "false") => "f",
        (_, bare) => bare,
    };
    // A value of `char(n)` is padded.
    let known = column.common.iter().find(|(value, _)| value.trim_end() == bare.trim_end());
    let common: f64 = column.common.iter().map(|(_, share)| share).sum();
    match known {
        Some((_, share)) => *share,
        // All values are known, and this is none of them.
        None if !column.common.is_empty() && column.common.len() as f64 >= column.distinct => 1e-6,
        None if column.common.is_empty() => otherwise,
        None => ((1.0 - common - column.nulls) / (column.distinct - column.common.len() as f64).max(1.0))
            .max(1e-9),
    }
}
