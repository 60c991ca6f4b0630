//! Indexes that might be created.

use std::collections::BTreeSet;

use super::{
    sample::Sample,
    schema::{Index, Key, Schema, Table, identifier},
};
use crate::index_advisor::usage::{
    self,
    candidate::{Candidate, Flavour},
};

/// An index that might be created.
#[derive(Clone, Debug)]
pub(super) struct NewIndex {
    pub(super) name: String,
    pub(super) table: String,
    pub(super) keys: Vec<Key>,
    pub(super) condition: Option<String>,
    /// What `sqlite_stat1` would say about it.
    pub(super) stat: Option<String>,
    pub(super) bytes: u64,
}

impl NewIndex {
    /// The index that a candidate stands for; none where SQLite has no such kind, or has it already.
    pub(super) fn new(candidate: &Candidate, schema: &Schema, sample: &Sample) -> Option<Self> {
        let table = schema.tables.get(candidate.table)?;
        let mut keys = Vec::new();
        for part in &candidate.parts {
            // LIKE takes 'a' for 'A', and then an index only if that does too.
            let collation = match part.flavour {
                Flavour::Plain => String::new(),
                Flavour::Pattern if sample.like_is_exact => "BINARY".to_owned(),
                Flavour::Pattern => "NOCASE".to_owned(),
                _ => return None,
            };
            let (expression, is_column) = match &part.key {
                usage::Key::Column(column) => (table.columns.get(*column)?.name.clone(), true),
                usage::Key::Expression(text, _) => (text.clone(), false),
            };
            keys.push(Key { expression, is_column, descending: part.descending, collation });
        }
        strip_rowid(table, &mut keys);
        let included = candidate.include.iter().filter_map(|column| table.columns.get(*column));
        let carried = included.filter(|column| !is_rowid(table, &column.name)).map(|column| Key {
            expression: column.name.clone(),
            is_column: true,
            descending: false,
            collation: String::new(),
        });
        if keys.first().is_none_or(|key| is_rowid(table, &key.expression)) {
            return None;
        }
        keys.extend(carried);
        let condition: Vec<&str> = candidate.condition.iter().map(String::as_str).collect();
        let condition = (!condition.is_empty()).then(|| condition.join(" AND "));
        let exists = |index: &Index| {
            index.condition.is_none() && index.keys.len() >= keys.len() && keys.iter().zip(&index.keys).all(same(table))
        };
        if schema.indexes_of(&table.name).any(exists) {
            return None;
        }
        let stat = sample.stat(&table.name, &keys, false, condition.as_deref());
        let bytes = sample.bytes(table, &keys, condition.as_deref());
        let mut index = Self { name: String::new(), table: table.name.clone(), keys, condition, stat, bytes };
        index.name = index.free_name(schema);
        Some(index)
    }

    /// The statement that creates it.
    pub(super) fn create(&self) -> String {
        let part = |key: &Key| {
            let column = if key.is_column { identifier(&key.expression) } else { key.expression.clone() };
            let collation = if key.collation.is_empty() { String::new() } else { format!(" COLLATE {}", key.collation) };
            format!("{column}{collation}{}", if key.descending { " DESC" } else { "" })
        };
        let keys: Vec<String> = self.keys.iter().map(part).collect();
        let condition = self.condition.as_ref().map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        format!(
            "CREATE INDEX {} ON {} ({}){condition}",
            identifier(&self.name),
            identifier(&self.table),
            keys.join(", ")
        )
    }

    /// Whether this index answers whatever the other does.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.table == other.table && self.condition == other.condition && self.keys.starts_with(&other.keys)
    }

    /// A name made of the table's and the key's that no other index has.
    fn free_name(&self, schema: &Schema) -> String {
        let partial = if self.condition.is_some() { "partial_" } else { "" };
        let parts: Vec<&str> = self.keys.iter().map(|key| key.expression.as_str()).collect();
        let text = format!("{}_{}_{partial}idx", self.table, parts.join("_"));
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let name = words.join("_");
        let taken = |name: &str| schema.indexes.iter().any(|index| index.name.eq_ignore_ascii_case(name));
        let mut free = name.clone();
        for number in 2.. {
            if !taken(&free) {
                break;
            }
            free = format!("{name}_{number}");
        }
        free
    }
}

/// Each entry of an index ends with the rowid, so a key need not.
fn strip_rowid(table: &Table, keys: &mut Vec<Key>) {
    if let [.., before, last] = keys.as_slice()
        && is_rowid(table, &last.expression)
    {
        // Read backwards, a descending rowid is an ascending one.
        let flip = last.descending;
        let directed = before.descending || flip;
        keys.pop();
        if flip && directed {
            keys.iter_mut().for_each(|key| key.descending = !key.descending);
        }
    }
}

fn is_rowid(table: &Table, name: &str) -> bool {
    table.rowid_column().is_some_and(|rowid| rowid.eq_ignore_ascii_case(name))
}

/// Whether a new key stands in an index as it is. A direction matters only among several.
fn same(table: &Table) -> impl Fn((&Key, &Key)) -> bool {
    let _ = table;
    |(new, old)| {
        let collated = new.collation.is_empty() || new.collation == old.collation;
        new.expression.eq_ignore_ascii_case(&old.expression) && collated && new.descending == old.descending
    }
}

/// Those that no other of them is.
pub(super) fn distinct(indexes: impl Iterator<Item = NewIndex>) -> Vec<NewIndex> {
    let mut seen = BTreeSet::new();
    indexes.filter(|index| seen.insert((index.name.clone(), index.create()))).collect()
}
