//! Query blocks: what each reads, joins, groups and orders.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::{
    ast::{
        AssignmentTarget, Cte, Distinct, Expr, FromTable, FunctionArg, FunctionArgExpr, FunctionArguments,
        GroupByExpr, Ident, JoinConstraint, JoinOperator, LimitClause, ObjectName, OrderBy, OrderByExpr,
        OrderByKind, OrderBySort, Query, Select, SelectItem, SetExpr, Statement, TableAlias, TableFactor,
        TableObject, TableWithJoins, UpdateTableFromKind, Value, VisitMut, VisitorMut, WindowType,
    },
    dialect::GenericDialect,
    parser::Parser,
};
use std::ops::ControlFlow;

use super::{
    Key, Kind, Op, Operand, OrderKey, Parameter, Parsed, Predicate, Schema, TableUse,
    scope::{Mentions, Outputs, Scope, Source, fold, parts},
};

/// Views within views are followed this deep.
const MAX_DEPTH: usize = 16;

/// Walks one statement.
pub(super) struct Walker<'s> {
    pub(super) schema: &'s dyn Schema,
    pub(super) uses: Vec<TableUse>,
    pub(super) parameters: BTreeMap<String, Parameter>,
    functions: BTreeSet<String>,
    depth: usize,
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
        Self { schema, uses, parameters, functions, depth: 0 }
    }

    pub(super) fn statement(mut self, statement: Statement) -> Result<Parsed, String> {
        let kind = self.top(&statement)?;
        let unlocked = match statement {
            Statement::Query(mut query) if !query.locks.is_empty() => {
                query.locks.clear();
                Some(query.to_string())
            }
            _ => None,
        };
        let Self { mut uses, parameters, functions, .. } = self;
        for table_use in &mut uses {
            let mentioned = table_use.predicates.iter().chain(table_use.arms.iter().flatten());
            table_use.columns.extend(mentioned.flat_map(|predicate| predicate.key.columns()));
        }
        Ok(Parsed { kind, uses, parameters, functions, unlocked })
    }

    fn top(&mut self, statement: &Statement) -> Result<Kind, String> {
        let scope = Scope::default();
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
            Statement::Insert(insert) => {
                let TableObject::TableName(name) = &insert.table else {
                    return Err("it inserts into something that is not a table".to_owned());
                };
                let table = self.table(name)?;
                let rows = match insert.source.as_ref().map(|source| &*source.body) {
                    Some(SetExpr::Values(values)) => values.rows.len(),
                    _ => 1,
                };
                if let Some(source) = &insert.source {
                    self.query(source, None);
                }
                Ok(Kind::Insert { table, rows })
            }
            Statement::Update(update) => {
                let mut scope = Scope::within(None);
                self.relations(std::slice::from_ref(&update.table), &mut scope);
                let Some((_, Source::Table(target))) = scope.relations.first() else {
                    return Err("it updates something that is not a table of this database".to_owned());
                };
                let target = *target;
                if let Some(UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) =
                    &update.from
                {
                    self.relations(from, &mut scope);
                }
                let columns = self.assignments(update, target, &scope);
                self.filter(update.selection.as_ref(), &scope);
                // A row that is rewritten is read whole.
                self.whole_row(target);
                Ok(Kind::Update { table: self.uses[target].table, columns })
            }
            Statement::Delete(delete) => {
                let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
                let mut scope = Scope::within(None);
                self.relations(from, &mut scope);
                let Some((_, Source::Table(target))) = scope.relations.first() else {
                    return Err("it deletes from something that is not a table of this database".to_owned());
                };
                let target = *target;
                self.relations(delete.using.as_deref().unwrap_or_default(), &mut scope);
                self.filter(delete.selection.as_ref(), &scope);
                self.whole_row(target);
                Ok(Kind::Delete { table: self.uses[target].table })
            }
            _ => {
                let _ = scope;
                Err("it is neither a query nor a change of rows".to_owned())
            }
        }
    }

    fn table(&self, name: &ObjectName) -> Result<usize, String> {
        let (schema, table) = parts(name);
        let found = self.schema.table(schema.as_deref(), &table);
        found.ok_or_else(|| format!("there is no table {name} here"))
    }

    fn assignments(
        &mut self,
        update: &sqlparser::ast::Update,
        target: usize,
        scope: &Scope,
    ) -> BTreeSet<usize> {
        let mut columns = BTreeSet::new();
        for assignment in &update.assignments {
            let names = match &assignment.target {
                AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
                AssignmentTarget::Tuple(names) => names,
            };
            for name in names {
                if let Some(column) = self.schema.column(self.uses[target].table, &parts(name).1) {
                    columns.insert(column);
                    self.operand(&assignment.value, target, &Key::Column(column), Op::Equal, scope);
                }
            }
            self.read(&assignment.value, scope);
        }
        columns
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
                let _ = self.top(statement);
                Outputs::new()
            }
            SetExpr::Merge(_) | SetExpr::Table(_) => Outputs::new(),
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

    fn filter(&mut self, condition: Option<&Expr>, scope: &Scope) {
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
        for function in &mentions.functions {
            self.functions.insert(parts(&function.name).1.to_lowercase());
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

    /// Brings what FROM names into scope, and notes what joins it.
    fn relations(&mut self, from: &[TableWithJoins], scope: &mut Scope) {
        for TableWithJoins { relation, joins } in from {
            self.relation(relation, scope);
            for join in joins {
                self.relation(&join.relation, scope);
                let constraint = match &join.join_operator {
                    JoinOperator::Join(constraint)
                    | JoinOperator::Inner(constraint)
                    | JoinOperator::Left(constraint)
                    | JoinOperator::LeftOuter(constraint)
                    | JoinOperator::Right(constraint)
                    | JoinOperator::RightOuter(constraint)
                    | JoinOperator::FullOuter(constraint) => constraint,
                    _ => continue,
                };
                match constraint {
                    JoinConstraint::On(condition) => self.filter(Some(condition), scope),
                    JoinConstraint::Using(names) => {
                        let names: Vec<String> = names.iter().map(|name| parts(name).1).collect();
                        self.using(&names, scope);
                    }
                    JoinConstraint::Natural | JoinConstraint::None => {}
                }
            }
        }
    }

    fn using(&mut self, names: &[String], scope: &Scope) {
        for (_, source) in &scope.relations {
            for name in names {
                let base = match source {
                    Source::Table(of) => {
                        self.schema.column(self.uses[*of].table, name).map(|column| (*of, column))
                    }
                    Source::Derived(outputs) => {
                        outputs.iter().find(|(output, _)| output == name).and_then(|(_, base)| *base)
                    }
                };
                if let Some((of, column)) = base {
                    let key = Key::Column(column);
                    let join = Predicate { key, op: Op::Equal, operand: Operand::Join, constant: None };
                    self.uses[of].predicates.push(join);
                }
            }
        }
    }

    fn relation(&mut self, factor: &TableFactor, scope: &mut Scope) {
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let (schema, table) = parts(name);
                let known = alias.as_ref().map_or_else(|| table.clone(), |alias| fold(&alias.name));
                let expression = if schema.is_none() { scope.expression(&table).cloned() } else { None };
                let source = match expression {
                    Some(outputs) => Source::Derived(renamed(outputs, alias.as_ref())),
                    None => self.named(schema.as_deref(), &table),
                };
                scope.relations.push((known, source));
            }
            TableFactor::Derived { subquery, alias, .. } => {
                let outputs = renamed(self.query(subquery, Some(scope)), alias.as_ref());
                let known = alias.as_ref().map(|alias| fold(&alias.name)).unwrap_or_default();
                scope.relations.push((known, Source::Derived(outputs)));
            }
            TableFactor::NestedJoin { table_with_joins, .. } => {
                self.relations(std::slice::from_ref(table_with_joins), scope);
            }
            _ => {}
        }
    }

    /// A table or a view.
    fn named(&mut self, schema: Option<&str>, name: &str) -> Source {
        if let Some(table) = self.schema.table(schema, name) {
            self.uses.push(TableUse { table, ..TableUse::default() });
            return Source::Table(self.uses.len() - 1);
        }
        let mut outputs = Outputs::new();
        if self.depth < MAX_DEPTH
            && let Some(definition) = self.schema.view(schema, name)
            && let Ok(statements) = Parser::parse_sql(&GenericDialect {}, &definition)
            && let [Statement::Query(query)] = statements.as_slice()
        {
            self.depth += 1;
            outputs = self.query(query, None);
            self.depth -= 1;
        }
        Source::Derived(outputs)
    }

    /// What `*`, or `name.*`, stands for.
    fn everything(&mut self, scope: &Scope, name: Option<&str>) -> Outputs {
        let mut outputs = Outputs::new();
        for (relation, source) in &scope.relations {
            if name.is_some_and(|name| name != relation) {
                continue;
            }
            match source {
                Source::Table(of) => {
                    self.whole_row(*of);
                    let columns = self.schema.columns(self.uses[*of].table).into_iter().enumerate();
                    outputs.extend(columns.map(|(column, name)| (name, Some((*of, column)))));
                }
                Source::Derived(inner) => outputs.extend(inner.iter().cloned()),
            }
        }
        outputs
    }

    fn whole_row(&mut self, of: usize) {
        let columns = self.schema.columns(self.uses[of].table).len();
        self.uses[of].columns.extend(0..columns);
    }
}

/// Outputs under the names that an alias gives them.
fn renamed(mut outputs: Outputs, alias: Option<&TableAlias>) -> Outputs {
    for (output, column) in outputs.iter_mut().zip(alias.iter().flat_map(|alias| &alias.columns)) {
        output.0 = fold(&column.name);
    }
    outputs
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

fn only_argument(function: &sqlparser::ast::Function) -> Option<(String, &Expr)> {
    let FunctionArguments::List(list) = &function.args else { return None };
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))] => {
            Some((parts(&function.name).1.to_lowercase(), expr))
        }
        _ => None,
    }
}

fn is_aggregate(function: &sqlparser::ast::Function) -> bool {
    let name = parts(&function.name).1.to_lowercase();
    let star = matches!(&function.args, FunctionArguments::List(list)
        if matches!(list.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]));
    star || function.filter.is_some()
        || [
            "count",
            "sum",
            "avg",
            "min",
            "max",
            "array_agg",
            "string_agg",
            "json_agg",
            "jsonb_agg",
            "bool_or",
            "bool_and",
            "every",
            "total",
            "group_concat",
            "stddev",
            "variance",
        ]
        .contains(&name.as_str())
}
