//! A statement of the workload, understood.

use std::ops::ControlFlow;

use sqlparser::{
    ast::{Expr, LimitClause, Statement as Ast, TableFactor, Visit, Visitor},
    dialect::SQLiteDialect,
    parser::Parser,
};

use super::schema::Schema;
use crate::index_advisor::{
    WorkloadStatement,
    usage::{Parsed, Schema as _, parameters::replaced},
};

/// The rows that are taken to be wanted where a parameter says how many.
const USUAL_LIMIT: f64 = 20.0;

const AGGREGATES: [&str; 9] =
    ["avg", "count", "group_concat", "json_group_array", "max", "min", "string_agg", "sum", "total"];

pub(super) struct Statement {
    /// As it was given.
    pub(super) sql: String,
    /// The same, with a name for each parameter.
    pub(super) numbered: String,
    pub(super) calls: f64,
    pub(super) parsed: Parsed,
    /// The names under which it reads tables.
    pub(super) names: Vec<(String, usize)>,
    /// How many rows it wants at most.
    pub(super) limit: Option<f64>,
    /// Whether rows are made of several.
    pub(super) aggregates: bool,
    /// Whether it wants the least or the greatest value of a column, and nothing else.
    pub(super) extreme: bool,
}

impl Statement {
    pub(super) fn new(given: &WorkloadStatement, schema: &Schema) -> Result<Self, String> {
        let dialect = SQLiteDialect {};
        let mut number = 0;
        let numbered = replaced(&given.sql, &dialect, |name| {
            number += 1;
            if name == "?" { format!("?{number}") } else { name.to_owned() }
        });
        let parsed = Parsed::new(&numbered, &dialect, schema)?;
        let mut names = Names { schema, found: Vec::new(), depth: 0 };
        let statements = Parser::parse_sql(&dialect, &numbered).map_err(|error| error.to_string())?;
        let _ = statements.visit(&mut names);
        let limit = statements.first().and_then(limit);
        let aggregates = parsed.functions.iter().any(|function| AGGREGATES.contains(&function.as_str()))
            || parsed.uses.iter().any(|table_use| !table_use.group.is_empty());
        let extreme = aggregates && limit.is_none() && parsed.uses.iter().any(|table_use| table_use.limited);
        let (sql, names) = (given.sql.clone(), names.found);
        Ok(Self { sql, numbered, calls: given.calls, parsed, names, limit, aggregates, extreme })
    }

    /// The tables that it reads.
    pub(super) fn tables(&self) -> impl Iterator<Item = usize> + '_ {
        self.parsed.uses.iter().map(|table_use| table_use.table)
    }
}

fn limit(statement: &Ast) -> Option<f64> {
    let Ast::Query(query) = statement else { return None };
    let (limit, offset) = match query.limit_clause.as_ref()? {
        LimitClause::LimitOffset { limit, offset, .. } => {
            (limit.as_ref()?, offset.as_ref().map(|offset| &offset.value))
        }
        LimitClause::OffsetCommaLimit { offset, limit } => (limit, Some(offset)),
    };
    let number = |expr: &Expr| expr.to_string().parse::<f64>().ok();
    // The rows before the offset are read too. A negative limit is none.
    let limit = number(limit).unwrap_or(USUAL_LIMIT);
    (limit >= 0.0).then(|| limit + offset.and_then(number).unwrap_or(0.0))
}

/// Collects the names of tables, those in views included.
struct Names<'s> {
    schema: &'s Schema,
    found: Vec<(String, usize)>,
    depth: usize,
}

impl Visitor for Names<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { name, alias, .. } = factor else { return ControlFlow::Continue(()) };
        let Some(table) = name.0.last().and_then(|part| part.as_ident()) else {
            return ControlFlow::Continue(());
        };
        let shown = alias.as_ref().map_or(&table.value, |alias| &alias.name.value).to_lowercase();
        match self.schema.table(None, &table.value) {
            Some(number) => self.found.push((shown, number)),
            // Views may stand on views, but not on themselves.
            None if self.depth < 16 => {
                let view = self.schema.view(None, &table.value);
                if let Some(query) = view.and_then(|sql| Parser::parse_sql(&SQLiteDialect {}, &sql).ok()) {
                    self.depth += 1;
                    let _ = query.visit(self);
                    self.depth -= 1;
                }
            }
            None => {}
        }
        ControlFlow::Continue(())
    }
}
