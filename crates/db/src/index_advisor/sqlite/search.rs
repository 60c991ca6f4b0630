//! Which of the indexes that might be created are worth it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Result;

use super::{
    access::{Access, By},
    estimate::{Created, Estimator},
    new_index::{self, NewIndex},
    planner::{Node, Planner},
    sample::Sample,
    schema::{Schema, quoted},
    statement::Statement,
};
use crate::index_advisor::{
    AdvisorConfig, Effect, IndexAdvice, Unit,
    usage::{
        Key, Kind, Op, Predicate, TableUse,
        candidate::{Candidate, Rules, merged},
    },
};

/// An index that spares fewer rows a call is not worth a line.
const MIN_SAVED: f64 = 100.0;
/// What an entry of an index costs to write or to delete, in rows read.
const WRITE: f64 = 10.0;
/// A condition that more of the rows meet makes no partial index.
const MAX_PARTIAL: f64 = 0.3;
/// A condition on one of more values than these is one of many like it, and makes no partial index either.
const MAX_VALUES: f64 = 20.0;
/// Of sets of indexes that save nearly as much as the best, the smallest is taken: at least this part of it, and at most
/// [`MIN_SAVED`] a call less.
const NEARLY: f64 = 0.97;

pub(super) struct Search<'a> {
    schema: &'a Schema,
    sample: &'a Sample,
    planner: &'a Planner,
    statements: &'a [Statement],
    config: &'a AdvisorConfig,
    indexes: Vec<NewIndex>,
    /// Sets of indexes that may be worth creating together, and what is known of them.
    options: Vec<Choice>,
}

/// Indexes by number, and what they would bring now.
#[derive(Clone, Debug, Default)]
struct Choice {
    indexes: BTreeSet<usize>,
    gain: f64,
    stale: bool,
}

/// What was found.
pub(super) struct Chosen<'a> {
    pub(super) indexes: Vec<NewIndex>,
    /// For each index how much longer an insert takes with it.
    factors: Vec<f64>,
    /// A statement, what it reads without and with them, and which of them it then uses.
    pub(super) served: Vec<(&'a Statement, f64, f64, Vec<usize>)>,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        schema: &'a Schema,
        sample: &'a Sample,
        planner: &'a Planner,
        statements: &'a [Statement],
        config: &'a AdvisorConfig,
    ) -> Self {
        Self { schema, sample, planner, statements, config, indexes: Vec::new(), options: Vec::new() }
    }

    /// Takes the set of indexes that saves most, again and again, for as long as one is worth it.
    pub(super) fn run(mut self) -> Result<Chosen<'a>> {
        self.suggest()?;
        let before = self.costs(&BTreeSet::new())?;
        let (mut costs, mut chosen, mut order) = (before.clone(), BTreeSet::new(), Vec::new());
        while let Some(best) = self.best(&chosen, &costs)? {
            order.extend(best.difference(&chosen).copied());
            chosen.extend(best);
            for index in &chosen {
                self.planner.create(&self.indexes[*index])?;
            }
            costs = self.costs(&chosen)?;
            for index in &chosen {
                self.planner.drop(&self.indexes[*index])?;
            }
        }
        self.prune(&mut order, &mut costs)?;
        self.conclude(&order, &before)
    }

    /// Collects the indexes that the statements suggest.
    fn suggest(&mut self) -> Result<()> {
        let partial = |table_use: &TableUse, predicate: &Predicate| self.may_restrict(table_use, predicate);
        let distinct = |table: usize, key: &Key| self.distinct(table, key);
        let max_columns = self.config.max_columns.max(1);
        let rules =
            Rules { schema: self.schema, max_columns, include: true, partial: &partial, distinct: &distinct };
        let mut suggested: Vec<BTreeSet<Candidate>> = Vec::new();
        for statement in self.statements {
            suggested.push(
                statement.parsed.uses.iter().flat_map(|table_use| rules.candidates(table_use)).collect(),
            );
        }
        let all: BTreeSet<Candidate> = suggested.iter().flatten().cloned().collect();
        let mut numbers: BTreeMap<Candidate, usize> = BTreeMap::new();
        let mut indexes: Vec<NewIndex> = Vec::new();
        for candidate in merged(&all) {
            let Some(index) = NewIndex::new(&candidate, self.schema, self.sample) else { continue };
            let number = indexes.iter().position(|other| other.is_like(&index)).unwrap_or(indexes.len());
            if number == indexes.len() {
                indexes.push(index);
            }
            numbers.insert(candidate, number);
        }
        new_index::name(&mut indexes, self.schema);
        self.indexes = indexes;
        let mut usable = BTreeSet::new();
        for (number, index) in self.indexes.iter().enumerate() {
            // An expression may be one that SQLite doesn't index.
            if self.planner.create(index).is_ok() {
                self.planner.drop(index)?;
                usable.insert(number);
            }
        }
        let mut options: BTreeSet<BTreeSet<usize>> = usable.iter().map(|index| [*index].into()).collect();
        for (statement, candidates) in self.statements.iter().zip(&suggested) {
            let narrow = candidates.iter().filter(|candidate| candidate.include.is_empty());
            for candidates in [candidates.iter().collect::<Vec<_>>(), narrow.collect()] {
                let own = candidates.into_iter().filter_map(|one| numbers.get(one)).copied();
                options
                    .insert(self.used_of(statement, &own.filter(|index| usable.contains(index)).collect())?);
            }
        }
        options.remove(&BTreeSet::new());
        let choice = |indexes| Choice { indexes, gain: 0.0, stale: true };
        self.options = options.into_iter().map(choice).collect();
        Ok(())
    }

    /// How many values the key has.
    fn distinct(&self, table: usize, key: &Key) -> f64 {
        let Some(table) = self.schema.tables.get(table) else { return 1.0 };
        let key = match key {
            Key::Column(column) => table.columns.get(*column).map(|column| quoted(&column.name)),
            Key::Expression(text, _) => Some(text.clone()),
        };
        key.and_then(|key| self.sample.distinct(&table.name, &[key], None)).unwrap_or(1.0)
    }

    /// Whether an index may be restricted to the rows that meet a condition.
    fn may_restrict(&self, table_use: &TableUse, predicate: &Predicate) -> bool {
        let Some(table) = self.schema.tables.get(table_use.table) else { return false };
        let part =
            predicate.constant.as_ref().and_then(|constant| self.sample.fraction(&table.name, constant));
        // A range, or one of many values, is another one in the next call, even where it is written as a constant.
        let lasting = match predicate.op {
            Op::IsNull | Op::Other => true,
            Op::Equal | Op::In => self.distinct(table_use.table, &predicate.key) <= MAX_VALUES,
            _ => false,
        };
        lasting && part.is_some_and(|part| part <= MAX_PARTIAL)
    }

    /// Those that the planner uses for the statement where it has them all.
    fn used_of(&self, statement: &Statement, indexes: &BTreeSet<usize>) -> Result<BTreeSet<usize>> {
        for index in indexes {
            self.planner.create(&self.indexes[*index])?;
        }
        let plan = self.planner.plan(&statement.numbered)?;
        for index in indexes {
            self.planner.drop(&self.indexes[*index])?;
        }
        let mut names = BTreeSet::new();
        index_names(&plan, &mut names);
        Ok(indexes
            .iter()
            .filter(|index| names.contains(self.indexes[**index].name.as_str()))
            .copied()
            .collect())
    }

    /// What each statement reads with the indexes that exist in the planner's copy now.
    fn costs(&self, created: &BTreeSet<usize>) -> Result<Vec<f64>> {
        let created = self.created(created);
        self.statements.iter().map(|statement| self.cost(statement, &created)).collect()
    }

    fn created(&self, indexes: &BTreeSet<usize>) -> Created {
        let index = |number: &usize| {
            let index = &self.indexes[*number];
            (index.name.clone(), index.index_keys())
        };
        indexes.iter().map(index).collect()
    }

    fn cost(&self, statement: &Statement, created: &Created) -> Result<f64> {
        let plan = self.planner.plan(&statement.numbered)?;
        Ok(Estimator { schema: self.schema, sample: self.sample }.reads(statement, &plan, created))
    }

    /// The set that is best added to those chosen, if one is worth it.
    fn best(&mut self, chosen: &BTreeSet<usize>, costs: &[f64]) -> Result<Option<BTreeSet<usize>>> {
        for index in chosen {
            self.planner.create(&self.indexes[*index])?;
        }
        let mut options = std::mem::take(&mut self.options);
        for option in options.iter_mut().filter(|option| option.stale) {
            option.gain = self.gain(&option.indexes, chosen, costs)?;
            option.stale = false;
        }
        for index in chosen {
            self.planner.drop(&self.indexes[*index])?;
        }
        let room = self.config.max_indexes.saturating_sub(chosen.len());
        let bytes = |indexes: &BTreeSet<usize>| -> u64 {
            indexes.iter().map(|index| self.indexes[*index].bytes).sum()
        };
        let spare = self.config.max_bytes.map(|most| most.saturating_sub(bytes(chosen)));
        options.retain(|option| option.gain > 0.0);
        let fits = |option: &&Choice| {
            let new: BTreeSet<usize> = option.indexes.difference(chosen).copied().collect();
            new.len() <= room && spare.is_none_or(|spare| bytes(&new) <= spare)
        };
        // Where there is a budget, what counts is what a byte of it saves.
        let score = |option: &Choice| match spare {
            Some(_) => option.gain / bytes(&option.indexes).max(1) as f64,
            None => option.gain,
        };
        let highest = options.iter().filter(fits).map(score).fold(0.0, f64::max);
        let calls = |option: &Choice| -> f64 {
            let touched = self.statements.iter().filter(|statement| self.touches(statement, &option.indexes));
            touched.map(|statement| statement.calls).sum()
        };
        let nearly = options.iter().filter(fits).filter(|option| {
            let lost = highest - score(option);
            score(option) >= highest * NEARLY && (spare.is_some() || lost <= calls(option) * MIN_SAVED)
        });
        let best = nearly.min_by_key(|option| bytes(&option.indexes)).map(|option| option.indexes.clone());
        if let Some(best) = &best {
            let near = self.neighbours(best);
            options.retain(|option| option.indexes != *best);
            for option in &mut options {
                option.stale = option.indexes.iter().any(|index| near.contains(&self.indexes[*index].table));
            }
        }
        self.options = options;
        Ok(best)
    }

    /// The tables that some statement reads together with one of the indexes'.
    fn neighbours(&self, indexes: &BTreeSet<usize>) -> BTreeSet<String> {
        let name = |table: usize| self.schema.tables.get(table).map(|table| table.name.clone());
        let touched = |statement: &&Statement| self.touches(statement, indexes);
        self.statements.iter().filter(touched).flat_map(Statement::tables).filter_map(name).collect()
    }

    fn touches(&self, statement: &Statement, indexes: &BTreeSet<usize>) -> bool {
        let reads =
            |table: &String| statement.tables().any(|number| self.schema.tables[number].name == *table);
        indexes.iter().any(|index| reads(&self.indexes[*index].table))
    }

    /// How many rows the set saves, in all calls, less what it costs to keep; zero where no statement gains enough.
    fn gain(&self, option: &BTreeSet<usize>, chosen: &BTreeSet<usize>, costs: &[f64]) -> Result<f64> {
        let new: BTreeSet<usize> = option.difference(chosen).copied().collect();
        if new.is_empty() {
            return Ok(0.0);
        }
        for index in &new {
            self.planner.create(&self.indexes[*index])?;
        }
        let created = self.created(&chosen.union(&new).copied().collect());
        let (mut gain, mut worth_it) = (0.0, false);
        for (statement, before) in self.statements.iter().zip(costs) {
            if self.touches(statement, &new) {
                let after = self.cost(statement, &created)?;
                gain += statement.calls * (before - after);
                worth_it |= self.is_worth(*before, after);
            }
            gain -= statement.calls
                * new.iter().map(|index| self.upkeep(statement, &self.indexes[*index])).sum::<f64>();
        }
        for index in &new {
            self.planner.drop(&self.indexes[*index])?;
        }
        Ok(if worth_it { gain } else { 0.0 })
    }

    fn is_worth(&self, before: f64, after: f64) -> bool {
        before - after >= MIN_SAVED && after <= before * (1.0 - self.config.min_gain)
    }

    /// What a call of the statement costs more because of the index.
    fn upkeep(&self, statement: &Statement, index: &NewIndex) -> f64 {
        let is_on =
            |table: usize| self.schema.tables.get(table).is_some_and(|table| table.name == index.table);
        let entries = match &statement.parsed.kind {
            Kind::Insert { table, rows } if is_on(*table) => *rows as f64,
            Kind::Delete { table } if is_on(*table) => 1.0,
            Kind::Update { table, columns } if is_on(*table) => {
                let column = |key: &str| {
                    columns.iter().any(|column| {
                        self.schema.tables[*table]
                            .columns
                            .get(*column)
                            .is_some_and(|column| column.name == key)
                    })
                };
                // The old entry goes, the new one comes.
                if index.keys.iter().any(|key| column(&key.expression)) { 2.0 } else { 0.0 }
            }
            _ => 0.0,
        };
        entries * WRITE
    }

    /// Leaves out what those chosen later have made useless.
    fn prune(&self, order: &mut Vec<usize>, costs: &mut Vec<f64>) -> Result<()> {
        for index in order.iter() {
            self.planner.create(&self.indexes[*index])?;
        }
        for index in order.clone() {
            self.planner.drop(&self.indexes[index])?;
            let rest: BTreeSet<usize> = order.iter().copied().filter(|other| *other != index).collect();
            let without = self.costs(&rest)?;
            if without.iter().zip(costs.iter()).any(|(without, with)| self.is_worth(*without, *with)) {
                self.planner.create(&self.indexes[index])?;
            } else {
                order.retain(|other| *other != index);
                *costs = without;
            }
        }
        for index in order.iter() {
            self.planner.drop(&self.indexes[*index])?;
        }
        Ok(())
    }

    /// What the indexes do for each statement.
    fn conclude(self, order: &[usize], before: &[f64]) -> Result<Chosen<'a>> {
        let indexes: Vec<NewIndex> = order.iter().map(|index| self.indexes[*index].clone()).collect();
        for index in &indexes {
            self.planner.create(index)?;
        }
        let created = self.created(&order.iter().copied().collect());
        let mut served = Vec::new();
        for (statement, before) in self.statements.iter().zip(before) {
            let plan = self.planner.plan(&statement.numbered)?;
            let mut names = BTreeSet::new();
            index_names(&plan, &mut names);
            let used =
                (0..indexes.len()).filter(|index| names.contains(indexes[*index].name.as_str())).collect();
            let after =
                Estimator { schema: self.schema, sample: self.sample }.reads(statement, &plan, &created);
            served.push((statement, *before, after, used));
        }
        let factor = |index: &NewIndex| {
            let others = self.schema.indexes_of(&index.table).count() as f64 + 1.0;
            let part =
                index.condition.as_ref().and_then(|condition| self.sample.fraction(&index.table, condition));
            1.0 + part.unwrap_or(1.0) / others
        };
        let factors = indexes.iter().map(factor).collect();
        Ok(Chosen { indexes, factors, served })
    }
}

/// The names of the indexes that a plan uses.
fn index_names<'p>(plan: &'p [Node], names: &mut BTreeSet<&'p str>) {
    for node in plan {
        if let Some(Access { by: By::Index(name), .. }) = Access::parse(&node.detail) {
            names.insert(name);
        }
        index_names(&node.children, names);
    }
}

impl Chosen<'_> {
    pub(super) fn advice(&self) -> Vec<IndexAdvice> {
        let advice = |(number, index): (usize, &NewIndex)| {
            let mut effects: Vec<Effect> = Vec::new();
            for (statement, before, after, used) in &self.served {
                if used.contains(&number) {
                    let (sql, calls) = (statement.sql.clone(), statement.calls);
                    effects.push(Effect { sql, calls, before: *before, after: *after, unit: Unit::Rows });
                }
            }
            effects.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
            IndexAdvice {
                name: index.name.clone(),
                table: index.table.clone(),
                create: index.create(),
                bytes: index.bytes,
                write_factor: self.factors[number],
                effects,
            }
        };
        let mut all: Vec<IndexAdvice> = self.indexes.iter().enumerate().map(advice).collect();
        let total = |advice: &IndexAdvice| advice.effects.iter().map(gain).sum::<f64>();
        all.sort_by(|a, b| total(b).total_cmp(&total(a)));
        all
    }
}

/// What an effect is worth in all calls.
pub(super) fn gain(effect: &Effect) -> f64 {
    effect.calls * (effect.before - effect.after)
}
