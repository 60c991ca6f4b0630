//! Candidates: the indexes that a use suggests.

use std::collections::BTreeSet;

use super::{Key, Op, Operand, OrderKey, Predicate, Schema, TableUse};

/// Wider indexes than this are not made only to spare a look at the table.
const MAX_INCLUDED: usize = 6;

/// What a key must be able to answer beyond equality and order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flavour {
    #[default]
    Plain,
    /// `LIKE 'x%'`.
    Pattern,
    /// `LIKE '%x%'`.
    Search,
    /// `@>` and its like.
    Contains,
    /// `?`.
    HasKey,
    /// Ranges of a table that lies in the key's order.
    Summary,
}

/// A part of an index's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    pub(crate) key: Key,
    pub(crate) descending: bool,
    pub(crate) nulls_first: Option<bool>,
    pub(crate) flavour: Flavour,
}

impl Part {
    fn plain(key: &Key) -> Self {
        Self::with(key, Flavour::Plain)
    }

    fn with(key: &Key, flavour: Flavour) -> Self {
        Self { key: key.clone(), descending: false, nulls_first: None, flavour }
    }
}

/// An index that might be created.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub(crate) table: usize,
    pub(crate) parts: Vec<Part>,
    /// Columns that it carries only so that the table need not be read.
    pub(crate) include: BTreeSet<usize>,
    /// What its rows must meet.
    pub(crate) condition: BTreeSet<String>,
}

impl Candidate {
    pub(crate) fn flavour(&self) -> Flavour {
        self.parts.first().map(|part| part.flavour).unwrap_or_default()
    }

    /// Whether this index answers whatever the other does.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let carried = |column: &usize| {
            self.include.contains(column) || self.parts.iter().any(|part| part.key == Key::Column(*column))
        };
        self.table == other.table
            && self.condition == other.condition
            && self.parts.starts_with(&other.parts)
            && other.include.iter().all(carried)
    }
}

/// What candidates may look like.
pub(crate) struct Rules<'r> {
    pub(crate) schema: &'r dyn Schema,
    pub(crate) max_columns: usize,
    /// Whether an index may carry columns outside of its key.
    pub(crate) include: bool,
    /// Whether an index may be restricted by this condition.
    pub(crate) partial: &'r dyn Fn(&TableUse, &Predicate) -> bool,
    /// How many values the key has, about.
    pub(crate) distinct: &'r dyn Fn(usize, &Key) -> f64,
}

impl Rules<'_> {
    /// The indexes that a use suggests.
    pub(crate) fn candidates(&self, table_use: &TableUse) -> BTreeSet<Candidate> {
        let mut found = BTreeSet::new();
        self.with_condition(table_use, &[], &mut found);
        let mut conditions: Vec<&Predicate> =
            table_use.predicates.iter().filter(|predicate| (self.partial)(table_use, predicate)).collect();
        conditions.dedup();
        for condition in &conditions {
            self.with_condition(table_use, &[condition], &mut found);
        }
        if conditions.len() > 1 {
            self.with_condition(table_use, &conditions, &mut found);
        }
        for arm in &table_use.arms {
            let mut one = TableUse { predicates: arm.clone(), order: Vec::new(), ..table_use.clone() };
            self.with_condition(&one, &[], &mut found);
            one.predicates.extend(table_use.predicates.iter().cloned());
            self.with_condition(&one, &[], &mut found);
        }
        found
    }

    fn with_condition(
        &self,
        table_use: &TableUse,
        conditions: &[&Predicate],
        found: &mut BTreeSet<Candidate>,
    ) {
        let left = |predicate: &&Predicate| !conditions.contains(predicate);
        let predicates: Vec<&Predicate> = table_use.predicates.iter().filter(left).collect();
        let condition: BTreeSet<String> =
            conditions.iter().filter_map(|predicate| predicate.constant.clone()).collect();
        let mut add = |parts: Vec<Part>| self.add(table_use, parts, &condition, found);
        for predicate in &predicates {
            let flavour = match predicate.op {
                Op::Search => Flavour::Search,
                Op::Contains => Flavour::Contains,
                Op::HasKey => Flavour::HasKey,
                _ => continue,
            };
            add(vec![Part::with(&predicate.key, flavour)]);
        }
        let tails = tails(table_use, &predicates);
        for prefix in self.prefixes(table_use.table, &predicates) {
            for tail in &tails {
                let mut parts: Vec<Part> = prefix.iter().map(|key| Part::plain(key)).collect();
                for part in tail {
                    if !parts.iter().any(|other| other.key == part.key) {
                        parts.push(part.clone());
                    }
                }
                add(parts);
            }
        }
        if let ([first, ..], true) = (conditions, found.iter().all(|found| found.condition != condition)) {
            // Nothing else is asked of the rows that meet the condition.
            self.add(table_use, vec![Part::plain(&first.key)], &condition, found);
        }
    }

    /// The equalities that an index may begin with.
    fn prefixes<'k>(&self, table: usize, predicates: &[&'k Predicate]) -> Vec<Vec<&'k Key>> {
        let keys = |wanted: &dyn Fn(&Predicate) -> bool| {
            let mut keys: Vec<&Key> = Vec::new();
            for predicate in predicates.iter().filter(|predicate| wanted(predicate)) {
                if !keys.contains(&&predicate.key) {
                    keys.push(&predicate.key);
                }
            }
            keys.sort_by(|a, b| (self.distinct)(table, b).total_cmp(&(self.distinct)(table, a)));
            keys
        };
        let joins = |predicate: &Predicate| predicate.operand == Operand::Join;
        let single = |predicate: &Predicate| matches!(predicate.op, Op::Equal | Op::IsNull);
        let equal = keys(&|predicate| single(predicate) && !joins(predicate));
        let several = keys(&|predicate| predicate.op == Op::In && !joins(predicate));
        let joined = keys(&|predicate| matches!(predicate.op, Op::Equal | Op::In) && joins(predicate));
        let mut prefixes = vec![Vec::new(), equal.clone(), [equal.clone(), several.clone()].concat()];
        prefixes.extend(equal.iter().chain(&several).map(|key| vec![*key]));
        if equal.len() > 2 {
            prefixes.push(equal[..2].to_vec());
        }
        for key in &joined {
            let rest = [equal.clone(), several.clone()].concat();
            prefixes.push(vec![key]);
            prefixes.push([vec![*key], rest.clone()].concat());
            prefixes.push([rest, vec![*key]].concat());
        }
        if joined.len() > 1 {
            prefixes.push(joined);
        }
        prefixes
    }

    fn add(
        &self,
        table_use: &TableUse,
        mut parts: Vec<Part>,
        condition: &BTreeSet<String>,
        found: &mut BTreeSet<Candidate>,
    ) {
        let mut seen = Vec::new();
        parts.retain(|part| {
            !seen.contains(&part.key) && {
                seen.push(part.key.clone());
                true
            }
        });
        parts.truncate(self.max_columns);
        if parts.is_empty() {
            return;
        }
        let keys: BTreeSet<usize> = parts.iter().flat_map(|part| part.key.columns()).collect();
        let rest: BTreeSet<usize> = table_use.columns.difference(&keys).copied().collect();
        let table = table_use.table;
        let candidate = Candidate { table, parts, include: BTreeSet::new(), condition: condition.clone() };
        let columns_only = candidate.parts.iter().all(|part| matches!(part.key, Key::Column(_)));
        // Who reads whole rows wants the table.
        let whole = table_use.columns.len() >= self.schema.columns(table).len();
        if self.include
            && !whole
            && columns_only
            && (1..=MAX_INCLUDED).contains(&rest.len())
            && matches!(candidate.flavour(), Flavour::Plain)
        {
            found.insert(Candidate { include: rest, ..candidate.clone() });
        }
        found.insert(candidate);
    }
}

/// What may follow the equalities: nothing, one range, the order, the groups.
fn tails(table_use: &TableUse, predicates: &[&Predicate]) -> Vec<Vec<Part>> {
    let mut tails = vec![Vec::new()];
    for predicate in predicates {
        let part = match predicate.op {
            Op::Lower | Op::Upper | Op::In => Part::plain(&predicate.key),
            Op::Prefix => Part::with(&predicate.key, Flavour::Pattern),
            _ => continue,
        };
        if !tails.contains(&vec![part.clone()]) {
            tails.push(vec![part]);
        }
    }
    let ordered = |order: &OrderKey| Part {
        key: order.key.clone(),
        descending: order.descending,
        nulls_first: order.nulls_first,
        flavour: Flavour::Plain,
    };
    if !table_use.order.is_empty() {
        tails.push(normalized(table_use.order.iter().map(ordered).collect()));
    }
    if !table_use.group.is_empty() {
        tails.push(table_use.group.iter().map(Part::plain).collect());
    }
    tails
}

/// An index is read backwards as well as forwards: of the two that differ in that, the one that begins ascending.
fn normalized(mut order: Vec<Part>) -> Vec<Part> {
    if order.first().is_some_and(|part| part.descending) {
        for part in &mut order {
            part.nulls_first = Some(!part.nulls_first.unwrap_or(part.descending));
            part.descending = !part.descending;
        }
    }
    for part in &mut order {
        if part.nulls_first == Some(part.descending) {
            part.nulls_first = None;
        }
    }
    order
}

/// Further candidates that serve several uses at once: indexes with the same key, with what any of them carries.
pub(crate) fn merged(candidates: &BTreeSet<Candidate>) -> BTreeSet<Candidate> {
    let mut all: BTreeSet<Candidate> = candidates.clone();
    for one in candidates {
        for other in candidates {
            let same = one.table == other.table && one.condition == other.condition;
            if same && one.include != other.include && one.parts.starts_with(&other.parts) {
                let mut include: BTreeSet<usize> = one.include.union(&other.include).copied().collect();
                include.retain(|column| one.parts.iter().all(|part| part.key != Key::Column(*column)));
                if include.len() <= MAX_INCLUDED {
                    all.insert(Candidate { include, ..one.clone() });
                }
            }
        }
    }
    all
}
