//! How many rows a plan reads.
//!
//! SQLite's planner says what it would do, and not what that costs in a form to rely on. So the rows are counted along
//! its plan, with what the sample says of each condition. A row that is looked up through an index counts twice, for
//! entry and row; one that is sorted counts once more.

use std::collections::HashMap;

use super::{
    access::{Access, By},
    planner::Node,
    sample::Sample,
    schema::{self, Schema, quoted},
    statement::Statement,
};
use crate::index_advisor::usage::{Key, Op, Operand, Predicate, TableUse};

/// The part of a table that a bound lets through whose value is not known; SQLite assumes the same.
const BOUND: f64 = 0.25;
/// The part that a pattern lets through whose value is not known.
const PREFIX: f64 = 0.05;
/// How many values stand in a list that is not known.
const LIST: f64 = 10.0;
/// Rows that meet a condition seldom lie evenly in an order: so many times as far is looked for the first of them.
const UNEVEN: f64 = 4.0;
/// The part of the calls that look for what is not there, and so read all.
const IN_VAIN: f64 = 0.01;

pub(super) struct Estimator<'a> {
    pub(super) schema: &'a Schema,
    pub(super) sample: &'a Sample,
}

/// The keys of an index as SQL, and its condition.
#[derive(Clone, Default)]
pub(super) struct IndexKeys {
    pub(super) keys: Vec<String>,
    pub(super) condition: Option<String>,
}

/// The keys of the indexes that were created in the planner's copy, by name.
pub(super) type Created = HashMap<String, IndexKeys>;

/// What a part of a plan does each time that it runs.
#[derive(Clone, Copy, Default)]
struct Flow {
    /// What is read before the first row is given.
    once: f64,
    reads: f64,
    /// The rows that it gives.
    rows: f64,
}

impl Estimator<'_> {
    /// The rows that a statement reads by this plan.
    pub(super) fn reads(&self, statement: &Statement, plan: &[Node], created: &Created) -> f64 {
        let mut walk = Walk { of: self, statement, created, subqueries: HashMap::new(), filters: false };
        let (flow, sorted) = walk.block(plan);
        let early = match statement.limit {
            Some(limit) if !sorted && !statement.aggregates => {
                let part = limit / flow.rows.max(1.0);
                if walk.filters { part * UNEVEN + IN_VAIN } else { part }
            }
            _ => 1.0,
        };
        (flow.once + flow.reads * early.min(1.0)).max(1.0)
    }

    /// The part of a table's rows that meets conditions, and has given values in further keys.
    fn part(
        &self,
        table: usize,
        predicates: &[&Predicate],
        keys: &[&String],
        condition: Option<&String>,
    ) -> f64 {
        let Some(name) = self.schema.tables.get(table).map(|table| table.name.as_str()) else { return 1.0 };
        let (mut constants, mut equal): (Vec<&String>, Vec<String>) =
            (condition.into_iter().collect(), keys.iter().map(|key| (*key).clone()).collect());
        let mut part = 1.0;
        for predicate in predicates {
            let key = self.sql(table, &predicate.key);
            match (&predicate.constant, predicate.op) {
                (Some(constant), _) if self.sample.fraction(name, constant).is_some() => {
                    constants.push(constant)
                }
                (_, Op::Equal | Op::IsNull) => equal.push(key),
                (_, Op::In) => {
                    part *= (LIST / self.sample.distinct(name, &[key], None).unwrap_or(LIST)).min(1.0);
                }
                (_, Op::Prefix) => part *= PREFIX,
                _ => part *= BOUND,
            }
        }
        constants.sort();
        constants.dedup();
        equal.sort();
        equal.dedup();
        if !constants.is_empty() {
            let all: Vec<String> = constants.iter().map(|constant| format!("({constant})")).collect();
            part *= self.sample.fraction(name, &all.join(" AND ")).unwrap_or(1.0);
        }
        if !equal.is_empty() {
            part /= self.sample.distinct(name, &equal, None).unwrap_or(1.0);
        }
        part
    }

    fn sql(&self, table: usize, key: &Key) -> String {
        match key {
            Key::Column(column) => {
                let column = self.schema.tables.get(table).and_then(|table| table.columns.get(*column));
                column.map(|column| quoted(&column.name)).unwrap_or_default()
            }
            Key::Expression(text, _) => text.clone(),
        }
    }
}

struct Walk<'a> {
    of: &'a Estimator<'a>,
    statement: &'a Statement,
    created: &'a Created,
    /// How many rows each subquery gives that is read by name.
    subqueries: HashMap<String, f64>,
    /// Whether a loop reads rows that it doesn't give.
    filters: bool,
}

impl Walk<'_> {
    /// What a query block does, and whether it sorts.
    fn block(&mut self, nodes: &[Node]) -> (Flow, bool) {
        let (mut flow, mut sorted) = (Flow { rows: 1.0, ..Flow::default() }, false);
        for node in nodes {
            let detail = node.detail.as_str();
            let step = if let Some(access) = Access::parse(detail) {
                self.access(&access)
            } else if detail.starts_with("MULTI-INDEX OR") {
                self.sides(&node.children)
            } else if detail.starts_with("USE TEMP B-TREE") {
                sorted = true;
                Flow { once: flow.rows, reads: 0.0, rows: 1.0 }
            } else {
                let (inner, _) = self.block(&node.children);
                let name = detail.strip_prefix("CO-ROUTINE ").or(detail.strip_prefix("MATERIALIZE "));
                if let Some(name) = name {
                    self.subqueries.insert(name.to_lowercase(), inner.rows);
                }
                let times = if detail.starts_with("CORRELATED") { flow.rows } else { 1.0 };
                Flow { once: times * (inner.once + inner.reads), reads: 0.0, rows: 1.0 }
            };
            flow.once += step.once;
            flow.reads += flow.rows * step.reads;
            flow.rows *= step.rows;
        }
        (flow, sorted)
    }

    /// The sides of an `OR`, whose rows add up.
    fn sides(&mut self, sides: &[Node]) -> Flow {
        let mut sum = Flow::default();
        for side in sides {
            let (flow, _) = self.block(&side.children);
            sum.reads += flow.once + flow.reads;
            sum.rows += flow.rows;
        }
        sum
    }

    fn access(&mut self, access: &Access<'_>) -> Flow {
        let name = access.name.rsplit('.').next().unwrap_or(access.name).to_lowercase();
        if let Some(rows) = self.subqueries.get(&name) {
            return Flow { once: 0.0, reads: *rows, rows: *rows };
        }
        let Some(number) = self.table(&name) else { return Flow { once: 0.0, reads: 1.0, rows: 1.0 } };
        let table = &self.of.schema.tables[number];
        let all = self.of.sample.rows(&table.name);
        let index = self.keys(table, access);
        let looked_up: Vec<&String> = match access.by {
            By::Automatic => index.keys.iter().collect(),
            _ => {
                let last = access.skipped + access.equal + usize::from(access.range);
                index.keys.iter().take(last).skip(access.skipped).collect()
            }
        };
        let empty = TableUse::default();
        let table_use = self.best_use(number, &looked_up).unwrap_or(&empty);
        let key = |predicate: &&Predicate| self.of.sql(number, &predicate.key);
        let (mut by_key, rest): (Vec<&Predicate>, Vec<&Predicate>) =
            table_use.predicates.iter().partition(|predicate| looked_up.contains(&&key(predicate)));
        let mut bare = Vec::new();
        for (place, wanted) in looked_up.iter().enumerate() {
            let is_wanted = |predicate: &&Predicate| key(predicate) == **wanted;
            if by_key.iter().any(is_wanted) {
                continue;
            }
            // On one side of an OR, or equal to something by way of another table.
            match table_use.arms.iter().flatten().find(is_wanted) {
                Some(predicate) => by_key.push(predicate),
                None if place < access.equal => bare.push(*wanted),
                None => {}
            }
        }
        let found = all * self.of.part(number, &by_key, &bare, index.condition.as_ref());
        let rest: Vec<&Predicate> =
            rest.into_iter().filter(|predicate| predicate.operand != Operand::Join).collect();
        let both: Vec<&Predicate> = by_key.iter().chain(&rest).copied().collect();
        let rows = (all * self.of.part(number, &both, &bare, index.condition.as_ref())).min(found);
        let filters = rows < 0.99 * found;
        // The least or the greatest is the first that is met.
        let next = index.keys.get(access.skipped + access.equal);
        let extreme = table_use.order.first().map(|order| self.of.sql(number, &order.key));
        let first = self.statement.extreme && next.is_some() && extreme.as_ref() == next;
        let found = match first {
            true if filters => (found / rows.max(1.0) * UNEVEN + found * IN_VAIN).min(found),
            true => found.min(1.0),
            false => found,
        };
        let flow = match access.by {
            // Every row is read, and written into it.
            By::Automatic => Flow { once: 2.0 * all, reads: found + 1.0, rows },
            By::Index(_) => {
                let each = if access.covering { 1.0 } else { 2.0 };
                let skipped = &index.keys[..access.skipped.min(index.keys.len())];
                let seeks = self.of.sample.distinct(&table.name, skipped, None).unwrap_or(0.0);
                Flow { once: 0.0, reads: (found * each).max(1.0) + seeks, rows }
            }
            By::Table | By::PrimaryKey => Flow { once: 0.0, reads: found.max(1.0), rows },
        };
        self.filters |= filters;
        flow
    }

    /// The table of that name; where several have it, the largest.
    fn table(&self, name: &str) -> Option<usize> {
        let Estimator { schema, sample } = self.of;
        let rows = |table: &usize| sample.rows(&schema.tables[*table].name);
        let shown = self.statement.names.iter().filter(|(shown, _)| shown == name).map(|(_, table)| *table);
        let largest = shown.max_by(|a, b| rows(a).total_cmp(&rows(b)));
        largest.or_else(|| schema.tables.iter().position(|table| table.name.eq_ignore_ascii_case(name)))
    }

    fn keys(&self, table: &schema::Table, access: &Access<'_>) -> IndexKeys {
        let keys = match access.by {
            By::Table => Vec::new(),
            By::PrimaryKey if table.without_rowid => table.primary_key().into_iter().map(quoted).collect(),
            By::PrimaryKey => vec![quoted(table.rowid_column().unwrap_or("rowid"))],
            By::Automatic => access.columns().map(quoted).collect(),
            By::Index(name) => {
                let existing = || {
                    let index = self.of.schema.indexes.iter().find(|index| index.name == name)?;
                    let keys = index.keys.iter().map(schema::Key::sql).collect();
                    Some(IndexKeys { keys, condition: index.condition.clone() })
                };
                return self.created.get(name).cloned().or_else(existing).unwrap_or_default();
            }
        };
        IndexKeys { keys, condition: None }
    }

    /// The use of the table that most of what is looked up comes from.
    fn best_use(&self, table: usize, looked_up: &[&String]) -> Option<&TableUse> {
        let met = |table_use: &&TableUse| {
            let keys = table_use.predicates.iter().map(|predicate| self.of.sql(table, &predicate.key));
            keys.filter(|key| looked_up.contains(&key)).count()
        };
        self.statement.parsed.uses.iter().rev().filter(|table_use| table_use.table == table).max_by_key(met)
    }
}
