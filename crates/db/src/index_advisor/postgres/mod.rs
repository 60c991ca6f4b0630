//! Advice for PostgreSQL.

mod catalog;
mod definition;
mod findings;
mod measure;
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
    measure::Measured,
    plans::{Cost, Planner, Source},
    search::{Moves, Set, State, write_factor},
    session::Session,
    subject::Subject,
};
use super::{
    Advice, AdvisorConfig, Effect, Error, Finding, IndexAdvice, Skipped, Unit, Workload, usage::Parsed,
};

/// The indexes that would serve the workload, and what is wrong with those that exist.
///
/// Costs are the planner's, asked with hypothetical indexes: `hypopg` is used where it is installed, or where the role
/// may create it, in a transaction that is rolled back. Without it, indexes are ranked by the rows that statements read
/// according to the tables' statistics ([`Unit::Rows`]), which is coarse: verify such advice. A placeholder stands for
/// values that are taken from the tables. With [`verify`](AdvisorConfig::verify), indexes are created and statements
/// that only read are executed, in the same transaction; what is measured then decides. Nothing is ever written that
/// would last. A statement that cannot be judged is in [`Advice::skipped`], with the reason.
///
/// # Errors
///
/// [`Error::Locked`], when a table stays locked for three seconds, [`Error::Denied`] and [`Error::Database`].
///
/// # Cancel safety
///
/// When the future is dropped the transaction is rolled back, before the connection does anything else. What hypopg
/// pretends lives in the server's process: it can show in later `EXPLAIN`s of that connection, never in an execution.
/// Close a connection on which a dropped future has run.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use greenwave_db::index_advisor::{AdvisorConfig, Workload, postgres};
/// use sqlx::Connection;
///
/// let mut connection = sqlx::PgConnection::connect("postgres://shop@localhost/shop").await?;
/// let workload = Workload::from_pg_stat_statements(&mut connection, 100).await?;
/// let advice = postgres::advise(&mut connection, &workload, &AdvisorConfig::default()).await?;
/// println!("{advice}");
/// # Ok(()) }
/// ```
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
    advice.findings.retain(|finding| !cured(finding, &advice.indexes));
    Ok(advice)
}

/// Whether an advised index is what a finding asks for.
fn cured(finding: &Finding, indexes: &[IndexAdvice]) -> bool {
    let Finding::ForeignKeyWithoutIndex { create, .. } = finding else { return false };
    let wanted = create.split_once(" ON ").map_or("", |(_, wanted)| wanted.trim_end_matches(')'));
    // `table (a, b`, and then the end of the key, or more of it.
    let begins = |create: &str| {
        let definition = create.split_once(" ON ").map_or("", |(_, definition)| definition);
        let rest = definition.strip_prefix(wanted);
        rest.is_some_and(|rest| rest.starts_with([',', ')'])) && !create.contains(" WHERE ")
    };
    indexes.iter().any(|index| begins(&index.create))
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
    if config.verify {
        let (before, after) = verified(&mut planner, moves, &after.set, config).await?;
        advice.indexes = advised(&planner, &before, &after);
    } else {
        advice.indexes = advised(&planner, &before, &after);
        planner.forget().await?;
    }
    Ok(advice)
}

/// The search again, by execution, among what it chose and what came near.
async fn verified(
    planner: &mut Planner<'_, '_>,
    moves: Moves,
    chosen: &Set,
    config: &AdvisorConfig,
) -> Result<(State, State), Error> {
    let generous = AdvisorConfig {
        max_bytes: config.max_bytes.map(|max| max.saturating_mul(3)),
        max_indexes: config.max_indexes.saturating_mul(2),
        min_gain: config.min_gain / 2.0,
        ..config.clone()
    };
    let near = planner.search(&moves, &generous).await?;
    planner.forget().await?;
    let mut build: Set = near.set.union(chosen).copied().collect();
    for item in build.clone() {
        build.extend(planner.narrower(item, config).into_iter().map(|(narrower, _)| narrower));
    }
    let measured = Measured::build(planner, &build, config).await?;
    planner.turn_to(Source::Measured(Some(Box::new(measured))));
    let before = planner.state(Set::new()).await?;
    let executed = before.costs.iter().filter(|cost| cost.unit == Unit::Milliseconds && cost.planned > 0.0);
    let ratios = executed.map(|cost| cost.value / cost.planned).collect();
    if let Source::Measured(Some(mut measured)) = planner.turn_to(Source::Measured(None)) {
        measured.calibrate(ratios);
        planner.turn_to(Source::Measured(Some(measured)));
    }
    let before = planner.state(before.set).await?;
    let mut moves = moves;
    moves.extend(build.iter().map(|item| Set::from([*item])));
    let after = planner.search(&moves, config).await?;
    Ok((before, after))
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
                let by_cost = cost.unit == Unit::Cost && cost.planned > 0.0;
                let value = |cost: &Cost| if by_cost { cost.planned } else { cost.value };
                let (before, after, unit) = (value(before), value(cost), cost.unit);
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

/// What is wrong with the indexes and tables that exist, from the catalog alone: foreign keys without an index, indexes
/// that others make needless, that nobody uses, that are bloated or invalid, and large tables that are read from end to
/// end.
///
/// Dropping the future half-way leaves nothing behind.
///
/// # Errors
///
/// [`Error::Database`] and [`Error::Denied`], where the catalog cannot be read.
pub async fn findings(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let mut session = Session::begin(connection).await?;
    let findings = findings::all(&mut session).await?;
    session.end().await?;
    Ok(findings)
}
