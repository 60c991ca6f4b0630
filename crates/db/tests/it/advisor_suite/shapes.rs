//! What services ask of their databases, and the index that an experienced engineer would create for it.

mod filters;
mod joins;
mod lists;
mod others;

/// Statements that are advised on together, and the best that can be done for them.
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// Indexes that are there already.
    pub(super) existing: &'static [&'static str],
    pub(super) statements: &'static [Statement],
    /// The best known indexes, each as what follows `CREATE INDEX ON`; none where an index does not pay.
    pub(super) best: &'static [&'static str],
    /// Sets of indexes that come to mind too, and that the best known ones beat.
    pub(super) rivals: &'static [&'static [&'static str]],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    pub(super) sql: &'static str,
    /// What its placeholders stand for where it is executed.
    pub(super) values: &'static [&'static str],
    pub(super) calls: f64,
}

impl Shape {
    pub(super) fn only_reads(&self) -> bool {
        self.statements.iter().all(Statement::only_reads)
    }
}

impl Statement {
    pub(super) fn only_reads(&self) -> bool {
        !["INSERT", "UPDATE", "DELETE"].iter().any(|verb| self.sql.starts_with(verb))
    }
}

const fn often(sql: &'static str, values: &'static [&'static str]) -> Statement {
    Statement { sql, values, calls: 1000.0 }
}

/// A shape without existing indexes.
const fn shape(
    name: &'static str,
    statements: &'static [Statement],
    best: &'static [&'static str],
    rivals: &'static [&'static [&'static str]],
) -> Shape {
    Shape { name, existing: &[], statements, best, rivals }
}

pub(super) fn all() -> impl Iterator<Item = &'static Shape> {
    let groups = [
        lists::LISTS,
        filters::FILTERS,
        joins::JOINS,
        joins::SPELLINGS,
        others::AGGREGATES,
        others::WRITES,
        others::NOTHING,
    ];
    groups.into_iter().flatten()
}
