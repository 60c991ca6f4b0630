//! Indexes that might be created.

use std::collections::BTreeSet;

use super::{
    estimate::IndexKeys,
    sample::Sample,
    schema::{Key, Schema, Table, identifier},
};
use crate::index_advisor::usage::{
    self,
    candidate::{Candidate, Flavour},
};

/// The longest name, in characters, but for its ending.
const MAX_NAME: usize = 56;

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
        let told_apart = keys.len();
        keys.extend(carried);
        if told_apart < keys.len() && table.columns.len() > 2 && keys.len() >= table.columns.len() - 1 {
            return None; // That is the table once more.
        }
        let condition: Vec<&str> = candidate.condition.iter().map(String::as_str).collect();
        let condition = (!condition.is_empty()).then(|| condition.join(" AND "));
        let stat = sample.stat(&table.name, &keys, told_apart, condition.as_deref());
        let bytes = sample.bytes(table, &keys, condition.as_deref());
        Some(Self { name: String::new(), table: table.name.clone(), keys, condition, stat, bytes })
    }

    /// The statement that creates it.
    pub(super) fn create(&self) -> String {
        let part = |key: &Key| {
            let column = if key.is_column { identifier(&key.expression) } else { key.expression.clone() };
            let collation =
                if key.collation.is_empty() { String::new() } else { format!(" COLLATE {}", key.collation) };
            format!("{column}{collation}{}", if key.descending { " DESC" } else { "" })
        };
        let keys: Vec<String> = self.keys.iter().map(part).collect();
        let condition =
            self.condition.as_ref().map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        format!(
            "CREATE INDEX {} ON {} ({}){condition}",
            identifier(&self.name),
            identifier(&self.table),
            keys.join(", ")
        )
    }

    /// Its keys as SQL.
    pub(super) fn index_keys(&self) -> IndexKeys {
        IndexKeys { keys: self.keys.iter().map(Key::sql).collect(), condition: self.condition.clone() }
    }

    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.table == other.table && self.keys == other.keys && self.condition == other.condition
    }

    /// A name made of the table's and the key's.
    fn wanted_name(&self) -> String {
        let part = |key: &Key| {
            format!("{} {}{}", key.expression, key.collation, if key.descending { " desc" } else { "" })
        };
        let keys: Vec<String> = self.keys.iter().map(part).collect();
        let condition =
            self.condition.as_ref().map(|condition| format!("where {condition}")).unwrap_or_default();
        let text = format!("{} {} {condition}", self.table, keys.join(" ")).to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        let name: String = words.collect::<Vec<_>>().join("_").chars().take(MAX_NAME).collect();
        name + "_idx"
    }
}

/// Each entry of an index ends with the rowid, so a key need not.
fn strip_rowid(table: &Table, keys: &mut Vec<Key>) {
    if keys.len() < 2 || !keys.last().is_some_and(|last| is_rowid(table, &last.expression)) {
        return;
    }
    // Read backwards, an ascending rowid is a descending one.
    if let (Some(last), Some(before)) = (keys.pop(), keys.last_mut()) {
        before.descending ^= last.descending;
    }
}

fn is_rowid(table: &Table, name: &str) -> bool {
    table.rowid_column().is_some_and(|rowid| rowid.eq_ignore_ascii_case(name))
}

/// Gives each a name that nothing else has.
pub(super) fn name(indexes: &mut [NewIndex], schema: &Schema) {
    let mut names: BTreeSet<String> = schema.indexes.iter().map(|index| index.name.to_lowercase()).collect();
    for index in indexes {
        let wanted = index.wanted_name();
        index.name.clone_from(&wanted);
        for number in 2.. {
            if names.insert(index.name.clone()) {
                break;
            }
            index.name = format!("{wanted}_{number}");
        }
    }
}
