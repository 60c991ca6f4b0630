//! What is wrong with the indexes and tables that exist.

use super::{
    sample::Sample,
    schema::{ForeignKey, Index, Schema, Table, identifier},
};
use crate::index_advisor::Finding;

/// A table that is smaller is read in no time.
const SMALL: f64 = 1_000.0;

pub(super) fn findings(schema: &Schema, sample: &Sample) -> Vec<Finding> {
    let mut findings = Vec::new();
    for table in &schema.tables {
        let indexes: Vec<&Index> = schema.indexes_of(&table.name).collect();
        for (place, index) in indexes.iter().enumerate() {
            let others = indexes.iter().enumerate().filter(|(other, _)| *other != place);
            let covering = others.map(|(other, covering)| (*covering, other < place));
            let covered_by = by_rowid(table, index).or_else(|| {
                let mut covering = covering.filter(|(covering, earlier)| covers(covering, index, *earlier));
                covering.next().map(|(covering, _)| covering.name.clone())
            });
            if let Some(covered_by) = covered_by {
                let bytes = sample.bytes(table, &index.keys, index.condition.as_deref());
                let (index, table) = (index.name.clone(), table.name.clone());
                findings.push(Finding::DuplicateIndex { index, table, covered_by, bytes });
            }
        }
        if sample.rows(&table.name) < SMALL {
            continue;
        }
        for key in table.foreign_keys.iter().filter(|key| !has_index(table, &indexes, key)) {
            findings.push(without_index(table, key));
        }
    }
    findings
}

/// What serves as well as the index, where that is the table itself.
fn by_rowid(table: &Table, index: &Index) -> Option<String> {
    let rowid = table.rowid_column()?;
    let first = index.keys.first()?;
    let own = index.sql.is_some() && index.condition.is_none() && index.keys.len() == 1;
    (own && first.expression.eq_ignore_ascii_case(rowid)).then(|| format!("{rowid}, the table's own key"))
}

/// Whether another index makes this one superfluous. Of two alike the later is.
fn covers(other: &Index, index: &Index, earlier: bool) -> bool {
    let longer = other.keys.len() > index.keys.len();
    let mut pairs = index.keys.iter().zip(&other.keys);
    let alike = other.keys.len() >= index.keys.len()
        && pairs.clone().all(|(key, other)| key.is_like(other))
        // Read backwards, all directions turn.
        && (pairs.clone().all(|(key, other)| key.descending == other.descending)
            || pairs.all(|(key, other)| key.descending != other.descending));
    // What makes values unique has to stay, unless another does the same; a constraint's own index cannot go.
    let replaced = !index.unique || (other.unique && !longer);
    let twin_stays = longer || earlier || other.sql.is_none() || (other.unique && !index.unique);
    index.sql.is_some() && alike && other.condition == index.condition && replaced && twin_stays
}

fn has_index(table: &Table, indexes: &[&Index], key: &ForeignKey) -> bool {
    let among = |name: &str| key.columns.iter().any(|column| column.eq_ignore_ascii_case(name));
    let leads = |names: &mut dyn Iterator<Item = &str>| {
        let first: Vec<&str> = names.take(key.columns.len()).collect();
        first.len() == key.columns.len() && first.into_iter().all(among)
    };
    let own = table.primary_key();
    // A rowid is found by itself; so is the key of a table that has none, and other primary keys have an index.
    let by_table = (table.without_rowid || table.rowid_column().is_some()) && leads(&mut own.into_iter());
    let by_index = |index: &&Index| {
        index.condition.is_none() && leads(&mut index.keys.iter().map(|key| key.expression.as_str()))
    };
    by_table || indexes.iter().any(by_index)
}

fn without_index(table: &Table, key: &ForeignKey) -> Finding {
    let columns: Vec<String> = key.columns.iter().map(|column| identifier(column)).collect();
    let name = format!("{}_{}_idx", table.name, key.columns.join("_")).to_lowercase();
    Finding::ForeignKeyWithoutIndex {
        // SQLite's constraints seldom have names.
        constraint: format!("({}) REFERENCES {}", columns.join(", "), identifier(&key.references)),
        table: table.name.clone(),
        create: format!(
            "CREATE INDEX {} ON {} ({})",
            identifier(&name),
            identifier(&table.name),
            columns.join(", ")
        ),
    }
}
