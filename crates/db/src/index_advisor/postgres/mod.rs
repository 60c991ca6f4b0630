//! Advice for PostgreSQL.

mod catalog;
mod definition;
mod plans;
mod search;
mod session;
mod statements;
mod statistics;
mod subject;

use std::collections::BTreeSet;

use sqlparser::dialect::PostgreSqlDialect;
use sqlx::PgConnection;

use self::{
    catalog::Catalog,
    plans::Planner,
    search::{State, write_factor},
    session::Session,
    subject::Subject,
};
use super::{Advice, AdvisorConfig, Effect, Error, Finding, IndexAdvice, Skipped, Workload, usage::Parsed};

/// The indexes that would serve the workload, and what is wrong with those that exist.
pub async fn advise(
    connection: &mut PgConnection,
    workload: &Workload,
    config: &AdvisorConfig,
) -> Result<Advice, Error> {
    let findings = findings(connection).await?;
    let mut session = Session::begin(connection).await?;
    let mut advice = indexes(&mut session, workload, config).await?;
    session.end().await?;
    advice.findings = findings;
    Ok(advice)
}

async fn indexes(
    session: &mut Session<'_>,
    workload: &Workload,
    config: &AdvisorConfig,
) -> Result<Advice, Error> {
    let mut advice = Advice::default();
    let mut catalog = Catalog::load(session).await?;
    let mut understood = Vec::new();
    for statement in &workload.statements {
        match Parsed::new(&statement.sql, &PostgreSqlDialect {}, &catalog) {
            Ok(parsed) => understood.push((statement, parsed)),
            Err(why) => advice.skipped.push(Skipped { sql: statement.sql.clone(), why }),
        }
    }
    let tables: BTreeSet<usize> =
        understood.iter().flat_map(|(_, parsed)| &parsed.uses).map(|table_use| table_use.table).collect();
    catalog.load_statistics(session, &tables).await?;
    let mut subjects = Vec::new();
    for (statement, parsed) in understood {
        match Subject::new(session, &catalog, statement, parsed).await {
            Ok(subject) => subjects.push(subject),
            Err(why) => advice.skipped.push(Skipped { sql: statement.sql.clone(), why }),
        }
    }
    let subjects = plannable(session, &catalog, subjects, &mut advice).await?;
    let mut planner = Planner::new(session, &catalog, &subjects).await?;
    let moves = planner.moves(config).await?;
    let before = planner.state(BTreeSet::new()).await?;
    let after = planner.search(&moves, config).await?;
    advice.indexes = advised(&planner, &before, &after);
    planner.forget().await?;
    Ok(advice)
}

/// The statements that the database has a plan for.
async fn plannable(
    session: &mut Session<'_>,
    catalog: &Catalog,
    subjects: Vec<Subject>,
    advice: &mut Advice,
) -> Result<Vec<Subject>, Error> {
    let mut refusals = Vec::new();
    let mut planner = Planner::new(session, catalog, &subjects).await?;
    for subject in 0..subjects.len() {
        refusals.push(planner.refusal(subject).await);
    }
    let mut plannable = Vec::new();
    for (subject, refusal) in subjects.into_iter().zip(refusals) {
        match refusal {
            Some(why) => advice.skipped.push(Skipped { sql: subject.sql, why }),
            None => plannable.push(subject),
        }
    }
    Ok(plannable)
}

/// The advice that a set of indexes amounts to.
fn advised(planner: &Planner<'_, '_>, before: &State, after: &State) -> Vec<IndexAdvice> {
    let mut names = BTreeSet::new();
    let mut advised: Vec<(f64, IndexAdvice)> = Vec::new();
    for item in &after.set {
        let mut effects: Vec<Effect> = Vec::new();
        for (number, subject) in planner.subjects.iter().enumerate() {
            let (before, cost) = (&before.costs[number], &after.costs[number]);
            if cost.used.contains(item) {
                let (before, after, unit) = (before.value, cost.value, planner.unit());
                effects.push(Effect { sql: subject.sql.clone(), calls: subject.calls, before, after, unit });
            }
        }
        let gain = |effect: &Effect| (effect.before - effect.after) * effect.calls;
        effects.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
        let total = effects.iter().map(gain).sum();
        let built = &planner.items[*item];
        let table = &planner.catalog.tables[built.candidate.table];
        let name = definition::name(planner.catalog, &built.candidate, &names);
        let create = format!(
            "CREATE INDEX CONCURRENTLY {} ON {} {}",
            session::quoted(&name),
            table.short_name(),
            built.definition.body
        );
        names.insert(name.clone());
        let (bytes, write_factor) = (built.definition.bytes as u64, write_factor(built, table.indexes.len()));
        advised.push((
            total,
            IndexAdvice { name, table: table.short_name(), create, bytes, write_factor, effects },
        ));
    }
    advised.sort_by(|a, b| b.0.total_cmp(&a.0));
    advised.into_iter().map(|(_, advice)| advice).collect()
}

/// What is wrong with the indexes and tables that exist.
pub async fn findings(_connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    Ok(Vec::new())
}
