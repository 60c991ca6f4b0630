//! The search for the set of indexes that serves the workload best.
//!
//! Greedy: again and again the index, or the few that one plan uses together, that saves most for its size, all else
//! that was chosen being there; then whatever the others have made needless goes. This is "Extend" of Schlosser,
//! Kossmann and Boissier (ICDE 2019), which Kossmann et al. ("Magic mirror in my hand, which is the best in the land?",
//! VLDB 2020) find to be as good as far slower methods; that a statement's own best plan tells the candidates is the
//! Database Tuning Advisor's way (Chaudhuri and Narasayya, VLDB 1997).

use std::collections::BTreeSet;

use super::{
    plans::{Cost, Item, Planner, Source},
    statistics::selectivity,
};
use crate::index_advisor::{
    AdvisorConfig, Error,
    usage::{
        Kind, Op, Operand, Predicate, TableUse,
        candidate::{Candidate, Flavour, Part, Rules, merged},
    },
};

/// A partial index has at most this share of the rows, else it might as well have all.
const MAX_PARTIAL: f64 = 0.5;
/// A condition on a column with more values is taken for one of many that are asked for.
const MAX_STATES: f64 = 50.0;
/// How many ways to serve it are sought for each statement: without the indexes of the best, and so on.
const ROUNDS: usize = 3;
/// An index must save this part of what the whole workload costs by then.
const MIN_TOTAL: f64 = 0.002;
/// Carried columns may not be wider than this together, in bytes.
const MAX_CARRIED: f64 = 48.0;
/// A table of fewer pages is as quickly read from end to end.
const SMALL: f64 = 8.0;
/// No statement may take longer than this many times as long as before, or this many milliseconds or units more.
const MAX_HARM: f64 = 1.1;
const MIN_HARM: f64 = 0.05;
/// What an index carries beside its key must save this part of a statement, and a last column of the key this.
const MIN_CARRIED_GAIN: f64 = 0.5;
const MIN_KEY_GAIN: f64 = 0.3;
/// A table is huge from here on: a summary of its pages may do.
const HUGE: f64 = 1e6;

pub(super) type Set = BTreeSet<usize>;

/// What the search knows of a set of indexes.
pub(super) struct State {
    pub(super) set: Set,
    pub(super) costs: Vec<Cost>,
    pub(super) total: f64,
}

/// What may be chosen, as sets that make sense together.
pub(super) type Moves = BTreeSet<Set>;

impl Planner<'_, '_> {
    /// Finds the candidates that plans use, as moves of the search.
    pub(super) async fn moves(&mut self, config: &AdvisorConfig) -> Result<Moves, Error> {
        let mut moves = Moves::new();
        for subject in 0..self.subjects.len() {
            let mut set = Set::new();
            for candidate in self.suggested(subject, config) {
                let share = self.share(&candidate);
                set.extend(self.add(candidate, share).await?);
            }
            for _ in 0..ROUNDS {
                let cost = self.cost(subject, &set).await?;
                if cost.used.is_empty() {
                    break;
                }
                set.retain(|item| !cost.used.contains(item));
                moves.extend(cost.used.iter().map(|item| Set::from([*item])));
                moves.insert(cost.used);
            }
            self.inverted(subject, &set, &mut moves);
        }
        self.variants(&mut moves).await?;
        Ok(moves)
    }

    fn inverted(&self, subject: usize, set: &Set, moves: &mut Moves) {
        let inverted = |item: &&usize| matches!(self.items[**item].definition.method, "gin" | "gist");
        let relevant = self.relevant(subject, set);
        moves.extend(relevant.iter().filter(inverted).map(|item| Set::from([*item])));
    }

    /// Narrower and wider relatives of what plans use.
    async fn variants(&mut self, moves: &mut Moves) -> Result<(), Error> {
        let used: BTreeSet<usize> = moves.iter().flatten().copied().collect();
        let used: BTreeSet<Candidate> =
            used.into_iter().map(|item| self.items[item].candidate.clone()).collect();
        let mut relatives = merged(&used);
        for candidate in &used {
            relatives.insert(Candidate { include: BTreeSet::new(), ..candidate.clone() });
            if candidate.parts.len() > 1 {
                let parts = candidate.parts[..candidate.parts.len() - 1].to_vec();
                relatives.insert(Candidate { include: BTreeSet::new(), parts, ..candidate.clone() });
            }
        }
        for candidate in relatives {
            if self.pointless(&candidate) {
                continue;
            }
            let share = self.share(&candidate);
            moves.extend(self.add(candidate, share).await?.map(|item| Set::from([item])));
        }
        Ok(())
    }

    /// The indexes that a statement suggests.
    fn suggested(&self, subject: usize, config: &AdvisorConfig) -> BTreeSet<Candidate> {
        let catalog = self.catalog;
        let partial = |table_use: &TableUse, predicate: &Predicate| {
            let stateful = match (predicate.op, &predicate.operand) {
                (Op::IsNull, _) => true,
                (Op::Equal | Op::In, Operand::Literal(_)) | (Op::Other, _) => {
                    catalog.distinct(table_use.table, &predicate.key) <= MAX_STATES
                        || predicate.constant.as_deref().is_some_and(|text| text.ends_with("NOT NULL"))
                }
                _ => false,
            };
            stateful
                && predicate.constant.is_some()
                && selectivity(catalog, table_use.table, predicate) <= MAX_PARTIAL
        };
        let distinct = |table, key: &_| catalog.distinct(table, key);
        let rules = Rules {
            schema: catalog,
            max_columns: config.max_columns.max(1),
            include: true,
            partial: &partial,
            distinct: &distinct,
        };
        let mut found = BTreeSet::new();
        for table_use in &self.subjects[subject].parsed.uses {
            let table = &catalog.tables[table_use.table];
            if table.pages < SMALL {
                continue;
            }
            found.extend(rules.candidates(table_use));
            for predicate in &table_use.predicates {
                if matches!(predicate.op, Op::Lower | Op::Upper) && table.rows >= HUGE {
                    let part = Part {
                        key: predicate.key.clone(),
                        descending: false,
                        nulls_first: None,
                        flavour: Flavour::Summary,
                    };
                    let (include, condition) = Default::default();
                    found.insert(Candidate { table: table_use.table, parts: vec![part], include, condition });
                }
            }
        }
        found.retain(|candidate| !self.pointless(candidate));
        found
    }

    /// Whether it carries too much, or adds nothing to an index that exists.
    fn pointless(&self, candidate: &Candidate) -> bool {
        let table = &self.catalog.tables[candidate.table];
        let width: f64 =
            candidate.include.iter().filter_map(|column| table.columns.get(*column)).map(|c| c.width).sum();
        width > MAX_CARRIED || self.catalog.exists(candidate) || self.catalog.goes_on_after_unique(candidate)
    }

    /// The share of the table's rows that meet a partial index's condition.
    fn share(&self, candidate: &Candidate) -> f64 {
        let uses = self.subjects.iter().flat_map(|subject| &subject.parsed.uses);
        let mut share = 1.0;
        for condition in &candidate.condition {
            let predicate =
                uses.clone().filter(|table_use| table_use.table == candidate.table).find_map(|table_use| {
                    table_use
                        .predicates
                        .iter()
                        .find(|predicate| predicate.constant.as_ref() == Some(condition))
                });
            share *= predicate.map_or(1.0, |predicate| selectivity(self.catalog, candidate.table, predicate));
        }
        share
    }

    /// What the workload costs with a set of indexes, their upkeep included.
    pub(super) async fn state(&mut self, set: Set) -> Result<State, Error> {
        let mut costs = Vec::new();
        let mut total = 0.0;
        for subject in 0..self.subjects.len() {
            let cost = self.cost(subject, &set).await?;
            total += self.subjects[subject].calls * (cost.value + self.upkeep(subject, &set, cost.written));
            costs.push(cost);
        }
        Ok(State { set, costs, total })
    }

    /// What a write pays a call for the indexes of a set.
    pub(super) fn upkeep(&self, subject: usize, set: &Set, written: f64) -> f64 {
        let unit = match &self.source {
            Source::Hypothetical(_) => 1.0,
            Source::Statistics => 20.0,
            Source::Measured(measured) => measured.as_ref().map_or(0.0, |measured| measured.ms_per_cost()),
        };
        let paid = |item: &usize| {
            let item = &self.items[*item];
            let candidate = &item.candidate;
            let columns = candidate.parts.iter().flat_map(|part| part.key.columns());
            let columns: BTreeSet<usize> = columns.chain(candidate.include.iter().copied()).collect();
            let share = item.definition.entries / self.catalog.tables[candidate.table].rows.max(1.0);
            match &self.subjects[subject].parsed.kind {
                Kind::Insert { table, .. } if *table == candidate.table => share.min(1.0),
                Kind::Update { table, columns: set } if *table == candidate.table => {
                    // A row whose indexed columns stay needs no new entry, if its page has room.
                    if set.is_disjoint(&columns) { 0.1 * share } else { share.min(1.0) }
                }
                _ => 0.0,
            }
        };
        set.iter().map(|item| paid(item) * entry(&self.items[*item])).sum::<f64>() * written * unit
    }

    pub(super) fn bytes(&self, set: &Set) -> f64 {
        set.iter().map(|item| self.items[*item].definition.bytes).sum()
    }

    /// The set that a move leads to: it adds its indexes, and replaces those that they cover.
    pub(super) fn after(&self, set: &Set, step: &Set) -> Set {
        let covered = |old: &usize| {
            step.iter()
                .any(|new| new != old && self.items[*new].candidate.covers(&self.items[*old].candidate))
        };
        set.iter().filter(|old| !covered(old)).chain(step).copied().collect()
    }

    /// The best set that is found within the limits.
    pub(super) async fn search(&mut self, moves: &Moves, config: &AdvisorConfig) -> Result<State, Error> {
        let mut state = self.state(Set::new()).await?;
        let base: Vec<f64> = state.costs.iter().map(|cost| cost.value).collect();
        let mut scores: Vec<(f64, &Set)> = moves.iter().map(|step| (f64::INFINITY, step)).collect();
        loop {
            let mut best: Option<(f64, State)> = None;
            // What scored well before is asked first; what scored worse than the best does now can hardly win.
            scores.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (score, step) in &mut scores {
                if best.as_ref().is_some_and(|(best, _)| *score < *best) {
                    break;
                }
                let set = self.after(&state.set, step);
                *score = 0.0;
                if set == state.set
                    || set.len() > config.max_indexes
                    || !self.fits(&set, config)
                    || !self.has(&set)
                {
                    continue;
                }
                let next = self.state(set).await?;
                if !pays(&state, &next, config) || harms(&base, &next) {
                    continue;
                }
                let size = (self.bytes(&next.set) - self.bytes(&state.set)).max(8192.0);
                // Without a budget, size still decides between equals.
                let size = if config.max_bytes.is_some() { size } else { size.powf(0.25) };
                *score = (state.total - next.total) / size;
                if best.as_ref().is_none_or(|(best, _)| *score > *best) {
                    best = Some((*score, next));
                }
            }
            match best {
                Some((_, next)) => state = next,
                None => break,
            }
        }
        self.without_needless(state, config).await
    }

    fn fits(&self, set: &Set, config: &AdvisorConfig) -> bool {
        config.max_bytes.is_none_or(|max| self.bytes(set) <= max as f64)
    }

    /// Leaves out what the others have made needless, whole indexes and parts of them.
    async fn without_needless(&mut self, mut state: State, config: &AdvisorConfig) -> Result<State, Error> {
        for item in state.set.clone() {
            let mut set = state.set.clone();
            set.remove(&item);
            let next = self.state(set.clone()).await?;
            let full = &self.items[item].candidate;
            let bare = Candidate { include: BTreeSet::new(), ..full.clone() };
            // Beside an index with the same key, only what it carries is new.
            let only_carries = !full.include.is_empty() && self.catalog.exists(&bare);
            let needless = next.total <= state.total * (1.0 + MIN_TOTAL)
                || (only_carries && !loses(&state, &next, MIN_CARRIED_GAIN));
            if needless {
                state = next;
                continue;
            }
            for (narrower, allowed) in self.narrower(item, config) {
                let mut set = set.clone();
                set.insert(narrower);
                if !self.has(&set) {
                    continue;
                }
                let next = self.state(set).await?;
                if !loses(&state, &next, allowed) {
                    state = next;
                    break;
                }
            }
        }
        Ok(state)
    }

    /// What a last column of a key, and what carried columns must save of a statement to stay.
    fn least_gains(&self, config: &AdvisorConfig) -> (f64, f64) {
        // An estimate of a small saving is worth less than a smaller index; a measured one is worth what it is.
        match self.source {
            Source::Measured(_) => (config.min_gain, config.min_gain),
            _ => (MIN_KEY_GAIN, MIN_CARRIED_GAIN),
        }
    }

    /// The relatives of an index that have less in them, the least first, and what they may cost more.
    pub(super) fn narrower(&self, item: usize, config: &AdvisorConfig) -> Vec<(usize, f64)> {
        let full = &self.items[item].candidate;
        let (key, carried) = self.least_gains(config);
        let mut narrower: Vec<(usize, f64)> = Vec::new();
        for (other, Item { candidate, .. }) in self.items.iter().enumerate() {
            if full.covers(candidate) && candidate != full && candidate.include.is_subset(&full.include) {
                let allowed = if candidate.parts == full.parts { carried } else { key };
                narrower.push((other, allowed));
            }
        }
        narrower
            .sort_by(|a, b| self.items[a.0].definition.bytes.total_cmp(&self.items[b.0].definition.bytes));
        narrower
    }
}

/// What an entry costs to write, in the planner's units.
fn entry(item: &Item) -> f64 {
    let columns = (item.candidate.parts.len() + item.candidate.include.len()) as f64;
    match item.definition.method {
        "gin" | "gist" => 8.0,
        "brin" => 0.1,
        _ => 1.3 + 0.2 * columns,
    }
}

/// How many times as long an insert takes with the index, where the table has `others` already.
pub(super) fn write_factor(item: &Item, others: usize) -> f64 {
    // A row itself is about as much work as two entries.
    1.0 + entry(item) / (3.0 + 1.5 * others as f64)
}

/// Whether a statement takes clearly longer than with no index.
fn harms(base: &[f64], next: &State) -> bool {
    base.iter().zip(&next.costs).any(|(before, cost)| cost.value > before * MAX_HARM + MIN_HARM)
}

/// Whether a statement costs so much more that this part of it is lost.
fn loses(state: &State, next: &State, part: f64) -> bool {
    let loses = |(before, after): (&Cost, &Cost)| before.value < after.value * (1.0 - part);
    state.costs.iter().zip(&next.costs).any(loses)
}

/// Whether a step saves enough: of one statement, and of the whole.
fn pays(state: &State, next: &State, config: &AdvisorConfig) -> bool {
    let enough = |(before, after): (&Cost, &Cost)| after.value <= before.value * (1.0 - config.min_gain);
    state.total - next.total >= state.total * MIN_TOTAL && state.costs.iter().zip(&next.costs).any(enough)
}
