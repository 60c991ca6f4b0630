//! Verification: indexes that are really created, and statements that are really executed, in a transaction that is
//! rolled back.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde_json::Value;
use sqlx::Row;

use super::{
    plans::{Cost, Planner, walk},
    search::Set,
    session::{Session, TIMED_OUT, code, database, literal, quoted},
};
use crate::index_advisor::{AdvisorConfig, Error, Unit};

const DOING: &str = "verify the advice";
/// Until a statement was executed, a unit of the planner's cost counts as this many milliseconds.
const MS_PER_COST: f64 = 0.003;
/// Creating an index may take so many times as long as a statement.
const BUILD: u128 = 10;
/// What takes less than this is executed again, until it has taken this long, or so many times.
const ENOUGH_MS: f64 = 300.0;
const REPETITIONS: usize = 4;
/// A statement is given this many times what it took with no index, and so many milliseconds more.
const GIVEN: f64 = 1.5;
const GIVEN_MS: f64 = 20.0;
/// A statement that was cut off is tried with a plan of at most this part of its cost.
const HOPE: f64 = 0.1;
/// Marks the state in which all indexes are there, for those who may not hide one otherwise.
const SHOWN: &str = "SAVEPOINT greenwave_shown";

/// The indexes that exist for as long as the transaction does.
pub(super) struct Measured {
    /// The oids, by item.
    built: BTreeMap<usize, (i64, String)>,
    hidden: Set,
    /// Whether the role may mark an index as invalid, which locks nobody out.
    may_mark: bool,
    /// Of each statement, whether it may be executed.
    executable: Vec<bool>,
    /// Milliseconds, by statement, variant and plan.
    times: HashMap<(usize, usize, String), f64>,
    /// Milliseconds and cost with no index, by statement and variant.
    first: HashMap<(usize, usize), (f64, f64)>,
    ms_per_cost: f64,
    max_statement: Duration,
}

impl Measured {
    /// Creates the indexes of a set, and puts their real sizes in the place of the estimates.
    pub(super) async fn build(
        planner: &mut Planner<'_, '_>,
        set: &Set,
        config: &AdvisorConfig,
    ) -> Result<Self, Error> {
        let executable = executable(planner).await?;
        // An index may take longer than a statement may. Writers wait for it.
        let longest = config.max_statement.as_millis().saturating_mul(BUILD).clamp(1, i32::MAX as u128);
        planner.session.command(DOING, format!("SET LOCAL statement_timeout = {longest}")).await?;
        planner.session.mark().await?;
        let mut built = BTreeMap::new();
        for item in set {
            let name = format!("greenwave_advisor_{item}");
            let create = planner.create(*item).replacen("CREATE INDEX", &format!("CREATE INDEX {name}"), 1);
            match planner.session.keep(create).await {
                Ok(()) => {}
                Err(error) if code(&error).is_some_and(|code| code != super::session::LOCKED) => continue,
                Err(error) => return Err(database(DOING, error)),
            }
            let schema = planner.catalog.tables[planner.items[*item].candidate.table].schema.clone();
            let name = format!("{}.{name}", quoted(&schema));
            let text = literal(&name);
            let sql = format!("SELECT {text}::regclass::oid::int8, pg_relation_size({text}::regclass)");
            let rows = planner.session.attempt(sql).await.map_err(|error| database(DOING, error))?;
            let row = rows.first().ok_or_else(|| database(DOING, sqlx::Error::RowNotFound))?;
            let (oid, bytes) = (row.try_get(0), row.try_get::<i64, _>(1));
            planner.items[*item].definition.bytes = bytes.map_err(|error| database(DOING, error))? as f64;
            built.insert(*item, (oid.map_err(|error| database(DOING, error))?, name));
        }
        // No ANALYZE, although it would tell the planner how selective an expression is: its counts outlast a rollback.
        planner.session.command(DOING, SHOWN).await?;
        let timeout = config.max_statement.as_millis().clamp(1, i32::MAX as u128);
        planner.session.command(DOING, format!("SET LOCAL statement_timeout = {timeout}")).await?;
        planner.session.remark().await?;
        let may_mark = may_mark(planner.session, built.values().map(|(oid, _)| *oid).next()).await?;
        let (hidden, times, first) = Default::default();
        let (max_statement, ms_per_cost) = (config.max_statement, MS_PER_COST);
        Ok(Self { built, hidden, may_mark, executable, times, first, ms_per_cost, max_statement })
    }

    pub(super) fn has(&self, set: &Set) -> bool {
        set.iter().all(|item| self.built.contains_key(item))
    }

    /// From here on a unit of cost counts as many milliseconds as it took in the statements that were executed.
    pub(super) fn calibrate(&mut self, mut ratios: Vec<f64>) {
        ratios.sort_by(f64::total_cmp);
        self.ms_per_cost = ratios.get(ratios.len() / 2).copied().unwrap_or(MS_PER_COST);
    }

    pub(super) fn ms_per_cost(&self) -> f64 {
        self.ms_per_cost
    }

    fn longest(&self) -> f64 {
        self.max_statement.as_secs_f64() * 1000.0
    }

    /// How long a plan of this cost is given; `None` where it need not be tried.
    fn limit(&self, subject: usize, variant: usize, planned: f64) -> Option<f64> {
        match self.first.get(&(subject, variant)) {
            // What takes clearly longer than with no index is out anyway.
            Some((ms, _)) if *ms < self.longest() => Some((ms * GIVEN + GIVEN_MS).min(self.longest())),
            // What was cut off is tried again only where the planner expects a great deal.
            Some((_, cost)) if planned > cost * HOPE => None,
            _ => Some(self.longest()),
        }
    }

    /// Lets the planner see these of the indexes, and no others.
    async fn show(&mut self, session: &mut Session<'_>, set: &Set) -> Result<(), Error> {
        let hidden: Set = self.built.keys().filter(|item| !set.contains(item)).copied().collect();
        if hidden == self.hidden {
            return Ok(());
        }
        let of = |set: &Set| set.iter().filter_map(|item| self.built.get(item)).collect::<Vec<_>>();
        if self.may_mark {
            let oids: Vec<String> = of(&hidden).iter().map(|(oid, _)| oid.to_string()).collect();
            let all: Vec<String> = self.built.values().map(|(oid, _)| oid.to_string()).collect();
            let sql = format!(
                "UPDATE pg_catalog.pg_index SET indisvalid = indexrelid <> ALL ('{{{}}}'::oid[]) \
                 WHERE indexrelid = ANY ('{{{}}}'::oid[])",
                oids.join(","),
                all.join(",")
            );
            session.command(DOING, sql).await?;
            session.mark().await?;
        } else {
            session.command(DOING, "ROLLBACK TO SAVEPOINT greenwave_shown").await?;
            let timeout = self.max_statement.as_millis().clamp(1, i32::MAX as u128);
            session.command(DOING, format!("SET LOCAL statement_timeout = {timeout}")).await?;
            let names: Vec<&str> = of(&hidden).iter().map(|(_, name)| name.as_str()).collect();
            if !names.is_empty() {
                session.command(DOING, format!("DROP INDEX {}", names.join(", "))).await?;
            }
            session.remark().await?;
        }
        self.hidden = hidden;
        Ok(())
    }
}

impl Planner<'_, '_> {
    /// What a call of the statement takes with these indexes, in milliseconds; of one that is not executed, what its
    /// cost amounts to.
    pub(super) async fn measured(
        &mut self,
        measured: &mut Measured,
        subject: usize,
        set: &Set,
    ) -> Result<Cost, Error> {
        measured.show(self.session, set).await?;
        if let Some(cost) = self.executed(measured, subject, set).await? {
            return Ok(cost);
        }
        measured.executable[subject] = false;
        Ok(self.executed(measured, subject, set).await?.unwrap_or_default())
    }

    /// The same; `None` where the statement fails when it is executed.
    async fn executed(
        &mut self,
        measured: &mut Measured,
        subject: usize,
        set: &Set,
    ) -> Result<Option<Cost>, Error> {
        let names: HashMap<String, usize> =
            measured.built.keys().map(|item| (format!("greenwave_advisor_{item}"), *item)).collect();
        let mut cost = Cost { unit: Unit::Milliseconds, ..Cost::default() };
        if self.subjects[subject].inserts_values() {
            cost.written = self.subjects[subject].inserted();
            return Ok(Some(cost));
        }
        let each = 1.0 / self.subjects[subject].variants.len().max(1) as f64;
        for (variant, sql) in self.subjects[subject].variants.iter().enumerate() {
            let plan = match self.session.explain(sql).await {
                Ok(plan) => plan,
                Err(sqlx::Error::Database(_)) => continue,
                Err(error) => return Err(database(DOING, error)),
            };
            let root = &plan["Plan"];
            walk(root, &mut |node| {
                cost.used.extend(node["Index Name"].as_str().and_then(|name| names.get(name)));
            });
            let planned = root["Total Cost"].as_f64().unwrap_or_default();
            cost.planned += planned * each;
            cost.written += root["Plans"][0]["Plan Rows"].as_f64().unwrap_or(1.0) * each;
            if !measured.executable[subject] {
                cost.unit = Unit::Cost;
                cost.value += planned * measured.ms_per_cost * each;
                continue;
            }
            let key = (subject, variant, shape(root));
            let ms = match measured.times.get(&key) {
                Some(ms) => *ms,
                None => {
                    let ms = match measured.limit(subject, variant, planned) {
                        Some(limit) => time(self.session, sql, limit).await?,
                        None => Some(measured.longest()),
                    };
                    // What fails with an index only, after all, must not look better for it.
                    let ms = if set.is_empty() { ms } else { ms.or(Some(measured.longest())) };
                    let Some(ms) = ms else {
                        return Ok(None);
                    };
                    measured.first.entry((subject, variant)).or_insert((ms, planned));
                    measured.times.insert(key, ms);
                    ms
                }
            };
            cost.value += ms * each;
        }
        Ok(Some(cost))
    }
}

/// How long a statement takes, in milliseconds: the shortest of a few times, once it is warm.
/// `None` where it fails.
async fn time(session: &mut Session<'_>, sql: &str, longest: f64) -> Result<Option<f64>, Error> {
    let (mut best, mut sum) = (longest, 0.0);
    for _ in 0..REPETITIONS {
        match session.execute(sql, longest).await {
            Ok(plan) => {
                let ms = plan["Execution Time"].as_f64().unwrap_or(longest);
                let ms = ms + plan["Planning Time"].as_f64().unwrap_or_default();
                best = best.min(ms);
                sum += ms;
            }
            // What is cut off counts as the limit.
            Err(error) if code(&error).as_deref() == Some(TIMED_OUT) => return Ok(Some(longest)),
            Err(sqlx::Error::Database(_)) => return Ok(None),
            Err(error) => return Err(database(DOING, error)),
        }
        if sum > ENOUGH_MS {
            break;
        }
    }
    Ok(Some(best))
}

/// A plan without its numbers: two that are alike take the same time.
fn shape(node: &Value) -> String {
    let mut shape = String::new();
    describe(node, &mut shape);
    shape
}

fn describe(node: &Value, shape: &mut String) {
    match node {
        Value::Object(fields) => {
            for (name, value) in fields {
                let number = ["Cost", "Rows", "Width"].iter().any(|word| name.ends_with(word));
                if !number {
                    shape.push_str(name);
                    describe(value, shape);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| describe(item, shape)),
        other => shape.push_str(&other.to_string()),
    }
}

/// Which statements only read, with values that make sense, and call nothing that could change anything.
async fn executable(planner: &mut Planner<'_, '_>) -> Result<Vec<bool>, Error> {
    let called = planner.subjects.iter().flat_map(|subject| &subject.parsed.functions).cloned().collect();
    let harmless = planner.session.functions(&called, false).await;
    let harmless = harmless.map_err(|error| database(DOING, error))?;
    let executable = planner.subjects.iter();
    Ok(executable
        .map(|subject| subject.reads() && subject.realistic && subject.parsed.functions.is_subset(&harmless))
        .collect())
}

/// Whether the role may change the catalog, to hide an index without a lock on its table.
async fn may_mark(session: &mut Session<'_>, oid: Option<i64>) -> Result<bool, Error> {
    let Some(oid) = oid else { return Ok(false) };
    let sql = format!("UPDATE pg_catalog.pg_index SET indisvalid = indisvalid WHERE indexrelid = {oid}");
    match session.attempt(sql).await {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(_)) => Ok(false),
        Err(error) => Err(database(DOING, error)),
    }
}
