//! Keys: which expressions an index could have.

use std::{collections::BTreeSet, ops::ControlFlow};

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, VisitMut, VisitorMut,
};

use super::{
    Key,
    block::Walker,
    scope::{Mentions, Scope, parts},
};

const AGGREGATES: [&str; 16] = [
    "array_agg",
    "avg",
    "bool_and",
    "bool_or",
    "count",
    "every",
    "group_concat",
    "json_agg",
    "jsonb_agg",
    "max",
    "min",
    "stddev",
    "string_agg",
    "sum",
    "total",
    "variance",
];

impl Walker<'_> {
    pub(super) fn resolve(&self, name: &[Ident], scope: &Scope) -> Option<(usize, usize)> {
        scope.resolve(&self.uses, self.schema, name)
    }

    /// The use and the key that an expression is: a column, or an expression over the columns of one table.
    pub(super) fn key(&self, expr: &Expr, scope: &Scope) -> Option<(usize, Key)> {
        match expr {
            Expr::Nested(inner) => return self.key(inner, scope),
            Expr::Identifier(name) => {
                let (of, column) = self.resolve(std::slice::from_ref(name), scope)?;
                return Some((of, Key::Column(column)));
            }
            Expr::CompoundIdentifier(names) => {
                let (of, column) = self.resolve(names, scope)?;
                return Some((of, Key::Column(column)));
            }
            Expr::Tuple(_) | Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
                return None;
            }
            _ => {}
        }
        let mentions = Mentions::of(expr);
        if !mentions.placeholders.is_empty() || !mentions.queries.is_empty() {
            return None;
        }
        if mentions.functions.iter().any(|function| function.over.is_some() || is_aggregate(function)) {
            return None;
        }
        let mut columns = BTreeSet::new();
        let mut owner = None;
        for name in &mentions.columns {
            let (of, column) = self.resolve(name, scope)?;
            if *owner.get_or_insert(of) != of {
                return None;
            }
            columns.insert(column);
        }
        Some((owner?, Key::Expression(self.unqualified(expr), columns)))
    }

    /// An expression's text, without the names of tables.
    pub(super) fn unqualified(&self, expr: &Expr) -> String {
        struct Strip;
        impl VisitorMut for Strip {
            type Break = ();
            fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
                if let Expr::CompoundIdentifier(names) = expr
                    && let Some(last) = names.pop()
                {
                    *expr = Expr::Identifier(last);
                }
                ControlFlow::Continue(())
            }
        }
        let mut expr = expr.clone();
        let _ = VisitMut::visit(&mut expr, &mut Strip);
        expr.to_string()
    }
}

fn is_aggregate(function: &Function) -> bool {
    let name = parts(&function.name).1.to_lowercase();
    let star = matches!(&function.args, FunctionArguments::List(list)
        if matches!(list.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]));
    star || function.filter.is_some() || AGGREGATES.contains(&name.as_str())
}
