//! FROM: tables, views, subqueries, and what joins them.

use sqlparser::{
    ast::{JoinConstraint, JoinOperator, Statement, TableAlias, TableFactor, TableWithJoins},
    dialect::GenericDialect,
    parser::Parser,
};

use super::{
    Key, Op, Operand, Predicate, TableUse,
    block::Walker,
    scope::{Calls, Outputs, Scope, Source, fold, parts},
};

/// Views within views are followed this deep.
const MAX_DEPTH: usize = 16;

impl Walker<'_> {
    /// Brings what FROM names into scope, and notes what joins it.
    pub(super) fn relations(&mut self, from: &[TableWithJoins], scope: &mut Scope) {
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
        let Some(definition) = self.schema.view(schema, name) else { return Source::Derived(outputs) };
        if self.depth < MAX_DEPTH
            && let Ok(statements) = Parser::parse_sql(&GenericDialect {}, &definition)
            && let [Statement::Query(query)] = statements.as_slice()
        {
            self.functions.extend(Calls::of(query.as_ref()).functions);
            self.depth += 1;
            outputs = self.query(query, None);
            self.depth -= 1;
        } else {
            // What it calls is not known: no function has this name.
            self.functions.insert(String::new());
        }
        Source::Derived(outputs)
    }

    /// What `*`, or `name.*`, stands for.
    pub(super) fn everything(&mut self, scope: &Scope, name: Option<&str>) -> Outputs {
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
}

/// Outputs under the names that an alias gives them.
pub(super) fn renamed(mut outputs: Outputs, alias: Option<&TableAlias>) -> Outputs {
    for (output, column) in outputs.iter_mut().zip(alias.iter().flat_map(|alias| &alias.columns)) {
        output.0 = fold(&column.name);
    }
    outputs
}
