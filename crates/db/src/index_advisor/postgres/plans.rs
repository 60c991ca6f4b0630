//! What a statement costs with a set of indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use sqlx::Row;

use super::{
    catalog::Catalog,
    definition::Definition,
    measure::Measured,
    session::{Session, database, literal, words},
    statistics,
    subject::Subject,
};
use crate::index_advisor::{
    Error, Unit,
    usage::{
        Key,
        candidate::{Candidate, Flavour, Part},
    },
};

/// Finding a row by an inverted index, in the planner's units: a page, mostly in memory, and its check.
const INVERTED_ROW: f64 = 2.0;
const INVERTED_START: f64 = 20.0;

/// An index that might be created.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) candidate: Candidate,
    pub(super) definition: Definition,
}

/// What a statement costs, and the indexes that its plan uses.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// The planner's own cost, where the value is a time.
    pub(super) planned: f64,
    pub(super) used: BTreeSet<usize>,
    /// How many rows it writes a call.
    pub(super) written: f64,
}

impl Default for Cost {
    fn default() -> Self {
        Self { value: 0.0, unit: Unit::Cost, planned: 0.0, used: BTreeSet::new(), written: 0.0 }
    }
}

impl Item {
    /// Whether only the server can tell if there may be such an index, and what it would call it.
    fn is_special(&self) -> bool {
        let special = |part: &Part| matches!(part.key, Key::Expression(..)) || part.flavour != Flavour::Plain;
        !self.candidate.condition.is_empty() || self.candidate.parts.iter().any(special)
    }
}

/// Where costs come from.
pub(super) enum Source {
    /// The planner, asked with hypothetical indexes; the schema of hypopg.
    Hypothetical(String),
    /// Rows read, by the tables' statistics.
    Statistics,
    /// Executed statements; nothing while it is lent.
    Measured(Option<Box<Measured>>),
}

/// Asks what statements cost with indexes that do not exist.
pub(super) struct Planner<'p, 'c> {
    pub(super) session: &'p mut Session<'c>,
    pub(super) catalog: &'p Catalog,
    pub(super) subjects: &'p [Subject],
    pub(super) items: Vec<Item>,
    pub(super) source: Source,
    known: HashMap<(usize, BTreeSet<usize>), Cost>,
    /// The hypothetical indexes that exist now, with their names.
    present: Vec<(usize, String)>,
    /// Hypothetical twins of the indexes that exist, by table: hypopg makes an index look cheaper to descend than it is,
    /// and what exists must not lose by that.
    twins: BTreeMap<usize, Vec<String>>,
    /// The tables whose twins exist now.
    twinned: BTreeSet<usize>,
}

impl<'p, 'c> Planner<'p, 'c> {
    pub(super) async fn new(
        session: &'p mut Session<'c>,
        catalog: &'p Catalog,
        subjects: &'p [Subject],
    ) -> Result<Self, Error> {
        let source = match hypopg(session).await {
            Some(schema) => Source::Hypothetical(schema),
            None => Source::Statistics,
        };
        let (items, known, present, twins, twinned) = Default::default();
        let mut planner = Self { session, catalog, subjects, items, source, known, present, twins, twinned };
        let tables: BTreeSet<usize> = subjects.iter().flat_map(Subject::tables).collect();
        for table in tables {
            let indexes = catalog.tables[table].indexes.iter();
            for index in indexes.filter(|index| index.valid && index.method == "btree") {
                if planner.accepts(&index.definition).await? {
                    planner.twins.entry(table).or_default().push(index.definition.clone());
                }
            }
        }
        Ok(planner)
    }

    /// Whether hypopg can pretend that there is such an index.
    async fn accepts(&mut self, create: &str) -> Result<bool, Error> {
        let Source::Hypothetical(schema) = &self.source else { return Ok(true) };
        // It exists from here on, beside those that are known to.
        self.present = vec![(usize::MAX, String::new())];
        let sql = format!("SELECT count(*) FROM {schema}.hypopg_create_index({})", literal(create));
        match self.session.attempt(sql).await {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(_)) => Ok(false),
            Err(error) => Err(database("use hypopg", error)),
        }
    }

    /// Goes on with another source of costs.
    pub(super) fn turn_to(&mut self, source: Source) -> Source {
        self.known.clear();
        std::mem::replace(&mut self.source, source)
    }

    /// Whether the set can be asked for.
    pub(super) fn has(&self, set: &BTreeSet<usize>) -> bool {
        match &self.source {
            Source::Measured(Some(measured)) => measured.has(set),
            _ => true,
        }
    }

    /// The indexes of a set that may serve a statement.
    pub(super) fn relevant(&self, subject: usize, set: &BTreeSet<usize>) -> BTreeSet<usize> {
        let subject = &self.subjects[subject];
        let tables = subject.tables();
        let serves = |item: &&usize| {
            let candidate = &self.items[**item].candidate;
            tables.contains(&candidate.table)
                && (candidate.condition.is_empty() || subject.meets(candidate.table, &candidate.condition))
        };
        set.iter().filter(serves).copied().collect()
    }

    /// What a call of the statement costs with a set of indexes.
    pub(super) async fn cost(&mut self, subject: usize, set: &BTreeSet<usize>) -> Result<Cost, Error> {
        let relevant = self.relevant(subject, set);
        let key = (subject, relevant);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let cost = match self.source {
            Source::Hypothetical(_) => self.planned(subject, &key.1).await?,
            Source::Statistics => {
                statistics::rows_read(self.catalog, &self.subjects[subject], &self.items, &key.1)
            }
            Source::Measured(ref mut lent) => match lent.take() {
                Some(mut measured) => {
                    let cost = self.measured(&mut measured, subject, &key.1).await;
                    self.source = Source::Measured(Some(measured));
                    cost?
                }
                None => Cost::default(),
            },
        };
        self.known.insert(key, cost.clone());
        Ok(cost)
    }

    /// The first plan of a statement, or why there is none.
    pub(super) async fn refusal(&mut self, subject: usize) -> Option<String> {
        if self.subjects[subject].inserts_values() {
            return None;
        }
        for sql in &self.subjects[subject].variants {
            if let Err(error) = self.session.explain(sql).await {
                return Some(words(&error));
            }
        }
        None
    }

    async fn planned(&mut self, subject: usize, set: &BTreeSet<usize>) -> Result<Cost, Error> {
        let subject = &self.subjects[subject];
        self.pretend(set, subject.tables()).await?;
        let mut cost = Cost::default();
        if subject.inserts_values() {
            cost.written = subject.inserted();
            return Ok(cost);
        }
        let names: HashMap<&str, usize> =
            self.present.iter().map(|(item, name)| (name.as_str(), *item)).collect();
        let each = 1.0 / subject.variants.len().max(1) as f64;
        for sql in &subject.variants {
            let plan = match self.session.explain(sql).await {
                Ok(plan) => plan,
                Err(sqlx::Error::Database(_)) => continue,
                Err(error) => return Err(database("ask for a plan", error)),
            };
            let root = &plan["Plan"];
            let mut value = root["Total Cost"].as_f64().unwrap_or_default();
            walk(root, &mut |node| {
                cost.used.extend(node["Index Name"].as_str().and_then(|name| names.get(name)));
            });
            for item in set {
                let Item { candidate, definition } = &self.items[*item];
                if matches!(definition.method, "gin" | "gist") {
                    let table = &self.catalog.tables[candidate.table];
                    let saved = inverted(root, &table.name, table.pages);
                    if saved > 0.0 {
                        value = (value - saved).max(INVERTED_START);
                        cost.used.insert(*item);
                    }
                }
            }
            cost.value += value * each;
            if !subject.reads() {
                cost.written += root["Plans"][0]["Plan Rows"].as_f64().unwrap_or(1.0) * each;
            }
        }
        Ok(cost)
    }

    /// Makes these the hypothetical indexes.
    async fn pretend(&mut self, set: &BTreeSet<usize>, tables: BTreeSet<usize>) -> Result<(), Error> {
        let Source::Hypothetical(schema) = &self.source else { return Ok(()) };
        let wanted: Vec<usize> = set
            .iter()
            .copied()
            .filter(|item| matches!(self.items[*item].definition.method, "btree" | "brin"))
            .collect();
        let same = self.present.iter().map(|(item, _)| *item).eq(wanted.iter().copied());
        if same && self.twinned == tables {
            return Ok(());
        }
        let twins =
            tables.iter().filter_map(|table| self.twins.get(table)).flatten().map(|twin| literal(twin));
        let creates: Vec<String> =
            wanted.iter().map(|item| literal(&self.create(*item))).chain(twins).collect();
        let reset = format!("SELECT {schema}.hypopg_reset()");
        self.session.attempt(reset).await.map_err(|error| database("use hypopg", error))?;
        self.present.clear();
        self.twinned = tables;
        if creates.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT i.indexname::text FROM unnest(ARRAY[{}]) WITH ORDINALITY t(sql, place), \
             LATERAL {schema}.hypopg_create_index(t.sql) i ORDER BY t.place",
            creates.join(", ")
        );
        let rows = self.session.attempt(sql).await.map_err(|error| database("use hypopg", error))?;
        let names = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>();
        self.present =
            wanted.into_iter().zip(names.map_err(|error| database("use hypopg", error))?).collect();
        Ok(())
    }

    pub(super) fn create(&self, item: usize) -> String {
        let Item { candidate, definition } = &self.items[item];
        definition.create(&self.catalog.tables[candidate.table].full_name())
    }

    /// Adds an index to those that may be asked for, unless the database refuses it.
    pub(super) async fn add(&mut self, candidate: Candidate, share: f64) -> Result<Option<usize>, Error> {
        if let Some(known) = self.items.iter().position(|item| item.candidate == candidate) {
            return Ok(Some(known));
        }
        let Some(definition) = Definition::new(self.catalog, &candidate, share) else { return Ok(None) };
        let create = definition.create(&self.catalog.tables[candidate.table].full_name());
        if matches!(definition.method, "btree" | "brin") && !self.accepts(&create).await? {
            return Ok(None);
        }
        let item = Item { candidate, definition };
        if item.is_special() && !self.is_new(&item).await? {
            return Ok(None);
        }
        self.items.push(item);
        Ok(Some(self.items.len() - 1))
    }

    /// Whether the server takes such an index, tried on an empty table, and none is defined like it.
    async fn is_new(&mut self, item: &Item) -> Result<bool, Error> {
        let table = &self.catalog.tables[item.candidate.table];
        match self.session.defined(&table.full_name(), &item.definition.body).await {
            Ok(Some(definition)) => {
                let kind = |text: &str| text.split_once(" USING ").map(|(_, kind)| kind.to_owned());
                let kind_of_it = kind(&definition);
                Ok(!table.indexes.iter().any(|index| index.valid && kind(&index.definition) == kind_of_it))
            }
            // A role without temporary tables goes without the trial.
            Ok(None) => Ok(true),
            Err(sqlx::Error::Database(_)) => Ok(false),
            Err(error) => Err(database("try an index on an empty table", error)),
        }
    }

    /// Forgets the hypothetical indexes, which live in the server's memory and outlast a rollback.
    pub(super) async fn forget(&mut self) -> Result<(), Error> {
        self.pretend(&BTreeSet::new(), BTreeSet::new()).await
    }
}

/// The schema of hypopg, which is installed for as long as this transaction lasts where that is allowed.
async fn hypopg(session: &mut Session<'_>) -> Option<String> {
    let sql = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
               WHERE e.extname = 'hypopg'";
    let found =
        |rows: Vec<sqlx::postgres::PgRow>| rows.first().and_then(|row| row.try_get::<String, _>(0).ok());
    if let Some(schema) = found(session.attempt(sql.to_owned()).await.ok()?) {
        return Some(schema);
    }
    session.keep("CREATE EXTENSION hypopg".to_owned()).await.ok()?;
    found(session.attempt(sql.to_owned()).await.ok()?)
}

/// Visits the nodes of a plan.
pub(super) fn walk<'v>(node: &'v Value, visit: &mut impl FnMut(&'v Value)) {
    let mut rest = vec![node];
    while let Some(node) = rest.pop() {
        visit(node);
        rest.extend(node["Plans"].as_array().into_iter().flatten());
    }
}

/// What an inverted index would save of a plan that reads the table from end to end: hypopg knows no such index.
fn inverted(root: &Value, table: &str, pages: f64) -> f64 {
    let mut saved = 0.0_f64;
    walk(root, &mut |node| {
        if node["Node Type"] == "Seq Scan" && node["Relation Name"] == table {
            let (total, rows) = (node["Total Cost"].as_f64(), node["Plan Rows"].as_f64());
            if let (Some(total), Some(rows)) = (total, rows) {
                let cost = INVERTED_START + rows.min(pages) * INVERTED_ROW + rows * 0.03;
                saved = saved.max(total - cost);
            }
        }
    });
    saved
}
