//! Query blocks: what each reads, joins, groups and orders.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::{
    Cte, Distinct, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, LimitClause,
    OrderBy, OrderByExpr, OrderByKind, OrderBySort, Query, Select, SelectItem, SetExpr, Statement, Value,
    WindowType,
};

use super::{
    Key, Kind, Op, Operand, OrderKey, Parameter, Parsed, Predicate, Schema, TableUse,
    from::renamed,
    scope::{Calls, Mentions, Outputs, Scope, fold, parts},
};

/// Walks one statement.
pub(super) struct Walker<'s> {
    pub(super) schema: &'s dyn Schema,
    pub(super) uses: Vec<TableUse>,
    pub(super) parameters: BTreeMap<String, Parameter>,
    pub(super) functions: BTreeSet<String>,
    writes: bool,
    pub(super) depth: usize,
}

/// What surrounds a block and says how many of its rows are wanted, in which order.
#[derive(Clone, Copy, Default)]
struct Wanted<'q> {
    order: Option<&'q OrderBy>,
    limited: bool,
}

impl<'s> Walker<'s> {
    pub(super) fn new(schema: &'s dyn Schema) -> Self {
        let (uses, parameters, functions) = Default::default();
        Self { schema, uses, parameters, functions, writes: false, depth: 0 }
    }

    pub(super) fn statement(mut self, statement: Statement) -> Result<Parsed, String> {
        let kind = self.top(&statement)?;
        let mut calls = Calls::of(&statement);
        let unlocked = match statement {
            Statement::Query(mut query) if !query.locks.is_empty() => {
                query.locks.clear();
                // Those within stay, and keep it from being executed.
                calls.locks = Calls::of(&query).locks;
                Some(query.to_string())
            }
            _ => None,
        };
        self.writes |= calls.locks;
        self.functions.extend(calls.functions);
        let Self { mut uses, parameters, functions, writes, .. } = self;
        for table_use in &mut uses {
            let mentioned = table_use.predicates.iter().chain(table_use.arms.iter().flatten());
            table_use.columns.extend(mentioned.flat_map(|predicate| predicate.key.columns()));
        }
        let only_reads = kind == Kind::Read && !writes;
        Ok(Parsed { kind, only_reads, uses, parameters, functions, unlocked })
    }

    fn top(&mut self, statement: &Statement) -> Result<Kind, String> {
        match statement {
            Statement::Query(query) => {
                self.query(query, None);
                Ok(match &*query.body {
                    SetExpr::Insert(inner) | SetExpr::Update(inner) | SetExpr::Delete(inner) => {
                        self.top(inner)?
                    }
                    _ => Kind::Read,
                })
            }
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            _ => Err("it is neither a query nor a change of rows".to_owned()),
        }
    }

    /// Walks a query, and says what its columns pass on.
    pub(super) fn query(&mut self, query: &Query, parent: Option<&Scope>) -> Outputs {
        let mut scope = Scope::within(parent);
        for Cte { alias, query: inner, .. } in query.with.iter().flat_map(|with| &with.cte_tables) {
            let name = fold(&alias.name);
            // A recursive one sees itself.
            scope.expressions.insert(name.clone(), Outputs::new());
            let outputs = renamed(self.query(inner, Some(&scope)), Some(alias));
            scope.expressions.insert(name, outputs);
        }
        let limited = self.limit(query);
        let wanted = Wanted { order: query.order_by.as_ref(), limited };
        self.body(&query.body, wanted, &scope)
    }

    fn limit(&mut self, query: &Query) -> bool {
        let limit = match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                self.count(offset.as_ref().map(|offset| &offset.value), Parameter::Offset);
                limit.as_ref()
            }
            Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
                self.count(Some(offset), Parameter::Offset);
                Some(limit)
            }
            None => query.fetch.as_ref().and_then(|fetch| fetch.quantity.as_ref()),
        };
        self.count(limit, Parameter::Limit);
        limit.is_some() || query.fetch.is_some()
    }

    fn count(&mut self, expr: Option<&Expr>, parameter: Parameter) {
        for name in expr.map(|expr| Mentions::of(expr).placeholders).unwrap_or_default() {
            self.parameters.insert(name, parameter.clone());
        }
    }

    fn body(&mut self, body: &SetExpr, wanted: Wanted, scope: &Scope) -> Outputs {
        match body {
            SetExpr::Select(select) => self.select(select, wanted, scope),
            SetExpr::Query(query) => self.query(query, Some(scope)),
            SetExpr::SetOperation { left, right, .. } => {
                let outputs = self.body(left, Wanted::default(), scope);
                self.body(right, Wanted::default(), scope);
                // Its rows come from either side.
                outputs.into_iter().map(|(name, _)| (name, None)).collect()
            }
            SetExpr::Values(values) => {
                for expr in values.rows.iter().flat_map(|row| row.iter()) {
                    self.read(expr, scope);
                }
                Outputs::new()
            }
            SetExpr::Insert(statement) | SetExpr::Update(statement) | SetExpr::Delete(statement) => {
                // Within a WITH: what it finds its rows by matters, what it writes is not told apart.
                self.writes = true;
                let _ = self.top(statement);
                Outputs::new()
            }
            SetExpr::Merge(_) => {
                self.writes = true;
                Outputs::new()
            }
            SetExpr::Table(_) => Outputs::new(),
        }
    }

    fn select(&mut self, select: &Select, wanted: Wanted, parent: &Scope) -> Outputs {
        let mut scope = Scope::within(Some(parent));
        self.relations(&select.from, &mut scope);
        self.filter(select.selection.as_ref(), &scope);
        if let Some(having) = &select.having {
            self.read(having, &scope);
        }
        let mut outputs = Outputs::new();
        let mut items: Vec<(Option<String>, &Expr)> = Vec::new();
        for item in &select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) => items.push((None, expr)),
                SelectItem::ExprWithAlias { expr, alias } => items.push((Some(fold(alias)), expr)),
                SelectItem::QualifiedWildcard(kind, _) => {
                    let name = kind.to_string().to_lowercase();
                    outputs.extend(self.everything(&scope, name.strip_suffix(".*")));
                }
                _ => outputs.extend(self.everything(&scope, None)),
            }
        }
        for (alias, expr) in &items {
            self.read(expr, &scope);
            let name = match expr {
                Expr::Identifier(name) => Some(fold(name)),
                Expr::CompoundIdentifier(names) => names.last().map(fold),
                _ => None,
            };
            let base = match &name {
                Some(_) => self.key(expr, &scope),
                None => None,
            };
            let base = base
                .and_then(|(of, key)| if let Key::Column(column) = key { Some((of, column)) } else { None });
            outputs.push((alias.clone().or(name).unwrap_or_default(), base));
        }
        self.group(select, &items, &scope);
        self.orders(select, wanted, &items, &scope);
        outputs
    }

    /// Grouping, and `DISTINCT`.
    fn group(&mut self, select: &Select, items: &[(Option<String>, &Expr)], scope: &Scope) {
        if let GroupByExpr::Expressions(exprs, _) = &select.group_by {
            for expr in exprs {
                let expr = output(expr, items);
                self.read(expr, scope);
                if let Some((of, key)) = self.key(expr, scope) {
                    self.uses[of].group.push(key);
                }
            }
        }
        if let Some(Distinct::Distinct) = &select.distinct {
            for (_, expr) in items {
                if let Some((of, key)) = self.key(expr, scope) {
                    self.uses[of].group.push(key);
                }
            }
        }
    }

    /// The order that is wanted: by ORDER BY, by DISTINCT ON, by min or max, by a window.
    fn orders(&mut self, select: &Select, wanted: Wanted, items: &[(Option<String>, &Expr)], scope: &Scope) {
        let aggregates = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
        if let Some(OrderBy { kind: OrderByKind::Expressions(order), .. }) = wanted.order {
            let by: Vec<(&Expr, &OrderByExpr)> =
                order.iter().map(|part| (output(&part.expr, items), part)).collect();
            by.iter().for_each(|(expr, _)| self.read(expr, scope));
            if !aggregates {
                self.order(&by, wanted.limited, scope);
            }
        }
        if let (Some(Distinct::On(exprs)), None) = (&select.distinct, wanted.order) {
            for expr in exprs {
                if let Some((of, key)) = self.key(expr, scope) {
                    self.uses[of].group.push(key);
                }
            }
        }
        if let [(_, Expr::Function(function))] = items
            && wanted.order.is_none()
            && !aggregates
            && let Some((name, expr)) = only_argument(function)
            && let "min" | "max" = name.as_str()
            && let Some((of, key)) = self.key(expr, scope)
        {
            self.uses[of].order = vec![OrderKey { key, descending: name == "max", nulls_first: None }];
            self.uses[of].limited = true;
        }
        for (_, expr) in items {
            for function in Mentions::of(*expr).functions {
                if let Some(WindowType::WindowSpec(window)) = &function.over {
                    let order: Vec<OrderByExpr> = window
                        .partition_by
                        .iter()
                        .map(|expr| OrderByExpr {
                            expr: expr.clone(),
                            options: Default::default(),
                            with_fill: None,
                        })
                        .chain(window.order_by.iter().cloned())
                        .collect();
                    let by: Vec<(&Expr, &OrderByExpr)> =
                        order.iter().map(|part| (&part.expr, part)).collect();
                    self.order(&by, false, scope);
                }
            }
        }
    }

    /// Notes the leading part of an order that belongs to one table.
    fn order(&mut self, by: &[(&Expr, &OrderByExpr)], limited: bool, scope: &Scope) {
        let mut owner = None;
        let mut keys = Vec::new();
        for (expr, part) in by {
            match self.key(expr, scope) {
                Some((of, key)) if owner.is_none_or(|owner| owner == of) => {
                    owner = Some(of);
                    let descending = matches!(part.options.sort, Some(OrderBySort::Desc));
                    keys.push(OrderKey { key, descending, nulls_first: part.options.nulls_first });
                }
                _ => break,
            }
        }
        if let Some(of) = owner
            && self.uses[of].order.is_empty()
        {
            self.uses[of].order = keys;
            self.uses[of].limited = limited;
        }
    }

    pub(super) fn filter(&mut self, condition: Option<&Expr>, scope: &Scope) {
        if let Some(condition) = condition {
            self.condition(condition, scope);
            self.read(condition, scope);
        }
    }

    /// Notes the columns that an expression reads, and walks its subqueries.
    pub(super) fn read(&mut self, expr: &Expr, scope: &Scope) {
        let mentions = Mentions::of(expr);
        for name in &mentions.columns {
            if let Some((of, column)) = self.resolve(name, scope) {
                self.uses[of].columns.insert(column);
            }
        }
        for query in &mentions.queries {
            let outputs = self.query(query, Some(scope));
            self.member_of(expr, query, &outputs);
        }
    }

    /// `key IN (SELECT column …)` looks that column up, when the planner begins with the key.
    fn member_of(&mut self, expr: &Expr, query: &Query, outputs: &Outputs) {
        if let Some((_, Some((of, column)))) = outputs.first()
            && super::predicate::conjuncts(expr).into_iter().any(|part| {
                matches!(part, Expr::InSubquery { subquery, negated: false, .. } if **subquery == *query)
            })
        {
            let key = Key::Column(*column);
            let join = Predicate { key, op: Op::Equal, operand: Operand::Join, constant: None };
            self.uses[*of].predicates.push(join);
        }
    }

    pub(super) fn whole_row(&mut self, of: usize) {
        let columns = self.schema.columns(self.uses[of].table).len();
        self.uses[of].columns.extend(0..columns);
    }
}

/// The selected expression that ORDER BY or GROUP BY means by a number or a name.
fn output<'e>(expr: &'e Expr, items: &[(Option<String>, &'e Expr)]) -> &'e Expr {
    let found = match expr {
        Expr::Identifier(name) => {
            let name = fold(name);
            items.iter().find(|(alias, _)| alias.as_ref() == Some(&name)).map(|(_, expr)| *expr)
        }
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => {
                let position = number.to_string().parse::<usize>().ok();
                position.and_then(|position| items.get(position.checked_sub(1)?)).map(|(_, expr)| *expr)
            }
            _ => None,
        },
        _ => None,
    };
    found.unwrap_or(expr)
}

fn only_argument(function: &Function) -> Option<(String, &Expr)> {
    let FunctionArguments::List(list) = &function.args else { return None };
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))] => {
            Some((parts(&function.name).1.to_lowercase(), expr))
        }
        _ => None,
    }
}
