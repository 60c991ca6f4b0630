//! Names: which table a column belongs to.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use sqlparser::ast::{
    Expr, Function, Ident, ObjectName, Query, TableFactor, Value, ValueWithSpan, Visit, Visitor,
};

use super::{Schema, TableUse};

/// The columns of a query's result: the name, and the column of which use it passes on.
pub(super) type Outputs = Vec<(String, Option<(usize, usize)>)>;

/// What a name in FROM stands for.
pub(super) enum Source {
    /// A table, by its use.
    Table(usize),
    /// A subquery, a view, or a common table expression.
    Derived(Outputs),
}

/// The names that an expression may use.
#[derive(Default)]
pub(super) struct Scope<'p> {
    pub(super) parent: Option<&'p Scope<'p>>,
    pub(super) relations: Vec<(String, Source)>,
    pub(super) expressions: BTreeMap<String, Outputs>,
}

impl<'p> Scope<'p> {
    pub(super) fn within(parent: Option<&'p Self>) -> Self {
        Self { parent, ..Self::default() }
    }

    /// The common table expression of that name.
    pub(super) fn expression(&self, name: &str) -> Option<&Outputs> {
        self.expressions.get(name).or_else(|| self.parent?.expression(name))
    }

    /// The use and the column that a name means, here or in a query around this one.
    pub(super) fn resolve(
        &self,
        uses: &[TableUse],
        schema: &dyn Schema,
        name: &[Ident],
    ) -> Option<(usize, usize)> {
        let (column, qualifier) = name.split_last()?;
        let (column, qualifier) = (fold(column), qualifier.last().map(fold));
        for (relation, source) in &self.relations {
            if qualifier.as_ref().is_some_and(|qualifier| qualifier != relation) {
                continue;
            }
            match source {
                Source::Table(of) => {
                    if let Some(column) = schema.column(uses[*of].table, &column) {
                        return Some((*of, column));
                    }
                }
                Source::Derived(outputs) => {
                    if let Some((_, base)) = outputs.iter().find(|(name, _)| *name == column) {
                        return *base;
                    }
                }
            }
        }
        self.parent?.resolve(uses, schema, name)
    }
}

/// An unquoted name means the same in any case.
pub(super) fn fold(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

/// The last two parts of a name.
pub(super) fn parts(name: &ObjectName) -> (Option<String>, String) {
    let mut parts = name.0.iter().rev().filter_map(|part| part.as_ident()).map(fold);
    let name = parts.next().unwrap_or_default();
    (parts.next(), name)
}

/// What an expression mentions, apart from its subqueries.
#[derive(Default)]
pub(super) struct Mentions {
    pub(super) columns: Vec<Vec<Ident>>,
    pub(super) queries: Vec<Query>,
    pub(super) functions: Vec<Function>,
    pub(super) placeholders: Vec<String>,
    depth: usize,
}

impl Mentions {
    pub(super) fn of(part: &impl Visit) -> Self {
        let mut mentions = Self::default();
        let _ = part.visit(&mut mentions);
        mentions
    }

    /// Whether it has the same value for every row.
    pub(super) fn is_constant(&self) -> bool {
        self.columns.is_empty() && self.queries.is_empty()
    }

    /// Whether it is made of literals alone.
    pub(super) fn is_literal(&self) -> bool {
        self.is_constant() && self.functions.is_empty() && self.placeholders.is_empty()
    }
}

/// The functions that a statement calls wherever it does, and whether it locks rows.
#[derive(Default)]
pub(super) struct Calls {
    pub(super) functions: BTreeSet<String>,
    pub(super) locks: bool,
}

impl Calls {
    pub(super) fn of(part: &impl Visit) -> Self {
        let mut calls = Self::default();
        let _ = part.visit(&mut calls);
        calls
    }
}

impl Visitor for Calls {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.locks |= !query.locks.is_empty();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            self.functions.insert(parts(&function.name).1);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } = factor {
            self.functions.insert(parts(name).1);
        }
        ControlFlow::Continue(())
    }
}

impl Visitor for Mentions {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.queries.push(query.clone());
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.depth == 0 {
            match expr {
                Expr::Identifier(name) => self.columns.push(vec![name.clone()]),
                Expr::CompoundIdentifier(name) => self.columns.push(name.clone()),
                Expr::Function(function) => self.functions.push(function.clone()),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if let Value::Placeholder(name) = &value.value
            && self.depth == 0
        {
            self.placeholders.push(name.clone());
        }
        ControlFlow::Continue(())
    }
}
